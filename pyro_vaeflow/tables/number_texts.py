"""Numbers as people write them: texts with units, marks for gaps, groups of digits, commas."""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

# What stands for no number, in any case; files hold more of it than of any real category.
NONE = "? - -- . .. * # / nan na n/a n.a. #n/a #na null none nil missing unknown -nan 1.#ind"
WORDS = frozenset(["", *NONE.split()])
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity))")
COMMA_NUMBER = re.compile(r"[+-]?(\d+,?\d*|,\d+)([eE][+-]?\d+)?")
AROUND = re.compile(r"^[<>≤≥~]?=?\s*[$€£¥]?\s*|\s*[%$€£¥*+†‡]$")  # of bounds, amounts, shares
UNIT = re.compile(r"^[A-Z]{3}(?=\s*[-\d.(])|(?<=[\d.])\s*(?:[^\W\d_]|[°µΩ])[\w°/²³]*$")
MULTIPLES = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}
SIGNS = str.maketrans("−–’", "--'")  # of typesetters
MINUS = re.compile(r"\((.+)\)|-\s*([$€£¥].+)|(\d.*)-")  # an accountant's, and where it stands
GROUPED = {
    ".": re.compile(r"[+-]?[1-9]\d{0,2}(([, '\u00a0\u202f]\d{3})+|(,\d\d)+,\d{3})(\.\d*)?"),
    ",": re.compile(r"[+-]?[1-9]\d{0,2}([. '\u00a0\u202f]\d{3})+(,\d*)?"),
}
CODE = re.compile(r"0\d+")  # 007 is a name, not a number
ENOUGH = 0.95  # of a column's texts are numbers, or dates: the others are errors
FEWEST = 2  # texts, to see groups of digits ...
LARGER = 3.0  # times the median with a point, if points are decimals: the texts without have groups
MARKS = 5  # texts that stand beside numbers again and again
MEASURED = 20  # distinct numbers, or a text beside them is as good a level as they are


class Spelling(NamedTuple):
    """How a column writes numbers or dates: the sign, texts that stand for none, format, unit.

    A column that is one of numbers by its type has no sign.
    """

    decimal: str = ""
    marks: tuple[str, ...] = ()
    dates: str = ""
    unit: str = ""


def read_number(text: str, decimal: str = ".") -> float:
    """The number that a text spells; NaN if it spells none. A bound such as ``<0.9`` is 0.9.

    Example:
        >>> [read_number(t) for t in ("1,234.5", "<0.9", "12 %", "(3)", "2k", "many")]
        [1234.5, 0.9, 12.0, -3.0, 2000.0, nan]
        >>> read_number("1.234,5", decimal=",")
        1234.5
    """
    text, decimal = AROUND.sub("", text.strip().translate(SIGNS)), decimal or "."
    if (multiple := MULTIPLES.get(text[-1:])) and text[-2:-1].isdigit():
        return multiple * read_number(text[:-1], decimal)
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
    bare = (_bare(t, spelling.unit) for t in distinct)
    numbers = np.array([*(read_number(t, spelling.decimal) for t in bare), np.nan])
    is_known = [t.strip().lower() in WORDS or t.strip() in spelling.marks for t in distinct]
    is_unread = np.isnan(numbers) & ~np.array([*is_known, True])
    return numbers[place], is_unread[place]


def spelling_of(text: pd.Series) -> Spelling | None:
    """How a column of texts ``(num_data,)`` spells numbers; None if it holds something else.

    At least 95 of 100 entries are numbers or one of few marks that come again, and half are
    numbers, all of one unit if some have one. A column with codes such as 007 is none of numbers.

    Example:
        >>> spelling_of(pd.Series(["1.5", "2", "?", "3"])), spelling_of(pd.Series(["a", "2"]))
        (Spelling(decimal='.', marks=(), dates='', unit=''), None)
        >>> spelling_of(pd.Series(["1.5 kg", "2 kg"])).unit
        'kg'
    """
    counts = text.str.strip().value_counts()
    counts = counts[[t.lower() not in WORDS for t in counts.index]]
    unit = _unit_of(counts)
    bare = [_bare(t, unit) for t in counts.index]
    if not len(counts) or any(map(CODE.fullmatch, bare)):
        return None
    is_read = {d: np.array([not np.isnan(read_number(t, d)) for t in bare]) for d in ".,"}
    shares = {decimal: counts[good].sum() / counts.sum() for decimal, good in is_read.items()}
    # 1,234 reads in both ways, 0,123 in one.
    decimal = "," if shares[","] > shares["."] or _has_points_of_groups(bare) else "."
    good = is_read[decimal]
    marks = counts[~good & (counts > 1)].index[:MARKS]
    if good.sum() <= MEASURED and shares[decimal] < ENOUGH:
        marks = marks[:0]
    if shares[decimal] < 0.5 or shares[decimal] + counts[marks].sum() / counts.sum() < ENOUGH:
        return None
    return Spelling(decimal, tuple(marks), unit=unit)


def _has_points_of_groups(texts: list[str]) -> bool:
    """Whether 1.234 is a thousand: beside 1.234.567, or 870, far larger than all with a point."""
    has_point = [text for text in texts if "." in text]
    others = [number for t in texts if "." not in t and not np.isnan(number := read_number(t))]
    if len(has_point) <= FEWEST or not all(map(GROUPED[","].fullmatch, has_point)):
        return False
    if any(text.count(".") > 1 for text in has_point):
        return True
    return bool(others) and np.median(others) > LARGER * np.median([*map(read_number, has_point)])


def _unit_of(counts: pd.Series) -> str:
    """What stands beside the numbers of most texts, kg say; none where there is more than one."""
    found = {text: match[0].strip() for text in counts.index if (match := UNIT.search(text))}
    units = {text: unit for text, unit in found.items() if unit not in MULTIPLES}
    is_unit = len(set(units.values())) == 1 and counts[[*units]].sum() > 0.5 * counts.sum()
    return next(iter(units.values())) if is_unit else ""


def _bare(text: str, unit: str) -> str:
    return text.strip().removeprefix(unit).removesuffix(unit).strip()
