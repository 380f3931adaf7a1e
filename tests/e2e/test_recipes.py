"""Every system, source and stage of the recipes: one batch in each stage, calibrated, and used to classify."""

import re
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from darklens import populations
from darklens.models import resnet_18
from darklens.models.zoo import has_lens_step, requires_fitting, task_of
from darklens.recipes import names
from darklens.simulate.generate import generate
from darklens.training import recipe as recipes
from darklens.training import run
from darklens.training.run import train

SMALLEST = 44  # pixels that every network takes
BATCH = 6


@pytest.fixture(scope="module")
def store_of(tmp_path_factory):
    """Return a function that simulates six images to train on and three to validate with, once for each size."""
    folder = tmp_path_factory.mktemp("stores")

    @cache
    def store_of(n_pixels):
        population = populations.get("common-test-i", [f"field.n_pixels={n_pixels}"])
        return generate(population, folder / str(n_pixels), n_per_class=BATCH // 3 + 1, seed=1, workers=1)

    return store_of


def one_batch_a_stage(name):
    """Change sizes and numbers alone: sources, stages, schedules, losses and augmentation are the recipe's."""
    recipe = recipes.get(name)
    n_pixels = SMALLEST * recipe.data.preprocess.bin * max(stage.bin for stage in recipe.stages)
    field = f"field.n_pixels={n_pixels}"
    changes = [f"stages.{i}.{key}" for i in range(len(recipe.stages)) for key in ("epochs=1", f"batch_size={BATCH}")]
    changes.append("data.backend=eager")
    if recipe.data.preprocess.crop:
        changes.append(f"data.preprocess.crop={n_pixels}")
    if requires_fitting(recipe.model) and not has_lens_step(recipe.model):
        changes.append(f"model.overrides=[{field}]")
    if recipe.data.n_per_class:
        changes.append(f"data.n_per_class={BATCH // 3 + 1}")
    if recipe.data.kind == "stream":
        stream = (f"overrides=[{field}]", f"images_per_epoch={BATCH}", "validation_images=3", "workers=0")
        changes += [f"data.{change}" for change in stream]
    return recipes.get(name, changes), n_pixels


def distinct_recipes():
    """Return recipes that together have every system, source and stage; dropout and numbers do not count."""
    numbers = r'"(dropout|epochs|batch_size|images_per_epoch|validation_images|n_per_class)":[^,}]*'
    chosen, covered = [], set()
    for recipe in sorted(map(recipes.get, names()), key=lambda recipe: len(recipe.stages)):
        parts = {re.sub(numbers, "", part.model_dump_json()) for part in (recipe.model, recipe.data, *recipe.stages)}
        if not parts <= covered:
            chosen.append(recipe.name)
        covered |= parts
    return chosen


# Their stages differ from those of resnet_18_curriculum in numbers alone.
SWEPT = {"fast_resnet_18", "resnet_18_long"}
PARTLY_SWEPT = [pytest.param(name, marks=[pytest.mark.sweep] * (name in SWEPT)) for name in distinct_recipes()]


@pytest.mark.usefixtures("in_pytorch")
@pytest.mark.parametrize("name", PARTLY_SWEPT)
def test_a_recipe_trains_for_one_batch_in_each_stage(name, store_of, tmp_path, monkeypatch):
    monkeypatch.setattr(resnet_18, "_WIDTHS", (8, 8, 16, 16))  # its checkpoints take most of the time otherwise
    recipe, n_pixels = one_batch_a_stage(name)
    store, weights = store_of(n_pixels), []
    run_stage = run._run_stage

    def noted(network, *arguments):
        weights.append({key: value.clone() for key, value in network.state_dict().items()})
        return run_stage(network, *arguments)

    monkeypatch.setattr(run, "_run_stage", noted)
    bundle = train(recipe, store if recipe.data.kind == "store" else None, tmp_path / "run", seed=1)
    weights.append(bundle.network.state_dict())
    assert len(weights) == len(recipe.stages) + 1
    for before, after in pairwise(weights):
        assert any(not torch.equal(value, after[key]) for key, value in before.items())
        assert all(value.isfinite().all() for value in after.values())
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + len(recipe.stages)
    images = store.images(range(3))
    if task_of(recipe.model) == "classify":
        np.testing.assert_allclose(bundle.probabilities(images).sum(1), 1, atol=1e-6)
        assert bundle.contract.calibration is not None
    else:
        assert np.isfinite(bundle.run(images)[1].numpy()).all()
