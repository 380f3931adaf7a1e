"""FIFOs and devices in folders that commands read, such as those of others: one sentence and no endless wait."""

import os
import shutil
from pathlib import Path

import pytest
from archives import small_bundle
from commandline import darklens

from darklens.bundle import Bundle
from darklens.config import read_yaml
from darklens.data.store import Store
from darklens.errors import ConfigError, InputError
from darklens.evaluation.runs import read_csv
from darklens.files import read_json


def read_bundle(path):
    Bundle.load(path.parent)


def read_store(path):
    store = Store(path.parent.parent if path.parent.name == "shards" else path.parent)
    store.truth("label")
    store.images([0])


READERS = {
    "bundle/bundle.json": read_bundle,
    "bundle/model.safetensors": read_bundle,
    "store/store.json": read_store,
    "store/shards/00000.images.npy": read_store,
    "store/shards/00000.truth.npz": read_store,
    "predictions.csv": read_csv,
    "eval.json": read_json,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from darklens.populations.population import get
    from darklens.simulate.generate import generate

    folder = tmp_path_factory.mktemp("inputs")
    small_bundle().save(folder / "bundle")
    generate(get("common-test-i", ["field.n_pixels=16"]), folder / "store", n_per_class=1, seed=0)
    return folder


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "link to itself"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_not_a_regular_file_is_one_sentence(folder, tmp_path, name, kind):
    shutil.copytree(folder, tmp_path / "f")
    path = tmp_path / "f" / name
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)
    with pytest.raises(InputError) as caught:
        READERS[name](path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        "predict {} --out o",
        "explain {} a.npy --out o",
        "fit {} --out o",
        "fit a.fits --model {} --out o",
        "search {} --out o",
        "simulate {} --out o --n-per-class 1",
        "import {} --out o",
        "train {} --out o",
        "train resnet_simple --data {} --out o",
        "evaluate {} store --out o",
        "evaluate lens_residual {} --out o",
        "compare {} --out o",
        "inspect {}",
        "doctor {}",
        "ensemble {} {} --out o",
        "export {} --onnx o",
        "serve {}",
    ],
)
def test_a_name_that_is_too_long_is_one_sentence(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert darklens(*words.replace("{}", "x" * 300).split()) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Unexpected" not in message and not list(tmp_path.iterdir())


def test_an_override_may_be_longer_than_a_name(tmp_path, capsys):
    override = "mass.halo={kind: nfw, centre_x: {start: 1.0}" + " " * 300 + "}"
    assert darklens("fit", "absent.fits", override, "--out", tmp_path / "t.csv") == 2
    assert "absent.fits: no such file" in capsys.readouterr().err


def test_an_endless_yaml_file_is_one_sentence():
    with pytest.raises(ConfigError, match="/dev/zero cannot be read as YAML"):
        read_yaml(Path("/dev/zero"))


@pytest.mark.parametrize("content", [b"9" * 5000, b"[" * 100_000, b"\xff\xfe", b"{"])
def test_what_is_no_json_is_one_sentence(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
