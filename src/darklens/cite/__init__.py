"""BibTeX of the physics, methods and software that a recipe, run or model uses."""
