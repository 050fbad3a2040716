"""Every pair has parameters of its own, and the caller's states are left as they were."""

import gc
import weakref
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.util import get_rng_state
from torch import nn

from pyro_vaeflow import Guide, Model, param_scope, score
from pyro_vaeflow.inference.parameters import module_mode, modules, seeded, without_names
from tests.programs import ZOO, LinearGaussian, Pair, rows


@pytest.mark.parametrize("name", sorted(ZOO))
def test_two_pairs_of_one_class_both_learn_and_the_global_store_is_left_alone(name: str) -> None:
    pyro.param("loading", torch.tensor(7.0))
    for made in (ZOO[name](), ZOO[name]()):
        made.fit(num_steps=1, learning_rate=0.0)  # makes the parameters
        before = made.parameters()
        made.fit(num_steps=4)
        after = made.parameters()
        assert before.keys() == after.keys() and len(after) > 0
        assert not [key for key in after if torch.equal(before[key], after[key])]
    assert dict(pyro.get_param_store()) == {"loading": torch.tensor(7.0)}


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_seed_alone_decides_the_parameters(name: str) -> None:
    ends = []
    for seed in (0, 0, 1):
        with seeded(5):
            made = ZOO[name]()
        torch.randn(3)  # the caller's state does not matter
        made.fit(num_steps=3, batch_size=8, seed=seed)
        ends.append(made.parameters())
    one, other, third = ends
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not all(torch.equal(one[key], third[key]) for key in one)


def test_a_plain_functions_parameters_are_read_in_its_scope() -> None:
    pair = ZOO["linear_gaussian"]()
    untrained = pair.score(num_samples=100).elbo
    pair.fit(num_steps=1)
    with param_scope(*pair.programs):
        start = pyro.param("scale").clone()
        pyro.param("scale").unconstrained().data.add_(1.0)
        with param_scope(*pair.programs):  # a scope inside sees what was learned there
            torch.testing.assert_close(pyro.param("scale"), start * torch.tensor(1.0).exp())
    torch.testing.assert_close(pair.param("scale"), start * torch.tensor(1.0).exp())
    assert (pair.score(num_samples=100).elbo < untrained).all()
    pair.fit(num_steps=100, learning_rate=0.04)
    torch.testing.assert_close(pair.score(num_samples=100).elbo, untrained, rtol=0.1, atol=0.3)


def test_parameters_die_with_their_programs() -> None:
    pair = ZOO["bound_methods"]()
    pair.fit(num_steps=2)
    owner = weakref.ref(pair.model.__self__)
    del pair
    gc.collect()
    assert owner() is None


def test_model_and_guide_have_each_their_parameters_or_are_refused() -> None:
    assert len(ZOO["one_class"]().parameters()) == len(ZOO["plain_modules"]().parameters()) == 4
    pair = ZOO["two_latents"]()
    pair.guide.noise = PyroParam(torch.tensor(1.0))
    with pytest.raises(ValueError, match="both have a PyroParam 'noise'; rename"):
        pair.fit(num_steps=1)


def test_a_lazy_start_value_follows_the_seed() -> None:
    starts = []
    for seed in (0, 0, 1):

        def guide(x):
            gain = pyro.param("gain", lambda: torch.randn(3, 2))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x @ gain, 1.0).to_event(1))

        pair = Pair(LinearGaussian().model, guide, rows())
        pair.fit(num_steps=1, learning_rate=0.0, seed=seed)
        starts.append(pair.param("gain").tolist())
    assert starts[0] == starts[1] != starts[2]


def test_the_callers_random_states_come_back(row_pair: Pair) -> None:
    def states() -> tuple:
        state = get_rng_state()
        return state["torch"].tolist(), state["random"], state["numpy"][1].tolist()

    before = states()
    row_pair.fit(num_steps=2)
    row_pair.score(num_samples=3)
    assert states() == before
    with seeded(1):
        first = torch.randn(3)
    assert states() == before
    with seeded(1):
        assert torch.equal(torch.randn(3), first)


def test_modes_are_set_and_each_part_gets_its_own_back() -> None:
    model, guide = Model(3), Guide(3)
    guide.encoder[0].eval()  # frozen by the user, inside a module that trains
    before = [m.training for m in guide.modules()]
    with module_mode(model, guide, training=False):
        assert not any(m.training for net in (model, guide) for m in net.modules())
    assert [m.training for m in guide.modules()] == before
    with module_mode(model, guide, training=True):
        with module_mode(model, guide, training=False):
            model(torch.rand(2, 3))
            assert not any(m.training for m in model.modules())
        assert all(m.training for m in model.modules())
    assert [m.training for m in guide.modules()] == before
    assert all(m.training for m in model.modules())


def test_parameters_are_named_in_a_run_only_where_pyro_needs_it() -> None:
    guide, x = Guide(3, latent_dim=2, flow="planar", num_flows=2), torch.rand(4, 3)

    def trace(program) -> tuple[torch.Tensor, list[str]]:
        with seeded(0):
            nodes = pyro.poutine.trace(program).get_trace(x).nodes
        return nodes["z"]["value"], [n for n, s in nodes.items() if s["type"] == "param"]

    (one, named), (other, unnamed) = trace(guide), trace(without_names(guide))
    assert torch.equal(one, other) and named and not unnamed
    assert without_names(guide.forward) == guide.forward
    for of_pyro in (PyroParam(torch.ones(())), PyroSample(dist.Normal(0.0, 1.0))):
        guide = Guide(3)
        guide.part = PyroModule()
        guide.part.own = of_pyro
        assert without_names(guide) is guide


def test_modules_are_found_behind_bound_methods_once() -> None:
    pair = ZOO["bound_methods"]()
    assert modules(pair.model, pair.guide) == [pair.model.__self__]
    assert modules(partial(partial(pair.model)), pair.guide) == [pair.model.__self__]
    assert modules(rows, len) == []


def test_a_loop_of_ones_own_is_scored_with_what_it_learned() -> None:
    """Pyro's own SVI keeps the parameters of plain functions in the global store."""
    pair = ZOO["param_functions"]()
    untrained = pair.score().elbo.mean()
    svi = pyro.infer.SVI(*pair.programs, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    for _ in range(60):
        svi.step(pair.x)
    before = {name: value.clone() for name, value in pyro.get_param_store().items()}
    assert pair.score().elbo.mean() > untrained + 0.1
    assert {*before} == {*pyro.get_param_store().keys()}
    pair.fit(num_steps=5)
    assert all(torch.equal(pyro.get_param_store()[name], value) for name, value in before.items())


def decoder_of(parts: dict[str, nn.Module]) -> nn.Module:
    return parts["decoder"]


@pytest.mark.parametrize("get", [decoder_of, lambda parts: parts["decoder"], None])
def test_dropout_is_off_in_scores_wherever_the_module_is(get) -> None:
    """Neither a dictionary nor a helper function names the module to the program."""
    decoder = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 3))
    parts = {"decoder": decoder}

    def model(x: torch.Tensor) -> None:
        pyro.module("decoder", get(parts))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(get(parts)(z), 0.1).to_event(1), obs=x)

    programs: tuple = model, LinearGaussian().narrow_guide(1.0)
    if get is None:  # a method behind a partial
        decoder = ZOO["bound_methods"]().model.__self__
        programs = partial(decoder.model), partial(decoder.guide)
    one, other = score(*programs, rows()), score(*programs, rows(), chunk_size=3)
    torch.testing.assert_close(one.elbo, other.elbo)
    assert all(part.training for part in decoder.modules())


@pytest.mark.filterwarnings("error")
def test_a_score_says_which_parameters_nothing_has_trained() -> None:
    pair, methods = ZOO["linear_gaussian"](), ZOO["bound_methods"]()
    with pytest.warns(UserWarning, match=r"no parameters are known.*\['scale'\].*train the pair"):
        pair.score(num_samples=5)
    pair.fit(num_steps=1)
    pair.score(num_samples=5)
    with pytest.warns(UserWarning, match="no parameters are known"):
        score(pair.model, partial(pair.guide), pair.x, num_samples=5)
    methods.score(num_samples=5)


def test_a_pair_that_nothing_trained_does_not_see_the_scope_of_another() -> None:
    trained, other = ZOO["linear_gaussian"](), ZOO["linear_gaussian"]()
    expected = other.score(num_samples=5)
    with param_scope(*trained.programs):
        pyro.param("scale", torch.tensor([9.0, 9.0]))
        again = other.score(num_samples=5)
    assert torch.equal(expected.elbo, again.elbo)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_a_bad_seed_is_named(seed: float) -> None:
    with pytest.raises(ValueError, match="seed must be an integer from 0"):
        ZOO["diagonal"]().score(seed=seed)
