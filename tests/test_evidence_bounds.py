"""Bounds of the log evidence from both sides: closed forms lie between them."""

from importlib import import_module

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow import evidence_bounds
from pyro_vaeflow.inference import simulation
from pyro_vaeflow.inference.refine import EFFORTS, Effort
from pyro_vaeflow.inference.student_mixtures import StudentMixture
from tests.programs import LinearGaussian

module = import_module("pyro_vaeflow.inference.evidence_bounds")
refine = import_module("pyro_vaeflow.inference.refine")
pytestmark = pytest.mark.usefixtures("float64")


def rows_of(monkeypatch) -> list[torch.Tensor]:
    """The simulated rows of the calls to come."""
    seen, simulate = [], simulation.simulated_rows

    def noted(*given):
        trace, data = simulate(*given)
        seen.append(data[0])
        return trace, data

    monkeypatch.setattr(module, "simulated_rows", noted)
    return seen


def test_the_closed_form_lies_between_the_bounds(monkeypatch) -> None:
    """Few draws of a short adaptation, so that the bounds are apart; and many, which are close."""
    exact, seen = LinearGaussian(), rows_of(monkeypatch)
    covariance = exact.weight @ exact.weight.T + exact.scale**2 * torch.eye(3)
    evidence = dist.MultivariateNormal(exact.offset, covariance)
    for final, apart in ((2, 0.1), (2000, 1e-3)):
        effort = Effort(40, final, 40, 2)
        monkeypatch.setattr(refine, "EFFORTS", (effort,))
        bounds = evidence_bounds(exact.model, exact.diagonal_guide, torch.zeros(1, 3), num_rows=60)
        truth = evidence.log_prob(seen[-1])
        for below in (truth - bounds.lower, bounds.upper - truth):
            error = below.std() / len(below) ** 0.5
            assert below.mean() > -3.0 * error
        gap = bounds.upper - bounds.lower
        assert gap.mean() > apart if final == 2 else gap.mean() < 0.01
    assert repr(bounds).startswith("Log evidence of 60 simulated rows: from -")


def test_a_mode_that_the_proposal_misses_is_told(monkeypatch) -> None:
    """One of two mirror images, a whole prior apart: the lower bound alone looks well."""

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.abs(), 0.1).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.1).to_event(1))

    monkeypatch.setattr(refine, "EFFORTS", (EFFORTS[0],))
    bounds = evidence_bounds(model, guide, torch.zeros(1, 1), num_rows=20)
    assert (bounds.upper - bounds.lower).mean() < 0.02  # refined evidence has both

    def near(latents, *_):
        latents.first_draws(2, 0)
        loc = latents.columns[0].abs().unsqueeze(1)
        return StudentMixture(torch.zeros(len(loc), 1), loc, 0.1 * torch.eye(1)), None

    monkeypatch.setattr(refine, "adapted", near)
    bounds = evidence_bounds(model, guide, torch.zeros(1, 1), num_rows=40)
    assert (bounds.upper - bounds.lower).mean() > 0.5  # half of the exact draws are elsewhere
