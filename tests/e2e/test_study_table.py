"""The study's table on a few small images: equal sizes for both ways, and nothing done twice."""

import json
import sys

import pytest
import study_table

from darklens.cli import main
from darklens.training import recipe as recipes

SYSTEM = "Resnet_simple"


def test_both_ways_see_as_many_images_and_a_second_call_repeats_nothing(monkeypatch, tmp_path):
    calls = []

    def darklens(*words):
        calls.append(words[:2])
        with pytest.raises(SystemExit) as stopped:
            main(list(words))
        assert stopped.value.code == 0

    monkeypatch.setattr(study_table, "darklens", darklens)
    quick = ["data.validation_images=30"]
    legacy, stages, mended, _ = study_table.SYSTEMS[SYSTEM]
    monkeypatch.setattr(study_table, "SYSTEMS", {SYSTEM: (legacy, stages, mended, quick)})
    sizes = ["--n-per-class", "40", "--test-per-class", "6", "--epochs", "2", "--backend", "eager"]
    sizes += ["--crop", "48", "--bin", "1"]
    place = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["study_table.py", *sizes, *place])
    study_table.main()
    assert [words[0] for words in calls] == ["simulate", "simulate", "train", "evaluate", "train", "evaluate"]
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [(row["system"], row["way"]) for row in found["rows"]] == [(SYSTEM, "study"), (SYSTEM, "mended")]
    study, mended = (row["eval"]["provenance"]["train_images"] for row in found["rows"])
    assert study * 2 == mended == 216  # the study's: two passes over its images
    assert found["rows"][0]["eval"]["data"]["sha256"] == found["rows"][1]["eval"]["data"]["sha256"]
    written = (tmp_path / "out" / "study.md").read_text()
    assert "18 test images" in written and written.count("| Resnet_simple |") == 2
    calls.clear()
    study_table.main()
    assert calls == []


@pytest.mark.parametrize("system", list(study_table.SYSTEMS))
def test_settings_are_valid_and_passes_add_up(system, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study_table.py"])
    given = study_table.arguments()
    seen = {}
    for way in ("study", "mended"):
        name, settings = study_table.choice(given, system, way)
        recipe = recipes.get(name, settings)
        per_epoch = recipe.data.images_per_epoch if way == "mended" else 27_000
        for task in ("reconstruct", "classify"):
            epochs = sum(stage.epochs for stage in recipe.stages if stage.task == task)
            seen.setdefault(task, []).append(epochs * per_epoch)
    assert seen["classify"] == [108_000, 108_000]
    assert seen["reconstruct"] == ([27_000, 27_000] if system.startswith("SIS") else [0, 0])
