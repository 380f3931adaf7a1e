"""The commit that a result records."""

import subprocess

from darklens import provenance


def test_changes_to_sources_are_dirty_and_changes_to_results_are_not(tmp_path, monkeypatch):
    source, result = tmp_path / "src/darklens/physics.py", tmp_path / "results/bench.json"
    for file in (source, result):
        file.parent.mkdir(parents=True)
        file.write_text("1\n")

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(provenance, "__file__", str(source))
    head = git("rev-parse", "HEAD")[:12]
    assert provenance.commit() == head
    result.write_text("2\n")
    assert provenance.commit() == head
    source.write_text("2\n")
    assert provenance.commit() == f"{head}-dirty"
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "missing/provenance.py"))
    assert provenance.commit() == "unknown"
