"""Cropping, filling, padding and resampling conserve flux and list all changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darklens import populations
from darklens.data.prepare import fill_missing, interpolation, prepare, resample
from darklens.data.readers import Image
from darklens.errors import InputError
from darklens.simulate.batch import simulate_batch

FINE = ["field.n_pixels=150", "field.pixel_scale=0.04"]
COARSE = ["field.n_pixels=120", "field.pixel_scale=0.05"]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(10.0, 1.0, size=shape)


@settings(max_examples=100, deadline=None)
@given(n_in=st.integers(4, 60), n_out=st.integers(1, 60), factor=st.floats(0.25, 4.0))
def test_weights_conserve_a_uniform_sky_and_are_symmetric(n_in, n_out, factor):
    n_out = min(n_out, int(n_in / factor)) or 1
    weights = interpolation(n_in, n_out, factor)
    np.testing.assert_allclose(weights.sum(1), factor, rtol=1e-9)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.5, 2.0), seed=st.integers(0, 2**32 - 1))
def test_resampling_conserves_flux_and_position_of_well_sampled_light(factor, seed):
    g = np.random.default_rng(seed)
    sigma, x, y = 1.5 * max(1, factor), *g.uniform(-3, 3, 2)
    axis = np.arange(64) - 31.5
    image = np.exp(-((axis[:, None] - y) ** 2 + (axis - x) ** 2) / (2 * sigma**2))
    n = int(64 / factor)
    out = resample(image, n_pixels=n, factor=factor)
    assert out.sum() == pytest.approx(image.sum(), rel=1e-3)
    columns = (np.arange(n) - (n - 1) / 2) * factor
    assert (out.sum(0) * columns).sum() / out.sum() == pytest.approx(x, abs=5e-3)
    variance = (out.sum(0) * (columns - x) ** 2).sum() / out.sum()
    assert variance == pytest.approx(sigma**2, rel=0.02)  # redistribution by area would add (1 + factor^2) / 12


def test_noise_of_coarser_pixels_stays_uncorrelated():
    out = resample(np.random.default_rng(5).normal(size=(500, 500)), n_pixels=380, factor=1.25)[5:-5, 5:-5]
    blocks = out.reshape(185, 2, 185, 2).sum((1, 3))  # the pixels that lens_residual compares
    assert blocks.var() == pytest.approx(4 * 1.25**2, rel=0.05)
    for neighbours in ((blocks[1:], blocks[:-1]), (blocks[:, 1:], blocks[:, :-1])):
        assert abs(np.corrcoef(*(v.ravel() for v in neighbours))[0, 1]) < 0.02


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_resampled_lens_equals_one_simulated_on_the_new_grid(label):
    """From 0.04 to 0.05 arcsec: 150 pixels become 120."""
    bright = ["stored=counts", "source.amplitude=10000000"]  # negligible noise
    fine, coarse = (
        simulate_batch(populations.get("common-test-i", [*bright, *field]), 3, [label])[0][0, 0].astype(np.float64)
        for field in (FINE, COARSE)
    )
    prepared = prepare(Image(fine, 0.04), n_pixels=120, pixel_scale=0.05)
    assert prepared.pixels.sum(dtype=np.float64) == pytest.approx(fine.sum(), rel=1e-3)
    assert prepared.changes == ("resampled from 0.04 to 0.05 arcsec per pixel",)
    difference = prepared.pixels / prepared.pixels.sum() - coarse / coarse.sum()
    assert np.abs(difference).max() < 0.05 * (coarse / coarse.sum()).max()


def test_an_image_on_the_grid_of_the_model_is_unchanged():
    pixels = noise(20, 20)
    for scale in (0.05, 0.0501):
        prepared = prepare(Image(pixels, scale), n_pixels=20, pixel_scale=0.05)
        assert prepared.changes == () and prepared.pixels.dtype == np.float32
        np.testing.assert_array_equal(prepared.pixels, pixels.astype(np.float32))


def test_cropping_and_padding_keep_the_centre():
    pixels = noise(31, 24)
    prepared = prepare(Image(pixels, 0.05), n_pixels=21, pixel_scale=0.05)
    np.testing.assert_array_equal(prepared.pixels, pixels[5:26, 1:22].astype(np.float32))
    assert prepared.changes == (
        "cropped from 31 x 24 to 21 x 21 pixels about a point half a pixel to the left of the centre",
    )
    assert prepared.offset == (-0.025, 0.0)
    prepared = prepare(Image(pixels, 0.05), n_pixels=26, pixel_scale=0.05)
    np.testing.assert_array_equal(prepared.pixels[:, 1:25], pixels[2:28].astype(np.float32))
    assert prepared.pixels[0, 0] == prepared.pixels[20, 25] == pytest.approx(10, abs=1)
    assert prepared.changes == (
        "cropped from 31 x 24 to 26 x 24 pixels about a point half a pixel below the centre",
        "padded from 26 x 24 to 26 x 26 pixels with the median of the border",
    )


def test_a_sky_stays_flat_when_padded_and_resampled():
    pixels = np.full((90, 91), 2.0)
    axis = np.arange(91) - 45
    pixels += np.exp(-(axis[:90, None] ** 2 + axis**2) / 8)
    prepared = prepare(Image(pixels, 0.04), n_pixels=80, pixel_scale=0.05)
    assert np.median(prepared.pixels) == prepared.pixels[0, 0] == pytest.approx(2.0 * 1.25**2)
    assert prepared.pixels.sum() - 80**2 * prepared.pixels[0, 0] == pytest.approx(8 * np.pi, rel=1e-3)


def test_the_caller_overrides_the_pixel_scale_of_the_file():
    prepared = prepare(Image(noise(50, 50), 0.1), n_pixels=40, pixel_scale=0.05, image_pixel_scale=0.04)
    assert prepared.changes == ("resampled from 0.04 to 0.05 arcsec per pixel",)


def test_isolated_nan_pixels_are_filled_after_cropping():
    pixels = np.add.outer(np.arange(60.0), np.arange(60.0))
    pixels[0], pixels[30, 30] = np.nan, np.nan
    prepared = prepare(Image(pixels, 0.05), n_pixels=50, pixel_scale=0.05)
    assert prepared.pixels[25, 25] == pytest.approx(60.0)
    assert prepared.changes[1] == "1 NaN pixel masked and filled"
    corner = np.add.outer(np.arange(40.0), np.arange(40.0))
    corner[0, 0] = np.nan
    assert fill_missing(corner, "x")[0][0, 0] == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: p[:35], "x: has 35 x 60 pixels; the model takes 60 x 60; give a wider cut-out, or --pixel-scale if"),
        (lambda p: np.where(np.arange(60) < 20, np.nan, p), "x: 1200 of 3600 pixels are NaN; cut out a region"),
        (lambda p: np.where(p == p.max(), np.inf, p), "1 pixels are NaN or infinite"),
        (lambda p: np.where(p == p.max(), 1e300, p), "1 pixels are NaN or infinite"),
        (lambda p: p * 0, "all pixels have the same value"),
    ],
)
def test_unusable_images_are_errors(change, sentence):
    with pytest.raises(InputError, match=sentence):
        prepare(Image(change(noise(60, 60))), n_pixels=60, pixel_scale=0.05, name="x")


@pytest.mark.parametrize(
    ("scale", "sentence"), [(0.3, "too different to resample"), (0.01, "too different"), (0.04, "which is")]
)
def test_too_different_scales_and_fields_are_errors(scale, sentence):
    with pytest.raises(InputError, match=sentence):
        prepare(Image(noise(44, 44), scale), n_pixels=60, pixel_scale=0.05)


@pytest.mark.parametrize("shape", [(40, 40), (41, 41), (41, 44), (36, 37), (35, 60), (90, 100)])
def test_offset_places_the_cut_out_in_the_original_image(shape):
    """Cropped by an odd number of pixels, padded, or about an off-centre lens: no hidden frame."""
    axes = [np.arange(n) - (n - 1) / 2 for n in shape]
    up, right = (9.0, -14.0) if min(shape) > 80 else (2.0, -3.0)
    image = 5 + 100 * np.exp(-((axes[0][:, None] - up) ** 2 + (axes[1] - right) ** 2) / 8)
    prepared = prepare(Image(image, 0.05), n_pixels=40, pixel_scale=0.05)
    light, axis = prepared.pixels - 5, (np.arange(40) - 19.5) * 0.05
    y, x = (light * axis[:, None]).sum() / light.sum(), (light * axis).sum() / light.sum()
    assert x + prepared.offset[0] == pytest.approx(right * 0.05, abs=2e-3)
    assert y + prepared.offset[1] == pytest.approx(up * 0.05, abs=2e-3)
    halves = sum("half a pixel" in change or ".5 pixels" in change for change in prepared.changes)
    assert halves == any((n - 40) % 2 for n in shape)


def test_masked_regions_are_filled_and_stay_masked_through_crop_padding_and_resampling():
    pixels = noise(70, 70)
    pixels[20:25, 30:40] = np.nan
    same = prepare(Image(pixels, 0.05), n_pixels=70, pixel_scale=0.05)
    assert (same.mask == np.isnan(pixels)).all() and np.isfinite(same.pixels).all()
    assert abs(np.median(same.pixels[same.mask]) - np.nanmedian(pixels)) < 1
    cropped = prepare(Image(pixels, 0.05), n_pixels=60, pixel_scale=0.05)
    assert (cropped.mask == np.isnan(pixels)[5:-5, 5:-5]).all()
    padded = prepare(Image(pixels, 0.05), n_pixels=80, pixel_scale=0.05)
    assert padded.mask.sum() == 50 + 80**2 - 70**2
    resampled = prepare(Image(pixels, 0.05), n_pixels=35, pixel_scale=0.1)
    assert resampled.mask[10:12, 15:20].all() and not resampled.mask[:8].any() and np.isfinite(resampled.pixels).all()
    assert prepare(Image(noise(70, 70), 0.05), n_pixels=70, pixel_scale=0.05).mask is None
