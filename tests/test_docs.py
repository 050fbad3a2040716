"""The documentation builds without a warning, its code runs, and it leaves nothing out."""

import contextlib
import html
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
    assert_the_reference_is_whole(tmp_path / "html")


def assert_the_reference_is_whole(site: Path) -> None:
    """Types, defaults and names as a reader of the pages finds them; math without a network."""
    pages = {path.stem: path.read_text() for path in site.glob("api/*.html")}
    signatures = re.findall(
        r'<dt class="sig sig-object py" id="pyro_vaeflow\.([\w.]+)">(.*?)</dt>',
        "".join(pages.values()),
        re.DOTALL,
    )
    texts = {name: html.unescape(re.sub("<[^>]+>", "", sig)) for name, sig in signatures}
    taking = {name: text for name, text in texts.items() if re.search(r"\(\s*\w", text)}
    untyped = [name for name, text in taking.items() if not re.search(r"\w: [\w(]", text)]
    assert len(taking) > 100 and len(untyped) < 5, untyped
    assert "num_samples: int = 100" in texts["score"] and "→ Scores" in texts["score"]
    assert "flow: str = 'diagonal'" in texts["VAEFlowDetector"]
    for name in ("FLOWS", "LIKELIHOODS", "Callback.after_step", "Study.expand", "plot_posteriors"):
        assert name in texts, name
    detector = re.sub("<[^>]+>", "", pages["detector"])
    assert all(f"{name}_" in detector for name in ("offset", "history", "encoder", "seed"))
    assert "<math" in pages["inference"] and "$" not in re.sub("<[^>]+>", "", pages["inference"])
    fetched = re.compile(r'<(?:script|img|iframe)[^>]+src="https?:|<link[^>]+href="https?:')
    assert not [path for path in site.rglob("*.html") if fetched.search(path.read_text())]
