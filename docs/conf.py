"""The documentation's build: ``make docs`` writes docs/_build/html and fails on any warning."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from numpy.typing import ArrayLike
from sphinx.util.typing import stringify_annotation

import pyro_vaeflow

project = "pyro_vaeflow"
author = "the pyro_vaeflow authors"
copyright = author  # the name that Sphinx asks for
version = release = pyro_vaeflow.__version__

extensions = [
    "sphinx.ext.autodoc",
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
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
python_display_short_literal_types = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"pyro_vaeflow {release}"
html_show_sourcelink = False
html_static_path = ["style"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # which browsers draw by themselves: no script, nothing to fetch

# An index of a letter with an accent: docutils sets it under the letter.
ACCENT_AND_INDEX = re.compile(
    r"<munderover>\s*(<mi>\w</mi>)\s*(.*?)\s*(<mo stretchy=.false.>.</mo>)\s*</munderover>",
    re.DOTALL,
)
INDEX_BESIDE = r'<msub><mover accent="true">\1\3</mover>\2</msub>'

# numpy's alias is a union of six names, which signatures would spell out.
ARRAY_LIKE = stringify_annotation(ArrayLike, "smart")


def setup(app: Any) -> None:
    """Math as MathML; leaves out methods of scikit-learn's whose links lead into its own site."""
    app.connect("autodoc-skip-member", _is_metadata_routing)
    app.connect("autodoc-process-signature", _readable)
    app.connect("autodoc-process-docstring", _keep_underscores, priority=600)  # after napoleon
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))


def _is_metadata_routing(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> Any:
    return True if re.fullmatch(r"set_\w+_request", name) else None


def _readable(
    app: Any, what: str, name: str, obj: Any, opts: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A dataclass's defaults that are made anew are ``...``, and array-likes are called so."""
    if signature:
        signature = signature.replace("<factory>", "...").replace(ARRAY_LIKE, "ArrayLike")
    return signature, returns


def _keep_underscores(app: Any, what: str, name: str, obj: Any, opts: Any, lines: Any) -> None:
    """Attributes are called as they are: ``offset_`` would be read as a link to `offset`."""
    lines[:] = [
        re.sub(r"^:ivar (.+?):", lambda m: m[0].replace("_", r"\_").replace(", ", ","), line)
        for line in lines
    ]


def _inline_math(translator: Any, node: Any) -> None:
    _write_math(translator, node.astext(), as_block=False)


def _block_math(translator: Any, node: Any) -> None:
    _write_math(translator, node.astext(), as_block=True)


def _write_math(translator: Any, text: str, as_block: bool) -> None:
    text = text.replace(r"\dots", r"\ldots").replace(r"\log ", r"\log\,")
    tree = latex2mathml.tex2mathml(text, as_block=as_block)
    tree = ACCENT_AND_INDEX.sub(INDEX_BESIDE, tree)
    translator.body.append(f'<div class="math">{tree}</div>' if as_block else tree)
    raise nodes.SkipNode
