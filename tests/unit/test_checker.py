"""A network on images whose classes are checked by the fits of another model."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from archives import small_bundle

from darklens import populations
from darklens.bundle import Bundle
from darklens.errors import InputError
from darklens.predict import columns_of, predict, predict_table, to_csv
from darklens.simulate.batch import simulate_batch

SIDE = 150
ELLIPTICAL = "the residuals suggest an elliptical lens, another slope or multipoles"


@pytest.fixture(scope="module")
def images():
    plain, _ = simulate_batch(populations.get("common-test-i"), 8, range(6))
    elliptical, _ = simulate_batch(populations.get("common-test-i", ["lens.e1=0.15"]), 8, range(3))
    return np.concatenate([plain, elliptical])


def test_fits_doubt_elliptical_lenses_that_the_network_is_sure_of(images):
    bundle = Bundle.load("resnet_simple")
    checked, unchecked = bundle.classify(images), bundle.with_companions(checked_by="").classify(images)
    assert not any(unchecked.doubts) and unchecked.findings == {}
    assert not any(checked.doubts[:6]) and all(ELLIPTICAL in reasons for reasons in checked.doubts[6:])
    np.testing.assert_array_equal(checked.probabilities[:6], unchecked.probabilities[:6])
    assert (checked.probabilities[6:].max(1) < 0.67).all() and (unchecked.probabilities[6:].max(1) > 0.67).any()
    assert [reasons != "ok" for reasons in checked.findings["fit"]] == [False] * 6 + [True] * 3


def test_the_class_of_the_checker_is_a_reason_to_doubt_another_one(images):
    bundle = small_bundle(n_pixels=SIDE).with_companions(checked_by="lens_residual")
    result, other = bundle.classify(images[:6]), Bundle.load("lens_residual").classify(images[:6])
    classes = bundle.contract.classes
    predicted, fitted = (r.probabilities.argmax(1).tolist() for r in (result, other))
    assert len(set(fitted)) == 3 and predicted != fitted
    for reasons, a, b in zip(result.doubts, predicted, fitted, strict=True):
        named = [reason for reason in reasons if reason.startswith("lens_residual")]
        assert named == [f"lens_residual, which fits the lens, classifies the image as {classes[b]}"] * (a != b)


@pytest.mark.parametrize("height", [0.5, 100])
def test_masked_pixels_have_no_weight_in_the_checks(images, height):
    """The region is not aligned with the blocks of pixels that are fitted. It changes the class of the network."""
    bundle = Bundle.load("resnet_simple")
    (clean,) = bundle.classify(images[:1]).findings["chi2_per_pixel"]
    spoilt, mask = images[:1].copy(), np.zeros((1, 1, SIDE, SIDE), dtype=bool)
    mask[..., 60:64, 40:44] = True
    spoilt[mask] += height * spoilt.max()
    unmasked, masked = (bundle.classify(spoilt, mask=m).findings for m in (None, mask))
    assert float(masked["chi2_per_pixel"][0]) == pytest.approx(float(clean), rel=0.02)
    residuals = re.compile("a pixel is|there is a residual|standard deviations above|failed")
    assert residuals.search(unmasked["fit"][0]) and not residuals.search(masked["fit"][0])


def test_the_table_has_the_columns_of_the_fits(images, tmp_path):
    paths = [tmp_path / f"{i}.npy" for i in range(2)]
    for path, image in zip(paths, images, strict=False):
        np.save(path, image[0])
    bundle = Bundle.load("resnet_simple")
    rows = predict(bundle, paths, pixel_scale=bundle.contract.pixel_scale)
    (first, _) = csv.DictReader(to_csv(rows, bundle.contract.classes).splitlines())
    assert set(columns_of(bundle)) == set(rows[0].findings)
    assert 0.5 < float(first["theta_E"]) < 2.5 and first["fit"] == "ok"


def test_a_network_without_checks_is_said_to_be_unchecked(tmp_path):
    bundle = small_bundle(n_pixels=SIDE)
    bundle.save(tmp_path / "bundle")
    np.save(tmp_path / "image.npy", np.random.default_rng(0).normal(size=(SIDE, SIDE)))
    said = []
    predict_table(tmp_path / "bundle", [str(tmp_path / "image.npy")], tmp_path / "t.csv", warn=said.append)
    assert len(said) == 1 and "no fit checks its classes" in said[0]
    for checks, warned in ((True, 1), (False, 2)):
        predict_table(
            Path("resnet_simple"), [str(tmp_path / "image.npy")], tmp_path / "t.csv", checks=checks, warn=said.append
        )
        assert len(said) == warned


def test_a_checker_is_a_shipped_model_that_fits(tmp_path):
    with pytest.raises(InputError, match="not one of the shipped models"):
        small_bundle().with_companions(checked_by="other")
    with pytest.raises(InputError, match="another size or pixel scale"):
        small_bundle().with_companions(checked_by="lens_residual")
    with pytest.raises(InputError, match="does not fit lenses"):
        small_bundle(n_pixels=SIDE).with_companions(checked_by="resnet_simple")
    with pytest.raises(InputError, match="checks its fits itself"):
        Bundle.load("lens_residual").with_companions(checked_by="lens_residual_robust")
    small_bundle().save(tmp_path)
    text = (tmp_path / "bundle.json").read_text()
    (tmp_path / "bundle.json").write_text(text.replace('"checked_by": ""', '"checked_by": "../other"'))
    with pytest.raises(InputError, match="checked_by: must be a model of this package"):
        Bundle.load(tmp_path)
