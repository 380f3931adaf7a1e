"""Fits of the smooth lens and of perturbers to images."""
