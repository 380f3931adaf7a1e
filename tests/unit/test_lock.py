"""The lock has a hash for every package."""

import lock
import pytest


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
