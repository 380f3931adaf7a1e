"""Expansion of folders, patterns and lists to files."""

import io
import os
from pathlib import Path

import pytest

from darklens.data.image_paths import find_images, is_listing
from darklens.errors import InputError


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "b.FITS", "c.txt", "deep/d.h5", "deep/e.fits.gz", "deep/er/f.npz", "g[1].npy", "@h.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "deep" / "back").symlink_to(tmp_path)
    (tmp_path / "deep" / "loop.npy").symlink_to("loop.npy")
    return tmp_path


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("deep", "deep/d.h5 deep/e.fits.gz deep/er/f.npz deep/loop.npy"),
        ("*.npy", "@h.npy a.npy g[1].npy"),
        ("[ab].*", "a.npy b.FITS"),
        ("d*p", "deep/d.h5 deep/e.fits.gz deep/er/f.npz deep/loop.npy"),
        ("deep/er/**", "deep/er/f.npz"),
        ("g[1].npy", "g[1].npy"),
        ("@h.npy", "@h.npy"),
        ("c.txt", "c.txt"),
    ],
)
def test_one_argument(files, argument, expected):
    assert [str(path) for path in find_images([argument])] == expected.split()


def test_links_to_parent_folders_are_not_followed(files):
    for name in ("again", "and_again", "once_more"):
        (files / "deep" / name).symlink_to(files / "deep")
    assert len(find_images(["deep/**/*.h5"])) == 1
    assert [str(path) for path in find_images([f"{files}/**/d.*"])] == [str(files / "deep" / "d.h5")]


def test_pictures_next_to_measurements_are_skipped(files):
    (files / "deep" / "d.png").write_bytes(b"x")
    (files / "pictures").mkdir()
    for name in ("b.tif", "a.PNG"):
        (files / "pictures" / name).write_bytes(b"x")
    assert "deep/d.png" not in [str(path) for path in find_images(["deep"])]
    assert [str(path) for path in find_images(["pictures"])] == ["pictures/a.PNG", "pictures/b.tif"]


def test_lists_keep_their_order_and_may_contain_missing_files(files, monkeypatch):
    (files / "list.txt").write_text("# mine\nb.FITS\n\n  a.npy\nabsent.npy\ndeep/er\n@list.txt\n-\n")
    expected = ["b.FITS", "a.npy", "absent.npy", "deep/er/f.npz", "@list.txt", "-"]
    assert [str(path) for path in find_images(["@list.txt"])] == expected
    monkeypatch.setattr("sys.stdin", io.StringIO("b.FITS\r\na.npy\n"))
    assert [str(path) for path in find_images(["-", "a.npy"])] == ["b.FITS", "a.npy", "a.npy"]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("absent.npy", "absent.npy: no such file or folder"),
        ("nul\0.npy", "no such file or folder"),
        ("*.tif", "no file matches this pattern"),
        ("empty", "empty contains no images"),
        ("@absent.txt", "no such list"),
        ("@bytes.txt", "is not a text file"),
        ("@none.txt", "lists no files"),
        ("-", "Standard input: lists no files"),
    ],
)
def test_arguments_without_files_are_errors(files, monkeypatch, argument, sentence):
    os.mkdir("empty")
    (files / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (files / "none.txt").write_text("\n# nothing\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(InputError, match=sentence):
        find_images([argument])


def test_patterns_and_lists_are_listings(files):
    listings = {word: is_listing(Path(word)) for word in ("-", "@list", "*.npy", "@h.npy", "x", "a.npy")}
    assert [word for word, listing in listings.items() if listing] == ["-", "@list", "*.npy"]


BOM = {"UTF-8": b"\xef\xbb\xbf" + b"a.npy\nb.FITS\n", "UTF-16": "a.npy\r\nb.FITS\r\n".encode("utf-16")}


class Binary:
    """Standard input with bytes."""

    def __init__(self, content):
        self.buffer = io.BytesIO(content)


@pytest.mark.parametrize("source", ["list", "standard input"])
@pytest.mark.parametrize("encoding", BOM)
def test_a_byte_order_mark_does_not_lose_the_first_entry_of_a_list(files, monkeypatch, encoding, source):
    (files / "list.txt").write_bytes(BOM[encoding])
    monkeypatch.setattr("sys.stdin", Binary(BOM[encoding]))
    assert [str(path) for path in find_images(["@list.txt" if source == "list" else "-"])] == ["a.npy", "b.FITS"]


@pytest.mark.parametrize("source", ["list", "standard input"])
def test_files_with_names_that_are_not_utf8_or_like_comments_are_not_lost(files, monkeypatch, source):
    names = [b"caf\xe9.npy", b"#1.npy", b" space.npy", b"line\xc2\x85separator.npy", b"[1].npy"]
    for name in names:
        (files / os.fsdecode(name)).write_bytes(b"x")
    content = b"# a comment\n" + b"\n".join(names) + b"\r\n#absent.npy\n"
    (files / "list.txt").write_bytes(content)
    monkeypatch.setattr("sys.stdin", Binary(content))
    found = find_images(["@list.txt" if source == "list" else "-"])
    assert [os.fsencode(path) for path in found] == names


def test_a_folder_of_an_observation_is_its_image(tmp_path):
    for name in ("lens/image.fits", "lens/noise_map.fits", "lens/PSF.FITS", "lens/mask.fits.gz", "lens/exposure.fits"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "psf.fits").write_bytes(b"x")
    assert find_images([tmp_path / "lens"]) == [tmp_path / "lens" / "image.fits"]
    for alone in ([tmp_path / "maps"], [tmp_path / "lens" / "PSF.FITS"]):  # named, or nothing else is there
        assert len(find_images(alone)) == 1
