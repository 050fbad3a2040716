"""Schedules by value and by law, the handler, and the capacity loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam

from pyro_vaeflow import (
    CapacityELBO,
    anneal,
    constant,
    contributions,
    cosine,
    cyclical,
    linear,
    log_weights,
    param_scope,
)
from pyro_vaeflow.inference.parameters import named_parameters, seeded
from pyro_vaeflow.inference.svi import LastTraces
from pyro_vaeflow.inference.traces import row_terms
from tests.programs import ZOO, Pair

STEPS = st.integers(0, 3000)
SIZES = st.integers(1, 1000)
LEVELS = st.floats(-10.0, 10.0)


def test_schedules_by_hand() -> None:
    assert [constant(0.3)(t) for t in (0, 10**9)] == [0.3, 0.3]
    assert [linear(4, 1.0, 3.0)(t) for t in range(6)] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    halves = [cosine(2, 1.0, 0.0)(t) for t in range(4)]
    assert halves == pytest.approx([1.0, 0.5, 0.0, 0.0])
    # Fu et al. 2019: T = 12, M = 3, R = 1/2: rises over two steps of four
    assert [cyclical(12, 3, 0.5)(t) for t in range(14)] == [0.0, 0.5, 1.0, 1.0] * 3 + [1.0, 1.0]
    assert [cyclical(4, 1, 1.0, 2.0, 4.0)(t) for t in range(5)] == [2.0, 2.5, 3.0, 3.5, 4.0]


@given(STEPS, SIZES, LEVELS, LEVELS)
def test_a_schedule_stays_between_its_ends_and_reaches_the_last(step, size, start, stop) -> None:
    cycles = cyclical(size, min(4, size), 0.5, start, stop)
    for schedule in (linear(size, start, stop), cosine(size, start, stop), cycles):
        assert min(start, stop) - 1e-9 <= schedule(step) <= max(start, stop) + 1e-9
        assert schedule(0) == pytest.approx(start)
        assert schedule(size + step) == pytest.approx(stop, abs=1e-9)


@given(st.integers(1, 20), st.integers(1, 50), st.floats(0.05, 1.0), st.integers(0, 2000))
def test_cycles_repeat_and_rise(num_cycles, period, ratio, step) -> None:
    beta = cyclical(num_cycles * period, num_cycles, ratio)
    step %= num_cycles * period
    assert beta(step) == pytest.approx(beta(step % period), abs=1e-9)
    if (step + 1) % period:
        assert beta(step + 1) >= beta(step) - 1e-9


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: linear(0), "num_steps"),
        (lambda: cosine(-1), "num_steps"),
        (lambda: cyclical(0), "num_steps"),
        (lambda: cyclical(10, num_cycles=11), "num_cycles"),
        (lambda: cyclical(10, num_cycles=0), "num_cycles"),
        (lambda: cyclical(10, ratio=0.0), "ratio"),
        (lambda: cyclical(10, ratio=1.1), "ratio"),
        (lambda: anneal(-0.1), "beta"),
        (lambda: anneal(math.nan), "beta"),
        (lambda: anneal(math.inf), "beta"),
        (lambda: CapacityELBO(gamma=-1.0), "gamma"),
        (lambda: CapacityELBO().at(-1.0).__enter__(), "capacity"),
    ],
)
def test_a_bad_value_is_named(make, name) -> None:
    with pytest.raises(ValueError, match=f"{name} must .* got"):
        make()


def loss_and_gradient(pair: Pair, loss=None) -> tuple[float, torch.Tensor]:
    """Under one seed, hence one draw: the loss in nats, and its gradient as one vector."""
    watched = LastTraces().watch(loss or Trace_ELBO())
    with param_scope(*pair.programs), seeded(0):
        value = watched.loss_and_grads(*pair.programs, *pair.args)
        parameters = list(named_parameters(*pair.programs).values())
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return value, torch.cat([part.flatten() for part in parts])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_loss_and_gradient_are_linear_in_beta(pair: Pair, loss: Trace_ELBO, request) -> None:
    if isinstance(loss, TraceMeanField_ELBO) and "discrete" in request.node.name:
        pytest.skip("it needs draws with a gradient")
    values = {}
    for beta in (0.0, 0.37, 1.0, 5.0):
        with anneal(beta):
            values[beta] = loss_and_gradient(pair, loss)
    for part in (0, 1):
        at_zero, slope = values[0.0][part], values[1.0][part] - values[0.0][part]
        for beta, value in values.items():
            expected = torch.as_tensor(at_zero + beta * slope)
            torch.testing.assert_close(torch.as_tensor(value[part]), expected)
    at_prior = isinstance(loss, TraceMeanField_ELBO) and "gain" in pair.parameters()
    assert (values[1.0][1] - values[0.0][1]).abs().max() > 0 or at_prior  # its analytic KL is flat
    assert values[0.0][1].abs().max() > 0
    assert loss_and_gradient(pair, loss)[0] == values[1.0][0]  # beta 1 is no handler at all


def test_beta_leaves_every_score_as_it_is(row_pair: Pair, request) -> None:
    def scores() -> list[torch.Tensor]:
        programs_and_rows, options = (*row_pair.programs, row_pair.x), {"num_samples": 5}
        scores = row_pair.score(**options)
        values = [scores.log_evidence, scores.elbo, log_weights(*programs_and_rows, **options)]
        if "planar" in request.node.name:
            values.append(contributions(*programs_and_rows, **options))
        return values

    plain = scores()
    with anneal(0.3):
        assert all(map(torch.equal, plain, scores()))


def test_a_users_own_svi_loop() -> None:
    pair = ZOO["planar"]()
    svi = SVI(*pair.programs, Adam({"lr": 0.02}), loss=Trace_ELBO())
    before = pair.score().elbo.mean()
    beta = cyclical(num_steps=80)
    for step in range(80):
        with anneal(beta(step)):
            svi.step(pair.x)
    assert pair.score().elbo.mean() > before + 0.5


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [name for name in ZOO if name != "discrete_latent"])
def test_capacity_zero_and_stiffness_one_is_the_elbo_where_the_kl_is_positive(name: str) -> None:
    pair = ZOO[name]()
    pair.fit(num_steps=20, learning_rate=0.05)
    elbo, gradient = loss_and_gradient(pair)
    capacity, other = loss_and_gradient(pair, CapacityELBO(gamma=1.0))
    assert capacity == pytest.approx(elbo)
    torch.testing.assert_close(other, gradient)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("num_particles", [1, 4])
def test_the_capacity_loss_is_its_formula(num_particles: int) -> None:
    pair, last = ZOO["planar"](), LastTraces()
    loss = CapacityELBO(3.0, num_particles=num_particles, vectorize_particles=num_particles > 1)
    for capacity, sign in ((0.0, 1.0), (1e4, -1.0)):
        with loss.at(capacity), seeded(0):
            value = last.watch(loss).loss_and_grads(*pair.programs, pair.x)
            terms = row_terms(last.model, last.guide)
            log_likelihood, kl = (t.sum(-1).mean() for t in (terms.log_likelihood, terms.kl))
        assert value == pytest.approx((-log_likelihood + 3.0 * sign * (kl - capacity)).item())
        with loss.at(capacity), seeded(0):
            assert loss.loss(*pair.programs, pair.x) == pytest.approx(value)


@pytest.mark.parametrize("capacity", [0.5, 3.0])
def test_the_kl_settles_at_the_capacity(capacity: float) -> None:
    loss = CapacityELBO(gamma=100.0, num_particles=8, vectorize_particles=True)
    options = {"num_steps": 300, "learning_rate": 0.01, "loss": loss}
    frame = ZOO["diagonal"]().fit(schedule=linear(100, stop=capacity), **options).frame
    assert frame["kl"].tail(100).mean() == pytest.approx(capacity, abs=0.1)
    assert frame["anneal"].iloc[-1] == capacity


def test_the_capacity_loss_refuses_a_discrete_latent_by_name() -> None:
    with pytest.raises(ValueError, match="site 'on' is not reparameterised"):
        ZOO["discrete_latent"]().fit(num_steps=1, loss=CapacityELBO())
