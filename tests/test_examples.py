"""The five edits of docs/guide/edits.md: each runs as it stands, and does what it says."""

import functools
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.distributions import transforms
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vaeflow import FLOWS, LIKELIHOODS, Guide, score

DOCS = Path(__file__).parents[1] / "docs"
EDITS = "radial two_latents iaf_nonlinearity poisson plateau".split()


@functools.lru_cache
def names_of(edit: str) -> dict[str, Any]:
    """What the file has defined once it has run."""
    return runpy.run_path(str(DOCS / "examples" / f"{edit}.py"))


def assert_every_parameter_learns(model: Callable, guide: Callable, *parts: nn.Module, x) -> None:
    for parameter in (every := [p for part in parts for p in part.parameters()]):
        parameter.grad = None
    Trace_ELBO().differentiable_loss(model, guide, x).backward()
    assert every and all(p.grad is not None and p.grad.abs().sum() > 0 for p in every)


def assert_log_det_is_autograds(layer: Any, context: torch.Tensor | None) -> None:
    """Of a layer in two dimensions, conditioned on one row's context ``(1, context_dim)``."""
    layer = layer.double()
    transform = layer if context is None else layer.condition(context.double())
    z = torch.randn(1, 2, dtype=torch.float64)
    with torch.no_grad():
        log_det = transform.log_abs_det_jacobian(z, transform(z))
    jacobian = torch.autograd.functional.jacobian(lambda z: transform(z)[0], z)[:, 0]
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-10)
    layer.float()


@pytest.fixture(autouse=True)
def registries():
    """An example's registered parts are gone after it."""
    before = [(registry, dict(registry)) for registry in (FLOWS, LIKELIHOODS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def test_the_page_shows_them_all_and_each_is_short() -> None:
    page = (DOCS / "guide" / "edits.md").read_text()
    shown = re.findall(r"{literalinclude} \.\./examples/(\w+)\.py", page)
    assert shown == EDITS
    for edit in EDITS:
        lines = (DOCS / "examples" / f"{edit}.py").read_text().splitlines()
        assert sum(map(bool, lines)) < 30, edit


@pytest.mark.parametrize("edit", EDITS)
def test_rows_held_out_are_better_explained_after_training(edit: str) -> None:
    names = names_of(edit)
    before, after = names["untrained"].log_evidence, names["scores"].log_evidence
    assert after.isfinite().all() and after.mean() > before.mean() + 2.0
    if edit not in ("poisson", "plateau"):  # they have a posterior that is too plain
        assert names["scores"].khat.median() < 0.7


@pytest.mark.parametrize("conditioned", [True, False])
def test_radial_layers_are_pyros_and_learn(conditioned: bool) -> None:
    names = names_of("radial")
    guide, kind = names["guide"], transforms.conditional_radial(2, 3)
    if not conditioned:
        FLOWS["radial"], kind = names["radial"], transforms.radial(2)
        guide = Guide(13, flow="radial", num_flows=4, latent_dim=2, conditioned=False)
    assert all(type(layer) is type(kind) for layer in guide.flow)
    assert f"4 x {type(kind).__name__}(" in re.sub(r"\s+", " ", repr(guide))
    assert_every_parameter_learns(names["model"], guide, guide.flow, guide.base, x=names["x"])
    context = guide.encoder(names["x"][:1]).detach() if conditioned else None
    for layer in guide.flow:
        assert_log_det_is_autograds(layer, context)


def test_the_evidence_of_two_latents_is_the_integral_over_both() -> None:
    """Given `top` rows are normal, and `top` is a number: a sum over a grid is the integral."""
    names = names_of("two_latents")
    model, guide, x = names["model"], names["guide"], names["x"][140:]
    top = torch.linspace(-6.0, 6.0, 2001)[:, None]
    with torch.no_grad():
        loadings = names["decoder"].weight
        covariance = 0.5**2 * loadings @ loadings.T + 0.7**2 * torch.eye(13)
        given_top = dist.MultivariateNormal(names["decoder"](names["bend"](top)), covariance)
        joint = given_top.log_prob(x[:, None]) + dist.Normal(0.0, 1.0).log_prob(top[:, 0])
    exact = joint.logsumexp(1) + torch.log(top[1, 0] - top[0, 0])
    scores = score(model, guide, x, num_samples=2000)
    good = scores.khat < 0.7
    assert good.float().mean() > 0.8
    error = (scores.log_evidence - exact)[good]
    assert (error.abs() < 5 * scores.stderr[good] + 1e-3).all()
    assert_every_parameter_learns(model, guide, names["networks"], x=x)


def test_the_nonlinearity_is_that_of_each_layer_and_its_log_det_is_right() -> None:
    names = names_of("iaf_nonlinearity")
    guide, x = names["guide"], names["x"]
    assert repr(guide).count("(f): Sine()") == repr(guide.flow).count("(f): ") > 0
    assert_every_parameter_learns(names["model"], guide, guide.flow, x=x)
    context = guide.encoder(x[:1]).detach()

    def draw() -> torch.Tensor:
        pyro.set_rng_seed(0)
        return guide(x)

    with_sine, sines = draw(), [layer.nn.f for layer in guide.flow]
    for layer in guide.flow:
        assert_log_det_is_autograds(layer, context)
        layer.nn.f = nn.ReLU()
    assert not torch.allclose(draw(), with_sine)
    for layer, sine in zip(guide.flow, sines, strict=True):
        layer.nn.f = sine
    torch.testing.assert_close(draw(), with_sine, rtol=0, atol=0)


def test_the_poisson_rows_have_scipys_probability() -> None:
    names = names_of("poisson")
    head, x = names["model"].likelihood, names["x"][:7]
    assert isinstance(head, names["PoissonHead"])
    h = torch.randn(7, head.rate[0].in_features)
    with torch.no_grad():
        expected = scipy.stats.poisson.logpmf(x.numpy(), head.rate(h).double().numpy()).sum(1)
        found = head(h).log_prob(x)
    torch.testing.assert_close(found.double(), torch.tensor(expected), rtol=1e-5, atol=1e-4)
    assert_every_parameter_learns(names["model"], names["guide"], names["model"], x=x)


def test_training_ends_at_the_first_plateau() -> None:
    names = names_of("plateau")
    losses = names["history"].frame["loss"]
    window, least = names["Plateau"]().window, names["Plateau"]().least
    means = losses.rolling(window).mean()
    falls = (means.shift(window) - means).dropna()
    assert 2 * window < len(losses) < 2000
    assert (falls.iloc[:-1] >= least).all() and falls.iloc[-1] < least
