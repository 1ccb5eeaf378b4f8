"""The site: ``make docs``. Pages are the Markdown files beside this one, the tutorials (executed) and the docstrings."""

import shutil
from pathlib import Path

import ppl_ext

HERE = Path(__file__).resolve().parent

project = "ppl_ext"
author = "The ppl_ext developers"
version = release = ppl_ext.__version__
html_title = f"ppl_ext {version}"
html_theme = "furo"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "conf.py", "adr/README.md"]

# A tutorial is a Python file in percent cells, which the tests run too. Pages lie below this folder, so a copy is made.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # a default as it is written, not as it prints
always_use_bars_union = True
toc_object_entries_show_parents = "hide"


def setup(app):
    shutil.rmtree(HERE / "tutorials", ignore_errors=True)
    shutil.copytree(HERE.parent / "tutorials", HERE / "tutorials", ignore=shutil.ignore_patterns("__pycache__", "output"))
