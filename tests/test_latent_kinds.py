"""Discrete latents that are summed out and latents that all rows share, against closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from pyro_vaeflow import (
    active_units,
    contributions,
    inference_gap,
    log_weights,
    score,
    simulation_based_calibration,
    train,
)
from pyro_vaeflow.inference.contract import check_contract
from tests.programs import LinearGaussian, rows

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:two pairs have pyro.param"),
]
DOUBLE = {"dtype": torch.float64}
CHANCES, CENTRES = torch.tensor([0.5, 0.3, 0.2], **DOUBLE), torch.tensor([-2.0, 0.0, 3.0], **DOUBLE)


def no_guide(x):
    pass


def mixture(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(CHANCES), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(CENTRES[k], 1.0), obs=x)


def mixture_evidence(x):
    return (dist.Normal(CENTRES, 1.0).log_prob(x[:, None]) + CHANCES.log()).logsumexp(1)


@config_enumerate
def responsibilities(x):
    bias = pyro.param("bias", torch.zeros(3))
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Categorical(logits=x[:, None] * CENTRES + bias))


@pytest.mark.parametrize("guide", [no_guide, responsibilities])
def test_a_mixture_is_summed_out(guide) -> None:
    x = 3.0 * torch.randn(50)
    scores = score(mixture, guide, x, num_samples=3)
    torch.testing.assert_close(scores.log_evidence, mixture_evidence(x), rtol=0, atol=1e-8)
    assert scores.stderr.abs().max() < 1e-7
    expected = -TraceEnum_ELBO(max_plate_nesting=1).loss(mixture, guide, x)
    assert scores.elbo.sum().item() == pytest.approx(expected, abs=1e-6)
    if guide is no_guide:
        torch.testing.assert_close(scores.elbo, scores.log_evidence)


def test_the_history_of_an_enumerating_loss_is_exact() -> None:
    """The guide learns the posterior, so the bound meets the evidence."""
    x = 3.0 * torch.randn(50)
    history = train(
        mixture, responsibilities, x, num_steps=150, learning_rate=0.1, progress=False
    ).frame
    torch.testing.assert_close(history["elbo"].iloc[0], -history["loss"].iloc[0])
    assert history["elbo"].iloc[-1] == pytest.approx(mixture_evidence(x).mean().item(), abs=0.02)
    assert (history["kl"] >= 0).all()


TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]], **DOUBLE)
EMISSION = torch.tensor([-1.0, 2.0], **DOUBLE)


def markov(x):
    with pyro.plate("data", len(x)):
        state = 0
        for t in pyro.markov(range(x.shape[1])):
            state = pyro.sample(
                f"state_{t}",
                dist.Categorical(TRANSITION[state]),
                infer={"enumerate": "parallel"},
            )
            pyro.sample(f"x_{t}", dist.Normal(EMISSION[state], 1.0), obs=x[:, t])


def test_a_hidden_markov_model_is_summed_out() -> None:
    x = torch.randn(20, 6)
    forward = TRANSITION[0].log().expand(20, 2)
    for t in range(6):
        if t:
            forward = (forward.unsqueeze(-1) + TRANSITION.log()).logsumexp(1)
        forward = forward + dist.Normal(EMISSION, 1.0).log_prob(x[:, t, None])
    got = score(markov, no_guide, x, num_samples=2).log_evidence
    torch.testing.assert_close(got, forward.logsumexp(1), rtol=0, atol=1e-8)
    assert score(markov, no_guide, x[:1], num_samples=2).log_evidence == got[:1]


def test_a_series_of_its_own_length_is_summed_out() -> None:
    """What a mask leaves out counts for nothing: not for the number of values it could have had."""
    x, lengths = torch.randn(20, 4), torch.arange(20) % 4 + 1

    def model(x, lengths):
        with pyro.plate("data", len(x)):
            state = 0
            for t in pyro.markov(range(4)):
                with poutine.mask(mask=t < lengths):
                    chances = dist.Categorical(TRANSITION[state])
                    state = pyro.sample(f"state_{t}", chances, infer={"enumerate": "parallel"})
                    pyro.sample(f"x_{t}", dist.Normal(EMISSION[state], 1.0), obs=x[:, t])

    expected = torch.empty(20)
    for length in range(1, 5):
        some = lengths == length
        expected[some] = score(markov, no_guide, x[some, :length], num_samples=1).log_evidence
    got = score(model, lambda x, lengths: None, (x, lengths), num_samples=2).log_evidence
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_labels_may_be_observed_in_part() -> None:
    """The semi-supervised model M2 with its exact posterior: unknown classes are summed out."""
    x, y, seen = torch.randn(30), torch.arange(30) % 3, torch.arange(30) % 2 == 0

    def model(x, y, seen):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(CHANCES), obs=y, obs_mask=seen)
            z = pyro.sample("z", dist.Normal(CENTRES[y], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x, y, seen):
        slope = pyro.param("slope", CENTRES.clone())
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=~seen):
                chances = dist.Categorical(logits=x[:, None] * slope)
                unknown = pyro.sample("y_unobserved", chances, infer={"enumerate": "parallel"})
            of_class = CENTRES[torch.where(seen, y, unknown)]
            pyro.sample("z", dist.Normal((of_class + 4.0 * x) / 5.0, 0.2**0.5))

    joint = dist.Normal(CENTRES, 1.25**0.5).log_prob(x[:, None]) + CHANCES.log()
    expected = torch.where(seen, joint.gather(1, y[:, None]).squeeze(1), joint.logsumexp(1))
    scores = score(model, guide, (x, y, seen), num_samples=3)
    torch.testing.assert_close(scores.log_evidence, expected, rtol=0, atol=1e-8)
    frame = train(model, guide, (x, y, seen), num_steps=2, learning_rate=0.0, progress=False).frame
    assert -frame["loss"].iloc[0] == pytest.approx(scores.elbo.mean().item(), abs=1e-6)
    assert frame["elbo"].iloc[0] == pytest.approx(scores.elbo.mean().item(), abs=1e-6)


def clusters(x):
    """k, then z given k, then x: a linear-Gaussian model with a mixture of priors."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(CHANCES), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(CENTRES[k], 0.5))
        pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)


def near(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 0.6))


@config_enumerate
def given_cluster(x):
    """The exact posterior of z given k, and k at even chances."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3.0))
        pyro.sample("z", dist.Normal((2.0 * x + 4.0 * CENTRES[k]) / 8.0, 8.0**-0.5))


def test_continuous_latents_are_drawn_and_discrete_ones_summed() -> None:
    x = 4.0 * torch.randn(30)
    parts = dist.Normal(2.0 * CENTRES, 2.0**0.5).log_prob(x[:, None])
    expected = (parts + CHANCES.log()).logsumexp(1)
    scores = score(clusters, near, x, num_samples=4000)
    assert ((scores.log_evidence - expected).abs() < 5 * scores.stderr + 1e-3).all()
    exact = score(clusters, given_cluster, x, num_samples=5)
    torch.testing.assert_close(exact.log_evidence, expected, rtol=0, atol=1e-8)
    for verb in (active_units, inference_gap, contributions):
        options = {"num_steps": 5} if verb is inference_gap else {}
        verb(clusters, near, x, num_samples=50, **options)
    gaps = inference_gap(clusters, near, x, num_samples=2000, num_steps=3)
    torch.testing.assert_close(gaps.log_evidence, scores.log_evidence, rtol=0, atol=0.1)


def test_a_loss_that_does_not_sum_is_named() -> None:
    x = torch.randn(20)
    with pytest.raises(ValueError, match=r"Trace_ELBO does not sum over \['k'\].*TraceEnum_ELBO"):
        train(clusters, near, x, num_steps=1, loss=Trace_ELBO(), progress=False)

    def global_discrete(x):
        k = pyro.sample("k", dist.Categorical(CHANCES), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(CENTRES[k], 1.0), obs=x)

    with pytest.raises(ValueError, match="'k' is enumerated outside plate 'data'"):
        score(global_discrete, no_guide, x)


class Regression:
    """y = x w + noise: the posterior predictive of a row is a normal."""

    def __init__(self) -> None:
        self.x = torch.randn(40, 2)
        self.y = self.x @ torch.tensor([1.0, -2.0]) + 0.3 * torch.randn(40)
        precision = torch.eye(2) + self.x.T @ self.x / 0.09
        self.covariance = torch.linalg.inv(precision)
        self.loc = self.covariance @ self.x.T @ self.y / 0.09

    def model(self, x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * w).sum(-1), 0.3), obs=y)

    def matrix_model(self, x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)

    def guide(self, x, y):
        pyro.sample("w", dist.MultivariateNormal(self.loc, self.covariance))

    def predictive(self):
        variance = ((self.x @ self.covariance) * self.x).sum(-1) + 0.09
        return dist.Normal(self.x @ self.loc, variance.sqrt()).log_prob(self.y)


def test_a_regression_has_its_posterior_predictive() -> None:
    exact = Regression()
    args = exact.x, exact.y
    assert check_contract(exact.model, exact.guide, args).model == "left"
    assert check_contract(exact.matrix_model, exact.guide, args).model == "runs"
    for model in (exact.model, exact.matrix_model):
        scores = score(model, exact.guide, args, num_samples=400)
        assert ((scores.log_evidence - exact.predictive()).abs() < 5 * scores.stderr).all()
        torch.testing.assert_close(
            log_weights(model, exact.guide, args, num_samples=9, chunk_size=7),
            log_weights(model, exact.guide, args, num_samples=9),
        )


@pytest.mark.parametrize("auto", [AutoNormal, AutoDiagonalNormal, AutoDelta])
def test_an_autoguide_of_shared_latents_trains_and_scores(auto) -> None:
    exact = Regression()
    args, guide = (exact.x, exact.y), auto(exact.matrix_model)
    options = {"num_steps": 400, "batch_size": 20, "learning_rate": 0.03, "progress": False}
    train(exact.matrix_model, guide, args, **options)
    got = score(exact.matrix_model, guide, args, num_samples=200).log_evidence.mean()
    assert got == pytest.approx(exact.predictive().mean().item(), abs=0.1)


def test_a_shared_latent_counts_once_over_all_rows() -> None:
    """A mini-batch's loss is an unbiased estimate of the whole table's, which Pyro's own is."""
    exact = Regression()
    args = exact.x, exact.y
    whole = Trace_ELBO().loss(exact.model, exact.guide, *args) / 40
    options = {"num_steps": 400, "batch_size": 4, "learning_rate": 0.0, "progress": False}

    def guide(x, y):
        pyro.param("unused", torch.zeros(()))
        exact.guide(x, y)

    loss = train(exact.model, guide, args, **options).frame["loss"]
    assert loss.mean() == pytest.approx(whole, abs=5 * loss.std() / 20)


def test_a_normal_of_unknown_mean_and_scale_predicts_a_students_t() -> None:
    x = 3.0 + 2.0 * torch.randn(20)
    shape, rate, count, spread = 3.0 + 10.0, 2.0 + 0.5 * x.var(unbiased=False) * 20, 21.0, x.mean()
    rate, loc = rate + 0.5 * 20.0 * spread**2 / count, 20.0 * spread / count

    def model(x):
        precision = pyro.sample("precision", dist.Gamma(torch.tensor(3.0), 2.0))
        mean = pyro.sample("mean", dist.Normal(0.0, precision**-0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, precision**-0.5), obs=x)

    def guide(x):
        precision = pyro.sample("precision", dist.Gamma(shape, rate))
        pyro.sample("mean", dist.Normal(loc, (count * precision) ** -0.5))

    scale = (rate * (count + 1.0) / (shape * count)) ** 0.5
    expected = dist.StudentT(2.0 * shape, loc, scale).log_prob(x)
    scores = score(model, guide, x, num_samples=2000)
    assert ((scores.log_evidence - expected).abs() < 5.0 * scores.stderr).all()


def test_eight_schools_predict_what_a_grid_over_the_shared_latents_gives() -> None:
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def shared():
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
        return mu, pyro.sample("tau", dist.LogNormal(torch.tensor(1.0), 0.5))

    def model(y, sigma):
        mu, tau = shared()
        with pyro.plate("data", len(y)):
            eta = pyro.sample("eta", dist.Normal(torch.zeros(len(y)), 1.0))
            pyro.sample("obs", dist.Normal(mu + tau * eta, sigma), obs=y)

    auto = AutoMultivariateNormal(poutine.block(model, expose=["mu", "tau"]))

    def guide(y, sigma):
        """The effects have their exact posterior given what the schools share."""
        drawn = auto(y, sigma)
        mu, tau = drawn["mu"], drawn["tau"]
        precision = 1.0 + (tau / sigma) ** 2
        with pyro.plate("data", len(y)):
            loc = (y - mu) * tau / sigma**2 / precision
            pyro.sample("eta", dist.Normal(loc, precision**-0.5))

    mu, log_tau = torch.meshgrid(
        torch.linspace(-20.0, 30.0, 200), torch.linspace(-1.5, 3.5, 200), indexing="ij"
    )
    rows = dist.Normal(mu[..., None], (log_tau[..., None].exp() ** 2 + sigma**2) ** 0.5).log_prob(y)
    prior = dist.Normal(0.0, 5.0).log_prob(mu) + dist.Normal(1.0, 0.5).log_prob(log_tau)
    posterior = (prior + rows.sum(-1)).flatten().log_softmax(0)
    expected = (posterior[:, None] + rows.flatten(0, 1)).logsumexp(0)
    train(model, guide, (y, sigma), num_steps=300, learning_rate=0.05, progress=False)
    got = score(model, guide, (y, sigma), num_samples=1000).log_evidence
    torch.testing.assert_close(got, expected, rtol=0, atol=0.1)


def decoder(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ w, 0.5).to_event(1), obs=x)


def test_every_verb_takes_a_bayesian_decoder() -> None:
    """At a w that hardly varies its numbers are those of the linear-Gaussian model at that w."""
    exact, x = LinearGaussian(), rows()
    weight = exact.weight.T

    def guide(x):
        gain = pyro.param("gain", exact.gain.T.clone())
        pyro.sample("w", dist.Normal(weight, 1e-5).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ gain, exact.covariance))

    options = {"num_samples": 50}
    got = score(decoder, guide, x, **options)
    expected = exact.log_evidence(x + exact.offset)
    torch.testing.assert_close(got.log_evidence, expected, rtol=0, atol=1e-2)
    gaps = inference_gap(decoder, guide, x, num_steps=5, **options)
    torch.testing.assert_close(gaps.log_evidence, got.log_evidence, rtol=0, atol=0.1)
    assert gaps.amortization_gap.abs().max() < 0.1
    assert contributions(decoder, guide, x, **options).shape == (30, 3)
    assert set(active_units(decoder, guide, x, **options).variance) == {"z"}
    ranks = simulation_based_calibration(decoder, guide, x)
    assert (ranks.p_values["z"] > 0.01).all() and set(ranks.ranks) == {"z"}
    train(decoder, guide, x, num_steps=2, held_out=x, progress=False)


def test_evidence_is_refined_with_draws_as_rows_and_with_classes_summed_out() -> None:
    x, mixing = 4.0 * torch.randn(2, 3), torch.randn(2, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.cumsum(1) @ mixing, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    assert check_contract(model, guide, (x,)).model == "rows"
    gain = torch.ones(2, 2).triu() @ mixing
    exact = dist.MultivariateNormal(torch.zeros(3), gain.T @ gain + torch.eye(3)).log_prob(x)
    scores = score(model, guide, x, refine="all")
    assert ((scores.log_evidence - exact).abs() < 5.0 * scores.stderr).all()

    y = torch.tensor([-6.0, 1.0])
    parts = dist.Normal(2.0 * CENTRES, 2.0**0.5).log_prob(y[:, None])
    exact = (parts + CHANCES.log()).logsumexp(1)
    scores = score(clusters, near, y, refine="all")
    assert ((scores.log_evidence - exact).abs() < 5.0 * scores.stderr).all()
    with pytest.raises(ValueError, match="latents that all rows share.*refine=False"):
        score(Regression().model, Regression().guide, (x[:, :2], x[:, 0]), refine="all")


def test_the_gap_of_a_guide_over_classes_is_its_divergence() -> None:
    """Summed out, the classes leave the weights alone, but not what the guide says of them."""
    centres, x = torch.tensor([-1.0, 1.0]), torch.linspace(-2.0, 2.0, 4)

    def mixture(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2.0))
            pyro.sample("x", dist.Normal(centres[k], 1.0), obs=x)

    @config_enumerate
    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=slope * x.unsqueeze(-1) * centres))

    posterior = dist.Categorical(logits=x.unsqueeze(-1) * centres)
    expected = torch.distributions.kl_divergence(
        dist.Categorical(logits=0.3 * x.unsqueeze(-1) * centres), posterior
    )
    gaps = inference_gap(mixture, guide, x, num_samples=2, num_steps=0)
    torch.testing.assert_close(gaps.inference_gap, expected, rtol=0, atol=1e-5)


def test_a_latent_that_rows_mask_is_refined_to_its_evidence() -> None:
    def masked(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=x > 0.0):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(x > 0.0, z, 0.0 * z), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 0.0):
            pyro.sample("z", dist.Normal(0.5 * x, 0.7))

    x = torch.tensor([-1.0, 1.0])
    expected = dist.Normal(0.0, torch.tensor([1.0, 2.0]).sqrt()).log_prob(x)
    scores = score(masked, guide, x, num_samples=10, refine="all")
    torch.testing.assert_close(scores.log_evidence, expected, rtol=0, atol=0.05)
