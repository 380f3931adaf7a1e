"""Messages of `darklens doctor`."""

from collections.abc import Callable
from typing import Any

from darklens.doctor.statistics import STATISTICS


def installation(write: Callable[[str], None]) -> int:
    """Write versions and device, run the self-test, and return the exit code: 1 if a check fails."""
    from darklens.doctor import selftest

    for name, value in selftest.versions().items():
        write(f"{name:18} {value}")
    checks = selftest.run()
    for check in checks:
        write(f"{'ok' if check.passed else 'FAILED':6} {check.name} ({check.detail}; {1e3 * check.seconds:.0f} ms)")
    failed = [check.name for check in checks if not check.passed]
    if failed:
        write(f"{len(failed)} of {len(checks)} checks failed; please report it with the output above.")
        return 1
    write(f"All {len(checks)} checks passed in {sum(check.seconds for check in checks):.1f} s.")
    return 0


def summary(report: dict[str, Any]) -> str:
    """Return one sentence on a report of `examine`."""
    n, warnings = report["n"], len(report["warnings"])
    compared = f" (compared with {', '.join(report['against'])})" if report["against"] else ""
    if warnings:
        return f"{warnings} warning{'s' if warnings > 1 else ''} on {n} images{compared}."
    return (
        f"{n} images without duplicates{compared}; none of {len(STATISTICS)} statistics that do not measure "
        f"substructure predicts their class. In a store of this size, leaks with an AUC below "
        f"{report['detectable_auc']:.2f} can remain unnoticed."
    )
