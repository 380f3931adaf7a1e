import os
from pathlib import Path

import numpy as np
import pytest

from darklens.data.deeplense import export_folder, list_images
from darklens.data.importers import import_folder
from darklens.errors import InputError


@pytest.fixture
def folder(tmp_path):
    g = np.random.default_rng(0)
    for name in ("no", "sphere", "vort"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(1, 12):
            np.save(tmp_path / "d" / name / f"{i}.npy", g.random((1, 8, 8)))
    return tmp_path / "d"


def test_import_keeps_images_labels_and_names(folder, tmp_path):
    report = import_folder(folder, tmp_path / "s")
    store = report.store
    assert report.problems == []
    assert np.bincount(store.labels).tolist() == [11, 11, 11]
    names = store.truth("path").tolist()
    assert names[:3] == ["no/1.npy", "no/2.npy", "no/3.npy"]
    assert names[10] == "no/11.npy"
    for i in (0, 15, 32):
        np.testing.assert_array_equal(store.images([i])[0], np.load(folder / names[i]).astype(np.float32))


def test_export_and_import_again(folder, tmp_path):
    store = import_folder(folder, tmp_path / "s").store
    export_folder(store, tmp_path / "e")
    image = np.load(tmp_path / "e" / "vort" / "2.npy")
    assert image.shape == (1, 8, 8)
    assert (image.min(), image.max()) == (0, 1)
    assert (tmp_path / "e" / "index.csv").read_text().splitlines()[11] == "sphere/1.npy,1"
    again = import_folder(tmp_path / "e", tmp_path / "s2").store
    assert again.labels.tolist() == store.labels.tolist()


def test_an_index_decides_what_is_imported_and_cannot_leave_the_folder(folder, tmp_path):
    (folder / "index.csv").write_text("vort/3.npy,2\nno/1.npy,0\n")
    assert [(p.name, label) for p, label in list_images(folder)] == [("3.npy", 2), ("1.npy", 0)]
    for text, sentence in (
        ("../x.npy,0\n", "outside"),
        ("no/1.npy\n", "line 1"),
        ("no/1.npy,0\nno/2.npy,5\n", "line 2"),
        ("\n", "lists no images"),
    ):
        (folder / "index.csv").write_text(text)
        with pytest.raises(InputError, match=sentence):
            list_images(folder)


def test_class_names_of_deeplensesim_are_known(folder):
    (folder / "no").rename(folder / "no_sub")
    (folder / "vort").rename(folder / "axion")
    assert sorted({label for _, label in list_images(folder)}) == [0, 1, 2]


def test_bad_files_are_listed_and_the_others_imported(folder, tmp_path):
    (folder / "no" / "1.npy").write_bytes(b"")
    np.save(folder / "sphere" / "2.npy", np.zeros((1, 9, 9)) + np.arange(9))
    report = import_folder(folder, tmp_path / "s")
    assert len(report.store) == 31
    assert len(report.problems) == 2
    assert "no/1.npy" in report.problems[0] and "9 x 9" in report.problems[1]
    assert report.store.verify() == []


def test_nothing_is_written_without_usable_images(tmp_path):
    (tmp_path / "d" / "no").mkdir(parents=True)
    with pytest.raises(InputError, match="no class folders"):
        import_folder(tmp_path / "d", tmp_path / "s")
    (tmp_path / "d" / "no" / "1.npy").write_bytes(b"")
    with pytest.raises(InputError, match="none of its 1 images"):
        import_folder(tmp_path / "d", tmp_path / "s")
    assert not (tmp_path / "s").exists()
    (tmp_path / "r" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match=r"such as .*train"):
        list_images(tmp_path / "r")


def test_existing_results_are_never_overwritten(folder, tmp_path):
    import_folder(folder, tmp_path / "s")
    with pytest.raises(InputError, match="already exists"):
        import_folder(folder, tmp_path / "s")
    with pytest.raises(InputError, match="already exists"):
        export_folder(import_folder(folder, tmp_path / "s2").store, folder)


@pytest.mark.parametrize("second", ["no/1.npy,2", "no/1.npy,0", "./no/1.npy,1", "link.npy,1", "{folder}/no/1.npy,2"])
def test_a_file_that_an_index_lists_twice_is_an_error_that_names_both_lines(folder, second):
    (folder / "link.npy").symlink_to(folder / "no" / "1.npy")
    (folder / "index.csv").write_text(f"no/1.npy,0\nvort/3.npy,2\n{second.format(folder=folder)}\n")
    with pytest.raises(InputError, match="lines 1 and 3: both list"):
        list_images(folder)


def test_a_file_in_the_folders_of_two_classes_is_an_error_that_names_both(folder):
    (folder / "vort" / "99.npy").symlink_to(folder / "no" / "1.npy")
    with pytest.raises(InputError, match=r"no/1\.npy and .*vort/99\.npy are one file"):
        list_images(folder)


@pytest.mark.parametrize("through", ["relative", "absolute", "link"])
def test_absolute_paths_in_an_index_are_not_called_damage(folder, tmp_path, monkeypatch, through):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    source = {"relative": Path("d"), "absolute": folder, "link": Path("link")}[through]
    lines = [f"{folder}/{name}/1.npy,{label}\n" for label, name in enumerate(("no", "sphere", "vort"))]
    (folder / "index.csv").write_text("".join(lines))
    report = import_folder(source, tmp_path / "s")
    assert report.store.truth("path").tolist() == ["no/1.npy", "sphere/1.npy", "vort/1.npy"]
    (folder / "index.csv").write_text(f"{tmp_path}/other.npy,0\n")
    with pytest.raises(InputError, match="outside the folder"):
        list_images(source)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", "utf-16"], ids=["UTF-8", "UTF-16"])
def test_a_byte_order_mark_does_not_lose_the_first_line_of_an_index(folder, mark):
    text = "no/1.npy,no\nvort/3.npy,vort\n"
    (folder / "index.csv").write_bytes(text.encode(mark) if isinstance(mark, str) else mark + text.encode())
    assert [label for _, label in list_images(folder)] == [0, 2]


def test_an_index_names_files_that_are_not_utf8(folder, tmp_path):
    (folder / "no" / "1.npy").rename(folder / "no" / os.fsdecode(b"caf\xe9.npy"))
    (folder / "index.csv").write_bytes(b"no/caf\xe9.npy,0\nvort/3.npy,2\n")
    assert len(import_folder(folder, tmp_path / "s").store) == 2
