"""The HTTP interface: responses, errors, limits, and isolation of clients from each other."""

import asyncio
import errno
import io
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from spawning import free_port, prepared_processes, start_command

from darklens.bundle import Bundle
from darklens.serve import server
from darklens.serve.batching import Batcher, Job
from darklens.serve.http import create_app
from darklens.serve.limits import Settings
from darklens.serve.reader_processes import ReaderPool, ReadRequest, _end_with_parent, _read_file, read_files
from darklens.serve.simulated_lens import LensRequest, simulate

N, SCALE = 50, 0.15
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


def error_of(response):
    error = response.json()["error"]
    assert error["code"] == response.status_code and error["message"].endswith(".") and "\n" not in error["message"]
    return error


class TestPredict:
    def test_probabilities_equal_those_of_the_bundle_in_file_order(self, live, tiny):
        images = [image(i) for i in range(5)]
        response = post(live, *map(npy, images)).raise_for_status().json()
        expected = tiny.probabilities(np.stack(images)[:, None])
        assert response["model"] == "tiny"
        assert [r["name"] for r in response["images"]] == [f"lens-{i}.npy" for i in range(5)]
        served = np.array([list(r["probabilities"].values()) for r in response["images"]])
        np.testing.assert_allclose(served, expected, atol=1e-6)
        assert [r["predicted"] for r in response["images"]] == [tiny.contract.classes[i] for i in expected.argmax(1)]

    def test_a_bad_file_gives_an_error_result_and_the_others_are_classified(self, live):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("image.npy", b"\0" * 50_000_000)
        bad = [b"", b"no image", b"\x80\x04K\x01.", buffer.getvalue(), npy(np.full((N, N), 3.0)), npy(image())[:200]]
        results = post(live, npy(image()), *bad, npy(image(1))).raise_for_status().json()["images"]
        assert [r["status"] for r in results] == ["ok", *["error"] * len(bad), "ok"]
        for result in results[1:-1]:
            assert result["message"].startswith(result["name"]) and result["message"].endswith(".")
            assert "/tmp" not in result["message"] and "darklens-serve" not in result["message"]

    def test_images_of_other_sizes_are_prepared_as_by_the_command_line(self, live, tiny, tmp_path):
        from darklens.predict import predict

        path = tmp_path / "lens.npy"
        np.save(path, image(3, 150))
        (row,) = predict(tiny, [path], pixel_scale=0.05)
        (result,) = post(live, path.read_bytes(), params={"pixel_scale": 0.05}).json()["images"]
        assert result["changes"] == list(row.changes) != []
        np.testing.assert_allclose(list(result["probabilities"].values()), row.probabilities, atol=1e-6)

    @pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\lens.npy", "a\x07b.npy", "x" * 999, "<b>.npy"])
    def test_file_names_are_displayed_and_never_opened(self, live, name, tmp_path):
        response = httpx.post(f"{live}/v1/predict", files=[("files", (name, npy(image())))], timeout=PATIENCE)
        displayed = response.json()["images"][0]["name"]
        assert "/" not in displayed and "\\" not in displayed and displayed.isprintable() and 0 < len(displayed) <= 200

    def test_the_map_of_the_image_holds_the_pixels_that_the_model_received(self, live):
        import base64

        original = image(4)
        (result,) = post(live, npy(original), params={"maps": "true"}).json()["images"]
        record = result["maps"]["image"]
        pixels = np.frombuffer(base64.b64decode(record["data"]), dtype="<f4").reshape(record["shape"])
        np.testing.assert_array_equal(pixels, original)
        half = N * SCALE / 2
        np.testing.assert_allclose(record["extent"], [-half, half, -half, half])


class TestErrors:
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
    def test_an_invalid_request_gets_its_status_code_and_one_sentence(self, live, code, options):
        response = httpx.post(f"{live}/v1/predict", timeout=PATIENCE, **options)
        assert response.status_code == code
        error_of(response)

    def test_a_body_without_content_length_is_cut_off_at_the_limit(self, running):
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
                except (
                    httpx.TransportError
                ):  # the server responded and closed the connection before the client had sent everything
                    pass
                else:
                    assert response.status_code == 413
            assert len(sent) < 4000
            assert post(address, npy(image())).status_code == 200

    def test_an_invalid_lens_parameter_is_named(self, live):
        for body, field in (({"theta_E": 99}, "theta_E"), ({"class": "wimp"}, "class"), ({"colour": 1}, "colour")):
            response = httpx.post(f"{live}/v1/lens", json=body, timeout=PATIENCE)
            assert response.status_code == 422 and error_of(response)["field"] == field
        assert httpx.post(f"{live}/v1/lens", content=b"{}", timeout=PATIENCE).status_code == 415

    def test_a_token_is_required_before_the_body_is_read(self, running):
        with running(token="secret") as (address, _):
            for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
                response = post(address, npy(image()), headers=header)
                assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
                error_of(response)
            assert post(address, npy(image()), headers={"authorization": "Bearer secret"}).status_code == 200
            assert httpx.get(f"{address}/v1/models").status_code == 401
            assert httpx.get(f"{address}/v1/limits").json()["token_needed"] is True
            assert httpx.get(f"{address}/healthz").status_code == 200


class TestHeaders:
    @pytest.mark.parametrize("path", ["/healthz", "/docs", "/nowhere", "/page/..%2f..%2fapp.py", "/v1/models"])
    def test_every_response_has_them_and_links_to_no_other_host(self, live, path):
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
    def test_the_image_is_that_of_the_simulator(self):
        """Parameters drawn from the population reproduce its image, byte for byte."""
        from darklens import populations
        from darklens.simulate.batch import simulate_batch

        (expected,), truth = simulate_batch(populations.get("common-test-i"), 7, [0])
        parameters = {name: float(truth[name][0]) for name in ("theta_E", "gamma1", "gamma2", "source_x", "source_y")}
        lens = LensRequest.model_construct(**parameters, kind="no", exposure=1.0, seed=7)
        np.testing.assert_array_equal(simulate(lens), expected[0])

    def test_relative_noise_falls_with_the_square_root_of_the_exposure(self):
        def noise(exposure):
            pair = [simulate(LensRequest(**{"class": "no"}, exposure=exposure, seed=seed)) for seed in (1, 1)]
            np.testing.assert_array_equal(*pair)
            corner = pair[0][:30, :30]  # sky
            light = np.sort(pair[0].ravel())[-200:].mean() - corner.mean()
            return corner.std() / light

        assert noise(0.1) / noise(10.0) == pytest.approx(10, rel=0.15)

    def test_a_perturber_changes_the_image_at_its_position(self, live):
        smooth, point = (
            simulate(LensRequest(**{"class": kind}, x=1.2, y=0.4, mass=1e11, exposure=10.0))
            for kind in ("no", "sphere")
        )
        rows, columns = np.indices(smooth.shape)
        change = (point - smooth) ** 2
        # The ring changes most next to the mass.
        assert (change * columns).sum() / change.sum() > 74.5 and (change * rows).sum() / change.sum() > 74.5

    def test_requests_accept_all_sliders_and_examples(self, live):
        sliders = httpx.get(f"{live}/v1/lens", timeout=PATIENCE).json()
        assert {p["name"] for p in sliders["parameters"]} <= set(LensRequest.model_fields)
        for example in sliders["examples"]:
            response = httpx.post(f"{live}/v1/lens", json=example["parameters"], timeout=PATIENCE)
            assert response.raise_for_status().json()["truth"]["class"] == example["parameters"]["class"]
            assert response.json()["images"][0]["status"] == "ok"


class BlockedClassifier:
    """A classifier that blocks until `release` is set."""

    def __init__(self):
        self.release, self.started, self.batches = Event(), Event(), []

    def __call__(self, jobs):
        from darklens.serve.responses import ImageResult

        self.started.set()
        assert self.release.wait(PATIENCE)
        self.batches.append([job.name for job in jobs])
        if any(job.name == "poison" for job in jobs):
            raise RuntimeError("poison")
        return [ImageResult(name=job.name, status="ok") for job in jobs]


class TestBatches:
    def test_waiting_images_are_batched_and_cancelled_or_late_ones_are_dropped(self):
        classifier, dropped = BlockedClassifier(), []
        batcher = Batcher(classifier, max_batch=3, on_drop=dropped.append)
        jobs = [Job(name, image()) for name in "abcdefg"]
        batcher.submit(jobs[0])
        assert classifier.started.wait(PATIENCE)
        for job in jobs[1:]:
            batcher.submit(job)
        late = Job("late", image(), deadline=time.monotonic() - 1)
        batcher.submit(late)
        jobs[2].result.cancel()
        classifier.release.set()
        batcher.close()
        assert classifier.batches == [["a"], ["b", "d"], ["e", "f", "g"]]
        assert sum(dropped) == 2 and isinstance(late.result.exception(), TimeoutError)

    def test_an_image_that_fails_does_not_fail_the_others_of_its_batch(self):
        classifier = BlockedClassifier()
        batcher = Batcher(classifier, max_batch=4)
        jobs = [Job(name, image()) for name in ("first", "good", "poison", "fine")]
        for job in jobs:
            batcher.submit(job)
        classifier.release.set()
        batcher.close()
        assert jobs[1].result.result().name == "good" and jobs[3].result.result().name == "fine"
        with pytest.raises(RuntimeError, match="poison"):
            jobs[2].result.result()


def read_request(name="lens.npy"):
    return ReadRequest(name=name, n_pixels=N, pixel_scale=SCALE, image_pixel_scale=None, image=None, max_pixels=10**6)


class TestReaders:
    @pytest.fixture
    def prepared(self, monkeypatch):
        """Start processes without the imports of the server."""
        context = SimpleNamespace(get_context=lambda _: prepared_processes())
        monkeypatch.setattr("darklens.serve.reader_processes.multiprocessing", context)

    def test_a_process_that_hangs_is_killed_and_replaced(self):
        killed = []
        readers = ReaderPool(1, timeout=0.5, on_kill=lambda: killed.append(1))
        try:
            readers.wait_until_ready()
            os.kill(readers._readers[0]._process.pid, signal.SIGSTOP)
            message = readers.read(npy(image()), read_request()).result(PATIENCE)
            assert message.startswith("lens.npy: takes more than 0.5 s") and killed == [1]
            folder = readers._readers[0].folder
            readers._timeout = PATIENCE
            prepared = readers.read(npy(image(5)), read_request()).result(PATIENCE)
            np.testing.assert_array_equal(prepared.pixels, image(5))
            assert list(folder.iterdir()) == []
        finally:
            readers.close()
        assert not folder.exists()

    @pytest.mark.parametrize(
        ("number", "words"), [(signal.SIGSEGV, "it crashed the process"), (signal.SIGKILL, "was killed; send it again")]
    )
    def test_a_process_that_crashes_fails_only_its_file(self, prepared, number, words):
        readers = ReaderPool(1, timeout=PATIENCE)
        try:
            readers.wait_until_ready()
            pid = readers._readers[0]._process.pid
            os.kill(pid, signal.SIGSTOP)
            reading = readers.read(npy(image()), read_request())
            time.sleep(0.1)
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)
            assert words in reading.result(PATIENCE)
            np.testing.assert_array_equal(readers.read(npy(image(6)), read_request()).result(PATIENCE).pixels, image(6))
        finally:
            readers.close()

    @pytest.mark.parametrize("loss", ["killed", "folder removed"])
    def test_a_process_lost_while_idle_fails_no_file(self, prepared, loss):
        readers = ReaderPool(1, timeout=PATIENCE)
        try:
            readers.wait_until_ready()
            reader = readers._readers[0]
            if loss == "killed":
                reader._process.kill()
                reader._process.join()
            else:
                shutil.rmtree(reader.folder)
            np.testing.assert_array_equal(readers.read(npy(image(6)), read_request()).result(PATIENCE).pixels, image(6))
        finally:
            readers.close()
        assert not reader.folder.exists()

    def test_a_process_whose_parent_is_killed_removes_its_folder(self, tmp_path):
        context, folder = multiprocessing.get_context("fork"), tmp_path / "darklens-serve"
        started = context.Event()

        def child():
            _end_with_parent(str(folder))
            started.set()
            time.sleep(PATIENCE)

        def parent():
            context.Process(target=child).start()
            time.sleep(PATIENCE)

        folder.mkdir()
        process = context.Process(target=parent)
        process.start()
        assert started.wait(PATIENCE)
        process.kill()
        deadline = time.monotonic() + PATIENCE
        while folder.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_a_process_whose_connection_is_closed_removes_its_folder(self, tmp_path):
        context, folder = multiprocessing.get_context("fork"), tmp_path / "darklens-serve"
        folder.mkdir()
        ours, theirs = context.Pipe()

        def child():
            ours.close()
            read_files(theirs, str(folder))

        process = context.Process(target=child)
        process.start()
        assert ours.recv_bytes() == b"ready"
        ours.close()
        process.join(PATIENCE)
        assert process.exitcode == 0 and not folder.exists()

    def test_a_file_that_cannot_be_stored_is_no_bad_image(self, tmp_path):
        reply, _ = _read_file(tmp_path / "removed" / "file", read_request(), npy(image()))
        assert reply == {"errno": errno.ENOENT}

    @pytest.mark.skipif(sys.platform != "linux", reason="memory is only limited on Linux")
    def test_memory_is_limited(self):
        """An image whose header passes all checks of its size, but whose copies exceed the limit."""
        readers = ReaderPool(1, timeout=PATIENCE)
        try:
            side = 20_000
            header = npy(np.zeros((0, 0), np.float32)).replace(b"(0, 0)", f"({side}, {side})".encode())
            assert isinstance(readers.read(header, read_request()).result(PATIENCE), str)
            pid = readers._readers[0]._process.pid
            limits = Path(f"/proc/{pid}/limits").read_text()
            line = next(line for line in limits.splitlines() if line.startswith("Max address space"))
            assert int(line.split()[3]) < 3_000_000_000
        finally:
            readers.close()


class TestIsolation:
    """No client can harm the others."""

    @pytest.mark.parametrize("where", ["upload", "reader"])
    def test_a_full_disk_fails_the_request_and_not_the_server(self, running, monkeypatch, where):
        failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def fail(*_, **__):
            raise failure

        with running() as (address, service):
            with monkeypatch.context() as full:
                if where == "upload":
                    full.setattr("starlette.formparsers.SpooledTemporaryFile.write", fail)
                else:
                    full.setattr("darklens.serve.reader_processes._Reader.read", fail)
                response = post(address, npy(image()), npy(image(1)))
            assert response.status_code == 503
            assert "no space left on device" in error_of(response)["message"]
            assert error_of(response)["reason"] == "no_space" and service.admission.n_images == 0
            assert post(address, npy(image())).status_code == 200

    def test_a_full_queue_rejects_requests_until_it_has_room(self, running):
        with running(queue=4, per_client=100) as (address, service):
            blocked = BlockedClassifier()
            batcher = service._models["tiny"].batcher
            original, batcher._classify = batcher._classify, blocked
            with ThreadPoolExecutor(1) as pool:
                first = pool.submit(post, address, *[npy(image(i)) for i in range(4)])
                assert blocked.started.wait(PATIENCE)
                response = post(address, npy(image()))
                assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
                assert error_of(response)["reason"] == "busy"
                assert httpx.get(f"{address}/readyz").status_code == 503
                assert httpx.get(f"{address}/healthz").status_code == 200
                blocked.release.set()
                assert first.result().status_code == 200
            batcher._classify = original
            assert post(address, npy(image())).status_code == 200

    def test_a_client_with_too_many_requests_is_rejected_and_others_are_not(self, running):
        with running(per_client=2) as (address, service):
            blocked = BlockedClassifier()
            service._models["tiny"].batcher._classify = blocked
            with ThreadPoolExecutor(3) as pool:
                two = [pool.submit(post, address, npy(image())) for _ in range(2)]
                _wait(lambda: service.admission.n_images == 2)
                assert post(address, npy(image())).status_code == 429
                with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.7"), timeout=PATIENCE) as other:
                    third = pool.submit(other.post, f"{address}/v1/predict", files=files(npy(image())))
                    _wait(lambda: service.admission.n_images == 3)
                    blocked.release.set()
                    assert third.result().status_code == 200
                assert [future.result().status_code for future in two] == [200, 200]

    def test_slow_clients_time_out_and_block_no_one(self, running):
        with running(receive_timeout=1.0) as (address, service):
            slow = [trickling(address) for _ in range(8)]
            _wait(lambda: service.admission._requests.total() == 8)
            assert post(address, npy(image())).status_code == 200
            for connection in slow:
                assert connection.recv(100).startswith(b"HTTP/1.1 408")
                connection.close()
            _wait(lambda: service.admission._requests.total() == 0)

    def test_a_client_that_does_not_read_the_response_is_disconnected(self, monkeypatch):
        monkeypatch.setattr(server, "UNREAD_TIMEOUT", 0.05)

        async def large(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": bytes(30_000_000)})

        config = uvicorn.Config(large, port=0, http=server._Protocol, lifespan="off", log_level="warning")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            while not running.started:
                time.sleep(0.01)
            with socket.create_connection(running.servers[0].sockets[0].getsockname()) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                while not running.server_state.connections:
                    time.sleep(0.01)
                deadline = time.monotonic() + PATIENCE
                while running.server_state.connections:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
        finally:
            running.should_exit = True
            thread.join(PATIENCE)

    def test_a_connection_without_a_request_is_closed(self, running, monkeypatch):
        monkeypatch.setattr("darklens.serve.server.HEADERS_TIMEOUT", 0.5)
        with running() as (address, _):
            host, port = address.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
                connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: ")
                assert connection.recv(100) == b""
            assert post(address, npy(image())).status_code == 200

    def test_the_images_of_a_disconnected_client_are_dropped(self, running):
        with running() as (address, service):
            blocked = BlockedClassifier()
            service._models["tiny"].batcher._classify = blocked
            with ThreadPoolExecutor(1) as pool:
                first = pool.submit(post, address, npy(image()))
                assert blocked.started.wait(PATIENCE)
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"{address}/v1/predict", files=files(npy(image())), timeout=0.5)
                _wait(lambda: service.admission.n_images == 1)
                blocked.release.set()
                assert first.result().status_code == 200
            _wait(lambda: service.metrics.dropped.total() == 1)
            assert len(blocked.batches) == 1 and service.metrics.disconnects.total() == 1

    def test_a_request_beyond_the_time_limit_is_rejected(self, running):
        with running(timeout=0.5) as (address, service):
            blocked = BlockedClassifier()
            service._models["tiny"].batcher._classify = blocked
            response = post(address, npy(image()))
            blocked.release.set()
            assert response.status_code == 503 and "in time" in error_of(response)["message"]
            _wait(lambda: service.admission.n_images == 0)


def trickling(address):
    """Return a connection that announces a body and sends only part of it."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=a\r\n"
    connection.sendall(f"{head}Content-Length: 1000\r\n\r\n--a".encode())
    return connection


def _wait(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_requests_are_rejected_while_the_models_are_loading(tiny, monkeypatch):
    monkeypatch.setattr("darklens.serve.service.Service._classify_first_images", lambda self: Event().wait(0.5))
    app = create_app({"tiny": tiny}, {"tiny": ""}, Settings(readers=1))
    app.state.service._warm_up = lambda: None
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/readyz").status_code == 503
        response = client.post("/v1/predict", files=files(npy(image())))
        assert response.status_code == 503 and error_of(response)["reason"] == "loading"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM")
def test_sigterm_answers_the_accepted_requests_and_exits_with_0(tiny_folder, tmp_path):
    """Clients send without pause; each gets a complete response, or its connection was never accepted."""
    port, log = free_port(), tmp_path / "log"
    server = start_command(["serve", tiny_folder, "--port", port, "--per-client", "99"], log)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(lambda: _is_ready(address) or not server.is_alive())
        expected = list(Bundle.load(tiny_folder).probabilities(image()[None, None])[0])
        answered = asyncio.run(_hammer(address, server, expected))
        server.join(PATIENCE)
    finally:
        server.kill()
    assert server.exitcode == 0
    log = log.read_text()
    accepted = int(log.split(" of ")[1].split()[0])
    assert f"Stopped: {accepted} of {accepted} accepted" in log
    assert answered > 20


def _is_ready(address):
    try:
        return httpx.get(f"{address}/readyz").status_code == 200
    except httpx.ConnectError:
        return False


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
                    assert stopped.is_set() and error_of(response)["reason"] == "stopping"
                    return
                probabilities = response.raise_for_status().json()["images"][0]["probabilities"]
                np.testing.assert_allclose(list(probabilities.values()), expected, atol=1e-6)
                answers += 1

    async def stop():
        while answers < 20:
            await asyncio.sleep(0.01)
        stopped.set()
        os.kill(server.pid, signal.SIGTERM)

    await asyncio.gather(stop(), *(client() for _ in range(8)))
    return answers


class TestCommandLine:
    def test_without_the_extra_the_error_says_what_to_install(self, monkeypatch, capsys):
        from commandline import darklens

        monkeypatch.setitem(sys.modules, "fastapi", None)
        assert darklens("serve") == 2
        assert "darklens[serve]" in capsys.readouterr().err

    @pytest.mark.parametrize("words", ["--port 99999", "--port -1", f"--host {'x' * 100}", "--port USED"])
    def test_an_address_at_which_no_server_can_listen_is_one_sentence(self, capsys, words):
        from commandline import darklens

        with socket.create_server(("127.0.0.1", 0)) as other:
            words = words.replace("USED", str(other.getsockname()[1]))
            assert darklens("serve", *words.split()) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_missing_model_or_an_invalid_limit_is_one_sentence(self, tmp_path, capsys):
        from commandline import darklens

        assert darklens("serve", tmp_path / "none") == 2
        assert darklens("serve", "--timeout", "-1") == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 and "--timeout" in lines[1]
