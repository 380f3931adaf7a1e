"""Populations of lenses: their schema, YAML files, priors, light, substructure and instruments."""

from darklens.populations.population import POPULATIONS, Population, get, names

__all__ = ["POPULATIONS", "Population", "get", "names"]
