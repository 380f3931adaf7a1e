"""Images on disk and on their way to a model: the store, importers, pre-processing, the data module."""
