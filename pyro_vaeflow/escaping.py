"""Names from other people's files, made harmless where they are shown.

HTML pages and LaTeX are escaped by pandas, and figures draw names with ``parse_math=False``.
"""

import re
import sys
import warnings
from typing import Any


def visible(text: str) -> str:
    r"""Control characters, which move a terminal's cursor or rename its window, written out.

    Example:
        >>> print(visible("a\x1b[2J"))
        a\x1b[2J
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def say(*lines: object, error: bool = False) -> None:
    """Prints on the terminal, or as an error."""
    print(*(visible(str(line)) for line in lines), file=sys.stderr if error else sys.stdout)


def warn_in_lines() -> None:
    """Warnings of this process are shown without a line of the source."""
    warnings.showwarning = lambda text, *_: say(f"Warning: {text}", error=True)


def markdown(text: str) -> str:
    r"""One cell of a table.

    Example:
        >>> print(markdown("a | b\n<c>"))
        a \| b \<c>
    """
    return re.sub(
        r"[\\|`]|<(?=[A-Za-z/!?])|(?<=\])(?=\()", r"\\\g<0>", visible(" ".join(text.split()))
    )


def csv_text(frame: Any, **options: Any) -> str:
    """A `pandas.DataFrame` as csv, of which no spreadsheet or terminal obeys a text.

    Example:
        >>> import pandas as pd
        >>> csv_text(pd.DataFrame({"name": ["=1+1"], "n": [-1]}))
        "name,n\\n'=1+1,-1\\n"
    """
    texts = frame.rename(columns=_inert)
    for place, kind in enumerate(texts.dtypes):
        if kind.kind not in "biuf":
            texts.isetitem(place, texts.iloc[:, place].map(_inert))
    return texts.to_csv(index=False, **options)


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return visible(f"'{value}" if is_formula else value)
