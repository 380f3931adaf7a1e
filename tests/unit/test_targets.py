"""What a command is to write is checked before any work: nothing but a new or a regular file is ever replaced."""

import dataclasses
import inspect
import itertools
import os
import shutil
import socket
import stat

import numpy as np
import pytest
from commandline import darklens

from darklens import populations
from darklens.cli import app
from darklens.errors import InputError
from darklens.files import write_text
from darklens.locate import SHIPPED
from darklens.simulate.generate import generate
from darklens.targets import check_targets

# Words of each command that writes, with {} in place of the target, and what the target is.
COMMANDS = {
    "predict": ("predict bundle lens.npy --workers 1 --out {}", "file"),
    "predict a list": ("predict bundle @list.txt --workers 1 --out {}", "file"),
    "predict --maps": ("predict bundle lens.npy --out table.csv --maps {}", "folder"),
    "fit": ("fit lens.npy --pixel-scale 0.05 --out {}", "file"),
    "fit --maps": ("fit lens.npy --pixel-scale 0.05 --out table.csv --maps {}", "folder"),
    "fit --report": ("fit lens.npy --pixel-scale 0.05 --out table.csv --report {}", "file"),
    "search": ("search lens.npy --pixel-scale 0.05 --out {}", "file"),
    "search --maps": ("search lens.npy --pixel-scale 0.05 --out table.csv --maps {}", "folder"),
    "search --report": ("search lens.npy --pixel-scale 0.05 --out table.csv --report {}", "file"),
    "explain": ("explain bundle lens.npy --out {}", "folder"),
    "evaluate": ("evaluate bundle store --out {}", "folder"),
    "compare": ("compare evaluated evaluated --out {}", "folder"),
    "simulate": ("simulate common-test-i --n-per-class 1 --out {}", "folder"),
    "simulate --format": ("simulate common-test-i --n-per-class 1 --format deeplense --out {}", "folder"),
    "import": ("import arrays.npz --out {}", "folder"),
    "doctor": ("doctor store --out {}", "file"),
    "train": ("train resnet_simple --data store --out {}", "folder"),
    "tune": ("tune resnet_simple --data store --trials 1 --out {}", "folder"),
    "ensemble": ("ensemble bundle bundle --out {}", "folder"),
    "calibrate": ("calibrate bundle store --out {}", "folder"),
    "export": ("export bundle --onnx {}", "file"),
}
OUTPUT_OPTIONS = {"out", "onnx", "maps", "report"}

FILES = [name for name, (_, kind) in COMMANDS.items() if kind == "file"]
FOLDERS = [name for name, (_, kind) in COMMANDS.items() if kind == "folder"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A small store, a bundle, an evaluation, images and a list of them."""
    root = tmp_path_factory.mktemp("inputs")
    generate(populations.get("common-test-i", ["field.n_pixels=64"]), root / "store", n_per_class=1, seed=1)
    shutil.copytree(str(SHIPPED / "lens_residual"), root / "bundle")
    (root / "evaluated").mkdir()
    (root / "evaluated" / "eval.json").write_text("{}")
    np.save(root / "lens.npy", np.random.default_rng(0).random((64, 64)))
    np.savez(root / "arrays.npz", images=np.ones((2, 8, 8)), labels=[0, 1])
    (root / "list.txt").write_text("lens.npy\n")
    return root


@pytest.fixture
def work(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _fifo(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def _dangling(path):
    path.symlink_to("nothing-here")


def _looping(path):
    path.symlink_to(path.name)


def _link_to_fifo(path):
    os.mkfifo("pipe")
    path.symlink_to("pipe")


SPECIAL = {"fifo": _fifo, "socket": _socket, "dangling": _dangling, "looping": _looping, "link to fifo": _link_to_fifo}


def _contents(root):
    """Return the type and the bytes of everything below a folder."""
    entries = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        entries[str(path.relative_to(root))] = stat.S_IFMT(mode), path.read_bytes() if stat.S_ISREG(mode) else b""
    return entries


def _assert_refused(work, capsys, name, target):
    """Run a command on a target; it must end with one sentence and exit code 2 and change nothing."""
    before = _contents(work)
    words = [str(target) if word == "{}" else word for word in COMMANDS[name][0].split()]
    assert darklens(*words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "Unexpected" not in message
    assert os.path.basename(target) in message
    assert _contents(work) == before


def test_every_option_that_names_an_output_is_in_the_table():
    options = set()
    for name in app:
        if name.startswith("-") or name in {"config"}:
            continue
        parameters = inspect.signature(app[name].default_command).parameters.values()
        groups = [p.annotation for p in parameters if dataclasses.is_dataclass(p.annotation)]
        names = {p.name for p in parameters} | {field.name for group in groups for field in dataclasses.fields(group)}
        options |= {(name, option) for option in OUTPUT_OPTIONS & names}
    tested = {(words.split()[0], words.split()[-2].removeprefix("--")) for words, _ in COMMANDS.values()}
    assert options == tested


# Every command with one kind, every kind with a file and a folder: all commands make the same check.
PAIRS = {*zip(COMMANDS, itertools.cycle(SPECIAL)), *itertools.product(("predict", "evaluate"), SPECIAL)}


@pytest.mark.parametrize(("name", "kind"), sorted(PAIRS))
def test_output_replaces_no_fifo_socket_or_bad_link(work, capsys, name, kind):
    SPECIAL[kind](work / "target")
    _assert_refused(work, capsys, name, "target")


@pytest.mark.parametrize("name", FILES)
def test_output_file_that_is_a_folder_is_noticed_before_the_work(work, capsys, name):
    (work / "target").mkdir()
    _assert_refused(work, capsys, name, "target")


@pytest.mark.parametrize("name", FOLDERS)
def test_output_folder_that_is_a_file_is_noticed_before_the_work(work, capsys, name):
    (work / "target").write_text("kept")
    _assert_refused(work, capsys, name, "target")


@pytest.mark.parametrize("name", COMMANDS)
def test_output_below_a_file_is_noticed_before_the_work(work, capsys, name):
    (work / "file").write_text("kept")
    _assert_refused(work, capsys, name, "file/target")


@pytest.mark.parametrize("name", COMMANDS)
def test_output_where_nothing_can_be_created_is_noticed_before_the_work(work, capsys, name):
    _assert_refused(work, capsys, name, "/proc/target")


@pytest.mark.parametrize("name", COMMANDS)
def test_output_with_a_name_that_is_too_long_is_noticed_before_the_work(work, capsys, name):
    _assert_refused(work, capsys, name, "a" * 300)


@pytest.mark.parametrize("name", FILES)
def test_output_does_not_replace_a_standard_stream(work, capsys, name):
    _assert_refused(work, capsys, name, "/dev/stdout")


INPUT_FILES = {
    "predict": ["lens.npy", "bundle/model.safetensors", "bundle/new.csv"],
    "predict a list": ["lens.npy", "list.txt", "bundle/bundle.json"],
    "fit": ["lens.npy"],
    "search": ["lens.npy"],
    "doctor": ["store/store.json", "store/shards/00000.images.npy", "store/new.json"],
    "export": ["bundle/bundle.json", "bundle/model.safetensors"],
}
INPUT_FOLDERS = {
    "predict --maps": ["lens.npy", "bundle", "bundle/maps"],
    "fit --maps": ["lens.npy"],
    "explain": ["lens.npy", "bundle", "bundle/new"],
    "evaluate": ["store", "bundle", "store/shards", "store/new"],
    "compare": ["evaluated"],
    "import": ["arrays.npz"],
    "train": ["store", "store/new"],
    "tune": ["store", "store/new"],
    "ensemble": ["bundle", "bundle/new"],
    "calibrate": ["store", "bundle", "bundle/new"],
}
CASES = [(name, path) for table in (INPUT_FILES, INPUT_FOLDERS) for name, paths in table.items() for path in paths]


@pytest.mark.parametrize(("name", "path"), CASES)
def test_output_does_not_overwrite_an_input(work, capsys, name, path):
    (work / "evaluated" / "report.html").write_text("kept")
    _assert_refused(work, capsys, name, path)


@pytest.mark.parametrize("link", ["symbolic", "hard"])
@pytest.mark.parametrize(
    ("name", "path"), [(n, p) for n, paths in INPUT_FILES.items() for p in paths if "new" not in p]
)
def test_output_does_not_overwrite_an_input_by_another_name(work, capsys, name, path, link):
    if link == "hard":
        (work / "target").hardlink_to(path)
    else:
        (work / "target").symlink_to(path)
    _assert_refused(work, capsys, name, "target")


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("evaluate", "eval.json"),
        ("compare", "compare.md"),
        ("calibrate", "bundle.json"),
        ("simulate", "store.json"),
        ("train", "state.json"),
        ("tune", "study.json"),
    ],
)
def test_output_folder_with_a_fifo_in_place_of_a_file_is_noticed_before_the_work(work, capsys, name, inside):
    (work / "target").mkdir()
    os.mkfifo(work / "target" / inside)
    before = _contents(work)
    words = [str(work / "target") if word == "{}" else word for word in COMMANDS[name][0].split()]
    assert darklens(*words) == 2
    assert f"{inside} is a FIFO" in capsys.readouterr().err
    assert _contents(work) == before


def test_outputs_of_one_command_do_not_replace_each_other(work, capsys):
    assert darklens("predict", "bundle", "lens.npy", "--out", "target", "--maps", "target") == 2
    assert darklens("predict", "bundle", "lens.npy", "--out", "target", "--maps", "target/maps") == 2
    assert "target" in capsys.readouterr().err
    assert not (work / "target").exists()


def test_devices_are_no_targets():
    for path in ("/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        with pytest.raises(InputError):
            check_targets(files=[type(SHIPPED)(path)])


def test_a_link_to_a_device_is_no_target(tmp_path):
    (tmp_path / "link").symlink_to("/dev/stdout")
    with pytest.raises(InputError):
        check_targets(files=[tmp_path / "link"])


def test_new_files_folders_and_links_to_files_are_targets(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to("old")
    check_targets(files=[tmp_path / "old", tmp_path / "a" / "new"], folders=[tmp_path, tmp_path / "b" / "c"])
    check_targets(files=[tmp_path / "link"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "old"]


def test_python_follows_a_link_and_replaces_no_fifo(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to("old")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "old").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="FIFO"):
        write_text(tmp_path / "fifo", "new")
