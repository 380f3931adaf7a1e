"""Recipes as YAML files and plain trees; `darklens.training.recipe` has their schema."""

from darklens.recipes.loader import RECIPES, load_tree, names

__all__ = ["RECIPES", "load_tree", "names"]
