"""The tables of gaps and of draws, from finished runs of small budgets."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow import Guide, Model, log_weights, score
from pyro_vaeflow.datasets.registry import ring_log_density
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.experiments.measured_gaps import held_out_rows
from pyro_vaeflow.experiments.report import write_tables
from pyro_vaeflow.experiments.results import FinishedRun, finished_runs
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.tables import settings_apart
from pyro_vaeflow.experiments.tasks import load_task
from pyro_vaeflow.inference.importance import log_evidence, log_evidence_stderr
from pyro_vaeflow.studies import draw_study, gap_study
from pyro_vaeflow.studies.draw_study import fixed_as_good
from pyro_vaeflow.studies.gap_study import GapSettings, file_name
from pyro_vaeflow.studies.prior_gap import prior_gap
from pyro_vaeflow.validation import ConfigError

RING = {
    "dataset": "ring", "preprocessing": "none", "likelihood": "normal", "latent_dim": 2,
    "encoder_dims": (16,), "decoder_dims": (16,), "dropout": 0.0, "num_steps": 20,
    "num_samples": 5,
}  # fmt: skip
SETTINGS = GapSettings(rows=12, num_steps=3, draws_per_step=4, num_samples=50)


def rows_of(run: FinishedRun, count: int) -> torch.Tensor:
    return held_out_rows(run.config, load_task(run.config), count)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ring")
    flows = [{"flow": "diagonal"}, {"flow": "planar", "num_flows": 2}]
    configs = [ExperimentConfig(**RING, **flow, seed=seed) for flow in flows for seed in (0, 1)]
    run_all(configs, folder, progress=False)
    write_tables(folder)
    return folder


def test_gaps_add_up_to_what_the_truth_has_over_the_bound(out: Path) -> None:
    table = gap_study.study(out, SETTINGS, progress=False)
    assert list(zip(table["flow"], table["seed"], strict=True)) == [
        ("diagonal", 0), ("diagonal", 1), ("planar", 0), ("planar", 1),
    ]  # fmt: skip
    gaps = ["decoder_gap", "prior_gap", "approximation_gap", "amortization_gap"]
    parts = table[[*gaps, "elbo"]].sum(axis=1)
    np.testing.assert_allclose(parts, table["true_log_density"], rtol=1e-4)
    x = rows_of(finished_runs(out)[0], 12)
    np.testing.assert_allclose(table["true_log_density"], ring_log_density(x).mean())
    read = pd.read_csv(out / "gaps.csv")
    np.testing.assert_allclose(read["approximation_gap"], table["approximation_gap"], rtol=1e-4)
    summary = pd.read_csv(out / "summary.csv")
    of_run = summary[(summary["flow"] == "planar") & (summary["seed"] == 1)]
    assert list(of_run["score"]) == ["reconstruction", "importance"]
    for name in ("true_log_density", "approximation_gap", "amortization_gap"):
        np.testing.assert_allclose(of_run[name], table[name][3], rtol=1e-4)
    assert settings_apart(summary) == []
    text = (out / "gaps.md").read_text()
    assert "| planar 2  | 2     |" in text and "3 steps of 4 draws" in text


def test_rows_are_distinct_test_inliers_and_the_same_for_each_posterior(out: Path) -> None:
    runs = finished_runs(out)
    x = rows_of(runs[0], 12)
    task = load_task(runs[0].config)
    inliers = task.x_test[torch.as_tensor(task.is_anomaly == 0)]
    assert len(x.unique(dim=0)) == len(x) == 12
    assert all((inliers == row).all(1).any() for row in x)
    assert torch.equal(x, rows_of(runs[-1], 12))
    assert len(rows_of(runs[0], 10**6)) == len(inliers.unique(dim=0))


def test_a_measured_run_is_not_measured_again_and_other_settings_are(out: Path) -> None:
    gap_study.study(out, SETTINGS, seeds=[0], progress=False)
    kept = finished_runs(out)[0].folder / file_name(SETTINGS)
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"elbo": -123.0}))
    page = out / "gaps.md"
    page.write_text(page.read_text() + "\n## Reading\n\nBy hand.\n")
    assert gap_study.study(out, SETTINGS, seeds=[0], progress=False)["elbo"][0] == -123.0
    assert "-123.0" in page.read_text() and page.read_text().endswith("\n## Reading\n\nBy hand.\n")
    assert "--rows 12 --num_steps 3 --draws_per_step 4 --num_samples 50`" in page.read_text()
    other = GapSettings(rows=3, num_steps=1, draws_per_step=2, num_samples=20)
    assert gap_study.study(out, other, seeds=[0], progress=False)["elbo"][0] != -123.0
    kept.unlink()


def test_seeds_that_no_run_has_are_refused(out: Path) -> None:
    with pytest.raises(ConfigError, match=r"no finished run of seeds \[7\]"):
        gap_study.study(out, SETTINGS, seeds=[7])


def test_the_draws_table_has_each_number_and_the_errors_of_its_scores(out: Path) -> None:
    table = draw_study.study(out, num_rows=15, reference=2000, tol=0.2, distinct=True)
    assert list(table["draws"]) == 2 * [
        *map(str, draw_study.FIXED), "25, tol=0.2", "100, tol=0.2",
    ]  # fmt: skip
    run = finished_runs(out)[0]
    _, model, guide = load_programs(run.folder)
    task = load_task(run.config)
    distinct = task.x_test.unique(dim=0)
    x = distinct[torch.as_tensor(np.random.default_rng(42).permutation(len(distinct))[:15])]
    long = score(model, guide, x, num_samples=2000, seed=10_000)
    weights = log_weights(model, guide, x, num_samples=6400, seed=0)[:400]
    error = log_evidence(weights) - long.log_evidence
    found = table[table["draws"] == "400"].iloc[0]
    assert found["rmse_all_rows"] == pytest.approx(error.double().square().mean().sqrt().item())
    assert found["mean_draws"] == 400
    believed = error[long.khat <= 0.7].abs()
    assert found["share_off"] == pytest.approx((believed > 0.4).double().mean().item())
    trusted = log_evidence_stderr(weights)[long.khat <= 0.7] <= 0.2
    hidden = (believed > 0.4) & trusted
    assert found["share_off_within_tol"] == pytest.approx(hidden.double().mean().item())
    assert 0.0 < found["share_above_tol"] < 1.0
    adaptive = table[table["draws"] == "25, tol=0.2"]
    assert (adaptive["mean_draws"] >= 25).all()
    assert "15 distinct test rows" in (out / "draws-distinct.md").read_text()
    with pytest.raises(ConfigError, match="posterior"):
        draw_study.study(out, posteriors=["planar3"])


def test_the_fixed_number_as_good_lies_between_its_neighbours() -> None:
    shares = {100: 0.2, 400: 0.1, 1600: 0.0}
    assert fixed_as_good(shares, 0.05) == pytest.approx(800)
    assert fixed_as_good(shares, 0.3) == pytest.approx(100)
    assert fixed_as_good({100: 0.2, 400: 0.1}, 0.05) == math.inf


class Shifted(torch.nn.Module):
    """A linear model whose prior is a standard normal while its latents are near (3, 0)."""

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:  # the exact posterior
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5).to_event(1))


def test_the_aggregate_prior_gains_what_a_misplaced_prior_costs() -> None:
    pair = Shifted()
    x = torch.tensor([3.0, 0.0]) + torch.randn(4000, 2)
    train, test = x[:3000], x[3000:]
    options = {"num_samples": 300, "seed": 0}
    gained = prior_gap(pair.model, pair.guide, train, test, **options)
    # r is normal about the mean 0.8 * (3, 0), variance 0.64 + 0.2, so x has variance 0.84 + 0.25
    with_r = dist.Normal(torch.tensor([2.4, 0.0]), 1.09**0.5).to_event(1).log_prob(test)
    with_p = dist.Normal(torch.zeros(2), 1.25**0.5).to_event(1).log_prob(test)
    exact = (with_r - with_p).double().mean()
    torch.testing.assert_close(gained.double().mean(), exact, atol=0.05, rtol=0.0)


def test_an_aggregate_of_other_latents_is_refused() -> None:
    model, guide = Model(3, latent_dim=3), Guide(3, latent_dim=3)
    with pytest.raises(ValueError, match=r"one latent of two dimensions, got \{'z': \(3,\)\}"):
        prior_gap(model, guide, torch.rand(4, 3), torch.rand(4, 3), num_samples=2, seed=0)


def test_each_command_runs_in_its_small_budget(out: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["gap_study", str(out), "--quick", "--seeds", "1"])
    gap_study.main()
    assert "of seeds [1]: nats a row, means over 8 distinct" in (out / "gaps.md").read_text()
    assert list(pd.read_csv(out / "gaps.csv")["seed"]) == [1, 1]
    monkeypatch.setattr("sys.argv", ["draw_study", str(out), "--quick", "--posteriors", "planar2"])
    draw_study.main()
    assert set(pd.read_csv(out / "draws.csv")["flow"]) == {"planar"}
