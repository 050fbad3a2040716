"""Likelihood heads whose arithmetic is our own: torch's numbers and gradients."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow.bernoulli import GROUP, BernoulliRow


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("columns", [1, GROUP, 2 * GROUP + 3])
def test_bernoulli_rows_are_torchs(columns: int) -> None:
    logits = 20.0 * torch.randn(6, 4, columns)
    logits[0, 0, 0], logits[1, 1, 0] = 0.0, 700.0
    value = torch.rand(4, columns)
    inputs = (logits.requires_grad_(), value.requires_grad_())
    torchs = dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
    ours = BernoulliRow(dist.Bernoulli(logits=logits, validate_args=False), 1)
    weights = torch.randn(6, 4)
    found = [
        (row.log_prob(value), *torch.autograd.grad((row.log_prob(value) * weights).sum(), inputs))
        for row in (ours, torchs)
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    in_parts = torch.vmap(lambda at: BernoulliRow(dist.Bernoulli(logits=at), 1).log_prob(value))
    torch.testing.assert_close(in_parts(logits), found[0][0])


def test_a_row_that_is_certain_keeps_its_digits_in_single_precision() -> None:
    """Sums of large terms that cancel would leave an error of 1e-4 nats."""
    value = (torch.rand(5, 100) < 0.5).float()
    row = BernoulliRow(dist.Bernoulli(logits=30.0 * (2.0 * value - 1.0)), 1)
    assert row.log_prob(value).abs().max() < 1e-5


def test_bernoulli_rows_expand_and_sample() -> None:
    row = BernoulliRow(dist.Bernoulli(logits=torch.zeros(5, 3)), 1).expand((2, 5))
    assert isinstance(row, BernoulliRow) and row.sample().shape == (2, 5, 3)
    assert row.log_prob(torch.ones(3)).shape == (2, 5)
