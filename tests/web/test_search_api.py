"""Searches of uploaded telescope images: results, bad inputs, and searches that no client waits for."""

import base64
import io
import json
import multiprocessing
import time
from concurrent.futures import CancelledError
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from darklens.fit.perturber_profiles import HaloPerturber
from darklens.scene import PSF, SIE, Detector, Scene, Sersic, Shear
from darklens.serve import search_processes
from darklens.serve.limits import Admission, Settings
from darklens.serve.responses import RequestError
from darklens.serve.search_processes import SearchJob, SearchPool
from darklens.serve.search_request import SearchQuery

PATIENCE = 120.0
SCALE = 0.15


def encoded(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture(scope="module")
def files():
    """Image (20 rows, 24 columns), noise map and PSF of a lens with a heavy halo at (0.9, 0.5), in separate files."""
    psf = PSF.gaussian(fwhm=0.3, pixel_scale=SCALE)
    halo = HaloPerturber(log10_mass=10.5, centre_x=0.9, centre_y=0.5)
    lens = SIE(theta_E=1.1, e1=0.1, e2=0.0, centre_x=0.0, centre_y=0.0)
    source = Sersic(R_e=0.15, n=1.0, e1=0.0, e2=0.0, centre_x=0.08, centre_y=0.05)
    scene = Scene([lens, Shear(gamma1=0.0, gamma2=0.0), halo], [source])
    image = scene.image({}, {"source.amplitude": 1.0}, Detector((20, 24), SCALE, psf))
    noise = 0.02 * image.max()
    noisy = image + np.random.default_rng(1).normal(0, noise, image.shape)
    noisy[0, 0] = np.nan
    planes = {"image": noisy, "noise_map": np.full(image.shape, noise), "psf": psf.kernel.numpy()}
    return {name: (f"{name}<b>.npy", encoded(plane)) for name, plane in planes.items()}


def post(address, files, **options):
    return httpx.post(f"{address}/v1/search", files=list(files.items()), params=options, timeout=PATIENCE)


def test_a_halo_is_detected_with_maps_on_square_fields(live, files):
    response = post(live, files, scene="sie-shear", pixel_scale=SCALE, z_lens=0.3)
    found = response.raise_for_status().json()
    assert found["status"] == "ok" and found["name"] == "image<b>.npy" and found["message"] == ""
    row = found["row"]
    assert row["detected"] and row["delta_chi2"] > row["threshold"] == 11 and 0.8 < row["chi2_per_pixel"] < 1.2
    assert np.hypot(row["x"] - 0.9, row["y"] - 0.5) < 0.2 and abs(row["theta_E"] - 1.1) < 0.1
    assert found["summary"].startswith("A perturber of 10^") and "z_lens = 0.3" in found["notes"][1]
    assert found["changes"] == ["1 pixels left out"]
    maps = {name: decoded(plane) for name, plane in found["maps"].items()}
    assert list(maps) == ["image", "residual", "residual_perturber", "gain", "detectable"]
    assert maps["image"].shape == (24, 24) and found["maps"]["image"]["extent"] == pytest.approx([-1.8, 1.8] * 2)
    assert (
        np.isnan(maps["image"][:2]).all()
        and np.isnan(maps["image"][2, 0])
        and not np.isnan(maps["image"][2:22, 1:]).any()
    )
    assert maps["gain"].shape == maps["detectable"].shape and np.nanmax(maps["gain"]) > 11
    text = httpx.get(f"{live}/metrics").text
    assert 'darklens_searches_total{outcome="detected"} 1' in text


def decoded(plane):
    values = np.frombuffer(base64.b64decode(plane["data"]), dtype="<f4").reshape(plane["shape"])
    assert (plane["min"], plane["max"]) == pytest.approx((np.nanmin(values), np.nanmax(values)))
    return values


@pytest.mark.parametrize(
    ("changed", "options", "sentence"),
    [
        ({}, {}, "states no pixel scale; give it in arcsec with pixel_scale."),
        (
            {"noise_map": None},
            {"pixel_scale": SCALE},
            "there is no noise map; give one with noise_map, or exposure=... ",
        ),
        ({"image": b"no image"}, {"pixel_scale": SCALE}, "not an npy"),
        ({"psf": b"\x80\x04K\x01."}, {"pixel_scale": SCALE}, "psf<b>.npy"),
        ({"noise_map": encoded(np.ones((5, 5)))}, {"pixel_scale": SCALE}, "the noise map has 5 x 5 pixels"),
        ({"mask": encoded(np.ones((20, 24)))}, {"pixel_scale": SCALE}, "excludes every pixel"),
        ({"image": encoded(np.ones((300, 300)))}, {"pixel_scale": SCALE}, "has 5 x 5 pixels, the image 300 x 300"),
        ({}, {"pixel_scale": SCALE, "psf_fwhm": 0.3}, "the file psf and psf_fwhm exclude each other"),
        ({}, {"pixel_scale": SCALE, "exposure": 100}, "noise_map and background_rms or exposure exclude each other"),
        ({}, {"pixel_scale": SCALE, "z_lens": 2}, "z_source (1) must be above z_lens (2)."),
    ],
)
def test_a_bad_input_is_one_sentence(live, files, changed, options, sentence):
    changed = {name: content and (f"{name}<b>.npy", content) for name, content in changed.items()}
    if "300" in sentence:
        changed["noise_map"] = ("n.npy", encoded(np.ones((5, 5))))
    sent = {name: file for name, file in {**files, **changed}.items() if file}
    found = post(live, sent, **options).raise_for_status().json()
    message = found["message"]
    assert found["status"] == "error" and sentence in message and message.endswith(".") and "\n" not in message
    assert "/tmp" not in message and "--" not in message and found["row"] is None and found["maps"] is None


def test_large_images_and_stacks_are_refused_before_they_are_fitted(live, files):
    noise = {"pixel_scale": SCALE, "background_rms": 0.1}
    large = post(live, {"image": ("a.npy", encoded(np.random.default_rng(0).random((201, 200))))}, **noise).json()
    assert "201 x 200 pixels, and this server searches at most 40000" in large["message"]
    stream = io.BytesIO()
    np.savez(stream, images=np.ones((2, 9, 9)), noise=np.ones((2, 9, 9)), pixel_scale=SCALE)
    assert post(live, {"image": ("a.npz", stream.getvalue())}).json()["message"] == "a.npz holds 2 images; send one."


@pytest.mark.parametrize(
    ("code", "options"),
    [
        (415, {"json": {}}),
        (422, {"files": [("files", ("a.npy", b"x"))]}),
        (422, {"files": [("noise_map", ("a.npy", b"x"))]}),
        (422, {"files": [("image", ("a.npy", b"x"))] * 2}),
        (422, {"files": [("image", ("a.npy", b"x"))], "params": {"scene": "../epl-shear"}}),
        (422, {"files": [("image", ("a.npy", b"x"))], "params": {"pixel_scale": "nan"}}),
        (413, {"files": [("image", ("a.npy", b"x"))] * 65}),
        (413, {"files": [("image", ("a.npy", b"x" * 64_000_001))]}),
    ],
)
def test_an_invalid_request_gets_its_status_code_and_one_sentence(live, code, options):
    response = httpx.post(f"{live}/v1/search", timeout=PATIENCE, **options)
    error = response.json()["error"]
    assert response.status_code == error["code"] == code
    assert error["message"].endswith(".") and "\n" not in error["message"]


def test_scenes_and_perturbers_are_listed(live):
    choices = httpx.get(f"{live}/v1/search", timeout=PATIENCE).json()
    assert {"sie-shear", "epl-shear+light"} <= {scene["name"] for scene in choices["scenes"]}
    assert [kind["name"] for kind in choices["perturbers"]] == ["tnfw", "tnfw_free", "point", "line"]
    assert all(choice["description"] for choice in choices["scenes"] + choices["perturbers"])


def test_too_many_searches_are_rejected_and_images_are_still_accepted():
    admission = Admission(Settings(searches=1))
    with admission.search():
        with pytest.raises(RequestError, match="1 searches are waiting or running") as rejected, admission.search():
            pass
        assert rejected.value.code == 503
        with admission.images(256):
            pass
    with admission.search():
        pass


def endless(connection, folder):
    """A search that does not end, in place of `search_files`."""
    connection.send_bytes(b"ready")
    while True:
        request, n_files = json.loads(connection.recv_bytes())
        files = [connection.recv_bytes() for _ in range(n_files)]
        if files == [b"end"]:
            connection.send_bytes(b"1")
            connection.send_bytes(json.dumps({"name": request["names"]["image"]}).encode())


@pytest.fixture
def pool(monkeypatch, request):
    context = SimpleNamespace(get_context=lambda _: multiprocessing.get_context("fork"))
    monkeypatch.setattr("darklens.serve.reader_processes.multiprocessing", context)
    monkeypatch.setattr(search_processes, "search_files", endless)
    running = SearchPool(1, timeout=request.param)
    yield running
    running.close()
    assert not any(process.folder.exists() for process in running._processes)


def job(content=b"x"):
    return SearchJob(SearchQuery(), {"image": ("lens.npy", content)}, max_pixels=10)


@pytest.mark.parametrize("pool", [0.2], indirect=True)
def test_a_search_that_takes_too_long_is_ended(pool):
    slow, good = job(), job(b"end")
    pool.submit(slow)
    pool.submit(good)
    assert slow.result.result(PATIENCE)["message"].startswith("lens.npy: takes too long to search")
    assert good.result.result(PATIENCE) == {"name": "lens.npy"}


@pytest.mark.parametrize("pool", [PATIENCE], indirect=True)
def test_searches_that_no_client_waits_for_are_dropped(pool):
    running, waiting, last = job(), job(), job(b"end")
    for item in (running, waiting, last):
        pool.submit(item)
    deadline = time.monotonic() + PATIENCE
    while running.process is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    waiting.result.cancel()
    pool.abandon(waiting)
    pool.abandon(running)
    assert "was killed" in running.result.result(PATIENCE)["message"]
    assert last.result.result(PATIENCE) == {"name": "lens.npy"}
    with pytest.raises(CancelledError):
        waiting.result.result(0)
