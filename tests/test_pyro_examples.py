"""Pyro's examples, trained, scored and diagnosed; the page's table says what holds for each."""

import os
import re
from pathlib import Path

import pyro
import pytest
import torch

from pyro_vaeflow import active_units, inference_gap, score, train
from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.traces import take_rows
from tests.pyro_examples import EXAMPLES, WITHOUT_ROWS

PAGE = Path(__file__).parents[1] / "docs/guide/programs.md"
WAYS = {"left": "on the left", "rows": "as rows", "runs": "one after another"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:two pairs have pyro.param"),
    pytest.mark.filterwarnings("ignore:site .* draws from torch's stream"),
]


def attempt(work) -> str:
    """Empty, or the first clause of the error."""
    try:
        work()
    except ValueError as error:
        return re.split(r"; |: if |: such | \(The ", str(error))[0]
    return ""


def verdict(name: str) -> list[str]:
    """What the page says of a program: trained, scored, diagnosed; the way of its draws, or why."""
    model, guide, args = EXAMPLES[name]()
    small, few = {"num_samples": 6}, take_rows(args, slice(0, 2))

    def finite() -> None:
        evidence = score(model, guide, args, **small).log_evidence
        assert evidence.shape == (30,) and evidence.isfinite().all()

    def diagnose() -> None:
        active_units(model, guide, args, **small)
        inference_gap(model, guide, few, num_steps=1, **small)

    verbs = lambda: train(model, guide, args, num_steps=2, progress=False), finite, diagnose
    said = [attempt(verb) for verb in verbs]
    cells = ["no" if reason else "yes" for reason in said]
    reasons = [reason for reason in said if reason]
    return [*cells, reasons[0] if reasons else WAYS[check_contract(model, guide, args).model]]


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
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    cells = {line[0].strip("`"): line[1:] for line in lines}
    assert cells.keys() >= EXAMPLES.keys() and len(EXAMPLES) >= 40
    good = [name for name in EXAMPLES if cells[name][:2] == ["yes", "yes"]]
    assert len(good) >= 0.8 * len(EXAMPLES.keys() - WITHOUT_ROWS)
