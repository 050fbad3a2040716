"""README's code runs as it stands, and its commands exist."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore::pyro_vaeflow.inference.scoring.KhatWarning")
def test_the_python_blocks_run_one_after_another(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with a table and a pair of one's own, of the names that they have there."""
    rows = np.random.default_rng(0).normal(size=(200, 3))
    rows[180:] += 3.0
    orders = pd.DataFrame(rows, columns=["size", "price", "weight"])
    orders.assign(fraud=np.arange(200) >= 180).to_csv(tmp_path / "orders.csv", index=False)
    shutil.copy(README.parent / "docs/examples/my_pair.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL):
        exec(compile(block, str(README), "exec"), names)
    assert "log_evidence" in capsys.readouterr().out
    assert names["why"].shape == names["x"].shape
    assert len(names["table"]) == 2 * 3 * 2 and names["table"]["auroc"].mean() > 0.9


def test_it_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_the_targets_and_presets_that_it_names_exist() -> None:
    from pyro_vaeflow.experiments.study import preset_names

    text = README.read_text()
    makefile = (README.parent / "Makefile").read_text()
    targets = re.findall(r"\bmake ([a-z0-9-]+)", text)
    assert targets and all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    presets = re.findall(r"vaeflow run ([a-z0-9-]+)(?![\w.-])", text)
    assert presets and set(presets) <= set(preset_names())


def test_the_figures_and_files_that_it_links_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    local = [link for link in links if "://" not in link]
    assert all((README.parent / link).exists() for link in local), local
