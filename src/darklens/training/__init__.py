"""Learning: recipes, the Lightning module, and the run that ends in a bundle. Only this folder knows Lightning."""
