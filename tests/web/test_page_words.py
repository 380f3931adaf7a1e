"""What the page says of answers that real models seldom give: its modules, called in a browser, without a server."""

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

    def answer(route):
        name = route.request.url.removeprefix(f"{HOST}/") or "blank"
        if name == "blank":
            route.fulfill(body="<!doctype html><title>blank</title>", content_type="text/html")
        else:
            route.fulfill(body=(PAGE / name).read_text(encoding="utf-8"), content_type="text/javascript")

    with browsing() as browser:
        page = browser.new_page()
        page.route("**/*", answer)
        page.goto(HOST)

        def run(module, name, *values):
            script = "async ([module, name, values]) => (await import(module))[name](...values)"
            return page.evaluate(script, [f"/{module}.js", name, list(values)])

        yield run


def result(**changes):
    usual = {
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
    return usual | changes


def test_one_class_is_named_with_what_its_set_promises(call):
    said = call("words", "verdict", result())
    assert said["tone"] == "sure" and said["headline"] == "sphere: clumps of cold dark matter"
    assert "hold the true class in 90 %" in said["text"] and "0.500" in said["text"]


def test_several_classes_are_a_dont_know(call):
    said = call("words", "verdict", result(set=["no", "sphere", "vort"], dont_know=True))
    assert said["tone"] == "unsure" and said["headline"] == "Don't know: no, sphere or vort"
    assert "name 3 classes" in said["text"] and "sphere, probability 0.500" in said["text"]


def test_an_empty_set_is_a_dont_know(call):
    said = call("words", "verdict", result(set=[], dont_know=True))
    assert said["tone"] == "unsure" and said["headline"].startswith("Don't know: no class")


def test_an_unfamiliar_image_is_a_dont_know_however_sure_the_model_is(call):
    strange = {"score": 28836.0, "threshold": 1.5, "unfamiliar": True}
    odds = {"no": 0.0, "sphere": 1.0, "vort": 0.0}
    said = call("words", "verdict", result(ood=strange, probabilities=odds))
    assert said["tone"] == "unfamiliar" and said["headline"].startswith("Don't know")
    assert "> 0.999" in said["text"] and "promises nothing" in said["text"]
    assert "says little" in call("words", "seen", result(ood=strange))
    point = {"kind": "point", "x": 1.0, "y": -0.5, "mass": 2e9, "units": {"mass": "M_sun"}}
    assert call("words", "suggestion", result(ood=strange, suggestion=point)) is None
    shown = call("words", "suggestion", result(suggestion=point))
    assert shown == "Suggested: a point mass at (1.00″, \N{MINUS SIGN}0.50″), mass 2 × 10⁹ M☉."


def test_a_model_without_calibration_promises_nothing(call):
    said = call("words", "verdict", result(set=[], coverage=None, ood=None))
    assert "no calibrated sets" in said["text"]
    assert call("words", "familiarity", result(ood=None)) is None


@pytest.mark.parametrize(
    ("chi2", "said"),
    [
        (
            {"no": 2400.0, "sphere": 2300.0, "vort": 2350.0},
            "Point masses would lower χ² of the smooth fit by 100: more",
        ),
        (
            {"no": 2400.0, "sphere": 2390.0, "vort": 2385.0},
            "A line would lower χ² of the smooth fit by 15: no more than",
        ),
        ({"no": 2400.0, "sphere": 2401.0, "vort": 2405.0}, "Neither point masses nor a line"),
    ],
)
def test_what_the_fits_see(call, chi2, said):
    assert call("words", "seen", result(hypotheses=chi2)).startswith(said)


def test_gains_are_held_against_chance(call):
    by_chance = call("words", "seen", result(hypotheses={"no": 2400.0, "sphere": 2390.0, "vort": 2385.0}))
    assert "no more than the 18 that chance reaches" in by_chance
    assert ": more than the 31 that chance reaches" in call("words", "seen", result())


def test_what_chance_reaches_is_what_was_measured(call):
    measured = json.loads((ROOT / "results" / "common-test-i" / "hypotheses" / "chance.json").read_text())
    assert measured["images"] == 10_000 and measured["percentiles"][2] == 99
    said = (
        call("words", "seenOfMade", result(), {"class": "sphere"}),
        call("words", "seenOfMade", result(predicted="vort"), {"class": "vort"}),
    )
    for kind, text in zip(("sphere", "vort"), said, strict=True):
        assert f"beyond the {round(measured['gains'][kind][2])} that chance reaches in 1 of 100" in text


def test_what_was_put_into_a_lens_is_seen_or_not(call):
    clump = {"class": "sphere", "mass": 1e9, "x": 1.0, "y": 0.0}
    sees = call("words", "seenOfMade", result(), clump)
    assert "raises χ² of the smooth fit by 100, beyond the 31" in sees and sees.endswith(
        "and the model finds it (sphere 0.500)."
    )
    weak = result(predicted="no", set=["no"], hypotheses={"no": 2400.0, "sphere": 2390.0, "vort": 2395.0})
    misses = call("words", "seenOfMade", weak, clump)
    assert "by 10, within the 31" in misses and "the model does not find it" in misses
    assert "There is nothing but the smooth lens, but the model says sphere" in call(
        "words", "seenOfMade", result(), {"class": "no"}
    )


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23456, 0.00321, "1.2346 ± 0.0032"),
        (-0.5, 0.25, "\N{MINUS SIGN}0.50 ± 0.25"),
        (1.5, None, "1.500"),
        (3.0, 0, "3.000"),
    ],
)
def test_values_have_the_digits_that_their_errors_allow(call, value, error, text):
    assert call("numbers", "withError", value, error) == text


def test_probabilities_are_never_certain(call):
    told = [call("numbers", "probability", p) for p in (0, 1e-90, 0.00049, 0.25, 0.9996, 1)]
    assert told == ["< 0.001", "< 0.001", "< 0.001", "0.250", "> 0.999", "> 0.999"]


def test_the_table_keeps_what_would_be_a_formula_as_text(call):
    odd = [{"name": '=HYPERLINK("x"),1', "results": {"m": result(), "n": {"status": "error", "message": "Bad, very."}}}]
    rows = list(csv.DictReader(io.StringIO(call("downloads", "toCsv", odd))))
    assert [row["path"] for row in rows] == ['\'=HYPERLINK("x"),1'] * 2
    assert rows[0]["p_sphere"] == "0.5" and rows[0]["chi2_no"] == "2400"
    assert rows[1]["message"] == "Bad, very." and rows[1]["p_sphere"] == ""


def test_files_go_in_groups_that_the_limits_allow(call):
    files = [{"size": size} for size in (10, 10, 50, 10, 95)] + [{"size": 1}] * 20
    groups = call("api", "inGroups", files, {"max_files": 6, "max_bytes": 100})
    assert [f for group in groups for f in group] == files
    assert all(len(group) <= 6 for group in groups)
    assert all(sum(f["size"] for f in group) <= 90 or len(group) == 1 for group in groups)


def test_the_smallest_mass_that_is_found(call):
    def told(*found, unfamiliar=False):
        points = [{"mass": 10.0 ** (7 + i), "found": f, "unfamiliar": unfamiliar} for i, f in enumerate(found)]
        return call("sweep", "told", points, "sphere")

    assert "found from 10⁸" in told(False, True, True).replace("1 × ", "")
    assert "at every mass" in told(True, True)
    assert "at no mass" in told(False, False)
    upper = told(False, True, False).replace("1 × ", "")
    assert "not found above 10⁸ M☉: there the model" in upper and "smallest that is found has 10⁸" in upper
    assert "unlike those the model was trained on" in told(False, True, False, unfamiliar=True)
    masses = call("sweep", "massesBetween", 1e7, 1e10)
    assert masses[0] == 1e7 and masses[-1] == 1e10 and masses == sorted(masses)


def test_colours_of_maps_change_evenly(call):
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
