"""Populations of lenses: a schema, its YAML files, and what it is made of: priors, light, substructure, instruments."""

from darklens.populations.population import POPULATIONS, Population, get, names

__all__ = ["POPULATIONS", "Population", "get", "names"]
