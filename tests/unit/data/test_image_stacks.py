"""Stacks of images in npz, HDF5 and npy files."""

import h5py
import numpy as np
import pytest

from darklens.data.image_paths import find_images
from darklens.data.image_stacks import labels_of, location, read_row, stem
from darklens.data.readers import planes
from darklens.errors import InputError
from darklens.scene.observation_paths import find_observations

IMAGES = np.random.default_rng(0).random((7, 12, 10)).astype(np.float32)


def write_hdf5(path, images, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("survey/images", data=images, **options)


WAYS = {
    "stored.npz": lambda path, images: np.savez(path, images=images, label=np.zeros(len(images))),
    "compressed.npz": lambda path, images: np.savez_compressed(path, images=images),
    "one.npy": lambda path, images: np.save(path, images),
    "whole.h5": write_hdf5,
    "chunks.hdf5": lambda path, images: write_hdf5(path, images, chunks=(3, *images.shape[1:]), compression="gzip"),
    "lzf.h5": lambda path, images: write_hdf5(path, images, chunks=(2, *images.shape[1:]), compression="lzf"),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("channel", [False, True], ids=["n", "1n"])
def test_every_row_is_the_image_in_it(tmp_path, monkeypatch, name, channel):
    monkeypatch.setattr(planes, "_PART_BYTES", 3 * 8 * 12 * 10)  # parts of three images; the last has one
    path = tmp_path / name
    WAYS[name](path, IMAGES[:, None] if channel else IMAGES)
    labels = labels_of(path)
    assert [str(label) for label in labels] == [f"{path}#{i}" for i in range(7)] == find_observations([path])
    for i in (6, 0, 3, 2):
        file, row = location(labels[i])
        assert (file, row) == (path, i)
        np.testing.assert_array_equal(read_row(file, row).pixels, IMAGES[i].astype(np.float64))


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, IMAGES)
    read_row(path, 1)
    np.save(path, np.concatenate([IMAGES, IMAGES]) + 1)
    np.testing.assert_array_equal(read_row(path, 1).pixels, (IMAGES[1] + 1).astype(np.float64))


def test_single_images_are_no_stacks(tmp_path):
    for path, image in ((tmp_path / "a.npy", IMAGES[0]), (tmp_path / "b.npy", IMAGES[:1])):
        np.save(path, image)
        assert find_images([path]) == [path]
        with pytest.raises(InputError, match="is not a stack of images; leave out #0"):
            read_row(path, 0)
    np.savez(tmp_path / "c.npz", images=IMAGES[:1])
    assert find_images([tmp_path / "c.npz"]) == [tmp_path / "c.npz"]
    (tmp_path / "d.h5").write_bytes(b"x")
    assert labels_of(tmp_path / "d.h5") == [tmp_path / "d.h5"]


def test_arrays_of_few_images_are_stacks_if_their_name_says_so(tmp_path):
    """They may be the bands of one image."""
    many = np.concatenate([IMAGES] * 3)
    for name, array in (("images", IMAGES), ("survey/images", IMAGES), ("image", IMAGES), ("data", many)):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file[name] = array
        assert (len(find_images([path])) > 1) == (name != "image")
    for n, is_stack in ((3, False), (16, False), (17, True)):
        np.save(tmp_path / "a.npy", many[:n])
        assert len(find_images([tmp_path / "a.npy"])) == (n if is_stack else 1)
        assert len(find_images([tmp_path / "a.npy#1"])) == 1


def test_a_file_whose_name_looks_like_a_row_is_a_file(tmp_path):
    path = tmp_path / "a.npy#3"
    path.write_bytes(b"x")
    assert location(path) == (path, None) and find_images([path]) == [path]
    assert location(f"{tmp_path}/b.npy#3") == (tmp_path / "b.npy", 3)
    assert stem(tmp_path / "b.npy#3") == "b-3" and stem(tmp_path / "b.fits") == "b"


def test_pixel_scales_are_those_of_the_row_or_of_the_file(tmp_path):
    np.savez(tmp_path / "rows.npz", images=IMAGES, pixel_scale=np.linspace(0.05, 0.11, 7))
    np.savez(tmp_path / "one.npz", images=IMAGES, pixel_scale=0.08)
    write_hdf5(tmp_path / "attribute.h5", IMAGES)
    with h5py.File(tmp_path / "attribute.h5", "a") as file:
        file["survey"].attrs["pixel_scale"] = 0.1
    np.savez(tmp_path / "unit.npz", images=IMAGES, pixel_scale=70.0, pixel_scale_unit="mas")
    for name, expected in (("rows.npz", 0.07), ("one.npz", 0.08), ("attribute.h5", 0.1), ("unit.npz", 0.07)):
        assert read_row(tmp_path / name, 2).pixel_scale == pytest.approx(expected)
        assert read_row(tmp_path / name, 2, pixel_scale=0.2).pixel_scale == 0.2
    np.save(tmp_path / "none.npy", IMAGES)
    assert read_row(tmp_path / "none.npy", 2).pixel_scale is None


def test_other_arrays_are_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=IMAGES, noise=IMAGES + 1, psf=np.ones((5, 5)))
    assert read_row(path, 0).changes == ("a.npz[noise] not used",)
    np.testing.assert_array_equal(read_row(path, 1, name="noise").pixels, (IMAGES[1] + 1).astype(np.float64))
    with pytest.raises(InputError, match=r"no stack named sky; it holds images, noise"):
        read_row(path, 0, name="sky")
    np.savez(path, images=IMAGES, g=IMAGES)
    with pytest.raises(InputError, match=r"several stacks of images \(images, g\); select one with --image NAME"):
        read_row(path, 0)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: np.save(path, np.asfortranarray(IMAGES)), "Fortran order"),
        (lambda path: np.save(path, IMAGES.astype(complex)), "complex128"),
        (lambda path: (np.save(path, IMAGES), path.write_bytes(path.read_bytes()[:-900])), "truncated or damaged"),
    ],
)
def test_an_unusable_stack_is_one_sentence(tmp_path, write, sentence):
    path = tmp_path / "a.npy"
    write(path)
    with pytest.raises(InputError, match=sentence):
        read_row(path, 6)
    with pytest.raises(InputError, match="has no row 7; it holds 7 images"):
        read_row(path, 7)


def test_a_header_that_states_more_images_than_names_fit_into_memory_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", shape=(10**12, 12, 10), dtype="f4", chunks=(1, 12, 10))
    assert find_images([tmp_path / "a.h5"]) == [tmp_path / "a.h5"]
    with pytest.raises(InputError, match="states 1000000000000 images"):
        read_row(tmp_path / "a.h5", 0)


def test_a_chunk_of_hdf5_that_decompresses_to_more_than_its_size_is_refused_where_it_is_read(tmp_path):
    path = tmp_path / "a.h5"
    write_hdf5(path, IMAGES, chunks=(1, 12, 10), compression="gzip")
    import zlib

    with h5py.File(path, "a") as file:
        file["survey/images"].id.write_direct_chunk((5, 0, 0), zlib.compress(bytes(10_000_000)))
    with pytest.raises(InputError, match="decompresses to more than its size"):
        planes._part(path, "survey/images", 4, 2, b"")
    assert planes._part(path, "survey/images", 0, 4, b"").shape == (4, 12, 10)
