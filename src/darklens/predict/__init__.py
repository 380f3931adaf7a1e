"""Prediction on image files: a table with one row per file, bad files included."""

from darklens.data.image_paths import find_images
from darklens.predict.auxiliary import Auxiliary
from darklens.predict.backends import BACKENDS, BackendChoice, backend_of, choose
from darklens.predict.block_worker import loaded_bundle
from darklens.predict.rows import Row, columns_of, predict, to_csv
from darklens.predict.table import Summary, predict_table, problems_in, warn_if_unchecked

__all__ = [
    "BACKENDS",
    "Auxiliary",
    "BackendChoice",
    "Row",
    "Summary",
    "backend_of",
    "choose",
    "columns_of",
    "find_images",
    "loaded_bundle",
    "predict",
    "predict_table",
    "problems_in",
    "to_csv",
    "warn_if_unchecked",
]
