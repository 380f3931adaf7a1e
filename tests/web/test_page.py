"""The page at `/`, in a real browser, from a real server."""

import base64
import csv
import itertools
import json
import re

import numpy as np
import pytest
from browser import Watched, browsing, chromium, is_needed, serving

from darklens import populations
from darklens.bundle import Bundle
from darklens.simulate.batch import simulate_batch

pytestmark = pytest.mark.skipif(
    chromium() is None and not is_needed(), reason="no chromium here; it is required where CI is set"
)
FIRST, SECOND = "lens_residual", "lens_residual_isotropic"
CLASSES = ("no", "sphere", "vort")


@pytest.fixture(scope="module")
def address():
    with serving(FIRST, SECOND) as at:
        yield at


@pytest.fixture(scope="module")
def browser():
    with browsing() as running:
        yield running


@pytest.fixture
def opened(browser, address):
    """Open pages; at the end none of them has asked another host for anything, or reported an error."""
    pages = []

    def one(**options):
        pages.append(Watched(browser, address, **options))
        return pages[-1]

    yield one
    for watched in pages:
        watched.context.close()
        assert watched.elsewhere == []
        assert watched.errors == []


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A simulated image of each class as it would be uploaded, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    simulated, _ = simulate_batch(populations.get("common-test-i"), 5, range(3))
    for name, image in zip(CLASSES, simulated, strict=True):
        np.save(folder / f"{name}.npy", image)
    (folder / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00 this is no array")
    return folder


def upload(watched, *files):
    watched.page.get_by_label("Choose files").set_input_files([str(file) for file in files])
    watched.page.locator("#shown .summary").first.wait_for()
    watched.settle()


def saved(watched, kind):
    with watched.page.expect_download() as started:
        watched.page.get_by_role("button", name=kind, exact=True).click()
    return started.value.path()


def text_of(watched, selector):
    return watched.page.locator(selector).first.inner_text()


def test_an_uploaded_image_is_judged_as_the_bundle_judges_it(opened, images):
    watched = opened()
    page = watched.page
    upload(watched, images / "vort.npy")
    own = Bundle.load(FIRST).probabilities(np.load(images / "vort.npy")[None])[0]
    expected = dict(zip(CLASSES, own, strict=True))

    assert text_of(watched, ".headline").startswith("vort")
    assert "90 %" in text_of(watched, ".summary") and "Familiar image" in text_of(watched, ".summary")
    for i, name in enumerate(CLASSES):
        row = page.locator(".bars li").nth(i)
        assert row.inner_text().startswith(name)
        assert ("in the set" in row.inner_text().replace("not in the set", "")) == (name == "vort")
        width = row.locator(".fill").evaluate("bar => bar.getBoundingClientRect().width")
        whole = row.locator(".bar").evaluate("bar => bar.getBoundingClientRect().width")
        assert width / whole == pytest.approx(expected[name], abs=0.02)
    assert re.search(r"A line would lower χ² of the smooth fit by \d+: more than", text_of(watched, ".seen"))
    assert "Suggested: a line through" in text_of(watched, ".summary")
    assert "Einstein radius" in text_of(watched, ".details") and "±" in text_of(watched, ".details")
    assert "What was done to the image" in text_of(watched, ".summary")

    record = json.loads(saved(watched, "JSON").read_text())
    result = record["images"][0]["results"][FIRST]
    assert result["predicted"] == "vort" and result["set"] == ["vort"]
    assert result["probabilities"] == pytest.approx(expected, abs=1e-4)
    with saved(watched, "CSV").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["path"] == "vort.npy" and row["status"] == "ok" and row["predicted"] == "vort"
    assert float(row["p_vort"]) == result["probabilities"]["vort"]
    assert float(row["theta_E_error"]) > 0
    assert saved(watched, "PNG").read_bytes().startswith(b"\x89PNG")


def test_maps_are_drawn_and_read_out(opened, images):
    watched = opened()
    page = watched.page
    upload(watched, images / "sphere.npy")
    drawn = {figure.get_attribute("data-map") for figure in page.locator(".map-figure").all()}
    assert {"image", "residual", "evidence_point"} <= drawn
    colours = """canvas => {
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const seen = new Set();
      for (let i = 0; i < data.length; i += 4) seen.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
      return seen.size;
    }"""
    for figure in page.locator(".map-figure").all():
        assert figure.locator("canvas").evaluate(colours) > 50
        assert re.search(r"from .* at x .* arcsec, to .* at x", figure.locator("canvas").get_attribute("aria-label"))

    result = json.loads(saved(watched, "JSON").read_text())["images"][0]["results"][FIRST]
    kept = result["maps"]["residual"]
    values = np.frombuffer(base64.b64decode(kept["data"]), dtype="<f4").reshape(kept["shape"])
    canvas = page.locator('[data-map="residual"] canvas')
    canvas.focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    told = text_of(watched, '[data-map="residual"] output').replace("\N{MINUS SIGN}", "-")
    x, y, value = map(float, re.match(r"x (\S+)″, y (\S+)″: (\S+)", told).groups())
    x0, x1, y0, y1 = kept["extent"]
    h, w = kept["shape"]
    near = values[int((y - y0) / (y1 - y0) * h - 0.5) :, int((x - x0) / (x1 - x0) * w - 0.5) :][:3, :3]
    assert np.isclose(near, value, rtol=6e-3, atol=1e-3).any()
    assert text_of(watched, '[data-map="image"] output').startswith("x ")  # all maps follow
    page.keyboard.press("Escape")
    assert " to " in text_of(watched, '[data-map="residual"] output')


def test_a_broken_file_is_one_row_and_the_others_go_on(opened, images):
    watched = opened(width=400)
    page = watched.page
    upload(watched, *(images / f"{name}.npy" for name in (*CLASSES, "broken")))
    rows = [row.inner_text() for row in page.locator(".batch tbody tr").all()]
    assert [re.split(r"\s+", row)[:2] for row in rows[:3]] == [[f"{name}.npy", name] for name in CLASSES]
    assert rows[3].startswith("broken.npy") and len(rows[3]) > 30
    assert "4 files: 3 classified, 1 could not be read" in text_of(watched, "#announce")

    button = page.get_by_role("button", name="vort.npy")
    button.focus()
    page.keyboard.press("Enter")
    page.locator(".map-figure").first.wait_for()
    watched.settle()
    assert text_of(watched, ".image-name") == "vort.npy" and text_of(watched, ".headline").startswith("vort")
    page.get_by_role("button", name="broken.npy").click()
    assert text_of(watched, ".summary .message") in rows[3]
    assert page.locator(".map-figure").count() == 0
    assert no_sideways_scroll(page)
    with saved(watched, "CSV").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["status"] for row in table] == ["ok", "ok", "ok", "error"] and table[3]["predicted"] == ""


def test_sliders_move_by_keyboard_until_the_clump_is_seen(opened):
    watched = opened()
    page = watched.page
    page.get_by_role("tab", name="Your images").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#shown .summary").wait_for()
    watched.settle()
    mass = page.locator("#slider-mass")

    def moved(*keys):
        mass.focus()
        for key in keys:
            page.keyboard.press(key)
        page.wait_for_timeout(300)  # the sliders rest before they ask
        watched.settle()
        return text_of(watched, "#shown .seen")

    unseen = moved("Home")
    assert "the model does not find it" in unseen
    for _ in range(20):
        seen = moved(*["ArrowRight"] * 8)
        if "the model finds it" in seen:
            break
    assert "the model finds it" in seen and "beyond" in seen
    assert "The clump raises χ²" in text_of(watched, "#announce")
    moved(*["ArrowLeft"] * 8)  # each before the last is answered: the newest wins
    record = json.loads(saved(watched, "JSON").read_text())["images"][0]
    shown = float(mass.get_attribute("aria-valuetext").split()[0])
    assert f"{record['truth']['mass']:.2e}".startswith(f"{shown:.2f}"[:4])
    page.get_by_label("no substructure").check()
    page.wait_for_timeout(300)
    watched.settle()
    assert not mass.is_visible()
    assert "There is nothing but the smooth lens" in text_of(watched, "#shown .seen")


def test_all_masses_are_tried(opened):
    watched = opened(width=400)
    page = watched.page
    page.get_by_role("tab", name="Make a lens").click()
    page.locator("#shown .summary").wait_for()
    page.get_by_role("button", name="Try all masses").click()
    page.locator(".sweep").wait_for()
    watched.settle()
    cells = [row.locator("td").all_inner_texts() for row in page.locator(".sweep tbody tr").all()]
    assert len(cells) == page.locator(".sweep circle").count() == 9
    found = [row[2] for row in cells]
    assert found[0] == "no" and "yes" in found
    assert page.locator(".sweep circle.found").count() == found.count("yes")
    assert re.search("clump is (not )?found (from|at|above)", text_of(watched, ".sweep .seen"))
    assert no_sideways_scroll(page)


def test_two_models_side_by_side(opened, images):
    watched = opened()
    page = watched.page
    upload(watched, images / "sphere.npy")
    page.get_by_label("Compare with").select_option(SECOND)
    page.locator(".summary").nth(1).wait_for()
    watched.settle()
    assert [text_of(watched, f"article:nth-of-type({i}) .model") for i in (1, 2)] == [FIRST, SECOND]
    boxes = [page.locator(".summary").nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    results = json.loads(saved(watched, "JSON").read_text())["images"][0]["results"]
    assert list(results) == [FIRST, SECOND]
    assert results[FIRST]["probabilities"] != results[SECOND]["probabilities"]


def test_errors_of_a_request_are_the_servers_sentence(opened, images):
    watched = opened()
    page = watched.page
    sentence = "The server is busy; try again in a few seconds."
    answer = json.dumps({"error": {"code": 503, "reason": "busy", "message": sentence}})
    page.route("**/v1/predict*", lambda route: route.fulfill(status=503, body=answer, content_type="application/json"))
    upload(watched, images / "no.npy")
    assert text_of(watched, ".summary .message") == sentence
    page.unroute("**/v1/predict*")
    page.route(re.compile("/v1/lens"), lambda route: route.abort())
    page.get_by_role("tab", name="Make a lens").click()
    page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
    # The browser itself reports both failures, which were made here.
    assert len(watched.errors) == 2 and all("Failed to load resource" in error for error in watched.errors)
    watched.errors.clear()


def test_a_dropped_file_is_taken(opened):
    watched = opened()
    drop = """() => {
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File(["no image"], "notes.txt"));
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    }"""
    watched.page.evaluate(drop)
    watched.page.locator(".summary .message").wait_for()
    assert text_of(watched, ".image-name") == "notes.txt"
    assert len(text_of(watched, ".summary .message")) > 20


def test_a_token_is_asked_for_and_large_files_are_not_sent(opened, images):
    """The server is real; what it says of its limits, and of requests without the token, is put in its mouth."""
    watched = opened()
    page = watched.page
    sentence = "This server asks for a token; send it as Authorization: Bearer TOKEN."
    refusal = json.dumps({"error": {"code": 401, "reason": "no_token", "message": sentence}})
    sent = []

    def guard(route):
        headers = route.request.headers
        if route.request.url.endswith("/v1/limits"):
            limits = {**route.fetch().json(), "token_needed": True, "max_bytes": 1000}
            route.fulfill(json=limits)
        elif headers.get("authorization") == "Bearer open sesame":
            sent.append(route.request.url)
            route.continue_()
        else:
            route.fulfill(status=401, body=refusal, content_type="application/json")

    page.route(re.compile("/v1/"), guard)
    page.reload()
    page.get_by_role("alert").get_by_text(sentence).wait_for()
    page.get_by_label("Access token").fill("open sesame")
    page.keyboard.press("Enter")
    page.locator("#examples button").first.wait_for()
    upload(watched, images / "no.npy")
    assert "no.npy has 0.0901 MB, this server takes 0.00100 MB" in text_of(watched, ".summary .message")
    assert sent and not any("predict" in url for url in sent)
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie.length]") == [0, 0, 0]
    watched.errors[:] = [error for error in watched.errors if "401" not in error]  # refused here


def test_keyboard_order_theme_and_print(opened):
    watched = opened(theme="dark")
    page = watched.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "results"
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Dark colours").click()
    assert page.evaluate(ground) != dark
    assert page.locator("#theme").get_attribute("aria-pressed") == "false"
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()


def test_axe_finds_nothing_serious(opened, images):
    from axe_playwright_python.sync_playwright import Axe

    watched = opened()
    page = watched.page

    def check(state):
        for theme, width in itertools.product(("light", "dark"), (400, 1400)):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=theme)
            page.locator(f"html[data-theme={theme}]").wait_for()
            found = [
                f"{state}, {theme}, {width}: {v['id']}: {v['nodes'][0]['html']}"
                for v in Axe().run(page).response["violations"]
                if v["impact"] in ("serious", "critical")
            ]
            assert found == []
            assert no_sideways_scroll(page), (state, theme, width)

    check("start")
    upload(watched, images / "vort.npy", images / "broken.npy")
    page.get_by_label("Compare with").select_option(SECOND)
    page.locator(".summary").nth(1).wait_for()
    watched.settle()
    check("two models, a batch")
    page.get_by_label("Compare with").select_option("")
    page.get_by_role("tab", name="Make a lens").click()
    page.locator("#shown .seen").wait_for()
    watched.settle()
    check("made lens")


def no_sideways_scroll(page):
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.realdata
def test_a_real_image_of_common_test_i(opened, realdata):
    watched = opened()
    upload(watched, realdata / "common-test-i" / "vort" / "1.npy")
    assert text_of(watched, ".headline").startswith("vort")
    assert "Nothing: the image was taken as it is." in text_of(watched, ".changes")


@pytest.mark.realdata
def test_an_hst_cutout_that_is_too_small_is_refused_with_the_reason(opened, realdata):
    watched = opened()
    upload(watched, realdata / "hst-lenses" / "image_J0544+4350_F814W.h5")
    assert "give a wider cut-out" in text_of(watched, ".summary .message")


@pytest.mark.realdata
def test_an_hst_cutout_is_resampled_and_not_believed(opened, realdata):
    watched = opened()
    upload(watched, realdata / "hst-lenses" / "image_lens_system3_F475X.h5")
    changes = text_of(watched, ".changes")
    assert "padded from 130 x 130" in changes and "resampled from 0.04 to 0.05 arcsec" in changes
    told = text_of(watched, ".summary")
    assert "Don't know: this is unlike the training images" in told and "Unfamiliar image" in told
