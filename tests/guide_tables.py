"""The tables of docs/guide/input.md, as the tests read them: what happens is said there alone."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs/guide/input.md"
HOLE = "…"  # stands for a name or value


def rows(heading: str) -> dict[str, list[str]]:
    """Case -> what happens, a cell a call, of the table under a heading."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.strip(" |").split(" | ") for line in section.splitlines() if line[:3] == "| `"]
    assert len({row[0] for row in cells}) == len(cells), "a case has two rows"
    return {row[0].strip("`"): row[2:] for row in cells}


def check(cell: str, call: Callable[[], Any]) -> Any:
    """Calls, and compares with the cell: the result if it is accepted, None if it is refused."""
    word, said = re.match(r"accepted|refused", cell), re.search(r": `(.+)`$", cell)
    assert word is not None, cell
    parts = [re.escape(part) for part in said[1].split(HOLE)] if said else []
    message = r"[\s\S]*".join(parts)
    with ExitStack() as expected:
        if word[0] == "refused":
            assert message, cell
            kinds = (ValueError, TypeError, OSError, ArithmeticError)
            caught = expected.enter_context(pytest.raises(kinds, match=message))
        elif "; warns: " in cell:
            expected.enter_context(pytest.warns(UserWarning, match=message))
        result = call()
    return None if word[0] == "refused" and caught else result
