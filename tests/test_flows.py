"""Posteriors: Pyro's own layers, exact densities at any depth, the same numbers run together."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.distributions.conditional import ConditionalTransform
from pyro.nn import ConditionalAutoRegressiveNN, DenseNN
from torch import nn

from pyro_vaeflow import FLOWS, Guide, Model, score, train
from pyro_vaeflow.programs import fused as fused_layers
from pyro_vaeflow.programs.flows import MAX_FLOWS, Reversal, planar
from pyro_vaeflow.programs.fused import HIDDEN, FusedLayers, fused
from tests.programs import ZOO, rows

CONTEXT = 3
KINDS = {"planar": ("planar", {}), "iaf": ("iaf", {}), "iaf_scaled": ("iaf", {"stable": False})}
KINDS |= {
    "spline": ("spline", {"count_bins": 4}),
    "full": ("full", {}),
    "coupling": ("coupling", {}),
}
kinds = pytest.mark.parametrize("kind", KINDS)
TOGETHER = ["planar", "iaf", "iaf_scaled"]
affine = pytest.mark.parametrize("kind", ["iaf", "iaf_scaled"])
affine_or_planar = pytest.mark.parametrize("kind", TOGETHER)
invertible = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "planar"])
conditioned = pytest.mark.parametrize("conditioned", [True, False])


def test_the_laws_are_tested_of_every_registered_posterior() -> None:
    assert {name for name, _ in KINDS.values()} | {"diagonal"} == set(FLOWS)


def layers_of(kind: str, num_flows: int, conditioned: bool, dim: int = 3, spread: float = 1.0):
    """Pyro's layers, far from where they start."""
    name, options = KINDS[kind]
    num_flows = 1 if kind == "full" else num_flows
    layers = nn.ModuleList(FLOWS[name](dim, num_flows, CONTEXT if conditioned else None, **options))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(spread / math.sqrt(num_flows) * torch.randn_like(parameter))
    return layers


def given(layers: Any, context: torch.Tensor) -> list[Any]:
    """The layers as plain transforms, for this context."""
    return [m.condition(context) if isinstance(m, ConditionalTransform) else m for m in layers]


def flow(kind: str, num_flows: int, conditioned: bool, **options: Any) -> list[Any]:
    """As the guide runs them, for one context."""
    return given(fused(layers_of(kind, num_flows, conditioned, **options)), torch.randn(CONTEXT))


def push(layers, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The flow's value at z and its log-determinant, nats."""
    log_det = torch.zeros(z.shape[:-1])
    for layer in layers:
        y = layer(z)
        log_det = log_det + layer.log_abs_det_jacobian(z, y)
        z = y
    return z, log_det


@pytest.mark.usefixtures("float64")
@kinds
@conditioned
@pytest.mark.parametrize("num_flows", [1, 5, 50])
def test_the_log_determinant_is_autograds(kind: str, conditioned: bool, num_flows: int) -> None:
    layers = flow(kind, num_flows, conditioned, spread=0.5)
    z = torch.randn(10, 3, requires_grad=True)
    y, log_det = push(layers, z)
    columns = [torch.autograd.grad(y[:, j].sum(), z, retain_graph=True)[0] for j in range(3)]
    expected = torch.linalg.slogdet(torch.stack(columns, 1)).logabsdet
    torch.testing.assert_close(log_det, expected, rtol=1e-8, atol=1e-8)
    assert (log_det.abs().max() > 1e-2) == (kind != "full")  # which keeps volumes


@pytest.mark.usefixtures("float64")
@conditioned
def test_a_planar_density_integrates_to_one(conditioned: bool) -> None:
    """No inverse, so over cells of a grid that is pushed through the flow, with their new areas."""
    edges = torch.linspace(-6.0, 6.0, 601)
    centres = (edges[1:] + edges[:-1]) / 2
    torch.manual_seed(1)
    layers = flow("planar", 3, conditioned, dim=2)
    with torch.no_grad():
        y, log_det = push(layers, torch.cartesian_prod(centres, centres))
        corner, _ = push(layers, torch.cartesian_prod(edges, edges))
    corner = corner.view(601, 601, 2)
    across, down = corner[1:, 1:] - corner[:-1, :-1], corner[1:, :-1] - corner[:-1, 1:]
    area = 0.5 * (across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]).abs()
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    density = (base.log_prob(torch.cartesian_prod(centres, centres)) - log_det).exp()
    assert (density.view(600, 600) * area).sum().item() == pytest.approx(1.0, abs=1e-3)
    assert area.max() > 2.0 * area.min()


@pytest.mark.usefixtures("float64")
@invertible
@conditioned
def test_a_density_at_any_point_integrates_to_one(kind, conditioned) -> None:
    # The slopes of splines lie far apart from the start: a grid misses what is steeper still.
    layers = flow(kind, 2, conditioned, dim=2, spread=0.1 if kind == "spline" else 0.5)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    posterior = dist.TransformedDistribution(base, layers)
    y = posterior.sample((2000,))
    middle, half = y.mean(0), 1.5 * (y - y.mean(0)).abs().max()
    side = torch.linspace(-half, half, 401)
    grid = torch.cartesian_prod(side, side) + middle
    with torch.no_grad():
        total = posterior.log_prob(grid).exp().sum() * (side[1] - side[0]) ** 2
    assert total.item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.usefixtures("float64")
@invertible
@conditioned
def test_the_inverse_is_the_inverse(kind: str, conditioned: bool) -> None:
    layers = flow(kind, 5, conditioned, spread=0.5)  # slopes that rounding survives
    z = torch.randn(4, 7, 3)
    with torch.no_grad():
        y, log_det = push(layers, z)
        back, y = y.clone(), y.clone()
        for layer in reversed(layers):
            back = layer.inv(back.clone())
        torch.testing.assert_close(back, z, rtol=1e-7, atol=1e-7)
        base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        expected = base.log_prob(z) - log_det
        scored = dist.TransformedDistribution(base, layers).log_prob(y)
    torch.testing.assert_close(scored, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.usefixtures("float64")
@invertible
@conditioned
def test_where_slopes_lose_z_its_inverse_is_still_a_point_of_the_same_value(kind, conditioned):
    layers = flow(kind, 5, conditioned)
    with torch.no_grad():
        y, _ = push(layers, torch.randn(4, 7, 3))
        back = y.clone()
        for layer in reversed(layers):
            back = layer.inv(back.clone())
        again, _ = push(layers, back.clone())
    torch.testing.assert_close(again, y, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@kinds
@conditioned
def test_an_old_value_is_scored_again_after_another(kind: str, conditioned: bool) -> None:
    (layer,) = flow(kind, 1, conditioned)
    with torch.no_grad():
        one, two = torch.randn(5, 3), torch.randn(5, 3)
        at_one = layer(one)
        first = layer.log_abs_det_jacobian(one, at_one).clone()
        layer.log_abs_det_jacobian(two, at_one)
        torch.testing.assert_close(layer.log_abs_det_jacobian(one, at_one), first)
        layer(two)
        torch.testing.assert_close(layer.log_abs_det_jacobian(one, at_one), first)


# What runs the layers together


def values_and_gradients(layers: Any, context: torch.Tensor, shape: tuple[int, ...]) -> list:
    """Samples, their log probabilities, and gradients of both at the context and parameters."""
    context = context.clone().requires_grad_()
    base = dist.Normal(torch.linspace(-1.0, 1.0, 6).view(6, 1), torch.ones(3)).to_event(1)
    posterior = dist.ConditionalTransformedDistribution(base, list(layers)).condition(context)
    torch.manual_seed(0)
    z = posterior.rsample(shape)
    log_prob = posterior.log_prob(z)
    inner = [m for part in layers for m in getattr(part, "layers", [part])]
    inputs = [context, *(p for p in nn.ModuleList(inner).parameters() if p.requires_grad)]
    total = z.pow(3).sum() + log_prob.square().sum()
    gradients = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    return [z, log_prob, *gradients]


def assert_pyros_numbers(layers: Any, shape: tuple[int, ...] = (), runs: int | None = None) -> None:
    together = fused(layers)
    if runs is not None:
        assert len(together) == runs
    context = torch.randn(6, CONTEXT)
    found, expected = (values_and_gradients(way, context, shape) for way in (together, layers))
    for ours, pyros in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, pyros, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@kinds
@conditioned
@pytest.mark.parametrize("shape", [(), (4,), (2, 5)])
@pytest.mark.parametrize("num_flows", [1, 2, 7])
def test_layers_run_together_are_pyros_one_by_one(kind, conditioned, shape, num_flows) -> None:
    layers = layers_of(kind, num_flows, conditioned)
    assert_pyros_numbers(layers, shape, runs=1 if kind in TOGETHER else len(layers))
    modules = {type(layer).__module__ for layer in layers if not isinstance(layer, Reversal)}
    assert all(name.startswith("pyro.distributions.transforms") for name in modules)


@pytest.mark.usefixtures("float64")
@affine_or_planar
@conditioned
def test_blocks_of_draws_are_the_whole(kind: str, conditioned: bool, monkeypatch) -> None:
    layers = fused(layers_of(kind, 3, conditioned))
    context, z = torch.randn(6, CONTEXT), torch.randn(5, 6, 3)
    expected = push(given(layers, context), z)
    monkeypatch.setattr(fused_layers, "CACHED", 2 * HIDDEN * 6 * 3)  # two draws of six rows
    with torch.no_grad():
        for part, whole in zip(push(given(layers, context), z), expected, strict=True):
            torch.testing.assert_close(part, whole)


class Doubled(nn.Module):
    def __init__(self, inner: Callable) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        return 2.0 * self.inner(*args)


def network(layer: Any) -> Any:
    return layer.nn if hasattr(layer, "nn") else layer.arn


def set_option(name: str, value: Any) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        if isinstance(layer, transforms.AffineAutoregressive):
            setattr(layer, name, value)
        else:
            layer.kwargs[name] = value

    return change


def replace_call(layer: Any) -> None:
    if isinstance(layer, ConditionalTransform):
        condition = layer.condition
        layer.condition = lambda context: condition(2.0 * context)
    else:
        call = layer._call
        layer._call = lambda x: call(0.5 * x)


def scale_outputs(layer: Any) -> None:
    part = network(layer) if not isinstance(layer, transforms.Planar) else layer
    part.register_forward_hook(lambda m, args, out: tuple(2.0 * each for each in out))


def scale_gradients(layer: Any) -> None:
    part = network(layer) if not isinstance(layer, transforms.Planar) else layer
    part.register_full_backward_pre_hook(lambda m, gradients: tuple(2.0 * g for g in gradients))


def other_made(layer: Any) -> None:
    net = network(layer)
    if isinstance(net, ConditionalAutoRegressiveNN):
        layer.nn = ConditionalAutoRegressiveNN(3, CONTEXT, [5, 6])
    else:
        layer.arn = type(net)(3, [5], skip_connections=True)


def use_function(layer: Any) -> None:
    del network(layer).f  # torch keeps modules apart from plain attributes
    network(layer).f = torch.cos


MADE = {
    "nonlinearity": lambda layer: setattr(network(layer), "f", nn.Tanh()),
    "function": use_function,
    "across": lambda layer: setattr(network(layer), "f", nn.Softmax(-1)),
    "bias": set_option("sigmoid_bias", 0.3),
    "clip": set_option("log_scale_max_clip", 0.1),
    "gate": set_option("stable", True),
    "scale": set_option("stable", False),
    "mask": lambda layer: (
        network(layer).layers[0].mask.copy_(network(layer).layers[0].mask.flip(0))
    ),
    "made": other_made,
    "part hook": lambda layer: (
        network(layer).layers[0].register_forward_hook(lambda m, args, out: 0.5 * out)
    ),
}
ANY = {
    "hook": scale_outputs,
    "gradient hook": scale_gradients,
    "method": replace_call,
    "frozen": lambda layer: layer.requires_grad_(False),
    "parameter": lambda layer: next(layer.parameters()).detach().mul_(-0.5),
    "attribute": lambda layer: setattr(layer, "note", "changed"),
}
PLANAR = {
    "bias": lambda layer: [
        p.detach().add_(0.5) for n, p in layer.named_parameters() if n == "bias"
    ],
    "map": lambda layer: setattr(layer, "nn", DenseNN(CONTEXT, [4], [1, 3, 3])),
    "doubled": lambda layer: setattr(layer.nn, "forward", Doubled(layer.nn.forward)),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore:ConditionalAutoRegressiveNN", "ignore:AutoRegressiveNN")
@pytest.mark.parametrize(
    ("kind", "conditioned", "change"),
    [
        *(
            (kind, c, change)
            for kind in ("iaf", "iaf_scaled")
            for c in (True, False)
            for change in MADE
        ),
        *(
            (kind, c, change)
            for kind in KINDS
            if kind != "full"
            for c in (True, False)
            for change in ANY
        ),
        *(
            ("planar", c, change)
            for c, change in ((False, "bias"), (True, "map"), (True, "doubled"))
        ),
    ],
)
def test_a_layer_that_was_changed_runs_as_pyros(kind, conditioned, change) -> None:
    layers = layers_of(kind, 4, conditioned, spread=0.5)
    changes = ANY | (PLANAR if kind == "planar" else MADE)
    if conditioned or kind != "planar" or change != "hook":
        changes[change](layers[2])
    assert_pyros_numbers(layers, (2,))


def test_an_unknown_layer_among_known_ones_is_pyros_to_run() -> None:
    class Mine(transforms.Planar):
        pass

    parts = [transforms.Planar(3), transforms.Planar(3), Mine(3), transforms.Radial(3)]
    parts += [transforms.Planar(3), transforms.ConditionalPlanar(DenseNN(CONTEXT, [4], [1, 3, 3]))]
    kinds = [type(part) for part in fused(parts)]
    assert kinds == [FusedLayers, Mine, transforms.Radial, *map(type, parts[4:])]


def test_the_guide_holds_pyros_layers_by_their_names() -> None:
    guide = Guide(3, latent_dim=2, hidden_dims=(8,), flow="iaf", num_flows=2)
    names = {type(layer).__name__ for layer in guide.flow}
    assert names == {"ConditionalAffineAutoregressive"} and "AutoRegressiveNN" in repr(guide)
    assert "flow.1.nn.layers.0.weight" in guide.state_dict()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("flow_name", ["planar", "iaf", "spline"])
def test_functorch_goes_through_the_guides_layers(flow_name: str) -> None:
    """Second derivatives and vectorised Jacobians, as of any torch program."""
    layers = fused(layers_of(flow_name, 3, True))
    context = torch.randn(CONTEXT)

    def log_det(z: torch.Tensor) -> torch.Tensor:
        return push(given(layers, context), z)[1]

    z = torch.randn(3)
    hessian = torch.func.jacrev(torch.func.grad(log_det))(z)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(log_det, z))


def test_gates_that_are_all_but_shut_have_a_finite_log_scale() -> None:
    """In single precision their sigmoid is 0."""
    layers = layers_of("iaf", 5, False, spread=0.0)
    for layer in layers:
        nn.init.constant_(layer.arn.layers[-1].bias, -200.0)
    _, log_det = push(given(fused(layers), torch.zeros(CONTEXT)), torch.randn(4, 3))
    torch.testing.assert_close(log_det, torch.full((4,), -3000.0), rtol=0.02, atol=0.0)


def test_where_a_planar_layer_folds_its_log_determinant_is_finite() -> None:
    """Far beyond what is invertible, w^T u_hat is -1 to all digits, and tanh there is 1e-5."""
    layers = [transforms.Planar(2), transforms.Planar(2)]
    with torch.no_grad():
        for layer, along in zip(layers, torch.eye(2), strict=True):
            layer.w.copy_(along)
            layer.u.copy_(-90.0 * along)
            layer.bias.zero_()
    z = torch.tensor([[1e-5, 0.3], [0.2, 1e-5]])
    _, log_det = push(given(fused(layers), torch.zeros(CONTEXT)), z)
    exact = [layer.double() for layer in layers]  # one by one they are Pyro's own
    _, expected = push(given(exact, torch.zeros(CONTEXT)), z.double())
    torch.testing.assert_close(log_det, expected.to(log_det), rtol=1e-4, atol=0.0)


@affine
@conditioned
def test_iaf_layers_take_the_coordinates_in_alternate_orders(kind, conditioned) -> None:
    """One layer's Jacobian is a triangle; behind a second, coordinates see all others."""
    for num_flows, triangle in ((1, True), (2, False)):
        layers = flow(kind, num_flows, conditioned, spread=2.0)
        z = torch.randn(50, 3, requires_grad=True)
        y, _ = push(layers, z)
        columns = [torch.autograd.grad(y[:, j].sum(), z, retain_graph=True)[0] for j in range(3)]
        depends = torch.stack(columns, 1).ne(0).any(0)
        assert depends.tril().equal(torch.ones(3, 3, dtype=torch.bool).tril())
        assert depends.triu(1).any() != triangle


@pytest.mark.parametrize("num_flows", [1, 50, MAX_FLOWS])
@pytest.mark.parametrize("kind", ["coupling", "planar", "iaf", "iaf_scaled"])
@conditioned
def test_a_stack_of_any_depth_starts_tame(kind: str, conditioned: bool, num_flows: int) -> None:
    y, log_det = push(flow(kind, num_flows, conditioned, spread=0.0), z := torch.randn(100, 3))
    assert (y - z).abs().max() < 6.0 and log_det.abs().max() < 6.0


@pytest.mark.parametrize("flow_name", ["planar", "iaf"])
@conditioned
def test_fifty_layers_train_in_single_precision(flow_name: str, conditioned: bool) -> None:
    sizes = {"latent_dim": 4, "hidden_dims": (8,), "dropout": 0.0}
    model = Model(3, likelihood="normal", **sizes)
    guide = Guide(3, flow=flow_name, num_flows=50, conditioned=conditioned, **sizes)
    options = {"num_steps": 500, "batch_size": 32, "learning_rate": 5e-3, "progress": False}
    frame = train(model, guide, rows(200), **options).frame
    finite = frame[["loss", "elbo", "kl", "grad_norm"]]
    assert len(frame) == 500 and finite.map(math.isfinite).all(axis=None)
    assert frame["elbo"].tail(50).mean() > frame["elbo"].head(50).mean() + 0.3
    assert all(p.isfinite().all() for p in guide.parameters())


@pytest.mark.parametrize("flow_name", FLOWS)
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_small_latents_work(flow_name: str, latent_dim: int) -> None:
    for conditioned in (True, False):
        guide = Guide(3, latent_dim, flow=flow_name, conditioned=conditioned)
        model = Model(3, latent_dim, likelihood="normal")
        assert score(model, guide, rows(), num_samples=5).elbo.isfinite().all()


@pytest.mark.usefixtures("float64")
@conditioned
def test_a_full_posterior_is_a_normal_with_the_covariance_of_its_layer(conditioned: bool) -> None:
    """Beside torch's own, of L D L^T: any covariance is one."""
    torch.manual_seed(0)
    guide = Guide(3, 3, (8,), flow="full", conditioned=conditioned, dropout=0.0)
    for parameter in guide.flow.parameters():
        torch.nn.init.normal_(parameter)
    posterior = guide.posterior(rows(2))
    base, layer = posterior.base_dist, posterior.transforms[0]
    factor = layer(torch.eye(3).unsqueeze(1).expand(3, 2, 3)).permute(1, 2, 0)
    below = torch.ones(3, 3).tril() != 0.0
    assert ((factor != 0.0) == below).all()
    exact = dist.MultivariateNormal(layer(base.mean), scale_tril=factor * base.stddev.unsqueeze(-2))
    z = torch.randn(5, 2, 3)
    torch.testing.assert_close(posterior.log_prob(z), exact.log_prob(z))
    assert torch.allclose(factor[0], factor[1]) != conditioned


@conditioned
def test_coupling_layers_move_every_coordinate_given_the_others(conditioned: bool) -> None:
    torch.manual_seed(0)
    layers = flow("coupling", 3, conditioned, dim=5, spread=2.0)
    jacobian = torch.autograd.functional.jacobian(lambda z: push(layers, z)[0], torch.randn(5))
    assert (jacobian != 0.0).all()


@conditioned
@pytest.mark.parametrize("seed", range(4))
def test_two_splines_bend_each_coordinate_given_the_other(conditioned: bool, seed: int) -> None:
    """Of the random orders that Pyro draws, half are alike: the first is never given the second."""
    torch.manual_seed(seed)
    one, two = flow("spline", 2, conditioned, dim=2)
    z = torch.randn(2)
    jacobian = torch.autograd.functional.jacobian(lambda z: two(one(z)), z)
    assert (jacobian != 0.0).all()
    last = torch.autograd.functional.jacobian(two, z)
    assert last[0, 1] == 0.0 != last[1, 0]  # it ends in the order of the columns


@pytest.mark.parametrize("name", ["coupling", "planar", "iaf", "spline"])
@pytest.mark.parametrize("num_flows", [0, MAX_FLOWS + 1, -1, 2.0])
def test_a_depth_out_of_range_is_named(name: str, num_flows) -> None:
    with pytest.raises(
        ValueError, match=f"num_flows must be an integer from 1 to 100.*{num_flows}"
    ):
        FLOWS[name](3, num_flows)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="num_flows must be 0 for flow='diagonal', got 3"):
        FLOWS["diagonal"](3, 3)
    with pytest.raises(ValueError, match="num_flows must be 1 for flow='full', got 3"):
        FLOWS["full"](3, 3)
    with pytest.raises(ValueError, match="hidden_dim must be at least latent_dim=3, got 2"):
        FLOWS["iaf"](3, 1, CONTEXT, hidden_dim=2)


def test_a_planar_flow_says_that_it_has_no_inverse() -> None:
    for conditioned in (True, False):
        (layer,) = flow("planar", 2, conditioned)
        with pytest.raises(KeyError, match="no inverse.*use flow='iaf' or 'spline'"):
            layer.inv(torch.randn(2, 3))


def test_a_posterior_is_added_by_registering_one_function(monkeypatch) -> None:
    calls = []

    def twice_planar(latent_dim, num_flows, context_dim=None, scale=1.0):
        calls.append((latent_dim, num_flows, context_dim, scale))
        return [*planar(latent_dim, num_flows, context_dim), *planar(latent_dim, 1, context_dim)]

    monkeypatch.setitem(FLOWS, "twice", twice_planar)
    guide = Guide(3, 2, (8,), flow="twice", num_flows=3, flow_options={"scale": 2.0})
    assert calls == [(2, 3, 8, 2.0)] and len(guide.flow) == 4
    assert guide(rows()).shape == (30, 2)


@pytest.mark.parametrize("flow", ["planar", "iaf"])
def test_a_guide_can_be_copied_after_training(flow: str) -> None:
    pair = ZOO[f"{flow}_unconditioned"]()
    train(pair.model, pair.guide, pair.x, num_steps=2, progress=False)
    twin = copy.deepcopy(pair.guide)
    one, other = (score(pair.model, guide, pair.x).elbo for guide in (pair.guide, twin))
    assert torch.equal(one, other)
