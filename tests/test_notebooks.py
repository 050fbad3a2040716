"""The notebooks run on a small budget, and what is committed of them is what they say."""

import runpy
from pathlib import Path

import jupytext
import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.py"))
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_notebooks() -> None:
    assert len(SCRIPTS) >= 4


@each_script
@pytest.mark.filterwarnings("ignore")
def test_it_runs_on_a_small_budget(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEFLOW_QUICK", "1")
    monkeypatch.chdir(NOTEBOOKS)
    runpy.run_path(str(script))


@each_script
def test_one_line_sets_its_budget(script: Path) -> None:
    lines = [line for line in script.read_text().splitlines() if "environ" in line]
    assert len(lines) == 1 and 'os.environ.get("VAEFLOW_QUICK")' in lines[0]


@each_script
def test_the_pair_is_in_step(script: Path) -> None:
    committed = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(committed)
    assert cells(committed) == cells(jupytext.read(script)), "make notebooks"


@each_script
def test_the_committed_outputs_are_of_one_whole_run(script: Path) -> None:
    committed = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    # Neither an exception nor a warning, which would show the path of the machine that ran it.
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []
    assert script.with_suffix(".ipynb").stat().st_size < 300_000
