"""Pyro's examples, trained, scored and diagnosed; the page's table says what holds for each."""

import os
import re
from pathlib import Path

import pyro
import pytest
import torch

from pyro_vaeflow import active_units, score, train
from pyro_vaeflow.inference.contract import check_contract
from tests.pyro_examples import EXAMPLES, WITHOUT_ROWS

PAGE = Path(__file__).parents[1] / "docs/guide/programs.md"
WAYS = {"left": "on the left", "rows": "as rows", "runs": "one after another"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:two pairs have pyro.param"),
    pytest.mark.filterwarnings("ignore:site .* draws from torch's stream"),
]


def attempt(work) -> str:
    try:
        work()
    except ValueError as error:
        return re.split(r"[;:(]", str(error), maxsplit=1)[0].strip()
    return "yes"


def verdict(name: str) -> list[str]:
    """What the page says of a program: trained, scored, diagnosed, the way of its draws."""
    model, guide, args = EXAMPLES[name]()
    small = {"num_samples": 6}

    def finite() -> None:
        evidence = score(model, guide, args, **small).log_evidence
        assert evidence.shape == (30,) and evidence.isfinite().all()

    trained = attempt(lambda: train(model, guide, args, num_steps=2, progress=False))
    scored = attempt(finite)
    diagnosed = attempt(lambda: active_units(model, guide, args, **small))
    if scored != "yes":
        return [trained if trained == "yes" else "no", scored, "", ""]
    way = check_contract(model, guide, args)
    return [trained, scored, diagnosed, WAYS[way.model]]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_trained_and_scored_or_refused_by_name(name: str) -> None:
    torch.manual_seed(0)
    cells = [f"`{name}`" if "." in name else name, *verdict(name)]
    line = "| " + " | ".join(cells) + " |"
    if os.environ.get("WRITE_TABLE"):
        with open(os.environ["WRITE_TABLE"], "a") as table:
            table.write(line + "\n")
    else:
        assert line in PAGE.read_text().splitlines(), line
    pyro.clear_param_store()


def test_four_fifths_of_those_with_rows_are_trained_and_scored() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = {cells[1].strip("` "): cells for cells in (line.split(" | ") for line in lines)}
    found = [cells for line in lines for cells in [line.strip("| ").split(" | ")]]
    names = {cells[0].strip("`"): cells for cells in found}
    assert rows and names.keys() >= EXAMPLES.keys() and len(EXAMPLES) >= 40
    good = [n for n in EXAMPLES if names[n][1:3] == ["yes", "yes"]]
    assert len(good) >= 0.8 * len(EXAMPLES.keys() - WITHOUT_ROWS)
