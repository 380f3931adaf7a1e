"""The server's interface: what it answers, what it refuses, and that nobody is hurt by others."""

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from darklens.bundle import Bundle
from darklens.serve.batching import Batcher, Job
from darklens.serve.http import create_app
from darklens.serve.lens import LensRequest, simulate
from darklens.serve.readers import Readers, Wanted
from darklens.serve.settings import Settings

N, SCALE = 44, 0.15
PATIENCE = 120.0


def image(seed=0, n=N):
    return np.random.default_rng(seed).poisson(20, (n, n)).astype(np.float32)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def files(*contents):
    return [("files", (f"lens-{i}.npy", content)) for i, content in enumerate(contents)]


def post(address, *contents, **options):
    return httpx.post(f"{address}/v1/predict", files=files(*contents), timeout=PATIENCE, **options)


def problem(response):
    found = response.json()["error"]
    assert found["code"] == response.status_code and found["message"].endswith(".") and "\n" not in found["message"]
    return found


class TestPredict:
    def test_probabilities_are_those_of_the_bundle_and_in_the_order_of_the_files(self, live, tiny):
        images = [image(i) for i in range(5)]
        found = post(live, *map(npy, images)).raise_for_status().json()
        expected = tiny.probabilities(np.stack(images)[:, None])
        assert found["model"] == "tiny"
        assert [r["name"] for r in found["images"]] == [f"lens-{i}.npy" for i in range(5)]
        own = np.array([list(r["probabilities"].values()) for r in found["images"]])
        np.testing.assert_allclose(own, expected, atol=1e-6)
        assert [r["predicted"] for r in found["images"]] == [tiny.contract.classes[i] for i in expected.argmax(1)]

    def test_a_bad_file_is_a_result_with_a_sentence_and_the_others_go_on(self, live):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("image.npy", b"\0" * 50_000_000)
        bad = [b"", b"no image", b"\x80\x04K\x01.", buffer.getvalue(), npy(np.full((N, N), 3.0)), npy(image())[:200]]
        found = post(live, npy(image()), *bad, npy(image(1))).raise_for_status().json()["images"]
        assert [r["status"] for r in found] == ["ok", *["error"] * len(bad), "ok"]
        for result in found[1:-1]:
            assert result["message"].startswith(result["name"]) and result["message"].endswith(".")
            assert "/tmp" not in result["message"] and "darklens-serve" not in result["message"]

    def test_other_sizes_are_prepared_as_on_the_command_line_and_the_result_says_how(self, live, tiny, tmp_path):
        from darklens.predict import predict

        path = tmp_path / "lens.npy"
        np.save(path, image(3, 150))
        (row,) = predict(tiny, [path], pixel_scale=0.05)
        (found,) = post(live, path.read_bytes(), params={"pixel_scale": 0.05}).json()["images"]
        assert found["changes"] == list(row.changes) != []
        np.testing.assert_allclose(list(found["probabilities"].values()), row.probabilities, atol=1e-6)

    @pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\lens.npy", "a\x07b.npy", "x" * 999, "<b>.npy"])
    def test_names_of_files_are_shown_and_touch_no_disk(self, live, name, tmp_path):
        found = httpx.post(f"{live}/v1/predict", files=[("files", (name, npy(image())))], timeout=PATIENCE)
        shown = found.json()["images"][0]["name"]
        assert "/" not in shown and "\\" not in shown and shown.isprintable() and 0 < len(shown) <= 200

    def test_maps_are_those_of_the_image_as_the_model_took_it(self, live):
        import base64

        own = image(4)
        (found,) = post(live, npy(own), params={"maps": "true"}).json()["images"]
        shown = found["maps"]["image"]
        pixels = np.frombuffer(base64.b64decode(shown["data"]), dtype="<f4").reshape(shown["shape"])
        np.testing.assert_array_equal(pixels, own)
        half = N * SCALE / 2
        np.testing.assert_allclose(shown["extent"], [-half, half, -half, half])


class TestRefusals:
    @pytest.mark.parametrize(
        ("code", "options"),
        [
            (415, {"content": b"x", "headers": {"content-type": "text/plain"}}),
            (415, {"json": {}}),
            (422, {"files": [("other", ("a.npy", b"x"))]}),
            (422, {"files": [("files", (None, b"x"))]}),
            (422, {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=a"}}),
            (422, {"files": files(b"x"), "params": {"model": "../tiny"}}),
            (422, {"files": files(b"x"), "params": {"pixel_scale": "nan"}}),
            (422, {"files": files(b"x"), "params": {"pixel_scales": "1"}}),
            (413, {"files": files(*[b"x"] * 65)}),
            (413, {"files": files(b"x" * 64_000_001)}),
            (403, {"files": files(b"x"), "headers": {"origin": "https://elsewhere.example"}}),
            (421, {"files": files(b"x"), "headers": {"host": "rebound.example"}}),
        ],
    )
    def test_what_is_wrong_with_a_request_is_said_in_one_sentence(self, live, code, options):
        response = httpx.post(f"{live}/v1/predict", timeout=PATIENCE, **options)
        assert response.status_code == code
        problem(response)

    def test_a_body_that_does_not_announce_its_size_is_cut_off(self, running):
        sent = []

        def endless():
            yield b'--a\r\nContent-Disposition: form-data; name="files"; filename="a.npy"\r\n\r\n'
            for _ in range(4000):
                sent.append(1)
                yield b"x" * 10_000

        with running(max_mb=1.0) as (address, _):
            header = {"content-type": "multipart/form-data; boundary=a"}
            with httpx.Client(timeout=PATIENCE) as client:
                try:
                    response = client.post(f"{address}/v1/predict", content=endless(), headers=header)
                except httpx.TransportError:  # the server has answered and closed before all was sent
                    pass
                else:
                    assert response.status_code == 413
            assert len(sent) < 4000
            assert post(address, npy(image())).status_code == 200

    def test_wrong_values_of_a_lens_name_their_field(self, live):
        for body, field in (({"theta_E": 99}, "theta_E"), ({"class": "wimp"}, "class"), ({"colour": 1}, "colour")):
            response = httpx.post(f"{live}/v1/lens", json=body, timeout=PATIENCE)
            assert response.status_code == 422 and problem(response)["field"] == field
        assert httpx.post(f"{live}/v1/lens", content=b"{}", timeout=PATIENCE).status_code == 415

    def test_the_token_is_asked_for_before_anything_is_read(self, running):
        with running(token="secret") as (address, _):
            for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
                response = post(address, npy(image()), headers=header)
                assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
                problem(response)
            assert post(address, npy(image()), headers={"authorization": "Bearer secret"}).status_code == 200
            assert httpx.get(f"{address}/v1/models").status_code == 401
            assert httpx.get(f"{address}/v1/limits").json()["token_needed"] is True
            assert httpx.get(f"{address}/healthz").status_code == 200


class TestHeaders:
    @pytest.mark.parametrize("path", ["/healthz", "/docs", "/nowhere", "/page/..%2f..%2fapp.py", "/v1/models"])
    def test_every_answer_has_them_and_nothing_comes_from_elsewhere(self, live, path):
        response = httpx.get(f"{live}{path}", timeout=PATIENCE)
        assert response.status_code == (404 if "nowhere" in path or ".." in path else 200)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in response.headers
        assert "http://" not in response.text and "https://" not in response.text

    def test_metrics_count_requests_and_images_by_class(self, live):
        post(live, npy(image()), b"bad")
        text = httpx.get(f"{live}/metrics").text
        assert 'darklens_requests_total{route="/v1/predict",code="200"}' in text
        assert 'darklens_images_total{model="tiny",predicted="' in text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(values["darklens_bad_images_total"]) >= 1
        assert (
            values['darklens_request_seconds_bucket{route="/v1/predict",le="+Inf"}']
            == (values['darklens_request_seconds_count{route="/v1/predict"}'])
        )


class TestLens:
    def test_its_image_is_the_simulators(self):
        """Of the parameters that the population drew itself, the same bytes come out."""
        from darklens import populations
        from darklens.simulate.batch import simulate_batch

        chosen = populations.get("common-test-i")
        (expected,), truth = simulate_batch(chosen, 7, [0])
        given = {name: float(truth[name][0]) for name in ("theta_E", "gamma1", "gamma2", "source_x", "source_y")}
        wanted = LensRequest.model_construct(**given, kind="no", exposure=1.0, seed=7)
        np.testing.assert_array_equal(simulate(wanted), expected[0])

    def test_a_longer_exposure_has_less_noise_by_its_root(self):
        def noise(exposure):
            pair = [simulate(LensRequest(**{"class": "no"}, exposure=exposure, seed=seed)) for seed in (1, 1)]
            np.testing.assert_array_equal(*pair)
            corner = pair[0][:30, :30]  # sky
            light = np.sort(pair[0].ravel())[-200:].mean() - corner.mean()
            return corner.std() / light

        assert noise(0.1) / noise(10.0) == pytest.approx(10, rel=0.15)

    def test_the_masses_are_where_they_were_asked_for(self, live):
        smooth, point = (
            simulate(LensRequest(**{"class": kind}, x=1.2, y=0.4, mass=1e11, exposure=10.0))
            for kind in ("no", "sphere")
        )
        rows, columns = np.indices(smooth.shape)
        change = (point - smooth) ** 2
        # The ring moves most beside the mass.
        assert (change * columns).sum() / change.sum() > 74.5 and (change * rows).sum() / change.sum() > 74.5

    def test_sliders_are_what_requests_take(self, live):
        found = httpx.get(f"{live}/v1/lens", timeout=PATIENCE).json()
        assert {p["name"] for p in found["parameters"]} <= set(LensRequest.model_fields)
        for example in found["examples"]:
            response = httpx.post(f"{live}/v1/lens", json=example["parameters"], timeout=PATIENCE)
            assert response.raise_for_status().json()["truth"]["class"] == example["parameters"]["class"]
            assert response.json()["images"][0]["status"] == "ok"


class Slow:
    """A classifier that waits until it is told to go on."""

    def __init__(self):
        self.go, self.began, self.seen = Event(), Event(), []

    def __call__(self, jobs):
        from darklens.serve.responses import ImageResult

        self.began.set()
        assert self.go.wait(PATIENCE)
        self.seen.append([job.name for job in jobs])
        if any(job.name == "poison" for job in jobs):
            raise RuntimeError("poison")
        return [ImageResult(name=job.name, status="ok") for job in jobs]


class TestBatches:
    def test_what_waits_is_classified_together_and_what_nobody_waits_for_is_dropped(self):
        classifier, dropped = Slow(), []
        batcher = Batcher(classifier, most=3, on_drop=dropped.append)
        jobs = [Job(name, image()) for name in "abcdefg"]
        batcher.submit(jobs[0])
        assert classifier.began.wait(PATIENCE)
        for job in jobs[1:]:
            batcher.submit(job)
        late = Job("late", image(), deadline=time.monotonic() - 1)
        batcher.submit(late)
        jobs[2].result.cancel()
        classifier.go.set()
        batcher.close()
        assert classifier.seen == [["a"], ["b", "d"], ["e", "f", "g"]]
        assert sum(dropped) == 2 and isinstance(late.result.exception(), TimeoutError)

    def test_an_image_that_breaks_the_classifier_does_not_take_others_with_it(self):
        classifier = Slow()
        batcher = Batcher(classifier, most=4)
        jobs = [Job(name, image()) for name in ("first", "good", "poison", "fine")]
        for job in jobs:
            batcher.submit(job)
        classifier.go.set()
        batcher.close()
        assert jobs[1].result.result().name == "good" and jobs[3].result.result().name == "fine"
        with pytest.raises(RuntimeError, match="poison"):
            jobs[2].result.result()


def wanted(name="lens.npy"):
    return Wanted(name=name, n_pixels=N, pixel_scale=SCALE, own_scale=None, image=None, max_pixels=10**6)


class TestReaders:
    def test_one_that_hangs_is_ended_and_replaced(self):
        killed = []
        readers = Readers(1, timeout=0.5, on_kill=lambda: killed.append(1))
        try:
            readers.wait_until_ready()
            os.kill(readers._processes[0]._process.pid, signal.SIGSTOP)
            message = readers.read(npy(image()), wanted()).result(PATIENCE)
            assert message.startswith("lens.npy: takes more than 0.5 s") and killed == [1]
            folder = readers._folder
            readers._timeout = PATIENCE
            found = readers.read(npy(image(5)), wanted()).result(PATIENCE)
            np.testing.assert_array_equal(found.pixels, image(5))
            assert list(folder.iterdir()) == []
        finally:
            readers.close()
        assert not folder.exists()

    def test_one_that_dies_costs_its_file_only(self):
        readers = Readers(1, timeout=PATIENCE)
        try:
            readers.wait_until_ready()
            readers._processes[0]._process.kill()
            assert "cannot be read" in readers.read(npy(image()), wanted()).result(PATIENCE)
            np.testing.assert_array_equal(readers.read(npy(image(6)), wanted()).result(PATIENCE).pixels, image(6))
        finally:
            readers.close()

    @pytest.mark.skipif(sys.platform != "linux", reason="only there memory is bounded")
    def test_memory_is_bounded(self):
        """An image that passes all checks of its size, of 16-byte numbers, whose copies are more than is allowed."""
        readers = Readers(1, timeout=PATIENCE)
        try:
            side = 20_000
            header = npy(np.zeros((0, 0), np.float32)).replace(b"(0, 0)", f"({side}, {side})".encode())
            assert isinstance(readers.read(header, wanted()).result(PATIENCE), str)
            pid = readers._processes[0]._process.pid
            limits = Path(f"/proc/{pid}/limits").read_text()
            line = next(line for line in limits.splitlines() if line.startswith("Max address space"))
            assert int(line.split()[3]) < 3_000_000_000
        finally:
            readers.close()


class TestOthers:
    """What one client does must not hurt the others."""

    def test_a_full_queue_is_said_at_once_and_is_over_when_it_empties(self, running):
        with running(queue=4, per_client=100) as (address, service):
            slow = Slow()
            service._models["tiny"].batcher._classify, usual = slow, service._models["tiny"].batcher._classify
            with ThreadPoolExecutor(1) as pool:
                first = pool.submit(post, address, *[npy(image(i)) for i in range(4)])
                assert slow.began.wait(PATIENCE)
                response = post(address, npy(image()))
                assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
                assert problem(response)["reason"] == "busy"
                assert httpx.get(f"{address}/readyz").status_code == 503
                assert httpx.get(f"{address}/healthz").status_code == 200
                slow.go.set()
                assert first.result().status_code == 200
            service._models["tiny"].batcher._classify = usual
            assert post(address, npy(image())).status_code == 200

    def test_a_client_with_too_many_requests_waits_and_others_do_not(self, running):
        with running(per_client=2) as (address, service):
            slow = Slow()
            service._models["tiny"].batcher._classify = slow
            with ThreadPoolExecutor(3) as pool:
                two = [pool.submit(post, address, npy(image())) for _ in range(2)]
                _wait(lambda: service.gate.images == 2)
                assert post(address, npy(image())).status_code == 429
                with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.7"), timeout=PATIENCE) as other:
                    third = pool.submit(other.post, f"{address}/v1/predict", files=files(npy(image())))
                    _wait(lambda: service.gate.images == 3)
                    slow.go.set()
                    assert third.result().status_code == 200
                assert [each.result().status_code for each in two] == [200, 200]

    def test_slow_clients_are_let_go_and_hold_nobody_up(self, running):
        with running(receive_timeout=1.0) as (address, service):
            slow = [trickling(address) for _ in range(8)]
            _wait(lambda: service.gate._clients.total() == 8)
            assert post(address, npy(image())).status_code == 200
            for each in slow:
                assert each.recv(100).startswith(b"HTTP/1.1 408")
                each.close()
            _wait(lambda: service.gate._clients.total() == 0)

    def test_a_connection_that_asks_for_nothing_is_closed(self, running, monkeypatch):
        monkeypatch.setattr("darklens.serve.server.HEAD_SECONDS", 0.5)
        with running() as (address, _):
            host, port = address.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
                connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: ")
                assert connection.recv(100) == b""
            assert post(address, npy(image())).status_code == 200

    def test_the_work_of_a_client_that_left_is_dropped(self, running):
        with running() as (address, service):
            slow = Slow()
            service._models["tiny"].batcher._classify = slow
            with ThreadPoolExecutor(1) as pool:
                first = pool.submit(post, address, npy(image()))
                assert slow.began.wait(PATIENCE)
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"{address}/v1/predict", files=files(npy(image())), timeout=0.5)
                _wait(lambda: service.gate.images == 1)
                slow.go.set()
                assert first.result().status_code == 200
            _wait(lambda: service.metrics.dropped.total() == 1)
            assert len(slow.seen) == 1 and service.metrics.gone.total() == 1

    def test_a_request_that_waits_too_long_is_told(self, running):
        with running(timeout=0.5) as (address, service):
            slow = Slow()
            service._models["tiny"].batcher._classify = slow
            response = post(address, npy(image()))
            slow.go.set()
            assert response.status_code == 503 and "in time" in problem(response)["message"]
            _wait(lambda: service.gate.images == 0)


def trickling(address):
    """A connection that announces a body and sends some of it."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=a\r\n"
    connection.sendall(f"{head}Content-Length: 1000\r\n\r\n--a".encode())
    return connection


def _wait(condition):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_requests_before_the_models_are_loaded_are_told_to_come_again(tiny, monkeypatch):
    monkeypatch.setattr("darklens.serve.service.Service._try_once", lambda self: Event().wait(0.5))
    app = create_app({"tiny": tiny}, {"tiny": ""}, Settings(readers=1))
    app.state.service._warm_up = lambda: None
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/readyz").status_code == 503
        response = client.post("/v1/predict", files=files(npy(image())))
        assert response.status_code == 503 and problem(response)["reason"] == "loading"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM")
def test_sigterm_finishes_what_was_accepted_and_ends_with_0(tiny_folder):
    """Clients send without a pause; each answer is whole, or the connection was refused before it was accepted."""
    command = [sys.executable, "-m", "darklens.cli", "serve", str(tiny_folder), "--port", "0", "--per-client", "99"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    try:
        address = server.stdout.readline().split(" at ")[1].split("/ ")[0]
        _wait(lambda: httpx.get(f"{address}/readyz").status_code == 200)
        expected = list(Bundle.load(tiny_folder).probabilities(image()[None, None])[0])
        answered = asyncio.run(_hammer(address, server, expected))
        _, said = server.communicate(timeout=PATIENCE)
    finally:
        server.kill()
    assert server.returncode == 0
    accepted = int(said.split(" of ")[1].split()[0])
    assert f"Stopped: {accepted} of {accepted} accepted" in said
    assert answered > 20


async def _hammer(address, server, expected):
    answers, stopped = 0, asyncio.Event()

    async def client():
        nonlocal answers
        async with httpx.AsyncClient(timeout=PATIENCE) as session:
            while True:
                try:
                    response = await session.post(f"{address}/v1/predict", files=files(npy(image())))
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    assert stopped.is_set()
                    return
                if response.status_code == 503:
                    assert stopped.is_set() and problem(response)["reason"] == "stopping"
                    return
                found = response.raise_for_status().json()["images"][0]["probabilities"]
                np.testing.assert_allclose(list(found.values()), expected, atol=1e-6)
                answers += 1

    async def stop():
        while answers < 20:
            await asyncio.sleep(0.01)
        stopped.set()
        server.send_signal(signal.SIGTERM)

    await asyncio.gather(stop(), *(client() for _ in range(8)))
    return answers


class TestCommandLine:
    def test_without_the_extra_one_sentence_says_what_to_install(self, monkeypatch, capsys):
        from commandline import darklens

        monkeypatch.setitem(sys.modules, "fastapi", None)
        assert darklens("serve") == 2
        assert "darklens[serve]" in capsys.readouterr().err

    def test_what_is_no_model_or_no_limit_is_refused_in_one_sentence(self, tmp_path, capsys):
        from commandline import darklens

        assert darklens("serve", tmp_path / "none") == 2
        assert darklens("serve", "--timeout", "-1") == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 and "--timeout" in lines[1]
