"""No class is certain for an image whose contrast is lost: constant, outshone by a few pixels, or below float32."""

import numpy as np
import pytest
import torch

from darklens import Bundle, populations
from darklens.data.contrast import contrast_problem
from darklens.data.prepare import prepare
from darklens.data.readers import Image
from darklens.errors import InputError
from darklens.fit.features import extract_features
from darklens.fit.summary import fit_succeeded
from darklens.simulate.batch import simulate_batch

N, SCALE = 150, 0.05


@pytest.fixture(scope="module")
def lens():
    images, _ = simulate_batch(populations.get("common-test-i", ["stored=counts"]), 3, [0])
    return np.asarray(images)[0, 0].astype(np.float64)


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load("lens_residual")


def constant(lens):
    return np.full_like(lens, 7.0)


def zero(lens):
    return np.zeros_like(lens)


def one_bright_pixel_in_a_corner(lens):
    image = constant(lens)
    image[3, 3] = 8
    return image


def constant_centre(lens):
    image = np.full_like(lens, lens.mean())
    image[:20], image[-20:] = lens[:20], lens[-20:]
    return image


def bright_pixel(value, y, x):
    def change(lens):
        image = lens.copy()
        image[y, x] = value
        return image

    change.__name__ = f"pixel {y}, {x} is {value:g}"
    return change


def bright_column(lens):
    image = lens.copy()
    image[:, 80] = 1e12
    return image


def offset(value):
    def change(lens):
        return lens + value

    change.__name__ = f"offset of {value:g}"
    return change


LOST = [
    *(constant, zero, one_bright_pixel_in_a_corner, constant_centre, bright_column),
    *(bright_pixel(value, 5, 7) for value in (1e20, 1e30, 3e38, -1e30)),
    *(bright_pixel(value, 60, 90) for value in (1e7, 1e10, 1e30, 3e38, -1e7, -1e30)),
    *(offset(value) for value in (1e9, 1e10, 1e12, 1e30, -1e10)),
]
KEPT = [
    *(bright_pixel(value, 5, 7) for value in (1e3, 1e5, -9999)),
    *(offset(value) for value in (1e4, 1e7, -1e6)),
]


@pytest.mark.parametrize("change", LOST, ids=lambda change: change.__name__)
def test_a_file_without_contrast_is_refused(lens, change):
    with pytest.raises(InputError):
        prepare(Image(change(lens), SCALE), n_pixels=N, pixel_scale=SCALE)


@pytest.mark.parametrize("change", LOST[3:], ids=lambda change: change.__name__)
def test_a_file_without_contrast_is_refused_before_it_is_resampled(lens, change):
    with pytest.raises(InputError):
        prepare(Image(change(lens), SCALE), n_pixels=100, pixel_scale=0.075)


@pytest.mark.parametrize("change", LOST, ids=lambda change: change.__name__)
@pytest.mark.parametrize("method", ["classify", "probabilities"])
def test_python_refuses_an_image_without_contrast(bundle, lens, method, change):
    with np.errstate(over="ignore"):
        images = np.stack([lens, change(lens)]).astype(np.float32)[:, None]
    with pytest.raises(ValueError, match="image 1 cannot be classified"):
        getattr(bundle, method)(images)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_python_refuses_pixels_that_are_not_finite(bundle, lens, value):
    with pytest.raises(ValueError, match="NaN or infinite"):
        bundle.classify(bright_pixel(value, 60, 90)(lens).astype(np.float32)[None, None])


def test_a_fit_of_an_image_without_contrast_has_failed(lens):
    images = np.stack([change(lens) for change in (lambda image: image, constant, bright_pixel(1e20, 60, 90))])
    features = extract_features(torch.from_numpy(images.astype(np.float32)), "common-test-i", centred=False)
    assert fit_succeeded(features).tolist() == [True, False, False]
    assert torch.isfinite(features.summary).all()


@pytest.mark.parametrize("change", KEPT, ids=lambda change: change.__name__)
def test_an_image_with_contrast_is_not_refused(lens, change):
    image = prepare(Image(change(lens), SCALE), n_pixels=N, pixel_scale=SCALE).pixels
    np.testing.assert_array_equal(image, change(lens).astype(np.float32))


@pytest.mark.parametrize("factor", [1e-40, 1e-30, 1, 1e30, 1e35, -1])
def test_the_unit_of_an_image_does_not_matter(lens, factor):
    assert not contrast_problem((lens * factor).astype(np.float32), SCALE)


def test_few_bright_pixels_on_an_even_background_are_contrast():
    image = np.zeros((N, N))
    image[70:73, 70:73] = 1
    assert not contrast_problem(image, SCALE)
