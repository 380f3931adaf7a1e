import pytest

from darklens.doctor import report, selftest


@pytest.fixture(scope="module")
def checks():
    return selftest.run()


def test_every_law_holds_here(checks):
    assert [check.name for check in checks if not check.passed] == []
    assert all(check.seconds >= 0 and "missed by" in check.detail for check in checks)


def test_a_law_that_does_not_hold_or_breaks_is_said_and_not_raised(monkeypatch):
    def breaks():
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(selftest, "_LAWS", {"bends": lambda: (2.0, 1.0), "breaks": breaks, "holds": lambda: (0.5, 1.0)})
    said = []
    assert report.installation(said.append) == 1
    assert [line.split()[:2] for line in said[-4:-1]] == [["FAILED", "bends"], ["FAILED", "breaks"], ["ok", "holds"]]
    assert "RuntimeError: no such kernel" in said[-3] and said[-1].startswith("2 of 3 checks failed")


def test_wrong_physics_is_noticed(monkeypatch):
    from darklens.physics.profiles import sis

    law = selftest.PROFILES["sis"]
    object.__setattr__(
        law, "deflection", lambda x, y, theta_E: tuple(1.001 * a for a in sis.deflection(x, y, theta_E=theta_E))
    )
    try:
        missed, allowed = selftest._gradients()
    finally:
        object.__setattr__(law, "deflection", sis.deflection)
    assert missed > allowed


def test_versions_name_what_decides_results():
    found = selftest.versions()
    assert {"darklens", "python", "torch", "numpy", "device", "memory", "compiler", "extras"} <= set(found)
    assert "GiB" in found["memory"] or found["memory"] == "unknown"


def test_extras_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(selftest, "find_spec", lambda name: None if name in ("captum", "h5py") else object())
    assert selftest.missing_extras() == ["hdf5", "explain"]
    extras = selftest.versions()["extras"]
    assert extras == "serve, hub, onnx, cluster, tune; without hdf5, explain (pip install 'darklens[hdf5]')"


def test_extras_are_those_of_the_package():
    import tomllib
    from pathlib import Path

    project = Path(__file__).resolve().parent.parent.parent.parent / "pyproject.toml"
    extras = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(selftest._EXTRAS) == set(extras) - {"dev", "docs", "bench", "parity"}


def test_a_compiler_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr("darklens.compilation.shutil.which", lambda _: None)
    assert selftest.versions()["compiler"].startswith("none")
