"""Simulation of images from a population and a seed: draw parameters, ray-trace, detect, store."""
