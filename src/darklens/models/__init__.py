"""The systems as plain torch modules: no trainer, no files."""
