"""The benchmarks measure the same arithmetic on all sides, and every item runs."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from pyro_vaeflow.programs.dropout import Dropout
from torch import nn

from benchmarks import score
from benchmarks.__main__ import items, main
from benchmarks.cases import NUM_FEATURES, cases, programs, rows
from benchmarks.growth import exponent, plot
from benchmarks.handwritten import FUSED, LAYERWISE, Network
from benchmarks.record import COLUMNS, Line, write
from benchmarks.score import AT_ONCE, Products
from benchmarks.steps import Steps


@pytest.mark.parametrize("name", cases())
def test_hand_written_steps_have_the_losses_of_train(name: str) -> None:
    steps = Steps(cases()[name], rows(5000), num_steps=4)
    ours, fused, layerwise = (way()[0] for way in (steps.ours, steps.fused, steps.layerwise))
    assert len(ours) == 4 and len(set(ours)) == 4
    assert fused == pytest.approx(ours, abs=1e-4)
    assert layerwise == pytest.approx(ours, abs=1e-4)


def test_each_way_is_what_its_name_says(monkeypatch) -> None:
    steps = Steps(cases()["diagonal"], rows(2000), num_steps=1)
    recorded = []
    monkeypatch.setattr("pyro_vaeflow.inference.training.ReplayedStep", recorded.append)
    steps.ours(replay=False)
    assert not recorded
    model_and_guide = programs(steps.config)
    for ways, kind in ((FUSED, Dropout), (LAYERWISE, nn.Dropout)):
        network = Network(*model_and_guide, ways)
        assert {type(m) for m in network.modules() if isinstance(m, nn.Dropout)} == {kind}


def test_the_small_budget_runs(tmp_path: Path) -> None:
    lines = list(items(quick=True, out=tmp_path)["gemm"]())
    assert lines and all(line.ours > 0.0 for line in lines)


def test_products_are_those_of_a_draw() -> None:
    decoder = [(64, 12), (128, 64), (NUM_FEATURES, 128)]
    of_layers = [(24, 12), (24, 24)] * 5
    for name, layers in {"diagonal": [], "planar 5": [], "IAF 5": of_layers}.items():
        products = Products.of(*programs(cases()[name]))
        assert [tuple(weight.shape) for weight in products.weights] == decoder + layers
        assert products.flop == 2 * AT_ONCE * sum(m * n for m, n in decoder + layers)
    by_products, at_rate = list(score.measure(num_rows=20, num_rounds=1))[:2]
    assert by_products.ours == at_rate.ours
    assert 0.2 < by_products.reference / at_rate.reference < 5.0


def test_growth_is_fitted_and_drawn(tmp_path: Path) -> None:
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
