"""Checks of data and installation: label leaks and duplicates in a store, a self-test of the physics."""
