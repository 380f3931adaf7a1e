"""Fixtures, run-time shape checks, and the rules for tests that need data which does not travel with the repository."""

import gc
import os
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
REALDATA = TESTS.parent.parent / "shared" / "realdata"
# Whole commands, trainings and pages, and comparisons with other packages. They call what unit tests call, and run
# twice as long with every call checked.
WITHOUT_SHAPE_CHECKS = tuple(
    TESTS / name for name in ("docs", "e2e", "experiments", "gpu", "parity", "realdata", "web")
)
SHAPE_CHECKS = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Check the shapes and types of calls into darklens, unless whole commands or pages are among the tests."""
    paths = [(config.invocation_params.dir / str(word).split("::")[0]).resolve() for word in config.args]
    config.stash[SHAPE_CHECKS] = not any(path.is_relative_to(f) for path in paths for f in WITHOUT_SHAPE_CHECKS)
    if config.stash[SHAPE_CHECKS]:
        import shape_checks

        shape_checks.install()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.config.stash[SHAPE_CHECKS]:
        import shape_checks

        shape_checks.begin_test()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> object:
    """Keep the garbage collector from the objects of imported modules, which took a tenth of the time of all tests."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_report_header(config: pytest.Config) -> str:
    return f"run-time shape checks: {'on' if config.stash[SHAPE_CHECKS] else 'off'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if REALDATA.is_dir():
        return
    absent = [item for item in items if item.get_closest_marker("realdata")]
    config.hook.pytest_deselected(items=absent)
    items[:] = [item for item in items if item not in absent]


@pytest.fixture(scope="session")
def realdata() -> Path:
    return REALDATA


@pytest.fixture(autouse=True, scope="session")
def _one_thread_each() -> None:
    # Two xdist workers share two cores; more threads would only wait for each other.
    import torch  # not above: the process that distributes tests to workers does without these two seconds

    torch.set_num_threads(1)


@pytest.fixture
def in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit in PyTorch: for a lens of which no other test has the parameters, a compiler takes longer than the fits."""
    monkeypatch.setattr("darklens.kernels.smooth_fit.is_loaded", lambda: False)


@pytest.fixture(autouse=True)
def _global_state_is_left_alone() -> object:
    before = _global_state()
    yield
    assert _global_state() == before


def _global_state() -> tuple[object, ...]:
    import torch

    variables = {name: value for name, value in os.environ.items() if name.startswith(("DARKLENS", "HOME", "XDG"))}
    return torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), Path.cwd(), variables
