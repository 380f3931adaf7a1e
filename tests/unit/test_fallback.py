"""A model with a fallback: which images each classifies, the columns of the table, and what cannot be a fallback."""

import csv

import numpy as np
import pytest
from archives import PIXELS, rings, small_bundle

from darklens import populations
from darklens.bundle import Bundle, classify
from darklens.errors import InputError
from darklens.predict import predict, to_csv
from darklens.serve.batching import Job
from darklens.serve.classifier import Classifier
from darklens.simulate.batch import simulate_batch

DOUBT = ("the residuals suggest a PSF of another width",)


def sharpened(probabilities):
    return np.where(probabilities == probabilities.max(1, keepdims=True), 0.98, 0.01)


class Doubting(Bundle):
    """Doubts images with a mean above `limit`, and has a probability of 0.98."""

    def classify(self, images, *args, **options):
        result = super().classify(images, *args, **options)
        result = result._replace(probabilities=sharpened(result.probabilities))
        self.options = options
        own = [DOUBT if image.mean() > self.limit else () for image in images]
        return result._replace(doubts=[(*a, *b) for a, b in zip(result.doubts, own, strict=True)])


@pytest.fixture
def images():
    images = rings(5)
    images[[1, 3]] += 1000
    return images


@pytest.fixture
def bundle():
    first, second = small_bundle(seed=0), small_bundle(seed=1)
    contract = first.contract.model_copy(update={"recipe": "first", "fallback": "second"})
    bundle, fallback = Doubting(contract, first.network), Doubting(second.contract, second.network)
    bundle.limit, fallback.limit = 500, np.inf
    bundle.fallback = fallback  # in place of a shipped model
    return bundle


def test_each_image_is_classified_by_one_model(bundle, images):
    first, second = classify(bundle, images)
    assert first.indices == [0, 2, 4] and first.fallback_reasons == [()] * 3
    assert second.indices == [1, 3] and second.fallback_reasons == [DOUBT] * 2
    for part, model in ((first, bundle), (second, bundle.fallback)):
        assert part.bundle is model
        expected = sharpened(model.probabilities(images[part.indices]))
        np.testing.assert_array_equal(part.classification.probabilities, expected)
        assert len(part.classification.ood_features) == len(part.classification.inputs) == len(part.indices)


def test_without_doubts_or_without_a_fallback_the_first_model_classifies_all(bundle, images):
    (part,) = classify(bundle, images[[0, 2]])
    assert part.bundle is bundle and part.indices == [0, 1]
    bundle.fallback = None
    (part,) = classify(bundle, images)
    assert [bool(reasons) for reasons in part.classification.doubts] == [False, True, False, True, False]


def test_an_uncertain_image_is_classified_by_the_fallback_unless_it_is_doubted_anyway(bundle, images, monkeypatch):
    plain = Doubting.classify

    def uncertain(self, images, *args, **options):
        result = plain(self, images, *args, **options)
        result.probabilities[0] = 0.74, 0.13, 0.13
        return result

    monkeypatch.setattr(Doubting, "classify", uncertain)
    first, second = classify(bundle, images[[0, 2]])
    assert first.indices == [1] and second.indices == [0]
    assert second.fallback_reasons == [("no class has a probability above 0.75",)]
    (part,) = classify(bundle, images[[0, 2]], doubts=[("another PSF",), ()])
    assert part.bundle is bundle


def test_an_image_whose_fit_is_suspicious_is_classified_by_the_fallback(bundle, images, monkeypatch):
    suspicion = ("the residuals suggest light of the lens galaxy",)
    monkeypatch.setattr(Doubting, "suspicions_of", lambda self, result: [(), suspicion][: len(result.probabilities)])
    first, second = classify(bundle, images[[0, 2]])
    assert first.indices == [0] and second.indices == [1] and second.fallback_reasons == [suspicion]
    assert list(second.classification.doubts) == [()]


def test_all_images_may_be_doubtful(bundle, images):
    (part,) = classify(bundle, images[[1, 3]])
    assert part.bundle is bundle.fallback and part.indices == [0, 1]


def test_doubts_that_do_not_come_from_the_model_hold_for_both_and_call_no_fallback(bundle, images):
    further = ("the PSF is that of another image",)
    first, second = classify(bundle, images, doubts=[further, further, (), (), ()])
    assert second.indices == [1, 3] and list(second.classification.doubts) == [further, ()]
    assert first.indices == [0, 2, 4] and list(first.classification.doubts) == [further, (), ()]
    assert second.fallback_reasons == [DOUBT] * 2


def test_the_fallback_has_the_exposure_and_the_mask_of_its_images(bundle, images):
    exposure, mask = images + 2, images > 1010
    classify(bundle, images, exposure=exposure, mask=mask)
    np.testing.assert_array_equal(bundle.fallback.options["exposure"], exposure[[1, 3]])
    np.testing.assert_array_equal(bundle.fallback.options["mask"], mask[[1, 3]])


def test_the_table_names_the_model_and_the_reasons(bundle, images, tmp_path):
    paths = [tmp_path / f"{i}.npy" for i in range(5)]
    for path, image in zip(paths, images, strict=True):
        np.save(path, image[0])
    batches = []
    rows = predict(bundle, paths, on_batch=lambda model, names, *_: batches.append((model, names)))
    table = list(csv.DictReader(to_csv(rows, bundle.contract.classes).splitlines()))
    assert [row["model"] for row in table] == ["first", "small", "first", "small", "first"]
    assert [row["fallback_reason"] for row in table] == ["", DOUBT[0], "", DOUBT[0], ""]
    assert batches == [(bundle, [paths[0], paths[2], paths[4]]), (bundle.fallback, [paths[1], paths[3]])]
    assert "model" not in predict(small_bundle(), paths[:1])[0].findings


def test_a_fallback_is_a_shipped_model_for_the_same_images():
    with pytest.raises(InputError, match="one of the shipped models"):
        small_bundle().with_companions(fallback="other")
    with pytest.raises(InputError, match="another size or pixel scale"):
        small_bundle(n_pixels=PIXELS).with_companions(fallback="lens_residual")
    assert small_bundle().with_companions(fallback="").fallback is None


def test_a_bundle_that_names_another_fallback_is_refused(tmp_path):
    small_bundle().save(tmp_path)
    text = (tmp_path / "bundle.json").read_text()
    (tmp_path / "bundle.json").write_text(text.replace('"fallback": ""', '"fallback": "../other"'))
    with pytest.raises(InputError, match="fallback: must be a model of this package"):
        Bundle.load(tmp_path)


def test_responses_of_the_server_have_the_fit_of_the_model_that_classified():
    population = populations.get("common-test-i", ["lens.e1=0.1"])
    (elliptical,), _ = simulate_batch(population, 5, range(1))
    (plain,), _ = simulate_batch(populations.get("common-test-i"), 5, range(1))
    jobs = [Job(name=name, pixels=image[0], maps=True) for name, image in (("a", elliptical), ("b", plain))]
    first, second = Classifier(Bundle.load("lens_residual"))(jobs)
    assert first.fallback == "lens_residual_robust" and first.fallback_reasons and first.verdict == "no"
    e1 = first.fit.parameters["e1"]
    assert abs(e1.value - 0.1) < 5 * e1.error < 0.05 and set(first.maps) == set(second.maps)
    assert second.fallback is None and second.fallback_reasons == [] and "e1" not in second.fit.parameters


def test_a_line_that_points_describe_in_a_slightly_elliptical_lens_is_found():
    """The first model calls these lines `sphere` with p > 0.95, no fit fails a check, and no score test is large."""
    ellipticity = "{kind: normal, mean: 0, sigma: 0.02, low: -0.2, high: 0.2}"
    population = populations.get("common-test-i", [f"lens.e1={ellipticity}", f"lens.e2={ellipticity}"])
    images, truth = simulate_batch(population, 951, [722, 842, 1112])
    assert truth["label"].tolist() == [2, 2, 2]
    bundle = Bundle.load("lens_residual")
    alone = bundle.classify(images)
    assert alone.doubts == [()] * 3 and (alone.probabilities[:, 1] > 0.95).all()
    (part,) = classify(bundle, images)
    assert part.bundle is bundle.fallback and part.classification.doubts == [()] * 3
    assert all(any("one line lowers chi2 by" in reason for reason in reasons) for reasons in part.fallback_reasons)
    assert (part.classification.probabilities[:, 2] > 0.9).all()
