"""The lock has a hash for every package."""

import re
import tomllib
from pathlib import Path

import lock
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RUNNING = ("serve", "onnx", "hdf5", "explain", "tune", "hub", "cluster")


def entry(name, info):
    return {"metadata": {"name": name, "version": "1.0"}, "download_info": info}


def test_every_package_but_our_own_has_its_hash():
    report = {
        "install": [
            entry("zarr", {"archive_info": {"hashes": {"sha256": "ab"}}}),
            entry("Darklens", {"dir_info": {}}),
            entry("astropy", {"archive_info": {"hashes": {"sha256": "cd"}}}),
        ]
    }
    assert lock.lines(report) == ["astropy==1.0 --hash=sha256:cd", "zarr==1.0 --hash=sha256:ab"]
    with pytest.raises(ValueError, match=r"numpy 1\.0 has no sha256"):
        lock.lines({"install": [entry("numpy", {"archive_info": {}})]})


def test_the_lock_that_is_kept_has_what_darklens_runs_on_in_the_versions_that_are_tested():
    locked = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        found = re.fullmatch(r"([\w.\[\],-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert found, line
        locked[plain(found[1])] = found[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in RUNNING for d in project["optional-dependencies"][extra])]
    assert {plain(re.match(r"[\w-]+", requirement)[0]) for requirement in wanted} <= set(locked)
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    pins = {plain(name): version for name, version in pins.items()}
    assert {name: version for name, version in locked.items() if pins.get(name, version) != version} == {}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()
