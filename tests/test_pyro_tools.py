"""The pair that ships in Pyro's own tools, and torch's: each runs, or says why not."""

from copy import deepcopy

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive, Trace_ELBO
from pyro.infer.importance import psis_diagnostic
from pyro.infer.inspect import get_model_relations
from torch import nn

from pyro_vaeflow import ExemplarPrior, Guide, Model, log_weights, score, train
from pyro_vaeflow.inference import importance
from tests.programs import rows

SMALL = {"latent_dim": 2, "hidden_dims": (8,), "dropout": 0.0}


def pair(flow: str = "iaf", num_flows: int = 2, **options) -> tuple[Model, Guide]:
    torch.manual_seed(0)
    model = Model(3, likelihood="normal", **SMALL, **options)
    return model.eval(), Guide(3, flow=flow, num_flows=num_flows, **SMALL).eval()


@pytest.mark.parametrize("prior", ["normal", "exemplars"])
def test_a_model_draws_rows_that_nobody_gives_it(prior: str) -> None:
    model, guide = pair()
    if prior == "exemplars":
        model.prior = ExemplarPrior(rows(), guide.locate, latent_dim=2).eval()
    drawn = Predictive(model, num_samples=5)(7)
    assert drawn["x"].shape == (5, 7, 3) and drawn["z"].shape[-2:] == (7, 2)
    torch.manual_seed(0)
    of_rows = Predictive(poutine.uncondition(model), num_samples=5)(rows()[:7])["x"]
    torch.manual_seed(0)
    torch.testing.assert_close(Predictive(model, num_samples=5)(7)["x"], of_rows)


def test_predictive_draws_rows_for_given_latents_and_from_the_guide() -> None:
    model, guide = pair()
    z = torch.randn(5, 7, 2)
    drawn = Predictive(model, posterior_samples={"z": z})(7)["x"]
    assert drawn.shape == (5, 7, 3)
    new = Predictive(poutine.uncondition(model), guide=guide, num_samples=5)(rows()[:7])
    assert new["x"].shape == (5, 7, 3) and new["z"].shape == (5, 7, 2)


def test_latents_can_be_conditioned_on() -> None:
    model, z = pair()[0], torch.randn(30, 2)
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(rows())
    expected = model.decode(z).log_prob(rows())
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected)
    assert trace.nodes["z"]["is_observed"]


def test_a_pair_is_rendered() -> None:
    """What ``pyro.render_model`` draws; drawing itself needs graphviz."""
    model, guide = (get_model_relations(program, (rows(),)) for program in pair())
    assert model["sample_sample"] == {"z": [], "x": ["z"]} and model["observed"] == ["x"]
    assert model["plate_sample"] == {"data": ["z", "x"]}
    assert guide["plate_sample"] == {"data": ["z"]}
    pytest.importorskip("graphviz")
    for program in pair():
        assert "data" in pyro.render_model(program, model_args=(rows(),)).source


def test_nuts_finds_the_posterior_that_the_weights_give() -> None:
    model, guide = pair()
    row = rows()[:1]
    model.requires_grad_(False)
    torch.manual_seed(0)
    chain = MCMC(NUTS(model), num_samples=500, warmup_steps=50, disable_progbar=True)
    chain.run(row)
    z = chain.get_samples()["z"].reshape(-1, 2)
    trace = poutine.trace(guide).get_trace(row.expand(4000, 3))
    drawn, log_q = trace.nodes["z"]["value"], trace.nodes["z"]["fn"].log_prob
    log_p = dist.Normal(0.0, 1.0).log_prob(drawn).sum(-1) + model.decode(drawn).log_prob(row)
    weights = (log_p - log_q(drawn)).softmax(0)
    mean = (weights.unsqueeze(-1) * drawn).sum(0)
    torch.testing.assert_close(z.mean(0), mean.detach(), rtol=0, atol=0.25)


def test_an_elbo_module_is_trained_by_an_optimizer_of_ones_own() -> None:
    model, guide = pair()
    elbo = Trace_ELBO()(model, guide)
    optimizer = torch.optim.SGD(elbo.parameters(), lr=1e-3)
    before = [p.clone() for p in guide.parameters()]
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        torch.manual_seed(0)
        loss = elbo(rows()) / 30
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not all(map(torch.equal, before, guide.parameters()))


def test_pyros_tail_diagnostic_is_that_of_one_row() -> None:
    """Pyro has one k-hat for all rows together; of one row it is ours, to the draws' noise."""
    model, guide = pair()
    x = rows()[:1]
    pyro.set_rng_seed(0)
    khat = psis_diagnostic(model, guide, x, num_particles=4000, max_simultaneous_particles=500)
    own = importance.khat(log_weights(model, guide, x, num_samples=4000)).item()
    assert khat == pytest.approx(own, abs=0.3)


def test_a_copy_has_parameters_of_its_own() -> None:
    model, guide = pair()
    expected = score(model, guide, rows(), num_samples=5).log_evidence
    copies = deepcopy((model, guide))
    assert torch.equal(score(*copies, rows(), num_samples=5).log_evidence, expected)
    train(*copies, rows(), num_steps=2, progress=False)
    assert torch.equal(score(model, guide, rows(), num_samples=5).log_evidence, expected)


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_an_encoder_may_be_compiled() -> None:
    model, guide = pair()
    expected = score(model, guide, rows(), num_samples=5).log_evidence
    guide.encoder = torch.compile(guide.encoder, backend="eager")
    torch.testing.assert_close(score(model, guide, rows(), num_samples=5).log_evidence, expected)
    before = guide.base.weight.clone()
    train(model, guide, rows(), num_steps=2, progress=False)
    assert not torch.equal(guide.base.weight, before)


@pytest.mark.parametrize("flow, num_flows", [("diagonal", 0), ("planar", 2), ("iaf", 2)])
def test_functional_derivatives_go_through_a_guide(flow: str, num_flows: int) -> None:
    """First and second ones, forward and backward: what influence functions and Laplace take."""
    # else Pyro would put what a transform of torch.func traces into its store
    with pyro.settings.context(module_local_params=True):
        guide, x = pair(flow, num_flows)[1].double(), rows()[:2].double()
    values = {name: p.detach() for name, p in guide.named_parameters()}

    def elbo(values):
        torch.manual_seed(0)
        call = torch.func.functional_call
        trace = poutine.trace(lambda: call(guide, values, (x,))).get_trace()
        z = trace.nodes["z"]["value"]
        return (trace.nodes["z"]["fn"].log_prob(z) + z.square().sum(-1)).sum()

    local = pyro.settings.context(module_local_params=True)
    with local, pyro.validation_enabled(False):
        gradient = torch.func.grad(elbo)(values)
        direction = {name: torch.ones_like(p) for name, p in values.items()}
        slope = torch.func.jvp(elbo, (values,), (direction,))[1]
        small = {name: p + 1e-6 * direction[name] for name, p in values.items()}
        numeric = (elbo(small) - elbo(values)) / 1e-6
        backward = torch.func.jacrev(elbo)(values)
        inner = lambda v: sum(g.sum() for g in torch.func.grad(elbo)(v).values())  # noqa: E731
        second = sum(g.sum() for g in torch.func.grad(inner)(values).values())
        numeric_second = (inner(small) - inner(values)) / 1e-6
    along = sum(g.sum() for g in gradient.values())
    torch.testing.assert_close(along, slope)
    torch.testing.assert_close(along, numeric, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(second, numeric_second, rtol=1e-2, atol=1e-2)
    for name, value in backward.items():
        torch.testing.assert_close(value, gradient[name])


def test_a_guide_is_a_part_of_a_larger_one() -> None:
    """Two layers of latents: the plate is opened again, or the posterior is sampled in its own."""
    low, up, mid, out = pair()[1], nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 3)

    def model(x):
        pyro.module("generation", nn.ModuleList([mid, out]))
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(mid(top), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(out(z), 0.5).to_event(1), obs=x)

    def called(x):
        pyro.module("up", up)
        pyro.module("low", low)
        z = low(x)
        with pyro.plate("data", len(x)):
            pyro.sample("top", dist.Normal(up(z), 1.0).to_event(1))

    def in_its_plate(x):
        pyro.module("up", up)
        pyro.module("low", low)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", low.posterior(x))
            pyro.sample("top", dist.Normal(up(z), 1.0).to_event(1))

    scores = [score(model, guide, rows(), num_samples=5) for guide in (called, in_its_plate)]
    torch.testing.assert_close(scores[0].log_evidence, scores[1].log_evidence)
    before = low.base.weight.clone()
    train(model, called, rows(), num_steps=2, progress=False)
    assert not torch.equal(low.base.weight, before)


def test_a_planar_prior_is_refused_with_the_reason() -> None:
    class Planar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = T.planar(2)

        def forward(self, x):
            base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            return dist.TransformedDistribution(base, [self.layer])

    model, guide = pair(prior=Planar())
    for verb in (
        lambda: score(model, guide, rows()),
        lambda: train(model, guide, rows(), num_steps=1),
    ):
        with pytest.raises(ValueError, match="'z' of the model has no density at .*no inverse"):
            verb()
