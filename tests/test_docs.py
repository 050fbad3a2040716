"""The documentation builds without a warning, its code runs, and it leaves nothing out."""

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
