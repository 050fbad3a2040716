"""Posteriors: densities that are exact at any depth, Pyro's own numbers, and registration."""

import copy
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.nn import ConditionalAutoRegressiveNN
from pyro_vaeflow.programs.iaf import ConditionalIAFStack, gate_bias, layer_order
from pyro_vaeflow.programs.planar import ConditionalPlanarStack
from pyro_vaeflow.programs.planar_steps import PlanarSteps, planar_steps
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vaeflow import FLOWS, Guide, Model, score, train
from pyro_vaeflow.programs import blocks, iaf_steps
from pyro_vaeflow.programs.flows import MAX_FLOWS, planar
from tests.programs import ZOO, rows

CONTEXT = 3
KINDS = {"planar": ("planar", {}), "iaf": ("iaf", {}), "iaf_gated": ("iaf", {"stable": True})}
KINDS["spline"] = ("spline", {"count_bins": 4})
kinds = pytest.mark.parametrize("kind", KINDS)
invertible = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "planar"])
conditioned = pytest.mark.parametrize("conditioned", [True, False])


def test_the_laws_are_tested_of_every_registered_posterior() -> None:
    assert {name for name, _ in KINDS.values()} | {"diagonal"} == set(FLOWS)


def flow(kind: str, num_flows: int, conditioned: bool, dim: int = 3, spread: float = 1.0):
    """Transforms of one context, far from where they start."""
    name, options = KINDS[kind]
    modules = nn.ModuleList(
        FLOWS[name](dim, num_flows, CONTEXT if conditioned else None, **options)
    )
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter.add_(spread / math.sqrt(num_flows) * torch.randn_like(parameter))
    context = torch.randn(CONTEXT)
    return [m.condition(context) if conditioned else m for m in modules]


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
    assert log_det.abs().max() > 1e-2


@pytest.mark.usefixtures("float64")
@conditioned
def test_a_planar_density_integrates_to_one(conditioned: bool) -> None:
    """No inverse, so over cells of a grid that is pushed through the flow, with their new areas."""
    edges = torch.linspace(-6.0, 6.0, 601)
    centres = (edges[1:] + edges[:-1]) / 2
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


@pytest.mark.usefixtures("float64")
def test_our_planar_stack_is_pyros_layers() -> None:
    """Pyro 1.9.2's ConditionedPlanar, one a layer, given the parameters of ours."""
    stack = ConditionalPlanarStack(4, CONTEXT, num_flows=5)
    context, z = torch.randn(6, CONTEXT), torch.randn(20, 6, 4)
    with torch.no_grad():
        stack.parameter_map.weight.normal_()
        stack.parameter_map.bias.normal_()
        flat = stack.parameter_map(context).unflatten(-1, (5, 9))
        layers = [
            ConditionedPlanar((flat[:, k, :1], flat[:, k, 1:5], flat[:, k, 5:])) for k in range(5)
        ]
        for ours, pyros in zip(push([stack.condition(context)], z), push(layers, z), strict=True):
            torch.testing.assert_close(ours, pyros, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_flows", [1, 7])
def test_the_planar_gradient_by_hand_is_autograds(num_flows: int) -> None:
    z, parameters = torch.randn(4, 9), torch.randn(num_flows, 9, 9)
    inputs = (z.requires_grad_(), parameters.requires_grad_())
    by_hand, plain = PlanarSteps.apply(*inputs), planar_steps(*inputs)
    weights = [torch.randn_like(value) for value in plain]
    gradients = [
        torch.autograd.grad([(v * w).sum() for v, w in zip(values, weights, strict=True)], inputs)
        for values in (by_hand, plain)
    ]
    for one, other in zip((*by_hand, *gradients[0]), (*plain, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("num_flows", [1, 7, 130])  # gates share a logarithm for 120 layers
def test_the_iaf_gradient_by_hand_is_autograds(num_flows: int, clip: float | None) -> None:
    spread = num_flows**-0.5
    shapes = ((4, 9), (num_flows, 7, 9), (num_flows, 7, 4), (num_flows, 8, 7), (num_flows, 8))
    scales = (1.0, 1.0, spread, spread, spread)
    inputs = [(s * torch.randn(n)).requires_grad_() for s, n in zip(scales, shapes, strict=True)]
    by_hand = iaf_steps.IAFSteps.apply(*inputs, clip)
    plain = iaf_steps.iaf_steps(*inputs, clip)
    weights = [torch.randn_like(value) for value in plain]
    gradients = [
        torch.autograd.grad([(v * w).sum() for v, w in zip(values, weights, strict=True)], inputs)
        for values in (by_hand, plain)
    ]
    for one, other in zip((*by_hand, *gradients[0]), (*plain, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    if num_flows == 1:
        assert torch.autograd.gradcheck(
            lambda *values: iaf_steps.IAFSteps.apply(*values, clip), inputs
        )


class _Operations(TorchDispatchMode):
    """Notes each operation and what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["planar", "iaf", "iaf_gated"])
def test_a_step_has_as_many_operations_at_any_depth(kind: str) -> None:
    """So a recorded one is as short; and torch may do with ours what it does with its own."""
    name, options = KINDS[kind]
    seen = []
    for num_flows in (2, 7):
        (stack,) = FLOWS[name](4, num_flows, CONTEXT, **options)
        with _Operations() as operations:
            y, log_det = push([stack.condition(torch.randn(9, CONTEXT))], torch.randn(9, 4))
            (y.sum() + log_det.sum()).backward()
        seen.append(operations.seen)
    assert [func for func, _ in seen[0]] == [func for func, _ in seen[1]]
    ours = [(func, args) for func, args in seen[1] if func.namespace == "pyro_vaeflow"]
    assert len(ours) == 2
    for func, args in ours:
        torch.library.opcheck(func, args, test_utils=("test_schema", "test_faketensor"))


def test_gates_that_are_all_but_shut_have_a_finite_log_scale() -> None:
    """In single precision their sigmoid is 0; with a gradient the numbers are torch's."""
    z, hidden = torch.randn(2, 4, 3), torch.randn(5, 7, 3)
    layers = (torch.randn(5, 7, 2), torch.zeros(5, 4, 7), torch.full((5, 4), -200.0))
    with torch.no_grad():
        _, log_scale = iaf_steps.iaf_steps(z, hidden, *layers, None)
    torch.testing.assert_close(log_scale, torch.full((2, 4, 3), -1000.0))
    _, with_gradient = iaf_steps.iaf_steps(z, hidden, *layers, None)
    torch.testing.assert_close(log_scale, with_gradient)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["planar", "iaf", "iaf_gated"])
def test_a_draw_a_row_has_the_gradient_of_a_plate_of_draws(kind: str) -> None:
    """One draw takes the gradient by hand, a plate of draws autograd's."""
    name, options = KINDS[kind]
    (stack,) = FLOWS[name](4, 3, CONTEXT, **options)
    z, context = torch.randn(9, 4), torch.randn(9, CONTEXT)
    inputs = [z.requires_grad_(), context.requires_grad_(), *stack.parameters()]
    gradients = []
    for draws in (z, z.unsqueeze(0)):
        y, log_det = push([stack.condition(context)], draws)
        total = y.pow(3).sum() + log_det.square().sum()
        gradients.append(torch.autograd.grad(total, inputs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        assert other.abs().max() > 0.0


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("numbers", [blocks.NUMBERS, 8 * 6 * 3])  # in a block: all draws, or 3
def test_our_iaf_stack_is_pyros_layers(stable: bool, numbers: int, monkeypatch) -> None:
    """Pyro 1.9.2's ConditionalAffineAutoregressive, one a layer, given the parameters of ours."""
    monkeypatch.setattr(blocks, "NUMBERS", numbers)
    stack = ConditionalIAFStack(4, CONTEXT, num_flows=3, hidden_dim=8, stable=stable)
    context, z = torch.randn(6, CONTEXT), torch.randn(20, 6, 4)
    layers = []
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.normal_()
        for k in range(3):
            made = ConditionalAutoRegressiveNN(4, CONTEXT, [8], permutation=layer_order(4, k))
            first, last = made.layers
            of_layer = slice(8 * k, 8 * (k + 1))
            first.weight.copy_(
                torch.cat([stack.context_map.weight[of_layer], stack.weight_in[k]], 1)
            )
            first.bias.copy_(stack.context_map.bias[of_layer])
            last.weight.copy_(stack.weight_out[k])
            last.bias.copy_(stack.bias_out[k])
            options = {"stable": stable, "sigmoid_bias": gate_bias(3), "log_scale_min_clip": -3.0}
            layer = transforms.ConditionalAffineAutoregressive(made, **options)
            layers.append(layer.condition(context.expand(20, 6, CONTEXT)))
        for ours, pyros in zip(push([stack.condition(context)], z), push(layers, z), strict=True):
            torch.testing.assert_close(ours, pyros, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["iaf", "iaf_gated"])
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


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["planar", "iaf", "iaf_gated"])
def test_unconditioned_layers_run_as_one_are_pyros_one_by_one(kind: str) -> None:
    (fused,) = flow(kind, 4, conditioned=False)
    z = torch.randn(20, 6, 3)
    with torch.no_grad():
        one, other = push([fused], z), push(fused.layers, z)
    for ours, pyros in zip(one, other, strict=True):
        torch.testing.assert_close(ours, pyros, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_flows", [1, 50, MAX_FLOWS])
@pytest.mark.parametrize("kind", ["planar", "iaf", "iaf_gated"])
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
        num_flows = 0 if flow_name == "diagonal" else 2
        guide = Guide(3, latent_dim, flow=flow_name, num_flows=num_flows, conditioned=conditioned)
        model = Model(3, latent_dim, likelihood="normal")
        assert score(model, guide, rows(), num_samples=5).elbo.isfinite().all()


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


@pytest.mark.parametrize("name", ["planar", "iaf", "spline"])
@pytest.mark.parametrize("num_flows", [0, MAX_FLOWS + 1, -1, 2.0])
def test_a_depth_out_of_range_is_named(name: str, num_flows) -> None:
    with pytest.raises(
        ValueError, match=f"num_flows must be an integer from 1 to 100.*{num_flows}"
    ):
        FLOWS[name](3, num_flows)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="num_flows must be 0 for flow='diagonal', got 3"):
        FLOWS["diagonal"](3, 3)
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
    assert calls == [(2, 3, 8, 2.0)] and len(guide.flow) == 2
    assert guide(rows()).shape == (30, 2)


@pytest.mark.parametrize("flow", ["planar", "iaf"])
def test_a_guide_can_be_copied_after_training(flow: str) -> None:
    pair = ZOO[f"{flow}_unconditioned"]()
    train(pair.model, pair.guide, pair.x, num_steps=2, progress=False)
    twin = copy.deepcopy(pair.guide)
    one, other = (score(pair.model, guide, pair.x).elbo for guide in (pair.guide, twin))
    assert torch.equal(one, other)
