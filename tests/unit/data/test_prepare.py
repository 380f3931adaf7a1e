"""Cutting, mending and resampling: flux is kept, and every change is said."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darklens import populations
from darklens.data.prepare import fill_isolated, interpolation, prepare, resample
from darklens.data.readers import Image
from darklens.errors import InputError
from darklens.simulate.batch import simulate_batch

FINE = ["field.n_pixels=150", "field.pixel_scale=0.04"]
COARSE = ["field.n_pixels=120", "field.pixel_scale=0.05"]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(10.0, 1.0, size=shape)


@settings(max_examples=100, deadline=None)
@given(n_in=st.integers(4, 60), n_out=st.integers(1, 60), factor=st.floats(0.25, 4.0))
def test_a_uniform_sky_keeps_its_flux_and_sides_are_alike(n_in, n_out, factor):
    n_out = min(n_out, int(n_in / factor)) or 1
    parts = interpolation(n_in, n_out, factor)
    np.testing.assert_allclose(parts.sum(1), factor, rtol=1e-9)
    np.testing.assert_allclose(parts, parts[::-1, ::-1], atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.5, 2.0), seed=st.integers(0, 2**32 - 1))
def test_resampling_keeps_the_flux_and_the_place_of_light_that_is_well_sampled(factor, seed):
    g = np.random.default_rng(seed)
    sigma, x, y = 1.5 * max(1, factor), *g.uniform(-3, 3, 2)
    at = np.arange(64) - 31.5
    image = np.exp(-((at[:, None] - y) ** 2 + (at - x) ** 2) / (2 * sigma**2))
    n = int(64 / factor)
    out = resample(image, n_pixels=n, factor=factor)
    assert out.sum() == pytest.approx(image.sum(), rel=1e-3)
    columns = (np.arange(n) - (n - 1) / 2) * factor
    assert (out.sum(0) * columns).sum() / out.sum() == pytest.approx(x, abs=5e-3)
    variance = (out.sum(0) * (columns - x) ** 2).sum() / out.sum()
    assert variance == pytest.approx(sigma**2, rel=0.02)  # sharing out by area adds (1 + factor^2) / 12


def test_noise_of_coarser_pixels_stays_independent():
    out = resample(np.random.default_rng(5).normal(size=(500, 500)), n_pixels=380, factor=1.25)[5:-5, 5:-5]
    blocks = out.reshape(185, 2, 185, 2).sum((1, 3))  # the pixels that lens_residual compares
    assert blocks.var() == pytest.approx(4 * 1.25**2, rel=0.05)
    for neighbours in ((blocks[1:], blocks[:-1]), (blocks[:, 1:], blocks[:, :-1])):
        assert abs(np.corrcoef(*(v.ravel() for v in neighbours))[0, 1]) < 0.02


@pytest.mark.parametrize("label", [0, 1, 2])
def test_lenses_of_one_scale_become_those_of_another(label):
    """0.04 to 0.05 arcsec: 150 pixels become 120, with the flux of each place as if observed so."""
    bright = ["stored=counts", "source.amplitude=10000000"]  # no noise to speak of
    fine, coarse = (
        simulate_batch(populations.get("common-test-i", [*bright, *field]), 3, [label])[0][0, 0].astype(np.float64)
        for field in (FINE, COARSE)
    )
    made = prepare(Image(fine, 0.04), n_pixels=120, pixel_scale=0.05)
    assert made.pixels.sum(dtype=np.float64) == pytest.approx(fine.sum(), rel=1e-3)
    assert made.changes == ("resampled from 0.04 to 0.05 arcsec per pixel",)
    difference = made.pixels / made.pixels.sum() - coarse / coarse.sum()
    assert np.abs(difference).max() < 0.05 * (coarse / coarse.sum()).max()


def test_an_image_that_fits_is_left_alone():
    pixels = noise(20, 20)
    for scale in (None, 0.05, 0.0501):
        made = prepare(Image(pixels, scale), n_pixels=20, pixel_scale=0.05)
        assert made.changes == () and made.pixels.dtype == np.float32
        np.testing.assert_array_equal(made.pixels, pixels.astype(np.float32))


def test_cropping_and_padding_keep_the_centre():
    pixels = noise(31, 24)
    made = prepare(Image(pixels), n_pixels=21, pixel_scale=0.05)
    np.testing.assert_array_equal(made.pixels, pixels[5:26, 1:22].astype(np.float32))
    assert made.changes == ("cropped from 31 x 24 to 21 x 21 pixels",)
    made = prepare(Image(pixels), n_pixels=26, pixel_scale=0.05)
    np.testing.assert_array_equal(made.pixels[:, 1:25], pixels[2:28].astype(np.float32))
    assert made.pixels[0, 0] == made.pixels[20, 25] == pytest.approx(10, abs=1)
    assert made.changes == (
        "cropped from 31 x 24 to 26 x 24 pixels",
        "padded from 26 x 24 to 26 x 26 pixels with the median of the border",
    )


def test_a_sky_stays_flat_when_padded_and_resampled():
    pixels = np.full((90, 91), 2.0)
    at = np.arange(91) - 45
    pixels += np.exp(-(at[:90, None] ** 2 + at**2) / 8)
    made = prepare(Image(pixels, 0.04), n_pixels=80, pixel_scale=0.05)
    assert np.median(made.pixels) == made.pixels[0, 0] == pytest.approx(2.0 * 1.25**2)
    assert made.pixels.sum() - 80**2 * made.pixels[0, 0] == pytest.approx(8 * np.pi, rel=1e-3)


def test_the_caller_knows_the_scale_better_than_the_file():
    made = prepare(Image(noise(50, 50), 0.1), n_pixels=40, pixel_scale=0.05, image_pixel_scale=0.04)
    assert made.changes == ("resampled from 0.04 to 0.05 arcsec per pixel",)


def test_isolated_missing_pixels_are_filled_and_the_border_crop_comes_first():
    pixels = np.add.outer(np.arange(60.0), np.arange(60.0))
    pixels[0], pixels[30, 30] = np.nan, np.nan
    made = prepare(Image(pixels), n_pixels=50, pixel_scale=0.05)
    assert made.pixels[25, 25] == pytest.approx(60.0)
    assert made.changes[1] == "1 missing pixel filled from the neighbours"
    corner = np.add.outer(np.arange(40.0), np.arange(40.0))
    corner[0, 0] = np.nan
    assert fill_isolated(corner, "x")[0][0, 0] == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: p[:35], "x: has 35 x 60 pixels; the model takes 60 x 60; give a wider cut-out."),
        (lambda p: np.where(p < np.partition(p.ravel(), 9)[9], np.nan, p), "x: 9 pixels are NaN; fill them first"),
        (lambda p: np.where(np.arange(60) // 2 == 4, np.where(np.arange(60)[:, None] == 3, np.nan, p), p), "2 pixels"),
        (lambda p: np.where(p == p.max(), np.inf, p), "1 pixels are NaN or infinite"),
        (lambda p: np.where(p == p.max(), 1e300, p), "1 pixels are NaN or infinite"),
        (lambda p: p * 0, "all pixels have the same value"),
    ],
)
def test_what_cannot_be_mended_is_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        prepare(Image(change(noise(60, 60))), n_pixels=60, pixel_scale=0.05, name="x")


@pytest.mark.parametrize(("scale", "sentence"), [(0.3, "too far to resample"), (0.01, "too far"), (0.04, "which are")])
def test_scales_and_fields_that_are_too_different_are_refused(scale, sentence):
    with pytest.raises(InputError, match=sentence):
        prepare(Image(noise(44, 44), scale), n_pixels=60, pixel_scale=0.05)
