"""The documentation's build: ``make docs`` writes docs/_build/html and fails on any warning."""

import re
from typing import Any

import pyro_vaeflow

project = "pyro_vaeflow"
author = "the pyro_vaeflow authors"
copyright = author  # the name that Sphinx asks for
version = release = pyro_vaeflow.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "myst_nb",
]
# notebooks/ is a link to the folder beside docs/: its .py halves are no pages.
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"  # outputs are those that are committed; `make notebooks` makes them

# `name` in a docstring links what is documented and is plain code where that is nothing.
default_role = "py:obj"
add_module_names = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the signatures show them
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"pyro_vaeflow {release}"
html_show_sourcelink = False


def setup(app: Any) -> None:
    """Leaves out what scikit-learn adds to every estimator, whose links lead into its own site."""
    app.connect("autodoc-skip-member", _is_metadata_routing)


def _is_metadata_routing(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> Any:
    return True if re.fullmatch(r"set_\w+_request", name) else None
