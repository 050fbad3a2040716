"""The noise of a row: standard normal, its own, and a function of the row and the seed alone."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import constraints

from pyro_vaeflow.inference.draws import trace_chunks
from pyro_vaeflow.inference.noise import RowNoise, row_hash
from tests.programs import rows

NUM_SAMPLES, DIM = 2000, 3


def draw(x: torch.Tensor, seed: int = 0, base=None, num_samples: int = NUM_SAMPLES) -> dict:
    """What sites `a` and `b` of a guide sample, ``(num_samples, num_data, DIM)`` each."""
    base = dist.Normal(torch.zeros(DIM), torch.ones(DIM)) if base is None else base

    base = base.to_event(1) if base.event_dim == 0 else base

    def guide(x):
        with pyro.plate("num_samples", num_samples, dim=-2), pyro.plate("data", len(x), dim=-1):
            return {name: pyro.sample(name, base) for name in "ab"}

    return RowNoise(x, seed)(guide)(x)


def correlation(*series: torch.Tensor) -> torch.Tensor:
    """Correlations of series ``(n, ...)`` off the diagonal, in their standard errors."""
    table = torch.cat([s.reshape(len(s), -1) for s in series])
    matrix = torch.corrcoef(table) * math.sqrt(table.shape[1])
    return matrix[~torch.eye(len(table), dtype=torch.bool)]


def standard_normal(z: torch.Tensor) -> None:
    """Each of the first four moments within 4 standard errors, and no rejection by a KS test."""
    z = z.flatten().double()
    for power, (moment, variance) in enumerate(((0, 1), (1, 2), (0, 15), (3, 96)), start=1):
        assert abs(z.pow(power).mean() - moment) < 4 * math.sqrt(variance / len(z))
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("num_data", [1, 150])
def test_noise_is_standard_normal_for_every_row_coordinate_and_draw(num_data: int) -> None:
    z = draw(rows(num_data))["a"]
    standard_normal(z)
    standard_normal(z[:, 0])
    standard_normal(z[:, :, 1])
    standard_normal(
        torch.cat([draw(rows(num_data), seed, num_samples=2)["b"] for seed in range(300)])
    )


def test_rows_sites_coordinates_and_draws_are_uncorrelated() -> None:
    noise = draw(rows(20))
    a, b = (noise[name].transpose(0, 1) for name in "ab")  # a row first
    for transform in (torch.clone, torch.square, torch.abs, torch.cos):
        assert correlation(transform(a), transform(b)).abs().max() < 5.0
        assert correlation(transform(a).reshape(20, -1, DIM).permute(2, 0, 1)).abs().max() < 5.0
        assert correlation(transform(a)[:, :40].transpose(0, 1)).abs().max() < 5.0


def test_a_mean_over_rows_has_the_error_of_independent_rows() -> None:
    x = rows(500)
    squares = torch.stack([draw(x, seed, num_samples=4)["a"].square().mean() for seed in range(50)])
    expected = math.sqrt(2.0 / (500 * 4 * DIM))
    assert 0.7 * expected < squares.std() < 1.3 * expected


def test_rows_and_seeds_that_are_equal_have_equal_noise_and_others_have_not() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -0.0], [1.0, 1e-30]])
    one, two, three, four = draw(x)["a"].unbind(1)
    assert torch.equal(one, three)
    assert not torch.isclose(one, two).any() and not torch.isclose(one, four).any()
    again, other = (draw(x, seed)["a"].flatten()[None] for seed in (0, 4))
    assert torch.equal(again, draw(x)["a"].flatten()[None])
    assert correlation(again, other).abs().max() < 5.0
    assert row_hash(x.double()).tolist() == row_hash(x).tolist()
    assert len(row_hash(torch.cartesian_prod(*[torch.arange(20)] * 3)).unique()) == 20**3


HALF = torch.full((DIM,), 0.5)
COVERED = {
    "Normal": lambda: dist.Normal(HALF, HALF),
    "LogNormal": lambda: dist.LogNormal(HALF, HALF),
    "Laplace": lambda: dist.Laplace(HALF, HALF),
    "Uniform": lambda: dist.Uniform(-HALF, HALF),
    "Gumbel": lambda: dist.Gumbel(HALF, HALF),
    "HalfNormal": lambda: dist.HalfNormal(HALF),
    "Bernoulli": lambda: dist.Bernoulli(0.3 * HALF),
    "RelaxedBernoulli": lambda: dist.RelaxedBernoulli(HALF[0], HALF),
}


@pytest.mark.parametrize("name", COVERED)
def test_a_distribution_keeps_its_law_and_does_not_see_the_other_rows(name: str) -> None:
    made, x = COVERED[name](), rows(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = draw(x, base=made)["a"]
    torch.testing.assert_close(draw(x[5:9].flip(0), base=made)["a"], z[:, 5:9].flip(1))
    same_law = stats.ks_2samp(z.flatten(), made.sample((20_000,)).flatten())
    assert same_law.pvalue > 1e-3
    assert made.support is constraints.real or made.support.check(z).all()


def test_two_requests_of_one_distribution_are_independent() -> None:
    """x = W a + sqrt(D) b has covariance W W^T + D only if a and b do not share their noise."""
    made = dist.LowRankMultivariateNormal(torch.zeros(3), torch.eye(3), torch.ones(3))
    z = draw(rows(50), base=made)["a"].flatten(0, 1)
    torch.testing.assert_close(z.T.cov(), made.covariance_matrix, rtol=0, atol=0.1)


def test_a_distribution_that_is_not_covered_says_so_and_repeats_under_a_seed() -> None:
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(1.0, 1.0))

    with pytest.warns(UserWarning, match=r"site 'z' \(Gamma\) draws from torch's stream"):
        one, other = (
            next(trace_chunks(model, guide, rows(), num_samples=4, seed=1)).latents["z"]
            for _ in range(2)
        )
    assert torch.equal(one, other)
