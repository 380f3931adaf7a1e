"""Images on disk and their path to a model: readers, importers, the store, preparation and batches."""
