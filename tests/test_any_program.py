"""Programs as Pyro's users write them: the right number, or an error that says what to do."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import (
    SVI,
    EnergyDistance,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.autoguide import AutoIAFNormal, AutoNormal
from pyro.infer.reparam import SplitReparam
from torch import nn

from pyro_vaeflow import (
    anneal,
    contributions,
    inference_gap,
    log_weights,
    param_scope,
    score,
    simulation_based_calibration,
    train,
)
from pyro_vaeflow.inference.contract import check_contract
from tests.programs import LinearGaussian, TutorialVAE, rows


def standard(dim: int = 2) -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(dim), 1.0).to_event(1)


def decoded(decode, dim: int = 2, scale: float = 1.0):
    """A model that decodes z in its own way, and a guide whose scale is all that is learned."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(dim))
            pyro.sample("x", dist.Normal(decode(z), scale).to_event(1), obs=x)

    def guide(x):
        log_scale = pyro.param("log_scale", torch.zeros(dim))
        with pyro.plate("data", len(x)):
            loc = 0.1 * x.sum(-1, keepdim=True).expand(-1, dim)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


torch.manual_seed(0)
LINEAR, CONV = nn.Linear(2, 16), nn.ConvTranspose2d(4, 1, 2, 2)
GRU, OUT = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 1)
NORMED = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
for net in (LINEAR, CONV, GRU, OUT, NORMED):
    net.requires_grad_(False)
MATRIX = torch.randn(2, 3)

# As it is written for rows, and as it must be written for draws on the left.
DECODERS = {
    "softmax": (lambda z: (z @ MATRIX).softmax(1), lambda z: (z @ MATRIX).softmax(-1)),
    "normalize": (lambda z: F.normalize(z) @ MATRIX, lambda z: F.normalize(z, dim=-1) @ MATRIX),
    "cumsum": (lambda z: z.cumsum(1) @ MATRIX, lambda z: z.cumsum(-1) @ MATRIX),
    "sort": (lambda z: z.sort(1).values @ MATRIX, lambda z: z.sort(-1).values @ MATRIX),
    "shift": (
        lambda z: torch.cat([z[:, 1:], z[:, :1]], 1) @ MATRIX,
        lambda z: torch.cat([z[..., 1:], z[..., :1]], -1) @ MATRIX,
    ),
    "column": (lambda z: z[:, :1] * MATRIX[0], lambda z: z[..., :1] * MATRIX[0]),
    "convolution": (
        lambda z: CONV(LINEAR(z).view(-1, 4, 2, 2)).view(-1, 16)[:, :3],
        lambda z: CONV(LINEAR(z).reshape(-1, 4, 2, 2)).reshape(*z.shape[:-1], 16)[..., :3],
    ),
    "recurrent": (
        lambda z: OUT(GRU(z.unsqueeze(1).expand(-1, 3, -1))[0]).squeeze(-1),
        lambda z: OUT(GRU(z.reshape(-1, 1, 2).expand(-1, 3, -1))[0]).reshape(*z.shape[:-1], 3),
    ),
    "normed": (NORMED, lambda z: NORMED(z.reshape(-1, 2)).reshape(*z.shape[:-1], 3)),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.filterwarnings("ignore:two pairs have pyro.param")
def test_a_program_written_for_rows_scores_as_one_written_for_draws(name: str) -> None:
    """The draws of both ways are the same, so are all their weights."""
    x = rows(40)
    (by_rows, guide), (on_left, _) = (decoded(decode) for decode in DECODERS[name])
    way = check_contract(by_rows, guide, (x,))
    assert (way.guide, way.model) == ("left", "rows") and way.why
    assert check_contract(on_left, guide, (x,)).model == "left"
    weights = [log_weights(model, guide, x, num_samples=9) for model in (by_rows, on_left)]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-4)
    chunked = log_weights(by_rows, guide, x, num_samples=9, chunk_size=11)
    torch.testing.assert_close(chunked, weights[0], rtol=1e-4, atol=1e-4)
    parts = [contributions(model, guide, x, num_samples=9, seed=1) for model in (by_rows, on_left)]
    torch.testing.assert_close(*parts, rtol=1e-4, atol=1e-4)
    gaps = [inference_gap(m, guide, x[:5], num_steps=3) for m in (by_rows, on_left)]
    torch.testing.assert_close(gaps[0].local_elbo, gaps[1].local_elbo, rtol=1e-3, atol=1e-3)
    train(by_rows, guide, x, num_steps=2, progress=False, held_out=x)


def test_the_latent_of_row_0_is_no_other_rows() -> None:
    model, guide = decoded(lambda z: z[:, 0, None] * torch.ones(3), dim=1)
    other, _ = decoded(lambda z: z[..., 0, None] * torch.ones(3), dim=1)
    got, expected = (score(m, guide, rows(), num_samples=50).log_evidence for m in (model, other))
    torch.testing.assert_close(got, expected)


EXACT = LinearGaussian()


@pytest.mark.usefixtures("float64")
def test_factors_and_observed_sites_of_a_guide_are_no_part_of_its_density() -> None:
    exact, x = LinearGaussian(), rows()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", standard(1), infer={"is_auxiliary": True})
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[..., 0], infer={"is_auxiliary": True})
            z = pyro.sample("z", dist.MultivariateNormal(exact.posterior_loc(x), exact.covariance))
            pyro.factor("loss", -50.0 * z[..., 0] ** 2, has_rsample=True)

    got = score(exact.model, guide, x, num_samples=5)
    torch.testing.assert_close(got.log_evidence, exact.log_evidence(x))


def test_what_obs_mask_leaves_out_needs_no_guide() -> None:
    x, seen = rows(), torch.rand(30, 3) > 0.3

    def model(x, seen, masked=False):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("columns", 3, dim=-1):
                if masked:
                    with poutine.mask(mask=seen):
                        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
                else:
                    pyro.sample("x", dist.Normal(z, 0.5), obs=x, obs_mask=seen)

    def guide(x, seen, masked=False):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal((x * seen).mean(-1, keepdim=True), scale))

    by_mask, by_obs = partial(model, masked=True), model
    few, whole = (log_weights(by_obs, guide, (x[:n], seen[:n]), num_samples=5) for n in (4, 30))
    torch.testing.assert_close(few, whole[:, :4])
    options = {"num_steps": 20, "learning_rate": 0.05, "progress": False}
    torch.testing.assert_close(
        score(by_obs, guide, (x, seen)).log_evidence, score(by_mask, guide, (x, seen)).log_evidence
    )
    history = train(by_obs, guide, (x, seen), **options).frame
    torch.testing.assert_close(
        history["loss"].values, -history["elbo"].values, rtol=1e-4, atol=1e-4
    )


def test_deterministic_sites_are_no_sites_wherever_they_are() -> None:
    def model(x):
        scale = pyro.deterministic("scale", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            loc = pyro.deterministic("loc", z @ EXACT.weight.T + EXACT.offset, event_dim=1)
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    got = score(model, EXACT.exact_guide, rows(), num_samples=3).log_evidence
    torch.testing.assert_close(got, EXACT.log_evidence(rows()), rtol=1e-4, atol=1e-4)
    ranks = simulation_based_calibration(model, EXACT.exact_guide, rows(), num_simulations=200)
    assert set(ranks.ranks) == {"z"}


PLATES = {
    "no size": lambda x: pyro.plate("data"),
    "subsample": lambda x: pyro.plate("data", 1000, subsample=torch.arange(len(x))),
    "subsample_size": lambda x: pyro.plate("data", len(x), subsample_size=len(x)),
}


@pytest.mark.parametrize("name", PLATES)
def test_plates_are_taken_as_pyro_takes_them(name: str) -> None:
    """The scale of a plate that subsamples is no part of a row's numbers."""

    def model(x):
        with PLATES[name](x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            loc = z @ EXACT.weight.T + EXACT.offset
            pyro.sample("x", dist.Normal(loc, EXACT.scale).to_event(1), obs=x)

    def guide(x):
        unused = pyro.param("unused", torch.zeros(()))
        with PLATES[name](x):
            made = EXACT.posterior_loc(x) + 0.0 * unused
            pyro.sample("z", dist.MultivariateNormal(made, EXACT.covariance))

    got = score(model, guide, rows(), num_samples=3).log_evidence
    torch.testing.assert_close(got, EXACT.log_evidence(rows()), rtol=1e-4, atol=1e-4)
    frame = train(model, guide, rows(), num_steps=1, progress=False).frame
    assert -frame["loss"].item() == pytest.approx(
        EXACT.log_evidence(rows()).mean().item(), abs=1e-3
    )


def delta(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(EXACT.posterior_loc(x), event_dim=1))


def by_index(make):
    """A guide that reads a parameter for each of 30 rows at the plate's index."""

    def guide(x):
        loc = make()
        with pyro.plate("data", len(x)) as index:
            pyro.sample("z", dist.Normal(loc[index], 1.0).to_event(1))

    return guide


class Table(nn.Module):
    """Parameters for 30 rows, held by a module."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(30, 2))

    def forward(self, x):
        by_index(lambda: self.loc)(x)


def by_index_from_torchs_stream(family, parameter):
    """A latent whose draws no noise of a row makes, and a guide with a parameter for each row."""
    options = (1.0,) if family is dist.Gamma else ()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", family(parameter, *options))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        table = pyro.param("table", parameter.expand(30, *parameter.shape).clone())
        with pyro.plate("data", len(x)) as index:
            pyro.sample("z", family(table[index].exp(), *options))

    return model, guide


REFUSALS = {
    "delta": (EXACT.model, delta, "'z' of the guide is a Delta.*gives no evidence.*a Normal"),
    "param by index": (
        EXACT.model,
        by_index(lambda: pyro.param("loc", torch.zeros(30, 2))),
        "a row depend on its place.*compute from a row",
    ),
    "module by index": (EXACT.model, Table(), "a row depend on its place.*compute from a row"),
    "discrete by index": (
        *by_index_from_torchs_stream(dist.Categorical, torch.ones(4) / 4.0),
        "a row depend on its place.*compute from a row",
    ),
    "gamma by index": (
        *by_index_from_torchs_stream(dist.Gamma, torch.tensor(2.0)),
        "a row depend on its place.*compute from a row",
    ),
    "autonormal": (EXACT.model, AutoNormal(EXACT.model), r"'locs.z_unconstrained' has shape \(7"),
    "autoiaf": (EXACT.model, AutoIAFNormal(EXACT.model), "is a Delta|not on another number of"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_has_no_right_number_is_refused_by_name(name: str) -> None:
    model, guide, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        score(model, guide, rows())
    if name != "delta":
        with pytest.raises(ValueError, match=message):
            train(model, guide, rows(), num_steps=1, progress=False)


@pytest.mark.filterwarnings("ignore:site 'z'")
@pytest.mark.parametrize("family", [dist.Categorical, dist.Gamma])
def test_draws_from_torchs_stream_are_no_reason_to_refuse(family) -> None:
    """Neither are they taken for draws that depend on a row's place, nor for another way's."""
    continuous = family is dist.Gamma

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", family(*(2.0, 1.0) if continuous else (torch.ones(4) / 4.0,)))
            loc = torch.stack([z, 2.0 * z], 1).cumsum(1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            concentration = x[..., 0].abs() + 1.0
            four = x[..., :1] * torch.arange(4.0)
            pyro.sample("z", family(concentration, 1.0) if continuous else family(logits=four))

    x = rows()[:, :2]
    assert check_contract(model, guide, (x,)).model == "rows"
    scores = score(model, guide, x, num_samples=4000)
    z = torch.linspace(1e-3, 30.0, 20_000) if continuous else torch.arange(4.0)
    prior = (
        dist.Gamma(2.0, 1.0).log_prob(z) + math.log(30.0 / 20_000) if continuous else -math.log(4)
    )
    loc = torch.stack([z, 3.0 * z], -1)
    parts = dist.Normal(loc, 1.0).log_prob(x[:, None]).sum(-1) + prior
    assert ((scores.log_evidence - parts.logsumexp(1)).abs() < 5.0 * scores.stderr + 1e-3).all()


def test_a_relaxed_guide_is_refused_and_trained() -> None:
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.OneHotCategorical(torch.ones(3) / 3.0))
            pyro.sample("x", dist.Normal(k, 1.0).to_event(1), obs=x)

    def guide(x):
        bias = pyro.param("bias", torch.zeros(3))
        relaxed = dist.RelaxedOneHotCategoricalStraightThrough
        with pyro.plate("data", len(x)):
            pyro.sample("k", relaxed(torch.tensor(0.5), logits=x + bias))

    train(model, guide, rows(), num_steps=1, progress=False)
    with pytest.raises(ValueError, match="'k' of the guide.*score with one.*discrete"):
        score(model, guide, rows())


def test_a_refused_autoguide_still_works_in_pyro() -> None:
    guide = AutoNormal(EXACT.model)
    with pytest.raises(ValueError):
        score(EXACT.model, guide, rows())
    SVI(EXACT.model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(rows())
    assert guide.median(rows())["z"].shape == (30, 2)


def test_rows_that_differ_in_a_later_argument_have_noise_of_their_own() -> None:
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            pyro.sample("y", dist.Normal(x + z, 1.0).to_event(1), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * y, 1.0).to_event(1))

    y = torch.cat([torch.zeros(2, 2), torch.full((2, 2), 1e-6)])
    weights = log_weights(model, guide, (torch.zeros(4, 2), y), num_samples=5)
    assert torch.equal(weights[:, 0], weights[:, 1])
    assert (weights[:, 0] - weights[:, 2]).abs().max() > 1e-2


def test_an_argument_with_as_many_entries_as_rows_is_no_guess() -> None:
    def model(x, table):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            loc = z @ EXACT.weight.T + table[:3]
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(x, table):
        EXACT.exact_guide(x)

    with pytest.raises(ValueError, match="argument 1 has 30 entries, as many as x has rows"):
        score(model, guide, (rows(), torch.randn(30)))
    score(model, guide, (rows(), torch.randn(29)), num_samples=2)


@pytest.mark.parametrize("wrap", [poutine.scale(scale=1.0), poutine.mask(mask=True)])
def test_a_module_inside_a_handler_is_trained(wrap) -> None:
    model = _Half()
    before = model.net.weight.clone()
    train(wrap(model), EXACT.narrow_guide(0.5), rows(), num_steps=2, progress=False)
    assert not torch.equal(model.net.weight, before)


def test_a_module_that_nothing_shows_is_named() -> None:
    model = _Half()
    hidden = lambda x: model(x)  # noqa: E731
    with pytest.raises(ValueError, match=r"nothing shows to Pyro.*Linear.weight.*pyro.module"):
        train(hidden, EXACT.diagonal_guide, rows(), num_steps=1, progress=False)
    model.requires_grad_(False)
    train(hidden, EXACT.diagonal_guide, rows(), num_steps=1, progress=False)


class _Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 3)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            pyro.sample("x", dist.Normal(self.net(z), 0.5).to_event(1), obs=x)


def located(x):
    loc = pyro.param("loc", torch.zeros(3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard(3))
        pyro.sample("x", dist.Normal(loc + 0.01 * z, 0.5).to_event(1), obs=x)


def prior(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", standard(3))


def test_what_was_trained_is_seen_by_the_rest_of_pyro() -> None:
    x = rows() + 5.0
    train(located, prior, x, num_steps=200, learning_rate=0.1, progress=False)
    drawn = Predictive(poutine.uncondition(located), guide=prior, num_samples=20)(x)["x"]
    assert drawn.mean() == pytest.approx(x.mean().item(), abs=0.2)
    loss = Trace_ELBO().loss(located, prior, x) / len(x)
    assert loss == pytest.approx(-score(located, prior, x).elbo.mean().item(), abs=0.1)


def test_two_pairs_of_one_name_are_told_apart() -> None:
    one, other = (lambda x: located(x) for _ in range(2))
    train(one, prior, rows(), num_steps=1, progress=False)
    with pytest.warns(UserWarning, match=r"two pairs have pyro.param \['loc'\].*param_scope"):
        train(other, prior, rows() + 5.0, num_steps=5, learning_rate=0.5, progress=False)
    shown = pyro.param("loc").clone()
    with param_scope(one, prior):
        first = pyro.param("loc").clone()
    assert shown.mean() > first.mean() + 1.0
    with pytest.warns(UserWarning, match="no parameters are known"):
        score(lambda x: located(x), prior, rows(), num_samples=2)


def iwae(num_particles: int):
    return RenyiELBO(alpha=0, num_particles=num_particles, vectorize_particles=True)


def test_a_loss_that_is_no_sum_is_trained_as_pyro_has_it() -> None:
    """Its value is the importance-weighted bound of a row."""
    model, guide = decoded(lambda z: z @ MATRIX)
    x, k = rows(), 32
    weights = log_weights(model, guide, x, num_samples=100 * k).view(100, k, 30)
    expected = (weights.logsumexp(1) - math.log(k)).mean()
    options = {"num_steps": 100, "learning_rate": 0.0, "progress": False}
    frame = train(model, guide, x, loss=iwae(k), **options).frame
    assert -frame["loss"].mean() == pytest.approx(expected.item(), abs=0.15)
    assert frame["elbo"].mean() == pytest.approx(weights.mean().item(), abs=0.3)


class Own(Trace_ELBO):
    """A loss of one's own."""


@pytest.mark.parametrize("loss", [ReweightedWakeSleep(num_particles=3), Own()])
def test_other_losses_train(loss) -> None:
    frame = train(*decoded(lambda z: z @ MATRIX), rows(), num_steps=2, loss=loss, progress=False)
    assert frame.frame[["loss", "elbo"]].notna().all(axis=None)


@pytest.mark.parametrize(
    "loss, error, message",
    [
        (JitTrace_ELBO(), ValueError, "JitTrace_ELBO keeps.*loss=Trace_ELBO"),
        (TraceTailAdaptive_ELBO(), ValueError, "TraceTailAdaptive_ELBO has gradients but no value"),
        (EnergyDistance(), TypeError, "subclass of pyro.infer.ELBO"),
    ],
)
def test_a_loss_that_cannot_be_watched_is_refused(loss, error, message) -> None:
    with pytest.raises(error, match=message):
        train(*decoded(lambda z: z @ MATRIX), rows(), num_steps=1, loss=loss, progress=False)


def test_a_compiled_loss_keeps_no_beta() -> None:
    vae = TutorialVAE()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), JitTrace_ELBO())
    with pytest.raises(ValueError, match="Jit.*keeps the beta"), anneal(0.5):
        svi.step(rows())


OPTIMIZERS = {
    "adam": (lambda: pyro.optim.Adam({"lr": 0.5}), [0.5, 0.5, 0.5]),
    "clipped": (lambda: pyro.optim.ClippedAdam({"lr": 0.5, "lrd": 0.1}), [0.5, 0.05, 0.005]),
    "schedule": (
        lambda: pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.5}, "gamma": 0.5}
        ),
        [0.5, 0.25, 0.125],
    ),
    "torch": (lambda: partial(torch.optim.Adam, betas=(0.9, 0.99)), [1e-3] * 3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_taken_as_their_users_pass_them(name: str) -> None:
    make, rates = OPTIMIZERS[name]
    pair = decoded(lambda z: z @ MATRIX)
    frame = train(*pair, rows(), num_steps=3, optimizer=make(), progress=False).frame
    assert frame["learning_rate"].tolist() == pytest.approx(rates)


@pytest.mark.parametrize(
    "optimizer, options, message",
    [
        (pyro.optim.ClippedAdam, {}, "ClippedAdam; pass pyro.optim.Adam"),
        (torch.optim.SGD([torch.zeros(1)], lr=1.0), {}, "SGD that has parameters.*torch.optim.SGD"),
        (torch.optim.LBFGS, {}, "LBFGS runs the loss several times"),
        (pyro.optim.Adam({"lr": 0.1}), {"learning_rate": 0.1}, "given twice"),
        (pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0}), {}, "clip_norm=..."),
        (
            pyro.optim.ReduceLROnPlateau({"optimizer": torch.optim.SGD, "optim_args": {"lr": 1.0}}),
            {},
            "ReduceLROnPlateau needs more than the number of the step",
        ),
    ],
)
def test_an_optimizer_of_another_kind_is_told_what_to_pass(optimizer, options, message) -> None:
    pair = decoded(lambda z: z @ MATRIX)
    with pytest.raises((TypeError, ValueError), match=message):
        train(*pair, rows(), num_steps=3, optimizer=optimizer, progress=False, **options)


def test_compiled_networks_run_but_have_no_gaps() -> None:
    net = nn.Linear(3, 4)
    compiled = torch.compile(net, backend="eager")

    def guide_of(encode):
        def guide(x):
            pyro.module("net", net)
            loc, log_scale = encode(x).chunk(2, -1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

        return guide

    guide = guide_of(compiled)
    got, expected = (
        score(EXACT.model, guide_of(f), rows(), num_samples=5) for f in (compiled, net)
    )
    torch.testing.assert_close(got.elbo, expected.elbo)
    train(EXACT.model, guide, rows(), num_steps=2, progress=False)
    for encode in (compiled, torch.jit.script(net)):
        with pytest.raises(ValueError, match="compiled code in which no row"):
            inference_gap(EXACT.model, guide_of(encode), rows(), num_steps=1)


def test_contributions_have_the_shape_of_the_site() -> None:
    def of(observe):
        def model(x):
            with pyro.plate("data", len(x)):
                observe(pyro.sample("z", standard(3)), x)

        return model

    def pairs(z, x):
        loc = torch.stack([z, z], -1)
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(2), obs=torch.stack([x, x], -1))

    def scalar(z, x):
        pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x[..., 0])

    assert contributions(of(scalar), prior, rows()).shape == (30, 1)
    assert contributions(of(pairs), prior, rows()).shape == (30, 3, 2)


@pytest.mark.parametrize("kept", ["in place", "a generator", "a running mean"])
def test_programs_that_keep_something_of_their_own_are_trained(kept: str) -> None:
    """Their numbers differ from call to call, which says nothing of the places of rows."""
    generator, mean = torch.Generator().manual_seed(1), torch.zeros(3)

    def seen(x):
        if kept == "in place":
            return x.mul_(1.5)
        if kept == "a generator":
            return x + torch.randn(x.shape, generator=generator)
        mean.mul_(0.9).add_(0.1 * x.mean(0))
        return x - mean

    model, _ = decoded(lambda z: z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3))

    def guide(x):
        gain = pyro.param("gain", torch.ones(2))
        with pyro.plate("data", len(x)):
            loc = 0.1 * seen(x).sum(-1, keepdim=True) * gain
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    assert train(model, guide, rows(), num_steps=2, progress=False).frame["loss"].notna().all()


def test_a_reparametrised_latent_leaves_its_density() -> None:
    """``SplitReparam`` leaves that of the whole at a Delta; no weight of an exact guide varies."""
    model = poutine.reparam(EXACT.model, config={"z": SplitReparam([1, 1], -1)})
    scale = EXACT.covariance.diagonal().sqrt()
    slope = EXACT.covariance[0, 1] / EXACT.covariance[0, 0]
    rest = (EXACT.covariance[1, 1] - slope * EXACT.covariance[0, 1]).sqrt()

    def guide(x):
        one, other = EXACT.posterior_loc(x).split(1, -1)
        with pyro.plate("data", len(x)):
            first = pyro.sample("z_split_0", dist.Normal(one, scale[0]).to_event(1))
            loc = other + slope * (first - one)
            pyro.sample("z_split_1", dist.Normal(loc, rest).to_event(1))

    weights = log_weights(model, guide, rows(), num_samples=5)
    expected = EXACT.log_evidence(rows()).expand(5, -1)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="cannot be simulated: ImproperUniform"):
        simulation_based_calibration(model, guide, rows())


def of_other_rows(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", standard())
        pyro.sample("x", dist.Normal(z.softmax(-2) @ MATRIX, 1.0).to_event(1), obs=x)


def of_a_part(x):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
        with pyro.plate("columns", 3, subsample_size=2, dim=-1) as some:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, some])


def of_a_column(x):
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))


def of_one_number(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :1], 1.0).to_event(1))


def of_two_numbers(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + 0.0 * x, 1.0).to_event(1), obs=x)


def factored(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("preference", z.sum(-1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) + 0.0 * x, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    "model, guide, message",
    [
        (of_other_rows, EXACT.exact_guide, "numbers of a row depend on .* the other rows"),
        (of_a_part, of_a_column, "'columns' around site 'x' draws 2 of 3.*no subsample_size"),
        (of_two_numbers, of_one_number, r"'z' has shape \(7, 2\) in the model and \(7, 1\)"),
    ],
)
def test_what_broadcasts_to_a_wrong_number_is_refused(model, guide, message) -> None:
    with pytest.raises(ValueError, match=message):
        score(model, guide, rows(), num_samples=2)


def test_a_model_with_a_factor_is_not_simulated() -> None:
    with pytest.raises(ValueError, match=r"sites \['preference'\].*calibrate a model without"):
        simulation_based_calibration(factored, EXACT.exact_guide, rows())
