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
