"""The site: ``make docs``. Pages are the Markdown files beside this one, the tutorials (executed) and the
docstrings.
"""

import os
import shutil
import sys
from pathlib import Path

import ppl_ext

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

project = "ppl_ext"
author = copyright = "The ppl_ext developers"
version = release = ppl_ext.__version__
html_title = f"ppl_ext {version}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pictures.css"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "gallery"]
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_ext", "conf.py", "adr/README.md"]

# A tutorial is a Python file in percent cells, which the tests run too. Pages lie below this folder, so a
# copy is made.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
# Kernels inherit it. tqdm's message about a missing widget would open every tutorial, with the path of this
# machine.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # a default as it is written, not as it prints
always_use_bars_union = True
toc_object_entries_show_parents = "hide"


def skip(app, what, name, found, skipped, options):
    """The body of an objective has the class's docstring, which is there already."""
    return True if name == "body" and what == "class" else None


def tidy(app, what, name, found, options, lines):
    """A named tuple's fields are said in its docstring; what Python makes up for each says nothing."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def quiet(app, config):
    if config.nb_execution_mode == "off":  # without a kernel nobody knows what language the cells are in
        config.suppress_warnings = [*config.suppress_warnings, "myst-nb.lexer"]


def setup(app):
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", tidy)
    app.connect("config-inited", quiet)
    shutil.rmtree(HERE / "tutorials", ignore_errors=True)
    # programs of papers are read in the repository; the page of papers has what they print
    left_out = shutil.ignore_patterns("__pycache__", "output", "papers")
    shutil.copytree(HERE.parent / "tutorials", HERE / "tutorials", ignore=left_out)
