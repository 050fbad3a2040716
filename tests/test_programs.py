"""The programs that ship: their densities by hand, their gradients, their errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from pyro import poutine

from pyro_vaeflow import FLOWS, LIKELIHOODS, Guide, Model
from pyro_vaeflow.inference.pairs import Way, paired_traces
from pyro_vaeflow.inference.parameters import seeded
from pyro_vaeflow.inference.traces import row_terms
from tests.programs import MIXED_COLUMNS, mixed_rows, rows

DEPTHS = [
    ("diagonal", 0),
    ("full", 1),
    ("coupling", 2),
    ("planar", 1),
    ("planar", 5),
    ("iaf", 1),
    ("iaf", 5),
    ("spline", 1),
]


def terms(model: Model, guide: Guide, x: torch.Tensor):
    return paired_traces(model, guide, (x,), num_samples=2, way=Way(depth=1)).terms


def without_gradient(module: torch.nn.Module) -> list[str]:
    return [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize(("flow", "num_flows"), DEPTHS)
@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_parameter_learns_at_the_defaults(flow, num_flows, conditioned, likelihood) -> None:
    is_table = likelihood == "mixed"
    num_features = MIXED_COLUMNS if is_table else 3
    model = Model(num_features, likelihood=likelihood)
    guide = Guide(num_features, flow=flow, num_flows=num_flows, conditioned=conditioned)
    x = mixed_rows(100) if is_table else rows(100).sigmoid().round()
    terms(model, guide, x).log_weight.mean().backward()
    assert not without_gradient(model)
    assert not without_gradient(guide)


@pytest.mark.parametrize(("flow", "num_flows"), DEPTHS)
@pytest.mark.parametrize("conditioned", [True, False])
def test_the_kl_alone_moves_every_parameter_of_the_guide(flow, num_flows, conditioned) -> None:
    model, guide = Model(3), Guide(3, flow=flow, num_flows=num_flows, conditioned=conditioned)
    terms(model, guide, rows(100).sigmoid()).kl.mean().backward()
    assert not without_gradient(guide)
    assert all(p.grad is None for p in model.parameters())


def test_every_registered_flow_is_tested_here() -> None:
    assert {flow for flow, _ in DEPTHS} == set(FLOWS)


@pytest.mark.usefixtures("float64")
def test_densities_by_hand() -> None:
    x = rows().sigmoid()
    model, guide = Model(3, latent_dim=2).eval(), Guide(3, latent_dim=2).eval()
    guide_trace = poutine.trace(guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(x)
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    got = row_terms(model_trace, guide_trace)
    z = guide_trace.nodes["z"]["value"]
    loc, raw = guide.base(guide.encoder(x)).chunk(2, -1)
    scale = (1.0 + raw.exp()).log() + 1e-4

    def log_normal(value, loc, scale):
        whitened = (value - loc) / scale
        return (-0.5 * whitened**2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    torch.testing.assert_close(got.log_guide, log_normal(z, loc, scale))
    torch.testing.assert_close(got.log_prior, log_normal(z, torch.zeros(2), torch.ones(2)))
    p = model.likelihood.logits(model.decoder(z)).sigmoid()
    bernoulli = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    torch.testing.assert_close(got.log_likelihood, bernoulli)


@pytest.mark.usefixtures("float64")
def test_a_conditioned_flow_differs_from_row_to_row() -> None:
    for conditioned in (True, False):
        guide = Guide(3, 2, (8,), flow="iaf", num_flows=2, conditioned=conditioned, dropout=0.0)
        for p in guide.flow.parameters():
            torch.nn.init.normal_(p)
        trace = poutine.trace(guide).get_trace(rows(2))
        transform = trace.nodes["z"]["fn"].transforms[0]
        moved = transform(torch.ones(2, 2))
        assert torch.allclose(moved[0], moved[1]) != conditioned


def test_a_state_dict_makes_the_same_programs_again() -> None:
    x = rows()
    for flow in FLOWS:
        num_flows = {"diagonal": 0, "full": 1}.get(flow, 4)
        options = {"flow": flow, "num_flows": num_flows, "latent_dim": 5}
        for conditioned in (True, False):
            one, other = (Guide(3, conditioned=conditioned, **options).eval() for _ in range(2))
            other.load_state_dict(one.state_dict())
            values = []
            for guide in (one, other):
                with seeded(0):
                    trace = poutine.trace(guide).get_trace(x)
                values.append((trace.nodes["z"]["value"], trace.log_prob_sum()))
            torch.testing.assert_close(values[0], values[1])


def test_predictive_draws_new_rows() -> None:
    model = Model(3, likelihood="normal")
    assert model(torch.zeros(4, 3)).shape == (4, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Model(3, likelihood="gauss"), "unknown likelihood 'gauss'.*bernoulli"),
        (lambda: Guide(3, flow="nice"), "unknown flow 'nice'.*diagonal, planar"),
        (lambda: Guide(0), "num_features must be an integer of at least 1, got 0"),
        (lambda: Model(3, latent_dim=1.5), "latent_dim must be an integer of at least 1, got 1.5"),
        (lambda: Model(3, hidden_dims=()), r"hidden_dims must be .* got \(\)"),
        (lambda: Guide(3, hidden_dims=(8, 0)), r"hidden_dims\[1\] must be .* got 0"),
        (lambda: Guide(3, flow="diagonal", num_flows=2), "num_flows must be 0"),
        (
            lambda: Guide(3, flow="planar", num_flows=0),
            "num_flows must be an integer from 1 to 100",
        ),
    ],
)
def test_a_bad_argument_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_base_starts_with_the_scale_that_was_asked_for() -> None:
    for scale in (0.05, math.log(2.0), 2.0):
        guide = Guide(3, latent_dim=64, start_scale=scale)
        started = F.softplus(guide.base.bias[64:]).mean().item()
        assert started == pytest.approx(scale, rel=0.1)
