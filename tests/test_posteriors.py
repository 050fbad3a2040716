"""The study of posteriors: its tasks' densities, the classifier test, and its small budget."""

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vaeflow.inference import refine
from pyro_vaeflow.inference.training import NonFiniteError
from results.posteriors import make, targets, tasks
from results.posteriors.runs import PosteriorRun, c2st
from results.posteriors.tasks import TASKS, Moon, Spikes


def test_a_moons_density_integrates_to_one_and_is_that_of_its_rows() -> None:
    moon = Moon(torch.tensor([0.3, -0.5]))
    side = torch.linspace(-0.3, 0.3, 1501)
    grid = moon.sample((1000,)).mean(0) + torch.cartesian_prod(side, side)
    density = moon.log_prob(grid).exp() * (side[1] - side[0]) ** 2
    assert density.sum().item() == pytest.approx(1.0, abs=0.03)  # the wall lets 2% through
    rows = moon.sample((4000,))
    torch.testing.assert_close(rows.mean(0), density @ grid / density.sum(), atol=0.01, rtol=0.0)
    assert moon.log_prob(rows).mean() == pytest.approx(
        (density * moon.log_prob(grid)).sum().item(), abs=0.15
    )


def test_four_points_have_the_benchmarks_covariance() -> None:
    theta = torch.tensor([[0.7, -2.9, -1.0, 0.9, 0.6], [1.0, 2.0, 1.5, -0.2, -2.0]])
    x = TASKS["slcp"].likelihood(theta).sample()
    for row, (m, n, a, b, r) in zip(x, theta.tolist(), strict=True):
        mixed = math.tanh(r) * a**2 * b**2
        covariance = torch.tensor([[a**4 + 1e-6, mixed], [mixed, b**4 + 1e-6]])
        point = dist.MultivariateNormal(torch.tensor([m, n]), covariance)
        expected = point.log_prob(row.view(4, 2)).sum()
        found = TASKS["slcp"].likelihood(torch.tensor([[m, n, a, b, r]])).log_prob(row)
        torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-3)


def test_spikes_have_the_density_of_their_bins_up_to_a_constant() -> None:
    one, other = Spikes(torch.randn(10)), Spikes(torch.randn(10))
    bins = torch.bernoulli(torch.full((100,), 0.3))
    x = bins @ one.design
    expected = [
        -nn.BCEWithLogitsLoss(reduction="sum")(task.design @ task.theta, bins)
        for task in (one, other)
    ]
    found = one.log_prob(x) - other.log_prob(x)
    torch.testing.assert_close(found, expected[0] - expected[1], rtol=1e-3, atol=1e-3)


def test_two_widths_are_shared_by_the_coordinates() -> None:
    theta, x = torch.zeros(2), torch.tensor([1.0, 0.0])
    widths = [dist.Normal(theta, s).to_event(1).log_prob(x) + math.log(0.5) for s in (1.0, 0.1)]
    found = TASKS["gaussian_mixture"].likelihood(theta).log_prob(x)
    torch.testing.assert_close(found, torch.stack(widths).logsumexp(0))


@pytest.mark.parametrize("name", TASKS)
def test_parameters_follow_the_benchmarks_prior_and_rows_their_shape(name: str) -> None:
    task = TASKS[name]
    theta = task.parameters(task.prior.sample((4000,)))
    if task.bound is not None:
        assert theta.abs().max() < task.bound
        uniform = task.bound / math.sqrt(3.0)
        assert theta.std(0).div(uniform).sub(1.0).abs().max() < 0.06
    x = task.simulate(7, seed=0)
    assert x.equal(task.simulate(7, seed=0)) and task.likelihood(theta[:7]).log_prob(x).shape == (
        7,
    )


def test_the_classifier_tells_what_differs_and_nothing_else() -> None:
    draws = np.random.default_rng(0).normal(size=(2, 300, 2))
    assert abs(c2st(*draws, seed=0) - 0.5) < 0.07
    assert c2st(draws[0], draws[1] * 2.0, seed=0) > 0.6


def test_the_small_budget_makes_the_tables_and_fits_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refine, "EFFORTS", (refine.Effort(50, 50, 20, 2),))
    monkeypatch.setattr(refine, "ANNEALED", (20, 2))
    task, draw = TASKS["two_moons"], np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / tasks.WHEEL, "w") as wheel:
        for number in range(1, 11):
            for name, rows in (("observation.csv", 1), ("reference_posterior_samples.csv.bz2", 60)):
                table = pd.DataFrame(draw.uniform(-1.0, 1.0, size=(rows, 2)))
                table.to_csv(
                    buffer := io.BytesIO(),
                    index=False,
                    compression="bz2" if name.endswith("bz2") else None,
                )
                path = f"sbibm/tasks/{task.name}/files/num_observation_{number}/{name}"
                wheel.writestr(path, buffer.getvalue())
    monkeypatch.setenv("VAEFLOW_DATA", str(tmp_path))
    make.main(["--quick", str(tmp_path)])
    page, table = (tmp_path / "tables.md").read_text(), pd.read_csv(tmp_path / "summary.csv")
    assert (
        len(table) == 20 and table["c2st"].between(0.0, 1.0).all() and table.notna().all(axis=None)
    )
    assert "| full " in page and "| spline 2 " in page and "nan" not in page
    monkeypatch.setattr(make, "fit_posterior", None)
    make.main(["--quick", str(tmp_path)])
    assert (tmp_path / "tables.md").read_text() == page

    def overflows(run: PosteriorRun) -> None:
        raise NonFiniteError("step 3", None)

    next((tmp_path / "runs").glob("*spline*")).unlink()
    monkeypatch.setattr(make, "fit_posterior", overflows)
    make.main(["--quick", str(tmp_path)])
    page = " ".join((tmp_path / "tables.md").read_text().split())
    assert "spline 2 on two_moons, seed 0" in page and "| did not train |" in page
    assert len(pd.read_csv(tmp_path / "summary.csv")) == 11 and "| full " in page


def test_where_the_reference_draws_are_to_be_had_is_said(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VAEFLOW_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"pip download sbibm==1\.1\.0 --no-deps"):
        TASKS["slcp"].observation(1)


def test_runs_are_what_the_study_names_and_the_first_have_the_evidence() -> None:
    runs = make.runs_of(make.SEEDS)
    assert len({run.name for run in runs}) == len(runs) == 3 * 8 * 6
    assert {run.task for run in runs[:6] if run.refined} == set(TASKS)
    assert (
        PosteriorRun("slcp", "full", 1, 0).name
        != PosteriorRun("slcp", "full", 1, 0, num_draws=9).name
    )


def test_both_targets_integrate_to_one() -> None:
    side = torch.linspace(-50.0, 50.0, 1001)
    density = targets.forty(torch.cartesian_prod(side, side)).exp() * (side[1] - side[0]) ** 2
    assert density.sum().item() == pytest.approx(1.0, abs=1e-3)
    v = dist.Normal(0.0, 4.0)
    draws = v.sample((50_000, 1))
    rest = dist.Normal(0.0, 1.3 * (0.5 * draws).exp().expand(-1, 9)).to_event(1)
    z = rest.sample()
    log_density = v.log_prob(draws).squeeze(-1) + rest.log_prob(z)
    weight = (targets.funnel(torch.cat([draws, z], 1)) - log_density).exp()
    assert abs(weight.mean() - 1.0) < 4.0 * weight.std() / len(weight) ** 0.5 < 0.2


def test_targets_are_fitted_once_and_their_integral_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "FAMILIES", {("diagonal", 0): {}})
    targets.main(["--quick", str(tmp_path)])
    table = pd.read_csv(tmp_path / "targets.csv").set_index("target")
    assert table.loc["forty Gaussians", "log_evidence_draws"] < -0.5  # q is at the middle
    assert abs(table.loc["forty Gaussians", "log_evidence_refined"]) < 0.1
    monkeypatch.setattr(targets, "fitted", None)
    targets.main(["--quick", str(tmp_path)])
    assert "| funnel " in (tmp_path / "targets.md").read_text()
