"""The sentences of the page for results that real models rarely give: its modules, called in a browser."""

import csv
import io
import json
from importlib import resources
from pathlib import Path

import pytest
from browser import browsing, chromium, is_needed

pytestmark = pytest.mark.skipif(
    chromium() is None and not is_needed(), reason="no chromium here; it is required where CI is set"
)
PAGE = resources.files("darklens.serve") / "page"
ROOT = Path(__file__).parent.parent.parent
HOST = "http://page.invalid"


@pytest.fixture(scope="module")
def call():
    """Call a function of a module of the page."""

    def respond(route):
        name = route.request.url.removeprefix(f"{HOST}/") or "blank"
        if name == "blank":
            route.fulfill(body="<!doctype html><title>blank</title>", content_type="text/html")
        else:
            route.fulfill(body=(PAGE / name).read_text(encoding="utf-8"), content_type="text/javascript")

    with browsing() as browser:
        page = browser.new_page()
        page.route("**/*", respond)
        page.goto(HOST)

        def run(module, name, *values):
            script = "async ([module, name, values]) => (await import(module))[name](...values)"
            return page.evaluate(script, [f"/{module}.js", name, list(values)])

        yield run


def result(**changes):
    defaults = {
        "status": "ok",
        "predicted": "sphere",
        "probabilities": {"no": 0.2, "sphere": 0.5, "vort": 0.3},
        "set": ["sphere"],
        "coverage": 0.9,
        "dont_know": False,
        "ood": {"score": 1.0, "threshold": 1.5, "unfamiliar": False},
        "hypotheses": {"no": 2400.0, "sphere": 2300.0, "vort": 2350.0},
        "fit": {"converged": True, "parameters": {}},
        "changes": [],
    }
    return defaults | changes


def test_a_single_class_is_named_with_its_probability_and_set(call):
    verdict = call("words", "verdict", result())
    assert verdict["tone"] == "certain" and verdict["headline"] == "sphere: subhaloes of cold dark matter"
    assert verdict["text"] == "Probability 0.500. The 90 % prediction set contains no other class."


def test_a_set_of_several_classes_is_a_dont_know(call):
    verdict = call("words", "verdict", result(set=["no", "sphere", "vort"], dont_know=True))
    assert verdict["tone"] == "uncertain" and verdict["headline"] == "Don't know: no, sphere or vort"
    assert "contains 3 classes" in verdict["text"] and "sphere, with probability 0.500" in verdict["text"]


def test_a_class_that_the_fit_does_not_support_is_a_dont_know_with_the_reasons(call):
    doubted = result(verdict="unknown", reasons=["the residuals suggest a sloped sky", "chi2 is high"], dont_know=True)
    verdict = call("words", "verdict", doubted)
    assert verdict["tone"] == "uncertain" and verdict["headline"].startswith("Don't know")
    assert "a sloped sky; chi2 is high" in verdict["text"]
    (row,) = csv.DictReader(io.StringIO(call("downloads", "toCsv", [{"name": "a.npy", "results": {"m": doubted}}])))
    assert row["verdict"] == "unknown" and row["reason"] == "the residuals suggest a sloped sky; chi2 is high"


def test_a_fallback_is_named_with_the_reasons(call):
    assert call("words", "fallback", result()) is None
    fallen = result(fallback="lens_residual_robust", fallback_reasons=["the residuals suggest another PSF", "chi2"])
    sentence = call("words", "fallback", fallen)
    assert sentence.startswith("Classified by lens_residual_robust") and "another PSF; chi2." in sentence
    (row,) = csv.DictReader(io.StringIO(call("downloads", "toCsv", [{"name": "a.npy", "results": {"m": fallen}}])))
    assert row["fallback"] == "lens_residual_robust" and row["fallback_reason"].endswith("another PSF; chi2")


def test_an_empty_set_is_a_dont_know(call):
    verdict = call("words", "verdict", result(set=[], dont_know=True))
    assert verdict["tone"] == "uncertain" and verdict["headline"] == "Don't know: empty prediction set"


def test_an_out_of_distribution_image_is_a_dont_know_whatever_its_probability(call):
    ood = {"score": 28836.0, "threshold": 1.5, "unfamiliar": True}
    probabilities = {"no": 0.0, "sphere": 1.0, "vort": 0.0}
    verdict = call("words", "verdict", result(ood=ood, probabilities=probabilities))
    assert verdict["tone"] == "ood" and verdict["headline"].startswith("Don't know")
    assert "> 0.999" in verdict["text"] and "not reliable" in verdict["text"]
    assert "is not compared" in call("words", "fitComparison", result(ood=ood))
    point = {"kind": "point", "x": 1.0, "y": -0.5, "mass": 2e9, "units": {"mass": "M_sun"}}
    assert call("words", "suggestion", result(ood=ood, suggestion=point)) is None
    sentence = call("words", "suggestion", result(suggestion=point))
    assert sentence == "Suggested perturber: point mass at (1.00″, \N{MINUS SIGN}0.50″), mass 2 × 10⁹ M☉."


def test_a_model_without_calibration_has_no_set(call):
    verdict = call("words", "verdict", result(set=[], coverage=None, ood=None))
    assert "not calibrated" in verdict["text"]
    assert call("words", "outOfDistribution", result(ood=None)) is None


@pytest.mark.parametrize(
    ("chi2", "sentence"),
    [
        (
            {"no": 2400.0, "sphere": 2300.0, "vort": 2350.0},
            "Point masses lower χ² of the fit by 100, more than the 31 that",
        ),
        (
            {"no": 2400.0, "sphere": 2390.0, "vort": 2385.0},
            "A line lowers χ² of the fit by 15, less than the 18 that",
        ),
        ({"no": 2400.0, "sphere": 2401.0, "vort": 2405.0}, "Neither point masses nor a line"),
    ],
)
def test_the_best_perturber_is_compared_with_chance(call, chi2, sentence):
    assert call("words", "fitComparison", result(hypotheses=chi2)).startswith(sentence)


def test_the_chance_values_are_those_of_the_measurement(call):
    measured = json.loads((ROOT / "results" / "common-test-i" / "hypotheses" / "chance.json").read_text())
    assert measured["images"] == 10_000 and measured["percentiles"][2] == 99
    sentences = (
        call("words", "detection", result(), {"class": "sphere"}),
        call("words", "detection", result(predicted="vort"), {"class": "vort"}),
    )
    for kind, sentence in zip(("sphere", "vort"), sentences, strict=True):
        assert f"more than the {round(measured['gains'][kind][2])} that 1 in 100 smooth lenses" in sentence


def test_a_simulated_perturber_is_found_or_missed(call):
    truth = {"class": "sphere", "mass": 1e9, "x": 1.0, "y": 0.0}
    detected = call("words", "detection", result(), truth)
    assert "lower χ² of the fit by 100, more than the 31" in detected
    assert detected.endswith("and the model finds the perturber (p(sphere) = 0.500).")
    weak = result(predicted="no", set=["no"], hypotheses={"no": 2400.0, "sphere": 2390.0, "vort": 2395.0})
    missed = call("words", "detection", weak, truth)
    assert "by 10, less than the 31" in missed and "and the model does not find the perturber" in missed
    certain = result(probabilities={"no": 0.0, "sphere": 1.0, "vort": 0.0})
    assert "(p(sphere) > 0.999)" in call("words", "detection", certain, truth)
    smooth = call("words", "detection", result(), {"class": "no"})
    assert smooth.startswith("The lens is smooth, but the model predicts sphere.")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23456, 0.00321, "1.2346 ± 0.0032"),
        (-0.5, 0.25, "\N{MINUS SIGN}0.50 ± 0.25"),
        (1.5, None, "1.500"),
        (3.0, 0, "3.000"),
    ],
)
def test_values_are_rounded_to_their_errors(call, value, error, text):
    assert call("numbers", "withError", value, error) == text


def test_probabilities_near_0_or_1_are_inequalities(call):
    texts = [call("numbers", "probability", p) for p in (0, 1e-90, 0.00049, 0.25, 0.9996, 1)]
    assert texts == ["< 0.001", "< 0.001", "< 0.001", "0.250", "> 0.999", "> 0.999"]


def test_the_table_escapes_formulas(call):
    items = [
        {"name": '=HYPERLINK("x"),1', "results": {"m": result(), "n": {"status": "error", "message": "Bad, very."}}}
    ]
    rows = list(csv.DictReader(io.StringIO(call("downloads", "toCsv", items))))
    assert [row["path"] for row in rows] == ['\'=HYPERLINK("x"),1'] * 2
    assert rows[0]["p_sphere"] == "0.5" and rows[0]["chi2_no"] == "2400"
    assert rows[1]["message"] == "Bad, very." and rows[1]["p_sphere"] == ""


def test_files_are_sent_in_groups_within_the_limits(call):
    files = [{"size": size} for size in (10, 10, 50, 10, 95)] + [{"size": 1}] * 20
    groups = call("api", "inGroups", files, {"max_files": 6, "max_bytes": 100})
    assert [f for group in groups for f in group] == files
    assert all(len(group) <= 6 for group in groups)
    assert all(sum(f["size"] for f in group) <= 90 or len(group) == 1 for group in groups)


def test_the_smallest_mass_that_the_model_finds(call):
    def sentence(*detected, ood=False):
        points = [{"mass": 10.0 ** (7 + i), "detected": d, "ood": ood} for i, d in enumerate(detected)]
        return call("sweep", "sweepSentence", points, "sphere").replace("1 × ", "")

    assert "finds the point mass from 10⁸ M☉ upwards" in sentence(False, True, True)
    assert "at every mass" in sentence(True, True)
    assert "not find" in sentence(False, False)
    assert "from 10⁸ M☉ to 10⁹ M☉; the model is uncertain about heavier" in sentence(False, True, True, False)
    assert "heavier ones are out of distribution" in sentence(False, True, False, ood=True)
    masses = call("sweep", "massGrid", 1e7, 1e10)
    assert masses[0] == 1e7 and masses[-1] == 1e10 and masses == sorted(masses) and len(masses) == 9


def test_colour_maps_are_perceptually_uniform(call):
    def lightness(name):
        table = call("colours", "colourMap", name)
        linear = [((v / 255 + 0.055) / 1.055) ** 2.4 if v > 10 else v / 255 / 12.92 for v in table]
        grey = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in zip(*[iter(linear)] * 3, strict=True)]
        return [116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y for y in grey]

    for name in ("magma", "viridis"):
        steps = [b - a for a, b in zip(lightness(name)[::16], lightness(name)[16::16], strict=False)]
        assert min(steps) > 0 and max(steps) < 2 * min(steps) + 2
    sides = lightness("diverging")
    assert sides[0] < 50 and sides[-1] < 50 and max(sides) > 93
    assert abs(sides[40] - sides[215]) < 6
