"""Layers that are run by our own code, compiled on the machine that trains."""
