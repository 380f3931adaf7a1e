"""Change one line at a time in a copy of the sources and name the test that fails: `python tools/mutate.py [n ...]`.

Each line is of another part of the package. A mutant that no test catches ends with "NOT CAUGHT". Ten minutes.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A file below src/darklens, text, its replacement, and the tests that are run until the first failure.
MUTANTS = [
    ("physics/profiles/sis.py", "return scale * x, scale * y", "return scale * x, -scale * y", "tests/laws"),
    ("physics/raytrace.py", "beta_y - alpha_y", "beta_y + alpha_y", "tests/parity"),
    ("physics/splat.py", "return total / weight.clamp_min(1e-3)", "return total", "tests/laws/test_splat.py"),
    ("simulate/detection.py", "rate + noise.sky)", "rate)", "tests/unit/simulate tests/unit/fit"),
    ("fit/levenberg.py", "trial_deviance < state.deviance", "trial_deviance > 0", "tests/unit/fit"),
    ("export.py", "output / self._temperature", "output", "tests/unit/evaluation/test_calibrate.py"),
    ("evaluation/conformal.py", "(len(scores) + 1) * level", "len(scores) * level", "tests/unit/evaluation"),
    ("data/store.py", "if sha256_of(path) != sha256:", "if False:", "tests/unit/data tests/unit/simulate"),
    (
        "training/learner.py",
        "self._seed_device(rng",
        "self.global_step or self._seed_device(rng",
        "tests/unit/training",
    ),
    ("predict/rows.py", 'row.path, "error", ""', 'row.path, "ok", ""', "tests/e2e/test_predict_archive.py"),
    ("kernels/library.py", "and _is_intact(path)", "and path.exists()", "tests/unit/kernels/test_kernel_library.py"),
]


def main() -> None:
    chosen = [int(word) for word in sys.argv[1:]] or range(1, len(MUTANTS) + 1)
    for n in chosen:
        file, text, replacement, tests = MUTANTS[n - 1]
        print(f"{n:2} {file}: `{text}` -> `{replacement}`: {first_failure(file, text, replacement, tests)}", flush=True)


def first_failure(file: str, text: str, replacement: str, tests: str) -> str:
    with tempfile.TemporaryDirectory(prefix="darklens-mutant-") as folder:
        copy = Path(folder) / "repository"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "_build", "demo"))
        path = copy / "src" / "darklens" / file
        source = path.read_text(encoding="utf-8")
        if source.count(text) != 1:
            sys.exit(f"{file} has `{text}` {source.count(text)} times, not once.")
        path.write_text(source.replace(text, replacement), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not sweep", *tests.split()]
        environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "XDG_CACHE_HOME": str(copy / "cache")}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        return f"caught by {failed[1]}" if failed else f"NOT CAUGHT ({done.returncode})"


if __name__ == "__main__":
    main()
