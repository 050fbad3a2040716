"""The header of a csv file: its columns' names, and how the lines below it are to be read."""

import bz2
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from pyro_vaeflow.validation import ConfigError

UTF_8, LEGACY = "utf-8", "cp1252"  # the latter of older Windows, and nearly Latin-1
OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SEPARATORS = ",;\t|"
SNIFFED, SAMPLE = 2**16, 50  # bytes and lines of a file that are looked at
MAX_LINE = 2**24  # bytes of one: a small gzip file may hold one that no memory does
FEWEST, MOST = 3, 0.8  # lines that agree, or it may be chance
BEFORE = re.compile(rb"(\xef\xbb\xbf)?(sep=.\r?\n)?")


class Header(NamedTuple):
    """The columns' names in a csv file, what stands between fields, and how texts are encoded.

    Its `size` is in bytes, with what is before it: a mark of UTF-8, a spreadsheet's ``sep=;``.
    """

    names: list[str]
    separator: str
    encoding: str
    size: int


@contextmanager
def reading(path: Path | str, kind: str) -> Iterator[None]:
    """Errors of a damaged file as one that names it; those of the disk as they are."""
    try:
        yield
    except (pa.ArrowException, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ConfigError(f"{path} is no {kind} file that can be read: {error}") from error


@contextmanager
def opened(path: Path | str) -> Iterator[BinaryIO]:
    """A file, unpacked by the end of its name."""
    end = Path(path).suffix.lower()
    with reading(path, end[1:].replace("gz", "gzip")), OPENERS.get(end, open)(path, "rb") as file:
        yield file


def lines_of(file: BinaryIO, path: Path | str) -> Iterator[bytes]:
    """The lines from here on; a ConfigError at one that no row has."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise ConfigError(f"{path} has a line of more than {MAX_LINE} bytes: is it a table?")
        yield line


def read_header(path: Path | str) -> Header:
    """The header; a ConfigError if there is none, or it is not that of the lines below."""
    try:
        with opened(path) as file:
            start = file.read(SNIFFED)
            start += next(lines_of(file, path), b"")  # what is left of the last line
        encoding = _encoding(start)
        before = BEFORE.match(start)[0]  # type: ignore[index]  # it matches nothing, too
        lines = io.BytesIO(start[len(before) :]).readlines()
        texts = [line.decode(encoding) for line in lines[:1]]
        texts += [line.decode(encoding, errors="replace") for line in lines[1 : 1 + SAMPLE]]
        names, separator = _names(texts)
    except (csv.Error, OSError, UnicodeError) as error:
        raise ConfigError(f"{path} has no header line: {error}") from error
    if not names:
        raise ConfigError(f"{path} has no header line: the first one is blank")
    return Header(names, separator, encoding, len(before) + len(lines[0]))


def _encoding(start: bytes) -> str:
    """UTF-8, unless what is beyond ASCII is none without exception."""
    if b"\0" in start:
        raise UnicodeError("it is no text in UTF-8; write it so")
    text = start.decode(errors="surrogateescape")
    is_strange = ["\udc80" <= sign <= "\udcff" for sign in text if not sign.isascii()]
    return LEGACY if len(is_strange) > 1 and all(is_strange) else UTF_8  # one may be damage


def _names(lines: Sequence[str]) -> tuple[list[str], str]:
    """The names and the separator by which most lines below have as many fields."""
    best: tuple[float, list[str], str] = (-1.0, [], ",")
    for separator in SEPARATORS:
        widths = [_width(line, separator) for line in lines[1:] if line.strip()]
        try:
            names = next(csv.reader(lines[:1], delimiter=separator, strict=True), [])
        except csv.Error:
            if separator == SEPARATORS[-1] and not best[1]:
                raise
            continue
        share = widths.count(len(names)) / len(widths) if widths else 1.0
        if len(names) == 1:  # of which any line is one, if nothing separates its fields
            share, usual = 0.0, max(set(widths), key=widths.count, default=1)
            if usual > 1 and widths.count(usual) >= max(FEWEST, MOST * len(widths)):
                raise csv.Error(
                    f"the first one is {lines[0].strip()!r:.60}, and others have {usual} fields"
                )
        if (share, len(names)) > (best[0], len(best[1])):
            best = (share, names, separator)
    return best[1], best[2]


def _width(line: str, separator: str) -> int:
    """The fields of a line; 0 if it is none by itself."""
    try:
        return len(next(csv.reader([line], delimiter=separator)))
    except csv.Error:
        return 0
