"""Draws for ArviZ: their weights give the scores, the chosen ones the posterior."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow import KhatWarning, score, to_arviz
from pyro_vaeflow.inference import refine
from tests.programs import LinearGaussian, rows

pytestmark = pytest.mark.usefixtures("float64")
FROM_STREAM = "ignore:site .* draws from torch's stream"
SMALL = refine.Effort(200, 3000, 100, 6)


def of_draws(values: Any) -> torch.Tensor:
    """A variable of the tree, ``(num_samples, num_data, ...)``."""
    assert values.dims[:3] == ("chain", "draw", "row") and values.sizes["chain"] == 1
    return torch.from_numpy(values.values[0].copy())


def wide_guide(exact: LinearGaussian):
    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = exact.posterior_loc(x) + 0.1
            pyro.sample("z", dist.MultivariateNormal(loc, 1.7 * exact.covariance))

    return guide


def test_weights_give_the_scores_and_draws_the_posterior() -> None:
    exact, x = LinearGaussian(), rows(6)
    guide = wide_guide(exact)
    tree = to_arviz(exact.model, guide, x, num_samples=4000, seed=3)
    scores = score(exact.model, guide, x, num_samples=4000, seed=3)
    log_weight = of_draws(tree.sample_stats_guide["log_weight"])
    evidence = log_weight.logsumexp(0) - math.log(4000)
    torch.testing.assert_close(evidence, scores.log_evidence)
    torch.testing.assert_close(log_weight.mean(0), scores.elbo)
    likelihood = of_draws(tree.sample_stats_guide["log_likelihood"]).mean(0)
    torch.testing.assert_close(likelihood, scores.expected_log_likelihood)
    for name in ("log_evidence", "stderr", "ess", "khat"):
        np.testing.assert_allclose(tree.scores[name], getattr(scores, name))

    drawn, posterior = of_draws(tree.guide["z"]), of_draws(tree.posterior["z"])
    weighted = (log_weight.softmax(0).unsqueeze(-1) * drawn).sum(0)
    loc, scale = exact.posterior_loc(x), exact.covariance.diagonal().sqrt()
    assert ((weighted - loc).abs() < 4.0 * scale / scores.ess.sqrt().unsqueeze(-1)).all()
    torch.testing.assert_close(posterior.mean(0), weighted, atol=0.1 * scale.min().item(), rtol=0.0)
    torch.testing.assert_close(posterior.std(0), scale.expand_as(loc), rtol=0.1, atol=0.0)
    at = dist.Normal(posterior @ exact.weight.T + exact.offset, exact.scale).to_event(1)
    torch.testing.assert_close(of_draws(tree.log_likelihood["x"]), at.log_prob(x))


@pytest.mark.filterwarnings(FROM_STREAM)
def test_refined_draws_are_of_the_posterior_where_the_guide_is_elsewhere(monkeypatch) -> None:
    """Two latents of unlike supports, one of a simplex; the guide does not look at the row."""
    monkeypatch.setattr(refine, "EFFORTS", (SMALL,))
    counts = torch.tensor([[6.0, 1.0, 1.0], [0.0, 9.0, 3.0]])

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
            rate = pyro.sample("x", dist.Gamma(torch.tensor(2.0), 1.0))  # a latent of that name
            pyro.sample("kinds", dist.Multinomial(probs=share, validate_args=False), obs=x)
            pyro.sample("total", dist.Poisson(rate), obs=x.sum(-1))

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("share", dist.Dirichlet(torch.full((3,), 20.0)))
            pyro.sample("x", dist.Gamma(torch.tensor(40.0), 20.0))

    tree = to_arviz(model, guide, counts, num_samples=2000, refine=True)
    share, rate = (of_draws(tree.posterior[name]) for name in ("share", "x"))
    torch.testing.assert_close(share.sum(-1), torch.ones(2000, 2))
    expected = (counts + 1.0) / (counts + 1.0).sum(-1, keepdim=True)
    torch.testing.assert_close(share.mean(0), expected, atol=0.02, rtol=0.0)
    torch.testing.assert_close(rate.mean(0), (counts.sum(-1) + 2.0) / 2.0, rtol=0.03, atol=0.0)
    assert of_draws(tree.guide["x"]).mean().item() == pytest.approx(2.0, abs=0.05)
    kinds = dist.Multinomial(probs=share, validate_args=False).log_prob(counts)
    likelihood = kinds + dist.Poisson(rate).log_prob(counts.sum(-1))
    torch.testing.assert_close(of_draws(tree.log_likelihood["x"]), likelihood)
    assert (tree.scores["khat"] < 0.7).all()


@pytest.mark.filterwarnings(FROM_STREAM)
def test_the_likelihood_of_refined_draws_has_no_prior_in_it(monkeypatch) -> None:
    """Nor has it where a class that the prior hangs on is summed out."""
    monkeypatch.setattr(refine, "EFFORTS", (SMALL,))
    x = torch.tensor([-2.0, 0.0, 3.0])

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            enumerate_it = {"enumerate": "parallel"}
            kind = pyro.sample("kind", dist.Bernoulli(torch.tensor(0.3)), infer=enumerate_it)
            z = pyro.sample("z", dist.Normal(4.0 * kind - 2.0, 1.0))
            pyro.sample("x", dist.Normal(z + 3.0 * kind, 0.5), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    tree = to_arviz(model, guide, x, num_samples=50, refine=True)
    z, kind = of_draws(tree.posterior["z"]), torch.tensor([0.0, 1.0]).view(2, 1, 1)
    prior = torch.tensor([0.7, 0.3]).log().view(2, 1, 1)
    prior = prior + dist.Normal(4.0 * kind - 2.0, 1.0).log_prob(z)
    joint = prior + dist.Normal(z + 3.0 * kind, 0.5).log_prob(x)
    likelihood = joint.logsumexp(0) - prior.logsumexp(0)
    torch.testing.assert_close(of_draws(tree.log_likelihood["x"]), likelihood)


def test_every_pair_has_a_tree_of_draws_for_each_row(pair) -> None:
    tree = to_arviz(pair.model, pair.guide, pair.x, num_samples=40)
    for name, values in tree.guide.data_vars.items():
        shape = 40, len(pair.args[0]), -1
        drawn, chosen = (of_draws(v).reshape(shape) for v in (values, tree.posterior[name]))
        assert (chosen[:, None] == drawn).all(-1).any(1).all()


def test_arvizs_plots_draw_the_posterior_beside_the_guide() -> None:
    try:
        import arviz_plots
    except (ImportError, AttributeError) as error:  # 0.8 asks matplotlib for what 3.11 has not
        pytest.skip(f"arviz-plots does not load: {error}")
    exact = LinearGaussian()
    tree = to_arviz(exact.model, exact.diagonal_guide, rows(2), num_samples=200)
    for group in ("posterior", "guide"):
        drawn = arviz_plots.plot_forest(tree, group=group, backend="none")
        assert drawn.viz["trunk"]["z"].sizes == {"chain": 1, "row": 2, "z_dim_0": 2}


def test_rows_without_evidence_are_named_and_a_narrow_guide_is_told() -> None:
    exact, x = LinearGaussian(), rows(4)
    x[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"rows \[2\] of x have no finite log evidence"):
        to_arviz(exact.model, exact.exact_guide, x)

    def narrow(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            covariance = 0.1 * exact.covariance
            pyro.sample("z", dist.MultivariateNormal(exact.posterior_loc(x), covariance))

    with pytest.warns(KhatWarning, match="rows have k-hat above 0.7"):
        to_arviz(exact.model, narrow, rows(4))
