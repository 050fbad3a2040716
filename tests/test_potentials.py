"""The energy potentials: their normalisers, and the bound that a posterior keeps under them."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vaeflow import score, train
from results.potentials import make, runs
from results.potentials.densities import plot_densities
from results.potentials.energies import POTENTIALS, log_normalizer
from results.potentials.programs import FlowGuide, PotentialModel
from results.potentials.runs import EDGES, PotentialRun, fit_potential

ROWS = torch.arange(200.0).unsqueeze(-1)


def test_the_normaliser_of_a_normal_density() -> None:
    precision = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    energy = lambda z: 0.5 * ((z @ precision) * z).sum(-1)  # noqa: E731
    exact = math.log(2 * math.pi) - 0.5 * precision.logdet().item()
    assert log_normalizer(energy) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("name", POTENTIALS)
def test_the_quadrature_has_converged(name: str) -> None:
    energy = POTENTIALS[name]
    fine, coarse = log_normalizer(energy), log_normalizer(energy, points=1001)
    assert fine == pytest.approx(coarse, abs=1e-6)
    assert log_normalizer(energy, half_width=7.0) == pytest.approx(fine, abs=1e-6)


@pytest.mark.parametrize("name", POTENTIALS)
def test_importance_sampling_finds_the_normaliser_and_the_elbo_stays_below(name: str) -> None:
    model, guide = PotentialModel(POTENTIALS[name]), FlowGuide("diagonal", 0)
    with torch.no_grad():
        guide.log_scale.fill_(math.log(2.5))  # wide enough to cover both modes
    scores = score(model, guide, ROWS, num_samples=1000)
    evidence = scores.log_evidence.logsumexp(0).item() - math.log(len(ROWS))
    exact = log_normalizer(POTENTIALS[name])
    assert evidence == pytest.approx(exact, abs=0.02)
    assert scores.elbo.mean().item() < exact


@pytest.mark.filterwarnings("ignore::pyro_vaeflow.KhatWarning")
@pytest.mark.parametrize(("flow", "num_flows"), [("planar", 8), ("iaf", 4), ("spline", 1)])
def test_a_flow_fits_the_ring_better_than_a_normal(flow: str, num_flows: int) -> None:
    def fitted(name: str, depth: int) -> float:
        torch.manual_seed(0)
        pair = PotentialModel(POTENTIALS["U1"]), FlowGuide(name, depth)
        options = {"num_steps": 150, "batch_size": 128, "learning_rate": 0.02, "progress": False}
        train(*pair, torch.zeros(128, 1), **options)
        return score(*pair, ROWS, num_samples=100).elbo.mean().item()

    assert fitted(flow, num_flows) > fitted("diagonal", 0) + 0.1


SMALL = PotentialRun("U1", "planar", 2, seed=0, num_steps=2, batch_size=8, num_samples=3000)


@pytest.mark.parametrize("name", asdict(SMALL))
def test_each_changed_setting_is_another_run(name: str) -> None:
    other = {"potential": "U2", "flow": "iaf", "flow_options": {"a": 1}}.get(name, 7)
    assert replace(SMALL, **{name: other}).name != SMALL.name


def test_a_density_counts_the_draws_that_fall_outside(monkeypatch) -> None:
    whole = fit_potential(SMALL)
    assert np.sum(whole["density"]) * (EDGES[1] - EDGES[0]) ** 2 == pytest.approx(1.0, abs=0.01)
    monkeypatch.setattr(runs, "EDGES", EDGES[45:])  # from 0 upward
    part = fit_potential(SMALL)
    np.testing.assert_allclose(part["density"], np.array(whole["density"])[45:, 45:])


def test_a_fit_finds_both_modes_and_says_how_far_it_is() -> None:
    run = PotentialRun("U1", "planar", 8, 0, 400, 64, num_samples=20_000)
    before, after = fit_potential(replace(run, num_steps=1)), fit_potential(run)
    left, right = np.split(np.array(after["density"]), 2)
    assert 0.2 < left.sum() / (left.sum() + right.sum()) < 0.8
    assert 5 * after["stderr"] < after["kl"] < before["kl"] - 1.0


def test_one_seed_has_no_deviation_and_the_page_says_how_it_was_made(tmp_path: Path) -> None:
    fits = [
        replace(SMALL, potential=u, learning_rate=0.02, flow_options={"deep": 1})
        for u in POTENTIALS
    ]
    rows = [{"potential": run.potential, "flow": "planar", "num_flows": 2} for run in fits]
    table = pd.DataFrame(rows).assign(seed=0, kl=0.25, stderr=0.01)
    make.write_table(tmp_path, table, fits)
    text = (tmp_path / "table.md").read_text().replace("\n", " ")
    assert "| planar 2  | 0.2500 (0.2500) |" in text
    assert "seeds [0], Adam" in text and "3,000 draws" in text
    assert "- planar: 2 steps of 8 draws, learning rate 0.02, deep 1" in text
    make.write_table(tmp_path, pd.concat([table, table.assign(seed=1, kl=0.35)]), fits)
    assert "0.3000 ± 0.0707 (0.3500)" in (tmp_path / "table.md").read_text()


def test_densities_have_one_scale_and_fit_their_edges() -> None:
    flat = np.full((2, 2), 0.25)
    figure = plot_densities({"U1": {"p": flat, "q": flat}}, np.linspace(-1, 1, 3))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["p", "q"]
    with pytest.raises(ValueError, match=r"each density must have shape \(3, 3\)"):
        plot_densities({"U1": {"p": flat}}, np.linspace(-1, 1, 4))


@pytest.mark.slow
def test_the_study_goes_on_from_its_finished_runs(tmp_path: Path) -> None:
    make.main(["--quick", str(tmp_path)])
    paths = sorted((tmp_path / "runs").glob("*.json"))
    assert len(paths) == 24 and (tmp_path / "densities.png").stat().st_size > 0
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 25
    result = json.loads(paths[0].read_text())
    paths[0].write_text(json.dumps(result | {"kl": 123.0}))
    make.main(["--quick", str(tmp_path)])
    assert "123" in (tmp_path / "summary.csv").read_text()  # not run again
