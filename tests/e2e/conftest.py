"""What tests of whole commands share: a small store, a small run of each sort, and figures that are not drawn."""

import base64
import os

import pytest
import tiny as small
from filelock import FileLock

_BLANK = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of `tiny.make`, made once for all workers, for reading alone."""
    base = tmp_path_factory.getbasetemp()
    work = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    with FileLock(f"{work}.lock"):
        if not (work / "finished").exists():
            small.make(work)
            (work / "finished").touch()
    return work


@pytest.fixture(scope="module", autouse=True)
def _to_png():
    """Let figures be made and not drawn, which takes longer than all else of an evaluation; return what draws them."""
    from darklens.report import figures

    draw = figures.to_png
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "to_png", lambda figure: _BLANK)
        yield draw


@pytest.fixture
def drawn(_to_png, monkeypatch):
    """Draw the figures of this test."""
    monkeypatch.setattr("darklens.report.figures.to_png", _to_png)
