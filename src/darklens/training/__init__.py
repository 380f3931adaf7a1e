"""Training: recipes, the Lightning module, and runs. Only this package imports Lightning."""
