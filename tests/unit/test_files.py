import pytest

from darklens import files
from darklens.errors import InputError


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "a.txt"
    files.write_text(target, "old")
    with pytest.raises(FileNotFoundError), files.atomic_path(target) as temporary:
        temporary.write_text((tmp_path / "absent").read_text())
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_refuses_nan_and_names_a_broken_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match=r"b\.json is not valid JSON"):
        files.read_json(tmp_path / "b.json")
