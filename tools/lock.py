"""Write a lock of all packages with hashes: `python tools/lock.py FILE [extra ...]`; it needs a package index.

pip resolves darklens with its extras under constraints.txt and reports what it would install on this platform. Install
with `pip install --require-hashes -r FILE`, then darklens itself with `--no-deps`.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(out: Path, extras: list[str]) -> None:
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--report", "-", "--constraint", str(ROOT / "constraints.txt"), target]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"pip could not resolve the packages: {found.stderr.strip().splitlines()[-1]}")
    out.write_text("\n".join(lines(json.loads(found.stdout))) + "\n", encoding="utf-8")


def lines(report: dict) -> list[str]:
    """Return a line of requirements for each package of pip's report, but for darklens itself.

    Raises:
        ValueError: If a package has no hash.
    """
    locked = []
    for entry in report["install"]:
        name, version = entry["metadata"]["name"], entry["metadata"]["version"]
        if "dir_info" in entry["download_info"]:
            continue
        sha256 = entry["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if sha256 is None:
            raise ValueError(f"{name} {version} has no sha256")
        locked.append(f"{name}=={version} --hash=sha256:{sha256}")
    return sorted(locked, key=str.lower)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
