"""What tests of whole commands share: a small store, a small run of each sort, and figures that are not drawn."""

import base64

import pytest
import tiny as small

_BLANK = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of `tiny.make`, for reading alone."""
    work = tmp_path_factory.mktemp("tiny")
    small.make(work)
    return work


@pytest.fixture(scope="session", autouse=True)
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
