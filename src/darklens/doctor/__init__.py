"""Is the data sound, and does the physics hold here: leaks and duplicates of a store, a self-test of the laws."""
