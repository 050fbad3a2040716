"""The documentation builds without a warning, its code runs, and it leaves nothing out."""

import ast
import contextlib
import io
import re
import sys
from pathlib import Path

import pytest

import pyro_vaeflow

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.glob("**/*.md") if "_build" not in path.parts)
HOLE = "…"  # stands in a message for what is put in when it is raised


def messages(path: Path) -> set[tuple[str, str]]:
    """Kind and text of each error or warning that a module makes, `HOLE` for what is computed."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name == "warnings.warn":
            kind = ast.unparse(node.args[1]) if len(node.args) > 1 else "UserWarning"
            found.add((kind, template(node.args[0])))
        elif re.fullmatch(r"[A-Z]\w*(Error|Warning)", name) and node.args:
            found.add((name, template(node.args[0])))
    return found


def template(node: ast.expr) -> str:
    """The text of a string expression: constants as they are, anything else a `HOLE`."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(template, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left) + template(right)
    return HOLE


def listed() -> set[tuple[str, str]]:
    """Kind and beginning of each row of the page of errors."""
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", (DOCS / "guide/errors.md").read_text(), re.M)
    return set(rows)


def raised() -> set[tuple[str, str]]:
    package = Path(pyro_vaeflow.__file__).parent
    return set().union(*map(messages, package.rglob("*.py")))


def fits(message: tuple[str, str], row: tuple[str, str]) -> bool:
    return message[0] == row[0] and message[1].startswith(row[1])


def test_every_error_has_a_row() -> None:
    rows = listed()
    missing = [m for m in raised() if not any(fits(m, row) for row in rows)]
    assert missing == [], "add a row to docs/guide/errors.md"


def test_every_row_is_an_error_that_can_be_raised() -> None:
    made = raised()
    stale = [row for row in listed() if not any(fits(m, row) for m in made)]
    assert stale == [], "no such message in the sources: mend or remove the row"


def test_messages_are_read_from_sources(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        'raise ValueError(f"a must be {low}, " "got " + text)\n'
        "raise TypeError(message) from error\n"
        'def bad(): return KeyError("no b")\n'
        'warnings.warn("odd", KhatWarning, stacklevel=2)\n'
        "raise NotImplementedError\n"
    )
    assert messages(source) == {
        ("ValueError", "a must be …, got …"),
        ("TypeError", "…"),
        ("KeyError", "no b"),
        ("KhatWarning", "odd"),
    }


@pytest.mark.filterwarnings("ignore::pyro_vaeflow.inference.scoring.KhatWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_python_blocks_run_one_after_another(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.M)
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks:
            exec(compile(block, str(page), "exec"), names)


def test_the_guide_has_code() -> None:
    pages = ["index.md", "guide/programs.md", "guide/saving.md", "guide/scores.md"]
    assert all("```python" in (DOCS / page).read_text() for page in pages)


def test_every_public_name_is_in_the_reference() -> None:
    reference = "".join(path.read_text() for path in DOCS.glob("api/*.md"))
    documented = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)", reference, re.M))
    modules = {name.removeprefix("pyro_vaeflow.") for name in documented}
    missing = [
        name
        for name, home in pyro_vaeflow._HOME.items()
        if name not in documented and home not in modules
    ]
    assert missing == [], "add them to a page of docs/api"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sphinx.deprecation.RemovedInSphinx11Warning")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    from sphinx.cmd.build import main

    before = list(sys.path)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main(
            [
                "-W",
                "--keep-going",
                "-q",
                "-d",
                str(tmp_path / "tree"),
                str(DOCS),
                str(tmp_path / "html"),
            ]
        )
    sys.path[:] = before
    assert code == 0, errors.getvalue()
    pages = {path.stem for path in (tmp_path / "html" / "notebooks").glob("*.html")}
    assert pages == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} != set()
