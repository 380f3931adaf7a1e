"""What the doctor found, in words."""

from collections.abc import Callable
from typing import Any

from darklens.doctor.statistics import STATISTICS


def installation(say: Callable[[str], None]) -> int:
    """Say versions and device, run the self-test, and return the exit code: 1 if a law does not hold."""
    from darklens.doctor import selftest

    for name, value in selftest.versions().items():
        say(f"{name:18} {value}")
    checks = selftest.run()
    for check in checks:
        say(f"{'ok' if check.passed else 'FAILED':6} {check.name} ({check.detail}; {1e3 * check.seconds:.0f} ms)")
    failed = [check.name for check in checks if not check.passed]
    if failed:
        say(f"{len(failed)} of {len(checks)} checks failed; please report it with what is printed above.")
        return 1
    say(f"All {len(checks)} checks passed in {sum(check.seconds for check in checks):.1f} s.")
    return 0


def summary(found: dict[str, Any]) -> str:
    """Return one sentence on a report of `examine`."""
    n, warnings = found["n"], len(found["warnings"])
    compared = f", compared with {', '.join(found['against'])}" if found["against"] else ""
    if warnings:
        return f"{warnings} warning{'s' if warnings > 1 else ''} on {n} images{compared}."
    return (
        f"No class of {n} images is told by any of {len(STATISTICS)} numbers that know nothing of substructure, and no "
        f"image is there twice{compared}."
    )
