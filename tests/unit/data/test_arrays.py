"""Arrays from Python of any type, byte order and strides give the same tensors and predictions."""

import warnings

import numpy as np
import pytest
import torch
from archives import rings, small_bundle

from darklens.data.arrays import float32_tensor
from darklens.data.prepare import prepare
from darklens.data.readers import Image
from darklens.evaluation.explain import explain

BUNDLE = small_bundle()
IMAGES = np.round(rings(2)).astype(np.float32)  # integers, so that every type holds them

VARIANTS = {
    "big-endian": lambda a: a.astype(">f4"),
    "big-endian integers": lambda a: a.astype(">i2"),
    "float64": lambda a: a.astype(float),
    "float16": lambda a: a.astype(np.float16),
    "longdouble": lambda a: a.astype(np.longdouble),
    "uint16": lambda a: a.astype(np.uint16),
    "uint64": lambda a: a.astype(np.uint64),
    "flipped": lambda a: a[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "Fortran order": np.asfortranarray,
    "not contiguous": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "tensor": torch.from_numpy,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_classify_takes_any_array_and_gives_the_same_probabilities(variant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = VARIANTS[variant](IMAGES)
        assert torch.equal(float32_tensor(images), torch.from_numpy(IMAGES))
        np.testing.assert_array_equal(
            BUNDLE.classify(images).probabilities, BUNDLE.classify(IMAGES).probabilities, strict=True
        )


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"tensor"}))
def test_prepare_takes_any_array(variant):
    n = IMAGES.shape[-1]
    plane = VARIANTS[variant](IMAGES)[0, 0]
    prepared = prepare(Image(plane, 0.04), n_pixels=int(0.7 * n), pixel_scale=0.05)
    expected = prepare(Image(IMAGES[0, 0], 0.04), n_pixels=int(0.7 * n), pixel_scale=0.05)
    np.testing.assert_array_equal(prepared.pixels, expected.pixels, strict=True)


def test_masked_pixels_are_nan_and_not_what_lies_under_the_mask():
    masked = np.ma.masked_array(IMAGES[0, 0].astype(int), IMAGES[0, 0] > IMAGES.mean())
    assert torch.isnan(float32_tensor(masked)).numpy().sum() == masked.mask.sum() > 0


@pytest.mark.parametrize("images", [IMAGES * 1j, torch.ones(1) * 1j, np.array(["a"]), np.array([{}])], ids=str)
def test_what_is_no_real_number_is_an_error(images):
    with pytest.raises(ValueError, match="give real numbers"):
        float32_tensor(images)


def test_numbers_beyond_float32_are_infinite_without_a_warning():
    assert float32_tensor(np.array([1e300])).isinf().all()


def test_explanations_take_big_endian_images():
    same = [explain(BUNDLE, images[:1], method="occlusion").log_odds for images in (IMAGES, IMAGES.astype(">f8"))]
    assert same[0] == same[1]
