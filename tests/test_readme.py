"""README's code runs as it stands, and its commands exist."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore::pyro_vaeflow.inference.scoring.KhatWarning")
def test_the_python_blocks_run_one_after_another(capsys: pytest.CaptureFixture) -> None:
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL):
        exec(compile(block, str(README), "exec"), names)
    assert "log_evidence" in capsys.readouterr().out
    assert names["why"].shape == names["x"].shape


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
