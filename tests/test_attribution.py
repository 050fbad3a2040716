"""Contributions: what they add up to, and which likelihoods have them."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow import contributions
from pyro_vaeflow.inference.contributions import feature_log_prob
from pyro_vaeflow.inference.draws import trace_chunks
from tests.programs import ZOO, LinearGaussian


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["diagonal", "iaf", "bernoulli_likelihood", "masked"])
def test_a_rows_contributions_add_up_to_its_posterior_negative_log_likelihood(name: str) -> None:
    pair = ZOO[name]()
    parts = contributions(pair.model, pair.guide, pair.x, num_samples=50, seed=2, chunk_size=7)
    assert parts.shape == pair.args[0].shape
    (chunk,) = trace_chunks(pair.model, pair.guide, pair.x, num_samples=50, seed=2)
    terms = chunk.terms
    expected = -(terms.log_weight.softmax(0) * terms.log_likelihood).sum(0)
    torch.testing.assert_close(parts.sum(-1), expected)


@pytest.mark.usefixtures("float64")
def test_the_column_that_was_spoilt_contributes_most() -> None:
    exact = LinearGaussian()
    x = exact.sample(20)
    x[:, 1] += 20.0 * exact.scale
    before = contributions(exact.model, exact.exact_guide, exact.sample(20))
    after = contributions(exact.model, exact.exact_guide, x)
    assert (after.argmax(-1) == 1).all()
    assert after[:, 1].min() > before[:, 1].max()


def test_sites_that_are_not_observed_or_do_not_factorise_are_refused() -> None:
    pair = ZOO["diagonal"]()
    with pytest.raises(ValueError, match=r"one of \['x'\], got 'z'"):
        contributions(*pair.programs, pair.x, site="z")
    with pytest.raises(ValueError, match="MultivariateNormal of event_dim 1 does not factorise"):
        feature_log_prob(dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), torch.zeros(5, 2))


@pytest.mark.parametrize("mask", [True, False, torch.tensor(False), torch.tensor([True, False])])
def test_a_mask_holds_for_every_feature(mask) -> None:
    made = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
    got = feature_log_prob(made.mask(mask), torch.ones(2, 3))
    torch.testing.assert_close(got.sum(-1), made.mask(mask).log_prob(torch.ones(2, 3)))


def test_a_distribution_may_say_its_own_feature_log_probs() -> None:
    class Own(dist.Normal):
        def feature_log_prob(self, value: torch.Tensor) -> torch.Tensor:
            return value + 1.0

    assert feature_log_prob(Own(0.0, 1.0), torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
