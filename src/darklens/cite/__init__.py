"""What to cite for a result: the physics, methods and software that a recipe, run or model used, as BibTeX."""
