import pytest

from darklens.doctor import report, selftest


@pytest.fixture(scope="module")
def checks():
    return selftest.run()


def test_all_checks_pass(checks):
    assert [check.name for check in checks if not check.passed] == []
    assert all(check.seconds >= 0 and "deviation" in check.detail for check in checks)


def test_a_failing_check_is_reported_and_not_raised(monkeypatch):
    def breaks():
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(
        selftest, "_CHECKS", {"bends": lambda: (2.0, 1.0), "breaks": breaks, "holds": lambda: (0.5, 1.0)}
    )
    lines = []
    assert report.installation(lines.append) == 1
    assert [line.split()[:2] for line in lines[-4:-1]] == [["FAILED", "bends"], ["FAILED", "breaks"], ["ok", "holds"]]
    assert "RuntimeError: no such kernel" in lines[-3] and lines[-1].startswith("2 of 3 checks failed")


def test_wrong_physics_is_detected(monkeypatch):
    from darklens.physics.profiles import sis

    law = selftest.PROFILES["sis"]
    object.__setattr__(
        law, "deflection", lambda x, y, theta_E: tuple(1.001 * a for a in sis.deflection(x, y, theta_E=theta_E))
    )
    try:
        deviation, tolerance = selftest._gradients()
    finally:
        object.__setattr__(law, "deflection", sis.deflection)
    assert deviation > tolerance


def test_versions_list_what_results_depend_on():
    versions = selftest.versions()
    assert {"darklens", "python", "torch", "numpy", "device", "memory", "compiler", "extras"} <= set(versions)
    assert "GiB" in versions["memory"] or versions["memory"] == "unknown"


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
