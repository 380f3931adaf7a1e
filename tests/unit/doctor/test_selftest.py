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
    assert {"darklens", "python", "torch", "numpy", "device"} <= set(selftest.versions())
