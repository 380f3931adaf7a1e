"""The page at `/`, in a real browser, from a real server."""

import base64
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from browser import Watched, browsing, chromium, is_needed, serving

from darklens import populations, serve
from darklens.bundle import Bundle
from darklens.serve.responses import SearchResponse
from darklens.simulate.batch import simulate_batch

pytestmark = pytest.mark.skipif(
    chromium() is None and not is_needed(), reason="no chromium here; it is required where CI is set"
)
FIRST, SECOND = "lens_residual", "lens_residual_isotropic"
CLASSES = ("no", "sphere", "vort")
PAGE = Path(serve.__file__).parent / "page"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with serving(FIRST, SECOND, errors=tmp_path_factory.mktemp("server") / "errors") as at:
        yield at


@pytest.fixture(scope="module")
def browser():
    with browsing() as running:
        yield running


@pytest.fixture
def opened(browser, address):
    """Open pages; at the end check that none contacted another host or reported an error."""
    pages = []

    def open_page(**options):
        pages.append(Watched(browser, address, **options))
        return pages[-1]

    yield open_page
    for watched in pages:
        watched.context.close()
        assert watched.foreign_requests == []
        assert watched.errors == []


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A simulated image of each class, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    simulated, _ = simulate_batch(populations.get("common-test-i"), 5, range(3))
    for name, image in zip(CLASSES, simulated, strict=True):
        np.save(folder / f"{name}.npy", image)
    (folder / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00 this is no array")
    return folder


def upload(watched, *files):
    watched.page.get_by_label("Choose files").set_input_files([str(file) for file in files])
    watched.page.locator("#output .summary").first.wait_for()
    watched.settle()


def saved(watched, kind):
    with watched.page.expect_download() as started:
        watched.page.get_by_role("button", name=kind, exact=True).click()
    return started.value.path()


def text_of(watched, selector):
    return watched.page.locator(selector).first.inner_text()


def test_an_uploaded_image_gets_the_classification_of_the_bundle(opened, images):
    watched = opened()
    page = watched.page
    upload(watched, images / "vort.npy")
    probabilities = Bundle.load(FIRST).probabilities(np.load(images / "vort.npy")[None])[0]
    expected = dict(zip(CLASSES, probabilities, strict=True))

    assert text_of(watched, ".headline").startswith("vort")
    assert "90 %" in text_of(watched, ".summary") and "Within the training distribution" in text_of(watched, ".summary")
    for i, name in enumerate(CLASSES):
        row = page.locator(".bars li").nth(i)
        assert row.inner_text().startswith(name)
        assert ("in the set" in row.inner_text().replace("not in the set", "")) == (name == "vort")
        width = row.locator(".fill").evaluate("bar => bar.getBoundingClientRect().width")
        whole = row.locator(".bar").evaluate("bar => bar.getBoundingClientRect().width")
        assert width / whole == pytest.approx(expected[name], abs=0.02)
    assert re.search(r"A line lowers χ² of the fit by \d+, more than", text_of(watched, ".comparison"))
    assert "Suggested perturber: line centred at" in text_of(watched, ".summary")
    assert "Einstein radius" in text_of(watched, ".details") and "±" in text_of(watched, ".details")
    assert "Changes to the image" in text_of(watched, ".summary")
    assert "pixel scale of 0.05 arcsec assumed" in text_of(watched, ".changes")

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


def test_maps_are_drawn_and_read_by_keyboard(opened, images):
    watched = opened()
    page = watched.page
    upload(watched, images / "sphere.npy")
    drawn = {figure.get_attribute("data-map") for figure in page.locator(".map-figure").all()}
    assert {"image", "residual", "evidence_point"} <= drawn
    colours = """canvas => {
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const colours = new Set();
      for (let i = 0; i < data.length; i += 4) colours.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
      return colours.size;
    }"""
    for figure in page.locator(".map-figure").all():
        assert figure.locator("canvas").evaluate(colours) > 50
        assert re.search(r"from .* at x .* arcsec, to .* at x", figure.locator("canvas").get_attribute("aria-label"))

    result = json.loads(saved(watched, "JSON").read_text())["images"][0]["results"][FIRST]
    record = result["maps"]["residual"]
    values = np.frombuffer(base64.b64decode(record["data"]), dtype="<f4").reshape(record["shape"])
    canvas = page.locator('[data-map="residual"] canvas')
    canvas.focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    readout = text_of(watched, '[data-map="residual"] output').replace("\N{MINUS SIGN}", "-")
    x, y, value = map(float, re.match(r"x (\S+)″, y (\S+)″: (\S+)", readout).groups())
    x0, x1, y0, y1 = record["extent"]
    h, w = record["shape"]
    near = values[int((y - y0) / (y1 - y0) * h - 0.5) :, int((x - x0) / (x1 - x0) * w - 0.5) :][:3, :3]
    assert np.isclose(near, value, rtol=6e-3, atol=1e-3).any()
    assert text_of(watched, '[data-map="image"] output').startswith("x ")  # all maps show the position
    page.keyboard.press("Escape")
    assert " to " in text_of(watched, '[data-map="residual"] output')


def test_a_broken_file_is_one_row_and_the_others_are_classified(opened, images):
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


def test_sliders_move_by_keyboard_to_masses_that_the_model_finds_or_not(opened):
    watched = opened()
    page = watched.page
    page.get_by_role("tab", name="Your images").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#output .summary").wait_for()
    watched.settle()
    mass = page.locator("#slider-mass")

    def moved(*keys):
        mass.focus()
        for key in keys:
            page.keyboard.press(key)
        page.wait_for_timeout(300)  # the page waits until the sliders rest
        watched.settle()
        return text_of(watched, "#output .comparison")

    assert "the model does not find the perturber" in moved("Home")
    sentence = moved("End", *["ArrowLeft"] * 16)
    assert "the model finds the perturber" in sentence and "more than" in sentence
    assert "Point masses lower χ²" in text_of(watched, "#announce")
    moved(*["ArrowLeft"] * 8)  # each overtakes the one before: the last request counts
    record = json.loads(saved(watched, "JSON").read_text())["images"][0]
    mantissa = float(mass.get_attribute("aria-valuetext").split()[0])
    assert f"{record['truth']['mass']:.2e}".startswith(f"{mantissa:.2f}"[:4])
    page.get_by_label("no substructure").check()
    page.wait_for_timeout(300)
    watched.settle()
    assert not mass.is_visible()
    assert "The lens is smooth" in text_of(watched, "#output .comparison")


def test_a_sweep_in_mass(opened):
    """Of five masses instead of nine, whose grid `test_page_words.py` tests."""
    watched = opened(width=400)
    page = watched.page
    few = (PAGE / "sweep.js").read_text(encoding="utf-8").replace("COUNT = 9", "COUNT = 5")
    page.route("**/page/sweep.js", lambda route: route.fulfill(body=few, content_type="text/javascript"))
    page.reload()
    page.locator("#examples button").first.wait_for()
    page.get_by_role("tab", name="Simulate a lens").click()
    page.locator("#output .summary").wait_for()
    page.get_by_role("button", name="Try all masses").click()
    page.locator(".sweep").wait_for()
    watched.settle()
    cells = [row.locator("td").all_inner_texts() for row in page.locator(".sweep tbody tr").all()]
    assert len(cells) == page.locator(".sweep circle").count() == 5
    detected = [row[2] for row in cells]
    assert detected[0] == "no" and "yes" in detected
    assert page.locator(".sweep circle.detected").count() == detected.count("yes")
    assert re.search("finds the point mass (from|at)", text_of(watched, ".sweep .comparison"))
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


def test_an_error_response_is_displayed(opened, images):
    watched = opened()
    page = watched.page
    sentence = "The server is busy; try again in a few seconds."
    answer = json.dumps({"error": {"code": 503, "reason": "busy", "message": sentence}})
    page.route("**/v1/predict*", lambda route: route.fulfill(status=503, body=answer, content_type="application/json"))
    upload(watched, images / "no.npy")
    assert text_of(watched, ".summary .message") == sentence
    page.unroute("**/v1/predict*")
    page.route(re.compile("/v1/lens"), lambda route: route.abort())
    page.get_by_role("tab", name="Simulate a lens").click()
    page.get_by_role("alert").get_by_text("The server does not respond").wait_for()
    # The browser reports both failures, which this test caused.
    assert len(watched.errors) == 2 and all("Failed to load resource" in error for error in watched.errors)
    watched.errors.clear()


def test_a_dropped_file_is_classified(opened):
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


def test_a_token_is_requested_and_large_files_are_not_sent(opened, images):
    """A real server, but the test replaces its limits and its responses to requests without the token."""
    watched = opened()
    page = watched.page
    sentence = "This server requires a token; send it as Authorization: Bearer TOKEN."
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
    assert "no.npy has 0.0901 MB, and this server takes at most 0.00100 MB" in text_of(watched, ".summary .message")
    assert sent and not any("predict" in url for url in sent)
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie.length]") == [0, 0, 0]
    watched.errors[:] = [error for error in watched.errors if "401" not in error]  # rejected by this test


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
        for theme, width in (("light", 400), ("dark", 1400)):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=theme)
            page.locator(f"html[data-theme={theme}]").wait_for()
            violations = [
                f"{state}, {theme}, {width}: {v['id']}: {v['nodes'][0]['html']}"
                for v in Axe().run(page).response["violations"]
                if v["impact"] in ("serious", "critical")
            ]
            assert violations == []
            assert no_sideways_scroll(page), (state, theme, width)

    check("start")
    upload(watched, images / "vort.npy", images / "broken.npy")
    page.get_by_label("Compare with").select_option(SECOND)
    page.locator(".summary").nth(1).wait_for()
    watched.settle()
    check("two models, a batch")
    page.get_by_label("Compare with").select_option("")
    page.get_by_role("tab", name="Simulate a lens").click()
    page.locator("#output .comparison").wait_for()
    watched.settle()
    check("simulated lens")


def no_sideways_scroll(page):
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.realdata
def test_an_hst_cutout_is_resampled_and_out_of_distribution_or_too_small(opened, realdata):
    watched = opened()
    upload(watched, realdata / "hst-lenses" / "image_J0544+4350_F814W.h5")
    assert "give a wider cut-out" in text_of(watched, ".summary .message")
    upload(watched, realdata / "hst-lenses" / "image_lens_system3_F475X.h5")
    changes = text_of(watched, ".changes")
    assert "padded from 130 x 130" in changes and "resampled from 0.04 to 0.05 arcsec" in changes
    summary = text_of(watched, ".summary")
    assert "Don't know: out of distribution" in summary and "Out of distribution (score" in summary


def test_a_telescope_image_is_searched(opened, tmp_path):
    """The response is made up: `test_search_api.py` tests those of the server."""
    (tmp_path / "lens.npz").write_bytes(b"an image")
    (tmp_path / "lens_psf.fits").write_bytes(b"a PSF")
    plane = np.full((4, 4), np.nan, dtype="<f4")
    plane[1:3] = [[1, 2, 3, 4], [5, 6, 7, 60]]
    record = {"unit": "", "shape": [4, 4], "extent": [-1, 1, -1, 1], "min": 1.0, "max": 60.0}
    record["data"] = base64.b64encode(plane.tobytes()).decode()
    row = {"detected": True, "delta_chi2": 60.0, "threshold": 11.0, "x": 0.75, "y": 0.25, "log10_mass": 9.5}
    row |= {"log10_mass_error": 0.1, "concentration": None, "chi2_per_pixel": 1.0, "chi2_per_pixel_smooth": 1.1}
    row |= {"theta_E": 1.2, "theta_E_error": 0.01, "seconds": 2.0}
    response = {"name": "lens.npz", "version": "1", "scene": "sie-shear", "perturber": "point", "status": "ok"}
    response |= {"message": "", "summary": "A perturber is detected.", "notes": ["Threshold <b>."], "changes": []}
    response |= {"row": row, "maps": {name: record | {"label": name} for name in ("image", "residual", "gain")}}
    SearchResponse.model_validate(response)
    watched = opened()
    page, sent = watched.page, []

    def respond(route):
        sent.append((route.request.url, route.request.post_data_buffer))
        route.fulfill(json=response)

    page.route("**/v1/search?*", respond)
    page.get_by_role("tab", name="Your images").press("End")
    assert page.get_by_role("tab", name="Search a telescope image").get_attribute("aria-selected") == "true"
    assert not page.locator("#model").is_visible() and "2 to 20 seconds" in text_of(watched, "#search-form")
    page.get_by_role("button", name="Fit and search").click()  # without an image nothing is sent
    page.get_by_label("Image", exact=True).set_input_files(str(tmp_path / "lens.npz"))
    page.get_by_text("Noise map, PSF and mask in separate files").click()
    page.get_by_label("PSF image").set_input_files(str(tmp_path / "lens_psf.fits"))
    page.get_by_label("Scene").select_option("sie-shear")
    page.get_by_label("Perturber", exact=True).select_option("point")
    assert text_of(watched, "#search-perturber-hint") == "Point mass"
    page.get_by_label("Redshift of lens").fill("0.3")
    page.get_by_role("button", name="Fit and search").click()
    page.locator("#output .summary").wait_for()
    watched.settle()
    ((url, body),) = sent
    for parameter in ("scene=sie-shear", "perturber=point", "z_lens=0.3", "z_source=1", "flip_rows=false"):
        assert parameter in url
    assert "pixel_scale" not in url and b'name="image"; filename="lens.npz"' in body
    assert b'name="psf"; filename="lens_psf.fits"' in body
    assert text_of(watched, ".headline") == "A perturber is detected." and "Threshold <b>." in text_of(
        watched, ".summary"
    )
    assert "9.50 ± 0.10" in text_of(watched, ".details") and "0.75″, 0.25″" in text_of(watched, ".details")
    label = page.locator("[data-map=gain] canvas").get_attribute("aria-label")
    assert "to 60.0 at x 0.75, y 0.25 arcsec" in label and "from 1.00" in label and "Marked: suggested point" in label
    assert json.loads(saved(watched, "JSON").read_text())["images"][0]["results"] == {"sie-shear + point": response}
    with saved(watched, "CSV").open(newline="") as stream:
        (cells,) = csv.DictReader(stream)
    assert cells["path"] == "lens.npz" and float(cells["log10_mass"]) == 9.5 and cells["detected"] == "true"
    assert saved(watched, "PNG").read_bytes().startswith(b"\x89PNG")
    no_sideways_scroll(page)
    page.get_by_role("tab", name="Your images").click()
    assert page.locator("#empty").is_visible() and page.locator("#model").is_visible()
