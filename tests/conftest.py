"""Fixtures and the rules for tests that need data which does not travel with the repository."""

from pathlib import Path

import pytest
import torch

REALDATA = Path(__file__).resolve().parent.parent.parent / "shared" / "realdata"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if REALDATA.is_dir():
        return
    left_out = [item for item in items if item.get_closest_marker("realdata")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def realdata() -> Path:
    return REALDATA


@pytest.fixture(autouse=True, scope="session")
def _one_thread_each() -> None:
    # Two xdist workers share two cores; more threads would only wait for each other.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _global_state_is_left_alone() -> object:
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    yield
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == before
