"""Fitting the smooth lens to images: what it cannot explain is where substructure shows."""
