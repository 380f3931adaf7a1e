"""Sphinx configuration: `make docs` builds these pages and runs every notebook, without a network."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src"), str(HERE.parent / "tools")]
# Notebook cells call `darklens` as a user does: the command of this environment, with the sources of this checkout.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")])
os.environ["TTY_COMPATIBLE"] = "0"  # IPython requests colours, and rich would draw animated progress bars
os.environ.setdefault("COLUMNS", "100")

import darklens  # noqa: E402  # needs the path above

project = "darklens"
author = "The darklens developers"
version = release = darklens.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "generated_pages",
    "mathtext_math",
    "repository_links",
]
exclude_patterns = ["_build", "cards/words", "**.ipynb_checkpoints"]
default_role = "code"  # single backticks in docstrings
nitpicky = True
# Other packages have no pages here, because their inventories need a network.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!darklens\.).*"),
    (r"py:.*", r"darklens\..*\.(Contract|MahalanobisStats|InferenceBackend|SmoothFit|FitFeatures|EpochMetrics|Inputs)"),
]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_show_tb = True  # `make docs` turns warnings into errors
nb_execution_timeout = 900  # seconds per cell, on a busy machine
nb_execution_in_temp = True
nb_merge_streams = True
nb_render_markdown_format = "myst"  # renders tables in cell outputs

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"darklens {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_show_copyright = False
smartquotes = False  # options begin with two hyphens
html_math_renderer = "mathtext"
