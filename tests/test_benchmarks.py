"""The references compute what the package does and hold nothing of it; every item runs."""

import ast
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from benchmarks import memory, plain_torch, pyro_stock, score
from benchmarks.__main__ import items, main
from benchmarks.cases import cases, programs, rows, sizes
from benchmarks.growth import exponent, plot
from benchmarks.record import COLUMNS, Line, write
from benchmarks.steps import WAYS
from pyro_vaeflow import anneal
from pyro_vaeflow.inference.parameters import seeded
from results.streaming import costs


@pytest.mark.parametrize("reference", [plain_torch, pyro_stock], ids=lambda module: module.__name__)
def test_references_hold_no_code_of_the_package(reference: ModuleType) -> None:
    tree = ast.parse(Path(reference.__file__).read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    roots = {name.split(".")[0] for name in names}
    known = {"collections", "itertools", "torch", "pyro", "benchmarks"}
    assert roots <= (known if reference is pyro_stock else known - {"pyro", "benchmarks"})
    assert {name for name in names if name.startswith("bench")} <= {"benchmarks.plain_torch"}


@pytest.mark.parametrize("name", cases())
def test_references_have_the_loss_and_gradient_of_the_package(name: str) -> None:
    """Of the same parameters and noise, to the rounding of float64."""
    config, beta = cases()[name], 0.7
    with double_precision():
        model, guide = programs(config)
        options = sizes(config)
        if config.flow == "iaf":
            options["gate_bias"] = guide.flow[0].kwargs["sigmoid_bias"]
        network, vae = plain_torch.Network(**options), pyro_stock.VAE(**options)
        x = rows(50).double()
    parameters = [*guide.parameters(), *model.parameters()]
    copies = network.parameters(), vae.parameters()
    with torch.no_grad():
        for theirs, *mine in zip(parameters, *copies, strict=True):
            theirs.add_(0.05 * torch.randn_like(theirs))  # away from zeros and the identity
            for parameter in mine:
                parameter.copy_(theirs)

    def of_package() -> torch.Tensor:
        with anneal(beta):
            return Trace_ELBO().differentiable_loss(model, guide, x) / len(x)

    def of_stock() -> torch.Tensor:
        return Trace_ELBO().differentiable_loss(vae.model, vae.guide, x, beta) / len(x)

    expected = loss_and_gradient(of_package, guide, model)
    for value in (
        loss_and_gradient(lambda: network.loss(x, beta), network),
        loss_and_gradient(of_stock, vae),
    ):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)


def loss_and_gradient(
    loss: Callable[[], torch.Tensor], *modules: nn.Module
) -> tuple[torch.Tensor, ...]:
    with seeded(0), pyro.validation_enabled(False):
        value = loss()
    parameters = [p for module in modules for p in module.parameters()]
    return value.detach(), *torch.autograd.grad(value, parameters)


@contextmanager
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("way", WAYS)
def test_as_many_steps_are_timed_as_are_asked_for(way: str) -> None:
    config = cases()["planar 5"]
    before = time.process_time()
    seconds = WAYS[way](config, rows(2000), 3)
    assert len(seconds) == 3 and 0.0 < sum(seconds) < time.process_time() - before


@pytest.mark.parametrize("item", ["train_step", "score", "growth", "pyod"])
def test_the_small_budget_runs(item: str, tmp_path: Path) -> None:
    lines = list(items(quick=True, out=tmp_path)[item]())
    figures = [value for line in lines for value in (line.ours, line.reference)]
    assert lines and all(value is None or math.isfinite(value) for value in figures)
    if item == "score":
        by_products, at_rate = lines[:2]
        assert by_products.ours == at_rate.ours
        assert 0.2 < by_products.reference / at_rate.reference < 5.0


def test_memory_is_that_above_rows_and_scores() -> None:
    assert 0.0 < memory.peak(num_rows=20, num_samples=2) < 20_000.0  # MiB


@pytest.mark.parametrize(("name", "layers"), [("diagonal", 0), ("planar 5", 0), ("iaf 5", 5)])
def test_products_are_those_of_a_draw(name: str, layers: int) -> None:
    shapes = score.products(cases()[name])
    model, _ = programs(cases()[name])
    decoder = [tuple(p.shape) for p in model.parameters() if p.dim() == 2]
    assert shapes == decoder + [(24, 12), (24, 24)] * layers
    assert score.flop(shapes) == 2 * score.DRAWS_AT_ONCE * sum(m * n for m, n in shapes)


def test_machines_follow_from_the_costs_of_rows() -> None:
    folder = Path(costs.__file__).parent
    made = costs.capacity(pd.read_csv(folder / "costs.csv"))
    pd.testing.assert_frame_equal(made, pd.read_csv(folder / "capacity.csv"))


def test_growth_is_fitted_and_drawn() -> None:
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    group = pd.DataFrame({"size": [1, 2, 4], "ms": [3.0, 12.0, 48.0]})
    left, right = plot({"width": group, "draws": group}).axes
    assert left.get_legend().texts[0].get_text() == "width: exponent 2.00"
    assert right.get_legend().texts[0].get_text() == "draws: exponent 2.00"


def test_an_item_that_is_measured_again_takes_the_place_of_the_old(tmp_path: Path) -> None:
    b, a = Line("b", "x", 1.0, 2.0, "s", threads=1), Line("a", "x", 1.0, None, "s", threads=1)
    write([b, a, replace(b, threads=2)], tmp_path)
    path = write([replace(b, case="y", ours=3.0)], tmp_path)
    frame = pd.read_csv(path)
    assert list(frame) == COLUMNS and frame["item"].tolist() == ["a", "b", "b"]
    assert frame["ratio"].iloc[1:].tolist() == [1.5, 0.5]
    assert frame["case"].tolist() == ["x", "y", "x"]
    assert json.loads((tmp_path / "machine.json").read_text())["versions"]["torch"]


def test_an_unknown_item_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "--items", "nonsense"])
    with pytest.raises(SystemExit):
        main()
    assert "got ['nonsense']" in capsys.readouterr().err
