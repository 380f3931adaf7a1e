"""Servers for tests, with a small untrained network: it is fast and deterministic."""

import contextlib
import threading
import time

import pytest
from spawning import prepared_readers

# Imports of torch are in the fixtures, because the process that distributes tests to workers does without it.

N, SCALE = 50, 0.15  # as wide as simulated images, in which no lens is then searched


@pytest.fixture(scope="session")
def tiny():
    """A classifier of images of 50 x 50 pixels of 0.15 arcsec."""
    import torch

    from darklens.bundle import Bundle
    from darklens.bundle.contract import Contract
    from darklens.models.resnet_simple import ResNetSimpleConfig

    metadata = {"parameters": 7, "data": {"population": "common-test-i"}}
    contract = Contract.untrained(ResNetSimpleConfig(), n_pixels=N, pixel_scale=SCALE, **metadata)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = contract.build()
    for module in network.modules():  # without this, untrained logits hardly differ between images
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= 30
    return Bundle(contract, network)


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.save(folder)
    return folder


@pytest.fixture(scope="session")
def running(tiny):
    """Run a server in a thread: `with running(queue=3) as (address, service)`."""
    from darklens.serve.http import create_app
    from darklens.serve.limits import Settings
    from darklens.serve.server import create_server

    @contextlib.contextmanager
    def run(**changes):
        settings = Settings(**({"readers": 1} | changes))
        app = create_app({"tiny": tiny}, {"tiny": "0" * 64}, settings)
        server = create_server(app, settings, 0)
        thread = threading.Thread(target=server.run)
        try:
            with prepared_readers():  # TestReaders starts readers as the server does
                thread.start()
                service = app.state.service
                _wait(lambda: (server.started and service.is_ready) or not thread.is_alive())
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()

    return run


@pytest.fixture(scope="session")
def live(running):
    """Address of a server with the default limits."""
    with running(readers=2) as (address, _):
        yield address


def _wait(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
