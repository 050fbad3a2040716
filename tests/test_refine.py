"""Refined evidence against closed forms and quadrature, where the guide is far from right."""

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow import Guide, Model, make_ring, score, train
from pyro_vaeflow.inference import importance
from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.latent_vectors import Latents
from pyro_vaeflow.inference.noise import RowStream
from pyro_vaeflow.inference.refine import Effort, Refined, doubtful, refine, starts
from pyro_vaeflow.inference.student_mixtures import StudentMixture, fitted
from pyro_vaeflow.inference.tempering import Path, annealed_log_weights, tempered_draws
from pyro_vaeflow.programs.priors import ExemplarMixture
from tests.programs import LinearGaussian

pytestmark = pytest.mark.usefixtures("float64")

NORMAL, NEAR = dist.Normal(0.0, 1.0), dist.Normal(0.0, 1.01**0.5)


def line(log_density: Callable, low: float = -12.0, high: float = 12.0) -> torch.Tensor:
    """The logarithm of an integral over a line, the log density given at points ``(n, 1)``."""
    points = torch.linspace(low, high, 20_001).double().unsqueeze(-1)
    return log_density(points).logsumexp(0) + (points[1] - points[0]).log()


# Shape of the posterior -> mean of x given two standard normal latents, its scale, log p(x), and
# what the guide says of a row: one place, often of one of two modes, and a scale.
SHAPES: dict[str, tuple[Callable, float, Callable, Callable]] = {
    "banana": (
        lambda z: z[..., :1].square() + z[..., 1:],
        0.1,
        lambda x: line(
            lambda g: NORMAL.log_prob(g) + dist.Normal(g**2, 1.01**0.5).log_prob(x[:, 0])
        ),
        lambda x: (torch.cat([0 * x, x], -1), 0.3),
    ),
    "two modes": (
        lambda z: torch.cat([z[..., :1].square(), z[..., 1:]], -1),
        0.1,
        lambda x: (
            line(lambda g: NORMAL.log_prob(g) + dist.Normal(g**2, 0.1).log_prob(x[:, 0]))
            + dist.Normal(0.0, 1.01**0.5).log_prob(x[:, 1])
        ),
        lambda x: (torch.stack([x[:, 0].clamp(min=0.01).sqrt(), x[:, 1]], -1), 0.1),
    ),
    "funnel": (
        lambda z: z[..., 1:] * (1.2 * z[..., :1]).exp(),
        0.2,
        lambda x: line(
            lambda g: (
                NORMAL.log_prob(g)
                + dist.Normal(0.0, ((2.4 * g).exp() + 0.04).sqrt()).log_prob(x[:, 0])
            )
        ),
        lambda x: (torch.cat([0 * x, x.clamp(-2.0, 2.0)], -1), 0.4),
    ),
    "ring": (
        lambda z: z.norm(dim=-1, keepdim=True),
        0.05,
        lambda x: line(
            lambda g: g.log() - 0.5 * g**2 + dist.Normal(g, 0.05).log_prob(x[:, 0]), 1e-6, 14.0
        ),
        lambda x: (torch.cat([0 * x, x], -1), 0.2),
    ),
}


def programs(name: str) -> tuple[Callable, Callable]:
    mean, scale, _, locate = SHAPES[name]

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(mean(z), scale).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        loc, width = locate(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, width).to_event(1))

    return model, guide


def rows(name: str, num_data: int, spread: float) -> torch.Tensor:
    """Rows of latents so many times as wide as the prior; 1 for inliers."""
    mean, scale, *_ = SHAPES[name]
    loc = mean(spread * torch.randn(num_data, 2))
    return (loc + scale * torch.randn_like(loc)).clamp(-12.0, 12.0)


def grid_evidence(
    model: Model, x: torch.Tensor, half: float = 8.0, size: int = 801
) -> torch.Tensor:
    """log p(x) of a VAE with two latents and one scale for all rows, by quadrature."""
    axis, total = torch.linspace(-half, half, size), torch.full((len(x),), -math.inf)
    with torch.no_grad():
        for part in axis.split(40):
            z = torch.cartesian_prod(part, axis)
            of_x = model.eval().decode(z).base_dist
            whitened, loc = x / of_x.scale[0], of_x.loc / of_x.scale[0]
            square = torch.cdist(whitened, loc).square() + z.square().sum(-1)
            constant = of_x.scale[0].log().sum() + 2.0 * math.log(2.0 * math.pi)
            total = total.logaddexp((-0.5 * square).logsumexp(-1) - constant)
    return total + 2.0 * (axis[1] - axis[0]).log()


@cache
def trained_on_a_ring(flow: str, num_flows: int, **options) -> tuple[Model, Guide]:
    sizes = {"latent_dim": 2, "hidden_dims": (16,), "dropout": 0.0, "activation": "tanh"}
    model = Model(2, likelihood="normal", **sizes)
    guide = Guide(2, flow=flow, num_flows=num_flows, flow_options=options, **sizes)
    rate = {"learning_rate": lambda step: 0.02 * (1.0 - step / 250) + 1e-4}
    x = make_ring(2000, 0.1).double()
    train(model, guide, x, num_steps=250, batch_size=128, progress=False, **rate)
    return model, guide


VAES = {
    "diagonal": partial(trained_on_a_ring, "diagonal", 0),
    "planar": partial(trained_on_a_ring, "planar", 4),
    "iaf": partial(trained_on_a_ring, "iaf", 2, hidden_dim=8),
    "spline": partial(trained_on_a_ring, "spline", 1),
}


def assert_right(errors: torch.Tensor, refined: Refined, allowed: int = 0) -> None:
    """Within three standard errors but for so many rows; means and E[w] / p(x) as they must be."""
    off = errors.abs() > 3.0 * refined.stderr
    assert off.sum() <= allowed, (errors[off], refined.stderr[off], refined.khat[off])
    assert errors.abs().max() < 0.5 and errors.mean().abs() < 0.05
    ratio, stderr = errors.exp(), refined.stderr.square().mean().sqrt()
    assert abs(ratio.mean() - 1.0) < 3.0 * stderr / len(ratio) ** 0.5


@pytest.mark.parametrize("spread", [1.0, 3.0], ids=["inliers", "anomalies"])
def test_99_of_100_rows_are_within_three_of_their_standard_errors(spread) -> None:
    """Curved posteriors, separate modes and VAEs together: 80 rows, of which one may be off."""
    parts, errors = [], []
    for name, (_, _, evidence, _) in SHAPES.items():
        x = rows(name, 10, spread)
        parts.append(refine(*programs(name), (x,)))
        errors.append(parts[-1].log_evidence - evidence(x))
        if name == "two modes":  # one mode is all that the guide sees, and its k-hat is fine
            scores = score(*programs(name), x, num_samples=1000)
            assert (scores.log_evidence - evidence(x)).median() < -0.5
    for make in VAES.values():
        model, guide = make()
        x = make_ring(20, 0.1, seed=1).double() if spread == 1.0 else 3.0 * torch.rand(10, 2) - 1.5
        parts.append(refine(model, guide, (x,)))
        errors.append(parts[-1].log_evidence - grid_evidence(model, x))
    names = vars(parts[0])
    whole = Refined(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})
    assert_right(torch.cat(errors), whole, allowed=1)
    assert (whole.khat > 0.7).double().mean() < 0.05


def gamma_poisson() -> tuple[Callable, Callable, torch.Tensor, torch.Tensor]:
    """A positive rate; counts are negative binomial."""

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal((x + 0.5).log(), 0.1))

    x = torch.tensor([0.0, 3.0, 8.0, 40.0])
    return model, guide, x, dist.NegativeBinomial(2.0, probs=torch.tensor(2 / 3)).log_prob(x)


def dirichlet_multinomial() -> tuple[Callable, Callable, torch.Tensor, torch.Tensor]:
    """A point of the simplex, with fewer real numbers than entries."""
    concentration, draws = torch.tensor([0.8, 2.0, 3.0]), 12

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            share = pyro.sample("share", dist.Dirichlet(concentration))
            pyro.sample("x", dist.Multinomial(draws, share, validate_args=False), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("share", dist.Dirichlet(torch.ones_like(x)))

    x = torch.tensor([[4.0, 4.0, 4.0], [12.0, 0.0, 0.0], [0.0, 5.0, 7.0]])
    return model, guide, x, dist.DirichletMultinomial(concentration, draws).log_prob(x)


@pytest.mark.filterwarnings("ignore:site 'share'")  # gamma numbers have no counter-based noise
@pytest.mark.parametrize("make", [gamma_poisson, dirichlet_multinomial])
def test_latents_with_bounds_have_the_evidence_of_their_closed_form(make) -> None:
    model, guide, x, truth = make()
    refined = refine(model, guide, (x,))
    assert_right(refined.log_evidence - truth, refined)
    assert refined.ess.min() > 1000


def test_many_latents_of_separate_parts_have_the_evidence_of_their_closed_form() -> None:
    """Fifteen latents, correlated given x; the guide sees none of the five parts, and is narrow."""
    num_latents, num_parts = 15, 5
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(18, num_latents, generator=draw)
    centres = 1.5 * torch.randn(num_parts, num_latents, generator=draw)
    scales = torch.full((num_latents,), 0.3), torch.full((num_latents,), 2.0)
    prior = ExemplarMixture(torch.zeros(num_parts + 1), centres, *scales)  # the last part is wide

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ weight.T, 0.7).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(num_latents), 0.1).to_event(1))

    between = 0.5 * (centres[0] + centres[1]) @ weight.T
    x = torch.stack([centres[2] @ weight.T, between, 3.0 * torch.randn(18)])
    width = torch.tensor([0.3] * num_parts + [2.0])[:, None, None]
    covariance = width**2 * (weight @ weight.T) + 0.49 * torch.eye(18)
    loc = torch.cat([centres @ weight.T, torch.zeros(1, 18)])
    of_parts = dist.MultivariateNormal(loc, covariance).log_prob(x.unsqueeze(1))
    refined = refine(model, guide, (x,))
    truth = of_parts.logsumexp(1) - math.log(num_parts + 1)
    assert_right(refined.log_evidence - truth, refined)
    assert (refined.khat <= 0.7).all()


def test_rounds_begin_in_a_part_of_the_prior_that_is_wide_and_seldom() -> None:
    """Anomalies' posteriors are there, where nonlinear decoders leave gradients nothing to follow.

    A hundredth of the prior, whose other parts are narrow and far from it: few draws of a start of
    the whole prior's moments would ever be of its density.
    """
    dim, draw = 16, torch.Generator().manual_seed(1)
    centres = 4.0 + 0.3 * torch.randn(20, dim, generator=draw)
    log_weights = torch.tensor([1.0] * 20 + [0.2]).log()
    prior = ExemplarMixture(log_weights, centres, torch.full((dim,), 0.4), torch.full((dim,), 3.0))

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full((dim,), 4.0), 0.5).to_event(1))

    args = (torch.zeros(5),)
    latents = Latents(model, guide, args, check_contract(model, guide, args), "data")
    far = starts(latents, 0)[1]
    wide = dist.Normal(torch.zeros(dim), 3.0).to_event(1)
    u = far.draw(2000, RowStream(torch.arange(5.0).unsqueeze(-1), 0))
    assert (importance.effective_sample_size((wide.log_prob(u) - far.log_prob(u)).T) > 60).all()


@pytest.mark.filterwarnings("ignore:site 'r'")  # a beta has no counter-based noise
def test_draws_of_the_prior_that_are_equal_leave_a_place_to_begin() -> None:
    """In single precision a beta's outermost draws are all 1, the transform's last number."""

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            r = pyro.sample("r", dist.Beta(torch.tensor(1.0).float(), 0.25))
            pyro.sample("x", dist.Normal(r, 0.3), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("r", dist.Beta(torch.full_like(x, 2.0), 2.0))

    x = torch.tensor([-0.5, 0.3, 0.9]).float()
    share = torch.linspace(0.0, 1.0, 400_001)[1:-1].double()  # of (1 - r)^0.25, whose prior is even
    r = (1.0 - share**4).unsqueeze(-1)
    truth = dist.Normal(r, 0.3).log_prob(x.double()).logsumexp(0) - math.log(len(r))
    refined = refine(model, guide, (x,))
    assert ((refined.log_evidence - truth).abs() < 0.1).all()
    low = torch.full((3,), -50.0)
    assert doubtful(model, guide, (x,), low, torch.zeros(3)).all()


def test_every_way_of_a_row_has_its_closed_form_and_its_number_of_draws(monkeypatch) -> None:
    """Content with the first trial, with the second, or with none and annealed."""
    exact = LinearGaussian()
    x, guide = exact.sample(20), exact.narrow_guide(0.3)
    for first, second, num_samples in ((9.0, 9.0, 400), (-9.0, 9.0, 800), (-9.0, -9.0, 1000)):
        efforts = Effort(200, 400, 50, 8, first), Effort(400, 800, 50, 8, second)
        monkeypatch.setattr("pyro_vaeflow.inference.refine.EFFORTS", efforts)
        refined = refine(exact.model, guide, (x,))
        assert (refined.num_samples == num_samples).all()
        assert_right(refined.log_evidence - exact.log_evidence(x), refined, allowed=1)
        alone = refine(exact.model, guide, (x[7:8],))
        torch.testing.assert_close(alone.log_evidence, refined.log_evidence[7:8])


def test_rows_and_seed_decide() -> None:
    model, guide = programs("two modes")
    x = rows("two modes", 7, 1.5)
    whole = refine(model, guide, (x,))
    order = torch.tensor([3, 0, 6])
    for few, seed in ((order, 0), (order, 1)):
        part = refine(model, guide, (x[few],), seed=seed)
        for name, value in vars(whole).items():
            same = torch.allclose(getattr(part, name), value[few], rtol=1e-6, atol=1e-6)
            assert same == (seed == 0) or name == "num_samples", name


def test_every_pair_has_refined_evidence_as_its_many_draws_have(row_pair, monkeypatch) -> None:
    less = Effort(500, 2000, 100, 8)  # the posteriors are simple
    monkeypatch.setattr("pyro_vaeflow.inference.refine.EFFORTS", (less,))
    row_pair.fit(num_steps=1)
    x = row_pair.x
    few = tuple(arg[:3] for arg in x) if isinstance(x, tuple) else x[:3]
    if "on" in getattr(row_pair.model, "__code__", type("", (), {"co_consts": ()})).co_consts:
        with pytest.raises(ValueError, match="latent 'on' is discrete.*refine=False"):
            row_pair.score(few, refine="all")
        return
    many, refined = row_pair.score(few, num_samples=5000), row_pair.score(few, refine="all")
    assert refined.refined.all() and not many.refined.any()
    error = torch.hypot(refined.stderr, many.stderr) * 4.0 + 0.5 * many.stderr**2
    assert ((refined.log_evidence - many.log_evidence).abs() <= error + 1e-4)[many.khat < 0.5].all()


def test_score_refines_the_rows_that_need_it_alone() -> None:
    exact = LinearGaussian()
    x, narrow = exact.sample(12), exact.narrow_guide(0.3)
    first = score(exact.model, narrow, x)
    scores = score(exact.model, narrow, x, refine=True, tol=0.13)
    assert torch.equal(scores.refined, (first.khat > 0.7) | (first.stderr > 0.13))
    assert scores.refined.any() and not scores.refined.all()
    kept, fresh = ~scores.refined, score(exact.model, narrow, x, tol=0.13)
    assert torch.equal(scores.log_evidence[kept], fresh.log_evidence[kept])  # no pilot's draws
    assert (scores.log_evidence[kept] != first.log_evidence[kept]).all()
    without = score(exact.model, narrow, x, refine=True)
    kept = ~without.refined
    assert torch.equal(without.log_evidence[kept], first.log_evidence[kept])
    assert torch.equal(without.elbo, first.elbo)
    assert len(score(exact.model, narrow, x[:0], refine=True, tol=0.1).khat) == 0
    off = (scores.log_evidence - exact.log_evidence(x)).abs()[scores.refined]
    assert (off < 3.0 * scores.stderr[scores.refined]).all()
    assert scores.to_frame()["refined"].sum() == scores.refined.sum()
    certain = score(exact.model, exact.exact_guide, x, refine=True)
    assert not certain.refined.any()


@pytest.mark.parametrize("name", ["two modes", "ring"])
def test_rows_whose_draws_agree_and_miss_a_mode_are_refined(name: str) -> None:
    model, guide = programs(name)
    x = torch.cat([rows(name, 10, 1.0), rows(name, 10, 2.0)])
    truth, first = SHAPES[name][2](x), score(model, guide, x)
    assert ((first.khat <= 0.7) & (truth - first.log_evidence > 0.5)).sum() >= 3  # all looks well
    scores = score(model, guide, x, refine=True)
    assert ((scores.log_evidence - truth).abs() <= 0.3 + 3.0 * scores.stderr).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_had_whatever_the_caller_has_switched_off(mode, monkeypatch) -> None:
    little = Effort(100, 100, 20, 2)
    monkeypatch.setattr("pyro_vaeflow.inference.refine.EFFORTS", (little,))
    exact = LinearGaussian()
    with mode():
        x = exact.sample(2)
        scores = score(exact.model, exact.narrow_guide(0.15), x, refine="all")
    assert scores.log_evidence.isfinite().all() and scores.refined.all()


# --- paths ---


def correlated_normal(scale: float) -> tuple[Callable, torch.Tensor, torch.Tensor]:
    """A log density of 12 dimensions that integrates to e^3, its place, and its covariance."""
    draw = torch.Generator().manual_seed(2)
    factor = scale * (torch.eye(12) + 0.3 * torch.randn(12, 12, generator=draw).tril(-1))
    loc = torch.full((12,), 2.0)
    normal = dist.MultivariateNormal(loc, scale_tril=factor)
    return lambda u: normal.log_prob(u) + 3.0, loc, factor @ factor.T


def path_to(log_joint: Callable, place: float, width: float) -> Path:
    loc = torch.full((3, 1, 12), place)
    return Path(log_joint, StudentMixture(torch.zeros(3, 1), loc, width * torch.eye(12)))


def test_draws_at_the_end_of_a_path_are_of_its_density() -> None:
    log_joint, loc, covariance = correlated_normal(0.2)
    stream = RowStream(torch.arange(3.0).unsqueeze(-1), 0)
    u = tempered_draws(path_to(log_joint, 0.0, 2.0), 400, 20, stream)
    assert u.shape == (3, 2000, 12)
    scale = covariance.diagonal().sqrt()
    assert ((u.mean(1) - loc) / scale).abs().max() < 0.3
    for row in u:
        whole = torch.linalg.solve(covariance, torch.cov(row.T))
        assert whole.diagonal().mean() == pytest.approx(1.0, abs=0.15)


def test_annealed_weights_have_the_integral_as_their_mean_and_a_tail_that_holds() -> None:
    log_joint, *_ = correlated_normal(0.7)
    stream = RowStream(torch.arange(3.0).unsqueeze(-1), 1)
    log_weight = annealed_log_weights(path_to(log_joint, 1.6, 1.0), 400, 20, stream)
    estimate = importance.estimate(log_weight)
    assert ((estimate["log_evidence"] - 3.0).abs() < 3.0 * estimate["stderr"]).all()
    assert (estimate["khat"] < 0.7).all() and (estimate["stderr"] < 0.2).all()


# --- mixtures ---


def t_mixture(seed: int = 0) -> StudentMixture:
    draw = torch.Generator().manual_seed(seed)
    factor = torch.eye(2) + torch.randn(3, 2, 2, 2, generator=draw).tril(-1)
    loc = 3.0 * torch.randn(3, 2, 2, generator=draw)
    return StudentMixture(torch.randn(3, 2, generator=draw), loc, 0.5 * factor)


def test_the_density_of_a_mixture_is_scipys_and_that_of_its_draws() -> None:
    from scipy.stats import multivariate_t

    mixture, u = t_mixture(), torch.randn(3, 20, 2)
    for row in range(3):
        scale = mixture.factor[row] @ mixture.factor[row].mT
        parts = [
            multivariate_t(mixture.loc[row, part], scale[part], df=4).pdf(u[row])
            for part in range(2)
        ]
        expected = mixture.log_weights[row].exp() @ torch.as_tensor(np.stack(parts))
        torch.testing.assert_close(mixture.log_prob(u)[row].exp(), expected)
    stream = RowStream(torch.arange(3.0).unsqueeze(-1), 0)
    draws = mixture.draw(20_000, stream)
    narrow = StudentMixture(mixture.log_weights, mixture.loc, 0.5 * mixture.factor)
    log_weight = (narrow.log_prob(draws) - mixture.log_prob(draws)).mT  # at most 4
    error = importance.log_evidence_stderr(log_weight)
    assert (importance.log_evidence(log_weight).abs() < 4.0 * error).all() and error.max() < 0.02


def test_a_fit_finds_separate_parts_of_each_row() -> None:
    centres = torch.tensor([[[-5.0, 0.0], [5.0, 0.0]], [[0.0, 0.0], [0.0, 80.0]]])
    scale = torch.tensor([0.1, 3.0])
    u = (centres.unsqueeze(2) + scale * torch.randn(2, 2, 200, 2)).flatten(1, 2)
    mixture = fitted(u, torch.rand(2, 4))
    for row in range(2):
        for centre in centres[row]:
            near = (mixture.loc[row] - centre).div(scale).norm(dim=-1) < 2.5
            weight = mixture.log_weights[row].exp()[near].sum().item()
            assert weight == pytest.approx(0.5, abs=0.1)


def test_the_numbers_of_rows_are_uniform_normal_and_their_own() -> None:
    stream = RowStream(torch.arange(4.0).unsqueeze(-1), seed=3)
    uniform, normal = stream.uniform(5000), stream.normal(5000, 3)
    assert uniform.shape == (4, 5000) and normal.shape == (4, 5000, 3)
    assert ((uniform >= 0) & (uniform < 1)).all()
    torch.testing.assert_close(uniform.mean(1), torch.full((4,), 0.5), rtol=0, atol=0.02)
    torch.testing.assert_close(normal.std(1), torch.ones(4, 3), rtol=0, atol=0.05)
    numbers = torch.cat([uniform[..., None], normal], -1)
    assert (
        torch.corrcoef(numbers.transpose(0, 1).flatten(1).T).sub(torch.eye(16)).abs().max() < 0.08
    )
    again = RowStream(torch.tensor([[2.0]]), seed=3)
    assert torch.equal(again.uniform(5000), uniform[2:3])
    assert not torch.equal(RowStream(torch.tensor([[2.0]]), 4).uniform(5000), uniform[2:3])
