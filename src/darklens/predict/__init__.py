"""A bundle applied to image files: a table with one row a file, bad files included."""

from darklens.data.listing import find_images
from darklens.predict.engines import ENGINES, EngineChoice, choose, engine_of
from darklens.predict.rows import Row, columns_of, predict, to_csv
from darklens.predict.table import Summary, predict_table, problems_in

__all__ = [
    "ENGINES",
    "EngineChoice",
    "Row",
    "Summary",
    "choose",
    "columns_of",
    "engine_of",
    "find_images",
    "predict",
    "predict_table",
    "problems_in",
    "to_csv",
]
