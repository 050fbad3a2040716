"""Rank statistics: uniform for exact posteriors, not for wrong ones, for every kind of site."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyro_vaeflow.inference.calibration import Calibration, simulation_based_calibration
from tests.programs import ZOO, LinearGaussian, Pair

pytestmark = pytest.mark.usefixtures("float64")


def scaled_guide(exact: LinearGaussian, scale: float = 1.0, shift: float = 0.0):
    def guide(x: torch.Tensor) -> None:
        factor = scale * torch.linalg.cholesky(exact.covariance)
        with pyro.plate("data", len(x)):
            loc = exact.posterior_loc(x) + shift
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor))

    return guide


def calibration_of(model, guide, x: Any = 3, **options) -> Calibration:
    x = torch.zeros(1, x) if isinstance(x, int) else x
    return simulation_based_calibration(model, guide, x, **{"num_simulations": 1000} | options)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_exact_posterior_is_not_rejected(seed: int) -> None:
    exact = LinearGaussian()
    calibration = calibration_of(exact.model, exact.exact_guide, seed=seed)
    ranks = calibration.ranks["z"]
    assert ranks.shape == (1000, 2) and ranks.min() >= 0 and ranks.max() <= 99
    assert (calibration.p_values["z"] > 0.01).all()
    assert (calibration.bias_p_values["z"] > 0.01).all()
    # neither the values of the rows matter nor their number
    other = calibration_of(exact.model, exact.exact_guide, torch.randn(7, 3), seed=seed)
    assert torch.equal(ranks, other.ranks["z"])


def test_p_values_of_exact_posteriors_are_uniform() -> None:
    """So the test rejects at 1% as often as it says."""
    exact = LinearGaussian()
    options = {"num_simulations": 400, "num_draws": 19, "num_bins": 20}
    pair = exact.model, exact.exact_guide
    found = [calibration_of(*pair, seed=s, **options) for s in range(60)]
    for name in ("p_values", "bias_p_values"):
        p_values = torch.cat([getattr(calibration, name)["z"] for calibration in found])
        assert scipy.stats.kstest(p_values.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("wrong", [{"scale": 0.5}, {"scale": 1.5}, {"shift": 0.15}])
def test_a_wrong_posterior_is_rejected(wrong: dict) -> None:
    exact = LinearGaussian()
    calibration = calibration_of(exact.model, scaled_guide(exact, **wrong))
    assert (calibration.p_values["z"] < 1e-6).all()
    biased = calibration.bias_p_values["z"]  # what is only too narrow or too wide is not
    assert (biased < 1e-6 if "shift" in wrong else biased > 0.01).all()
    counts = calibration.counts["z"]
    assert (counts.sum(0) == 1000).all()
    ends, middle = counts[0] + counts[-1], counts[9] + counts[10]
    if wrong == {"scale": 0.5}:
        assert (ends > 2 * middle).all()  # too narrow: heaped at both ends
    elif wrong == {"scale": 1.5}:
        assert (ends < middle).all()
    else:
        assert (counts[0] > counts[-1]).all()  # draws too high: few lie below the truth


def prior_guide(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_local_coverage_of_an_exact_posterior_is_nominal_in_each_region() -> None:
    exact = LinearGaussian()
    check = calibration_of(exact.model, exact.exact_guide, num_simulations=2000)
    for by in (None, lambda x: x[:, 0]):
        frame = check.local_coverage(by)
        assert frame["simulations"].tolist() == [400] * 10 and (frame["nominal"] == 0.9).all()
        assert (frame["p_value"] > 0.001).all() and (frame["bias_p_value"] > 0.001).all()
        assert (frame["coverage"] - 0.9).abs().max() < 4.0 * (0.09 / 400) ** 0.5
        assert (frame["low"] <= frame["high"]).all()
        assert frame.groupby("coordinate")["high"].is_monotonic_increasing.all()
    panels = check.plot_local_coverage().axes
    assert [axes.get_title() for axes in panels] == ["z[0]", "z[1]"]


def test_local_coverage_shows_what_is_right_on_average_alone_and_where_it_is_wrong() -> None:
    exact = LinearGaussian()
    # The prior, which looks at no row, has uniform ranks: a collapsed guide passes.
    check = calibration_of(exact.model, prior_guide, num_simulations=2000)
    assert (check.p_values["z"] > 0.01).all()
    local = check.local_coverage(lambda x: x @ exact.weight[:, 0])
    ends = local[(local["coordinate"] == 0) & local["region"].isin([0, 4])]
    assert (ends[["p_value", "bias_p_value"]] < 1e-6).all(axis=None)

    def narrow_far_out(x: torch.Tensor) -> None:
        far = (x - exact.offset).norm(dim=-1) > 2.0
        factor = torch.linalg.cholesky(exact.covariance) * torch.where(far, 0.4, 1.0)[:, None, None]
        with pyro.plate("data", len(x)):
            loc = exact.posterior_loc(x)
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor))

    frame = calibration_of(exact.model, narrow_far_out, num_simulations=2000).local_coverage()
    first, last = (frame[frame["region"] == number] for number in (0, 4))
    assert (first["p_value"] > 0.001).all() and (first["coverage"] > 0.84).all()
    assert (last["p_value"] < 1e-6).all() and (last["coverage"] < 0.6).all()


def test_a_statistic_that_is_none_of_the_rows_is_refused() -> None:
    exact = LinearGaussian()
    check = calibration_of(exact.model, exact.exact_guide, num_simulations=20)
    with pytest.raises(ValueError, match=r"a number for each of 20 rows, got shape \(\)"):
        check.local_coverage(lambda x: x.mean())
    with pytest.raises(ValueError, match="num_regions must be an integer from 1 to 20, got 21"):
        check.local_coverage(num_regions=21)


def test_p_values_are_scipys() -> None:
    exact = LinearGaussian()
    calibration = calibration_of(exact.model, scaled_guide(exact, 0.9))
    expected = scipy.stats.chisquare(calibration.counts["z"].numpy()).pvalue
    torch.testing.assert_close(calibration.p_values["z"], torch.from_numpy(expected))
    frame = calibration.to_frame()
    ranks = calibration.ranks["z"].numpy() - 49.5
    by_scipy = [scipy.stats.wilcoxon(ranks[:, j]).pvalue for j in range(2)]
    torch.testing.assert_close(calibration.bias_p_values["z"], torch.tensor(by_scipy))
    assert [*frame.columns] == ["site", "coordinate", "p_value", "bias_p_value"]
    assert frame["bias_p_value"].tolist() == by_scipy


def test_discrete_latents_break_their_ties_at_random() -> None:
    """All simulations share eight or so rows' worth of posteriors, and most draws are ties."""

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            on = pyro.sample("on", dist.Bernoulli(torch.tensor([0.3, 0.6])).to_event(1))
            pyro.sample("x", dist.Bernoulli(0.2 + 0.6 * on).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        prior = torch.tensor([0.3, 0.6]).logit()
        with pyro.plate("data", len(x)):
            logits = prior + (2 * x - 1) * torch.tensor(4.0).log()
            pyro.sample("on", dist.Bernoulli(logits=logits).to_event(1))

    def prior_guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            probs = torch.tensor([0.1, 0.8]).expand(x.shape)
            pyro.sample("on", dist.Bernoulli(probs).to_event(1))

    assert (calibration_of(model, guide, 2).p_values["on"] > 0.01).all()
    assert (calibration_of(model, prior_guide, 2).p_values["on"] < 1e-6).all()


def test_two_exact_latents_are_ranked_under_their_own_names() -> None:
    """A chain z -> w -> x of normals; the guide draws w given x and then z given w."""

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            w = pyro.sample("w", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(2.0 / 3.0 * x, (2.0 / 3.0) ** 0.5).to_event(1))
            pyro.sample("z", dist.Normal(0.5 * w[..., 0], 0.5**0.5))

    calibration = calibration_of(model, guide, torch.zeros(2, 1))
    shapes = {name: tuple(ranks.shape) for name, ranks in calibration.ranks.items()}
    assert shapes == {"w": (1000, 1), "z": (1000, 1)}
    assert all((p > 0.01).all() for p in calibration.p_values.values())


def test_every_pair_has_ranks_and_is_left_as_it_was(row_pair: Pair) -> None:
    row_pair.fit(num_steps=1)
    sizes = {"num_simulations": 40, "num_draws": 9, "num_bins": 5}
    pyro.clear_param_store()
    random_state = torch.get_rng_state()
    one, again = (calibration_of(*row_pair.programs, row_pair.x, **sizes) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not dict(pyro.get_param_store())
    for name, ranks in one.ranks.items():
        assert ranks.shape[0] == 40 and ranks.min() >= 0 and ranks.max() <= 9
        assert torch.equal(ranks, again.ranks[name])


def covariates(x: torch.Tensor, y: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x + z, 1.0).to_event(1), obs=y)


def of_covariates(x: torch.Tensor, y: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * (y - x), 0.5**0.5).to_event(1))


def series(x: torch.Tensor) -> None:
    """Each value adds the one before to z."""
    with pyro.plate("data", len(x)):
        z, before = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0)), 0.0
        for j in range(2):
            pyro.sample(f"x_{j}", dist.Normal(z + before, 1.0), obs=x[:, j])
            before = x[:, j]


def of_series(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        steps = x[:, 0] + (x[:, 1] - x[:, 0])
        pyro.sample("z", dist.Normal(steps / 3.0, 3.0**-0.5))


@pytest.mark.parametrize(
    "model, guide, columns", [(covariates, of_covariates, (1, 1)), (series, of_series, (2,))]
)
def test_simulated_values_take_the_place_of_those_observed(model, guide, columns) -> None:
    args = tuple(torch.randn(5, n) for n in columns)
    assert (calibration_of(model, guide, args).p_values["z"] > 0.01).all()


def test_what_cannot_be_simulated_in_place_is_refused() -> None:
    def computed(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=2.0 * x[:, 0])

    def at_once(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = z.unsqueeze(-1) + torch.cat([torch.zeros_like(x[:, :1]), x[:, :1]], 1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[..., 0], 0.5**0.5))

    with pytest.raises(ValueError, match=r"sites \['x'\] observe values .*assemble="):
        calibration_of(computed, guide, 1)
    halved = calibration_of(computed, guide, 1, assemble=lambda s: 0.5 * s["x"].unsqueeze(-1))
    assert (halved.p_values["z"] > 0.01).all()
    with pytest.raises(ValueError, match="assemble= made rows of shape"):
        calibration_of(computed, guide, 1, assemble=lambda sites: sites["x"])
    with pytest.raises(ValueError, match="computes site 'x' from the values"):
        calibration_of(at_once, guide, 2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_simulations": 0}, "num_simulations must be"),
        ({"num_draws": 0}, "num_draws must be"),
        ({"num_bins": 1}, "num_bins must be"),
        ({"num_bins": 7}, r"num_bins must divide num_draws \+ 1 = 100, got 7"),
    ],
)
def test_a_bad_size_is_named(options: dict, message: str) -> None:
    pair = ZOO["diagonal"]()
    with pytest.raises(ValueError, match=message):
        calibration_of(*pair.programs, pair.x, **options)
