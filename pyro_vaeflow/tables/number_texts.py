"""Numbers as people write them: in texts, with marks for gaps, groups of digits, decimal commas."""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

# What stands for no number, in any case; files hold more of it than of any real category.
WORDS = frozenset(
    " ? - -- . .. * # / nan na n/a n.a. #n/a #na null none nil missing unknown -nan 1.#ind".split(
        " "
    )
)
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity))")
COMMA_NUMBER = re.compile(r"[+-]?(\d+,?\d*|,\d+)([eE][+-]?\d+)?")
AROUND = re.compile(r"^[<>≤≥~]?=?\s*[$€£¥]?\s*|\s*[%$€£¥]$")  # of a bound, an amount, a share
MINUS = re.compile(r"\((.+)\)|-\s*([$€£¥].+)|(\d.*)-")  # an accountant's, and where it stands
GROUPED = {
    ".": re.compile(r"[+-]?[1-9]\d{0,2}([, '\u00a0\u202f]\d{3})+(\.\d*)?"),
    ",": re.compile(r"[+-]?[1-9]\d{0,2}([. '\u00a0\u202f]\d{3})+(,\d*)?"),
}
CODE = re.compile(r"0\d+")  # 007 is a name, not a number
ENOUGH = 0.95  # of a column's texts are numbers: the others are errors
FEWEST = 2  # texts, to see groups of digits
MARKS = 5  # texts that stand beside numbers again and again
MEASURED = 20  # distinct numbers, or a text beside them is as good a level as they are


class Spelling(NamedTuple):
    """How a column writes numbers or dates: the sign, the texts that stand for none, the format.

    A column that is one of numbers by its type has no sign.
    """

    decimal: str = ""
    marks: tuple[str, ...] = ()
    dates: str = ""


def read_number(text: str, decimal: str = ".") -> float:
    """The number that a text spells; NaN if it spells none. A bound such as ``<0.9`` is 0.9.

    Example:
        >>> [read_number(t) for t in ("1,234.5", "<0.9", "12 %", "(3)", "many")]
        [1234.5, 0.9, 12.0, -3.0, nan]
        >>> read_number("1.234,5", decimal=",")
        1234.5
    """
    text, decimal = AROUND.sub("", text.strip()), decimal or "."
    if minus := MINUS.fullmatch(text):
        text = f"-{AROUND.sub('', ''.join(filter(None, minus.groups())))}"
    if GROUPED[decimal].fullmatch(text):
        text = re.sub(r"[^\d+-]" if decimal not in text else rf"[^\d+\-{decimal}]", "", text)
    if decimal == ",":
        text = text.replace(",", ".") if COMMA_NUMBER.fullmatch(text) else ""
    return float(text) if NUMBER.fullmatch(text) else np.nan


def read_numbers(text: pd.Series, spelling: Spelling) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of texts ``(num_data,)``, NaN where missing, and where a text is none and no mark."""
    place, distinct = pd.factorize(text)
    numbers = np.array([read_number(t, spelling.decimal) for t in distinct] + [np.nan])
    is_known = [t.strip().lower() in WORDS or t.strip() in spelling.marks for t in distinct]
    is_unread = np.isnan(numbers) & ~np.array([*is_known, True])
    return numbers[place], is_unread[place]


def spelling_of(text: pd.Series) -> Spelling | None:
    """How a column of texts ``(num_data,)`` spells numbers; None if it holds something else.

    At least 95 of 100 entries are numbers or one of few marks that come again, and half are
    numbers. A column with codes such as 007 is none of numbers.

    Example:
        >>> spelling_of(pd.Series(["1.5", "2", "?", "3"])), spelling_of(pd.Series(["a", "2"]))
        (Spelling(decimal='.', marks=(), dates=''), None)
    """
    counts = text.str.strip().value_counts()
    counts = counts[[t.lower() not in WORDS for t in counts.index]]
    if not len(counts) or any(map(CODE.fullmatch, counts.index)):
        return None
    is_read = {
        decimal: np.array([not np.isnan(read_number(t, decimal)) for t in counts.index])
        for decimal in ".,"
    }
    shares = {decimal: counts[good].sum() / counts.sum() for decimal, good in is_read.items()}
    # 1,234 reads in both ways, 0,123 in one; 1.234 beside 56 has more digits than decimals.
    has_point = [text for text in counts.index if "." in text]
    is_grouped = len(has_point) > FEWEST and all(map(GROUPED[","].fullmatch, has_point))
    is_comma = shares[","] > shares["."] or (is_grouped and len(has_point) < len(counts))
    decimal = "," if is_comma else "."
    good = is_read[decimal]
    marks = counts[~good & (counts > 1)].index[:MARKS]
    if good.sum() <= MEASURED and shares[decimal] < ENOUGH:
        marks = marks[:0]
    if shares[decimal] < 0.5 or shares[decimal] + counts[marks].sum() / counts.sum() < ENOUGH:
        return None
    return Spelling(decimal, tuple(marks))
