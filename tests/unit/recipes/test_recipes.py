"""Recipes by name and path: inheritance, overrides, errors, and what the shipped ones resolve to."""

import pytest
import yaml

from darklens import populations
from darklens.config import dump
from darklens.errors import ConfigError
from darklens.recipes import RECIPES, load_tree, names
from darklens.training.recipe import Recipe, get


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_recipe_is_merged_into_its_base(tmp_path):
    write(tmp_path, "base.yaml", "extends: lens_residual\nname: base\ndata: {n_per_class: 50}\n")
    tree = load_tree(write(tmp_path, "sub/top.yaml", "extends: ../base.yaml\nname: top\n"), ["data.n_per_class=9"])
    assert tree == load_tree("lens_residual") | {
        "name": "top",
        "data": {"kind": "store", "augment": {"kind": "dihedral"}, "n_per_class": 9},
    }


def test_another_kind_of_model_replaces_that_of_the_base():
    assert get("resnet_simple_curriculum").model.kind == "resnet_simple"
    assert load_tree("resnet_18_legacy")["model"] == {"kind": "resnet_18", "legacy": True}


@pytest.mark.parametrize(
    ("stages", "epochs"),
    [
        ("[{task: classify, epochs: 5}]", [5]),
        ("{0: {epochs: 6}}", [6, 15]),
        ("{1: {epochs: 7}, append: [{task: classify, epochs: 8}]}", [60, 7, 8]),
        ("{prepend: [{task: classify, epochs: 9}]}", [9, 60, 15]),
    ],
)
def test_stages_are_replaced_as_a_list_and_changed_as_a_mapping(tmp_path, stages, epochs):
    path = write(tmp_path, "a.yaml", f"extends: resnet_simple_fine_tuned\nstages: {stages}\n")
    recipe = get(path)
    assert [stage.epochs for stage in recipe.stages] == epochs
    assert recipe.stages[-1].schedule.kind == ("plateau" if epochs[-1] in (7, 15) else "one_cycle")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("extends: resnet_19", r"a.yaml: extends: Unknown recipe 'resnet_19': did you mean 'resnet_18'\?"),
        ("extends: none.yaml", r"none.yaml does not exist\."),
        ("extends: [resnet_18]", r"a.yaml: extends: the name of a recipe or the path of its file is needed"),
        ("extends: resnet_18\nstages: {2: {epochs: 3}}", r"a.yaml: stages: 2 is neither prepend, append nor"),
        ("extends: resnet_18\nstages: {0: 3}", r"a.yaml: stages.0: a mapping of changes is needed, got 3\."),
        ("extends: resnet_18\nstages: {append: 3}", r"a.yaml: stages.append: a list of stages is needed, got 3\."),
        ("extends: b.yaml\nstages: {0: {epochs: 3}}", r"a.yaml: stages: the base has no list of stages to change\."),
        ("extends: a.yaml", r"a.yaml: extends: .*a.yaml -> a.yaml is a circle\."),
        ("extends: c.yaml", r"a.yaml: extends: .*a.yaml -> c.yaml -> ./a.yaml is a circle\."),
    ],
)
def test_what_cannot_be_extended_is_one_sentence(tmp_path, text, sentence):
    write(tmp_path, "b.yaml", "name: b\n")
    write(tmp_path, "c.yaml", "extends: ./a.yaml\n")
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_tree(write(tmp_path, "a.yaml", text))
    assert "\n" not in str(caught.value)


def test_a_recipe_with_another_name_of_the_backend_is_read(tmp_path):
    path = write(tmp_path, "a.yaml", "extends: resnet_18_curriculum\ndata: {engine: eager}\n")
    assert get(path).data.backend == "eager"
    assert get("resnet_18_curriculum", ["data.engine=eager"]).data.backend == "eager"


@pytest.mark.parametrize("name", names())
def test_a_shipped_recipe_has_the_name_of_its_file_and_dumps_resolved(name, tmp_path):
    recipe, tree = get(name), yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    assert recipe.name == tree["name"] == name and recipe.description == tree["description"]
    text = dump(recipe)
    assert "extends" not in text and Recipe.model_validate(yaml.safe_load(text)) == recipe


# The overrides that were written out before `substructure_scale`.
LIMITS = ("sphere.mass.low", "sphere.mass.high", "vort.mass_fraction.low", "vort.mass_fraction.high")
OVERRIDES = {
    10: ("1.0e+7", "1.0e+11", "0.2", "0.5"),
    4: ("4.0e+6", "4.0e+10", "0.08", "0.2"),
    2: ("2.0e+6", "2.0e+10", "0.04", "0.1"),
}


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet_18_curriculum", [(2, 10, 1), (2, 4, 1), (3, 2, 1), (28, 1, 1)]),
        ("resnet_simple_curriculum", [(2, 10, 1), (2, 4, 1), (3, 2, 1), (28, 1, 1)]),
        ("sis_autoencoder2_curriculum", [(3, 1, 1), (2, 10, 1), (2, 4, 1), (3, 2, 1), (28, 1, 1)]),
        ("fast_resnet_18", [(2, 10, 2), (2, 4, 2), (3, 2, 2), (16, 1, 2), (8, 1, 1)]),
    ],
)
def test_a_curriculum_simulates_the_populations_that_its_overrides_gave(name, stages):
    recipe = get(name)
    assert [(stage.epochs, stage.substructure_scale, stage.bin) for stage in recipe.stages] == stages
    for stage in recipe.stages:
        values = OVERRIDES.get(stage.substructure_scale, ())
        overrides = [f"classes.{key}={value}" for key, value in zip(LIMITS, values, strict=False)]
        expected = populations.get(recipe.data.population, overrides)
        scaled = populations.get(recipe.data.population).with_substructure_scale(stage.substructure_scale)
        assert scaled.model_dump_json() == expected.model_dump_json()


LEGACY = [
    ("resnet_simple_legacy", [("classify", 200, 64, 1e-4, "plateau")]),
    ("resnet_18_legacy", [("classify", 200, 15, 1e-4, "plateau"), ("classify", 20, 15, 1e-5, "plateau")]),
    ("sis_autoencoder_legacy", [("reconstruct", 100, 32, 1e-4, "constant"), ("classify", 200, 32, 5e-5, "plateau")]),
    (
        "sis_autoencoder2_legacy",
        [
            ("reconstruct", 100, 32, 1e-4, "constant"),
            ("classify", 100, 32, 5e-6, "plateau"),
            ("classify", 20, 32, 1e-6, "plateau"),
        ],
    ),
]


@pytest.mark.parametrize(("name", "stages"), LEGACY)
def test_a_legacy_recipe_trains_as_the_study_did(name, stages):
    recipe = get(name)
    assert recipe.data.legacy_augmented_validation
    assert [(s.task, s.epochs, s.batch_size, s.optimiser.lr, s.schedule.kind) for s in recipe.stages] == stages
    for stage in recipe.stages:
        assert stage.optimiser.kind == "adam" and stage.optimiser.weight_decay == stage.ema_decay == 0
        assert stage.legacy_last_epoch and stage.legacy_double_softmax == (stage.task == "classify")


def test_a_store_has_no_substructure_to_scale():
    with pytest.raises(ConfigError, match=r"stages.0: overrides, substructure_scale and images_per_epoch are for data"):
        get("resnet_18", ["stages.0.substructure_scale=2"])
