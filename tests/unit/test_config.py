from itertools import pairwise
from typing import Annotated, Literal

import pytest
from pydantic import Field

from darklens import config
from darklens.config import Frozen
from darklens.errors import ConfigError


class Inner(Frozen):
    rate: float = Field(default=0.1, gt=0)


class Square(Frozen):
    kind: Literal["square"] = "square"
    side: float = 1


class Disc(Frozen):
    kind: Literal["disc"] = "disc"
    radius: float = 1


class Figure(Frozen):
    shape: Annotated[Square | Disc, Field(discriminator="kind")] = Disc()


class Tree(Frozen):
    name: str
    inner: Inner = Inner()
    items: list[Inner] = Field(default=[Inner()])


def test_overrides_reach_into_mappings_and_lists():
    tree = config.load(Tree, {"name": "a", "items": [{"rate": 1}, {"rate": 2}]}, ["inner.rate=3", "items.1.rate=4"])
    assert tree.inner.rate == 3
    assert [item.rate for item in tree.items] == [1, 4]


def test_a_dumped_configuration_loads_as_an_equal_one(tmp_path):
    tree = config.load(Tree, {"name": "a"}, ["inner.rate=3"])
    (tmp_path / "t.yaml").write_text(config.dump(tree))
    loaded = config.load(Tree, tmp_path / "t.yaml")
    assert loaded == tree
    assert config.digest(loaded) == config.digest(tree) != config.digest(config.load(Tree, {"name": "b"}))


def test_a_changed_kind_replaces_the_node():
    assert config.merge({"a": {"kind": "x", "p": 1}}, {"a": {"kind": "y"}}) == {"a": {"kind": "y"}}
    assert config.merge({"a": {"kind": "x", "p": 1}}, {"a": {"p": 2}}) == {"a": {"kind": "x", "p": 2}}


def test_a_setting_of_the_default_kind_needs_no_kind():
    assert config.load(Figure, {}, ["shape.radius=2"]).shape == Disc(radius=2)
    assert config.load(Figure, {}, ["shape.kind=square", "shape.side=2"]).shape == Square(side=2)
    with pytest.raises(ConfigError, match=r"^figure: shape\.side: unknown key"):
        config.load(Figure, {}, ["shape.side=2"])


@pytest.mark.parametrize(
    ("tree", "overrides", "sentence"),
    [
        ({"name": "a", "iner": 1}, [], "tree: iner: unknown key; did you mean 'inner'?"),
        (
            {"name": "a"},
            ["rate=2"],
            "tree: rate: unknown key here; 'rate' belongs to another part of the configuration; give its path.",
        ),
        ({}, [], "tree: name: this key is required."),
        ({"name": "a"}, ["inner.rate=-1"], "tree: inner.rate: Input should be greater than 0, got -1."),
        ({"name": "a"}, ["inner.rate=.nan"], "tree: inner.rate: Input should be a finite number, got nan."),
        ({"name": "a"}, ["inner"], "Override 'inner' is not of the form key.subkey=value."),
        ({"name": "a"}, ["=3"], "Override '=3' is not of the form key.subkey=value."),
        (
            {"name": "a", "items": [{}]},
            ["items.1.rate=4"],
            "Override 'items.1.rate=4': '1' must be an index from 0 to 0.",
        ),
        ({"name": "a"}, ["name.x=4"], "Override 'name.x=4': 'x' is below a scalar value."),
        ({"name": "a"}, ["inner={"], "Override 'inner={': '{' is not a YAML value."),
    ],
)
def test_problems_are_one_sentence_that_names_the_key(tree, overrides, sentence):
    with pytest.raises(ConfigError) as caught:
        config.load(Tree, tree, overrides)
    assert str(caught.value) == sentence


BOMB = "a: &a [x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij"))


@pytest.mark.parametrize(
    "text",
    [
        *("[1, 2]", "a: [", "", "!!python/object/apply:os.system ['true']"),
        *(
            BOMB,
            "name: &n [*n]",
            "<<: &n {<<: *n}",
            "[" * 3000,
            "{a: " * 900,
            "name: 2001-99-99",
            "rate: " + "1" * 5000,
        ),
    ],
    ids=range(11),
)
def test_a_file_that_is_not_a_yaml_mapping_is_an_error_and_not_executed(tmp_path, text):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.yaml") as caught:
        config.load(Tree, tmp_path / "t.yaml")
    assert len(str(caught.value)) < 6000 and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="does not exist"):
        config.load(Tree, tmp_path / "absent.yaml")


def test_a_yaml_error_is_reported_with_its_position(tmp_path):
    (tmp_path / "t.yaml").write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(ConfigError, match=r"t\.yaml .* near line 3, column 2 \(expected ',' or '\]'"):
        config.load(Tree, tmp_path / "t.yaml")


def test_the_first_different_setting_is_named():
    one = Tree(name="a", items=[Inner(), Inner(rate=2)])
    assert (
        config.difference(one, Tree(name="a", items=[Inner(), Inner(rate=3)]))
        == "items.1.rate is 2.0 there and 3.0 here"
    )
    assert config.difference(Tree(name="a"), one) == "items.1.rate is None there and 2.0 here"
