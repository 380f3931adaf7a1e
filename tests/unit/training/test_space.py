"""Parsing and checking a search space before any training."""

import pytest

from darklens.errors import ConfigError
from darklens.training.recipe import get
from darklens.training.search_space import Choice, Range, checked_recipe, default_space, parse, suggested

LR = "stages.0.optimiser.lr"


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("0.1..0.5", Range(low=0.1, high=0.5)),
        ("-1..2.5", Range(low=-1, high=2.5)),
        ("16..128", Range(low=16, high=128)),
        ("log:8..512", Range(low=8, high=512, log=True)),
        ("log:1e-5..1e-2", Range(low=1e-5, high=1e-2, log=True)),
        ("log:1.5e-5..1", Range(low=1.5e-5, high=1, log=True)),
        (".5..1.", Range(low=0.5, high=1.0)),
        ("{adam,adamw}", Choice(values=("adam", "adamw"))),
        ("{16, 32, null}", Choice(values=("16", "32", "null"))),
    ],
)
def test_ranges_and_choices_are_dimensions(text, dimension):
    assert parse([f"a.b={text}"]) == ({"a.b": dimension}, ())


@pytest.mark.parametrize("text", ["3", "0.5", "affine", "{kind: none}", "[lens.gamma=0]", "../elsewhere"])
def test_other_arguments_are_plain_overrides(text):
    assert parse([f"a.b={text}"]) == ({}, (f"a.b={text}",))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a.b"], "neither a.b=value nor"),
        (["a.b=2..1"], "from a lower to a higher"),
        (["a.b=1..1"], "from a lower to a higher"),
        (["a.b=log:0..1"], "start above zero"),
        (["a.b=log:1e-4"], r"log:low..high"),
        (["a.b=1..x"], "'x' is not a number"),
        (["a.b=1..inf"], "must be finite"),
        (["a.b={x}"], "at least two"),
        (["a.b={x,[}"], "choices have the form"),
        (["a.b=x", "a.b=y"], "occurs twice; put choices in quotes"),
    ],
)
def test_invalid_ranges_are_refused(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse(arguments)


def test_a_file_gives_the_same_space_as_arguments(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(f"{LR}: log:1e-5..1e-2\nmodel.dropout: [0, 0.5]\nstages.0.epochs: 3\n")
    space, plain = parse(["data.augment.kind={none,dihedral}"], path)
    from_arguments = parse(
        [f"{LR}=log:1e-5..1e-2", "model.dropout={0,0.5}", "stages.0.epochs=3", "data.augment.kind={none,dihedral}"]
    )
    assert (space, plain) == from_arguments
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="must contain a mapping"):
        parse([], path)
    with pytest.raises(ConfigError, match="does not exist"):
        parse([], tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("stages.0.optimiser.rate=1..2", "unknown key"),
        ("stages.0.optimizer.lr=1..2", "did you mean 'optimiser'"),
        ("model.dropout=0.5..2", "less than"),
        ("stages.0.batch_size=16.5..32.5", "integer"),
        ("data.augment.kind={none,dihedra}", "dihedra"),
        ("stages.3.epochs=1..3", "index from 0 to 0"),
    ],
)
def test_every_bound_and_choice_is_checked_against_the_recipe(word, sentence):
    with pytest.raises(ConfigError, match=sentence):
        checked_recipe("resnet_simple", [], parse([word])[0])


class FakeTrial:
    """Suggests the lowest number and the last choice."""

    def suggest_int(self, key, low, high, *, log):
        assert isinstance(low, int)
        return low

    suggest_float = suggest_int

    def suggest_categorical(self, key, values):
        return values[-1]


def test_suggested_values_are_overrides():
    space, _ = parse(["stages.0.batch_size=16..64", "data.augment.kind={none,dihedral}"])
    values = suggested(space, FakeTrial())
    assert values == {"stages.0.batch_size": "16", "data.augment.kind": "dihedral"}
    recipe = get("resnet_simple", [f"{key}={text}" for key, text in values.items()])
    assert recipe.stages[0].batch_size == 16 and recipe.data.augment.kind == "dihedral"


def test_the_default_space_is_learning_rate_and_weight_decay_of_the_last_stage():
    recipe = get("sis_autoencoder2")
    space = default_space(recipe)
    assert list(space) == ["stages.1.optimiser.lr", "stages.1.optimiser.weight_decay"]
    assert checked_recipe("sis_autoencoder2", [], space) == recipe
