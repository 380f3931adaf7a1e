"""Experiments: each is a YAML file here, and `python -m experiments NAME` runs it."""
