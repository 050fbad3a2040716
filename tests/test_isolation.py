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

from pyro_vaeflow import Guide, Model, param_scope, score, train
from pyro_vaeflow.inference.parameters import (
    module_mode,
    modules,
    named_parameters,
    seeded,
    without_names,
)
from tests.programs import ZOO, Pair, rows

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vaeflow.inference.scoring.KhatWarning")


def fit(pair: Pair, **options):
    options = {"num_steps": 40, "learning_rate": 0.02, "progress": False} | options
    return train(pair.model, pair.guide, pair.x, **options)


def parameters(pair: Pair) -> dict[str, torch.Tensor]:
    with param_scope(pair.model, pair.guide):
        return {k: p.detach().clone() for k, p in named_parameters(pair.model, pair.guide).items()}


def test_two_pairs_of_one_class_both_learn(pair: Pair, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["pair"]
    for made in (pair, ZOO[name]()):
        fit(made, num_steps=1, learning_rate=0.0)  # makes the parameters
        before = parameters(made)
        fit(made)
        after = parameters(made)
        assert before.keys() == after.keys() and len(after) > 0
        assert not [key for key in after if torch.equal(before[key], after[key])]


def test_the_global_store_is_left_alone(pair: Pair) -> None:
    pyro.param("loading", torch.tensor(7.0))
    fit(pair, num_steps=2)
    assert dict(pyro.get_param_store()) == {"loading": torch.tensor(7.0)}


def test_a_plain_functions_parameters_are_read_in_its_scope() -> None:
    pair = ZOO["linear_gaussian"]()
    untrained = score(pair.model, pair.guide, pair.x).elbo
    fit(pair, num_steps=1)
    with param_scope(pair.model, pair.guide):
        start = pyro.param("scale").clone()
        pyro.param("scale").unconstrained().data.add_(1.0)
    with param_scope(pair.model, pair.guide):
        torch.testing.assert_close(pyro.param("scale"), start * torch.tensor(1.0).exp())
    assert (score(pair.model, pair.guide, pair.x).elbo < untrained).all()
    fit(pair, num_steps=200)
    torch.testing.assert_close(
        score(pair.model, pair.guide, pair.x).elbo, untrained, rtol=0.1, atol=0.3
    )


def test_a_scope_inside_that_of_the_same_pair_sees_what_was_learned_there() -> None:
    pair = ZOO["param_functions"]()
    with param_scope(pair.model, pair.guide):
        pyro.param("late", torch.tensor(3.0))
        with param_scope(pair.model, pair.guide):
            assert pyro.param("late").item() == 3.0


def test_parameters_die_with_their_programs() -> None:
    pair = ZOO["bound_methods"]()
    fit(pair, num_steps=2)
    owner = weakref.ref(pair.model.__self__)
    del pair
    gc.collect()
    assert owner() is None


class Net(PyroModule):
    """Model and guide may be of one class, here with an argument that says which."""

    def __init__(self, is_model: bool) -> None:
        super().__init__()
        self.is_model, self.net = is_model, nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.is_model:
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)
            else:
                pyro.sample("z", dist.Normal(self.net(x), 1.0).to_event(1))


def test_model_and_guide_of_one_class_both_learn() -> None:
    pair = Pair(Net(True), Net(False), rows())
    before = [net.net.weight.clone() for net in (pair.model, pair.guide)]
    fit(pair, num_steps=2)
    assert len(named_parameters(pair.model, pair.guide)) == 4
    for net, start in zip((pair.model, pair.guide), before, strict=True):
        assert not torch.equal(net.net.weight, start)


def test_a_pyroparam_of_one_name_in_both_is_refused() -> None:
    pair = ZOO["two_latents"]()
    pair.guide.noise = PyroParam(torch.tensor(1.0))
    with pytest.raises(ValueError, match="both have a PyroParam 'noise'; rename"):
        fit(pair, num_steps=1)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_parameters(seed: int, pair: Pair, request) -> None:
    made = []
    for _ in range(2):
        with seeded(5):
            made.append(ZOO[request.node.callspec.params["pair"]]())
        torch.randn(3)  # the caller's state does not matter
        fit(made[-1], num_steps=5, batch_size=8, seed=seed)
    one, other = (parameters(p) for p in made)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_another_seed_gives_other_parameters(pair: Pair, request) -> None:
    made = []
    for seed in (0, 1):
        with seeded(5):
            made.append(ZOO[request.node.callspec.params["pair"]]())
        fit(made[-1], num_steps=5, batch_size=8, seed=seed)
    one, other = (parameters(p) for p in made)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_a_lazy_start_value_follows_the_seed() -> None:
    starts = []
    for seed in (0, 0, 1):

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x):
            gain = pyro.param("gain", lambda: torch.randn(3))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x * gain, 1.0).to_event(1))

        fit(Pair(model, guide, rows()), num_steps=1, learning_rate=0.0, seed=seed)
        with param_scope(model, guide):
            starts.append(pyro.param("gain").tolist())
    assert starts[0] == starts[1] != starts[2]


def test_the_callers_random_states_come_back(row_pair: Pair) -> None:
    def states():
        state = get_rng_state()
        return state["torch"].tolist(), state["random"], state["numpy"][1].tolist()

    before = states()
    fit(row_pair, num_steps=2)
    score(row_pair.model, row_pair.guide, row_pair.x, num_samples=3)
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
    untrained = score(pair.model, pair.guide, pair.x).elbo.mean()
    svi = pyro.infer.SVI(
        pair.model, pair.guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO()
    )
    for _ in range(100):
        svi.step(pair.x)
    before = {name: value.clone() for name, value in pyro.get_param_store().items()}
    assert score(pair.model, pair.guide, pair.x).elbo.mean() > untrained + 0.1
    assert {*before} == {*pyro.get_param_store().keys()}
    train(pair.model, pair.guide, pair.x, num_steps=5, progress=False)
    assert all(torch.equal(pyro.get_param_store()[name], value) for name, value in before.items())


def decoder_of(parts: dict[str, nn.Module]) -> nn.Module:
    return parts["decoder"]


@pytest.mark.parametrize("get", [decoder_of, lambda parts: parts["decoder"]])
def test_dropout_behind_a_plain_function_is_off_in_scores(get) -> None:
    """Neither a dictionary nor a helper function names the module to the program."""
    decoder = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 3))
    parts = {"decoder": decoder}

    def model(x: torch.Tensor) -> None:
        pyro.module("decoder", get(parts))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(get(parts)(z), 0.1).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[..., :2], 1.0).to_event(1))

    x = torch.randn(20, 3)
    one, other = score(model, guide, x), score(model, guide, x, chunk_size=3)
    torch.testing.assert_close(one.elbo, other.elbo)
    assert all(part.training for part in decoder.modules())


def test_dropout_is_off_in_a_method_behind_a_partial() -> None:
    vae = ZOO["bound_methods"]().model.__self__
    model, guide, x = partial(vae.model), partial(vae.guide), rows()
    one, other = score(model, guide, x), score(model, guide, x, chunk_size=3)
    torch.testing.assert_close(one.elbo, other.elbo)
    assert all(part.training for part in vae.modules())


@pytest.mark.filterwarnings("error")
def test_a_score_says_which_parameters_nothing_has_trained() -> None:
    pair = ZOO["linear_gaussian"]()
    options = {"num_samples": 5}
    with pytest.warns(UserWarning, match=r"no parameters are known.*\['scale'\].*train the pair"):
        score(pair.model, pair.guide, pair.x, **options)
    fit(pair, num_steps=1)
    score(pair.model, pair.guide, pair.x, **options)
    with pytest.warns(UserWarning, match="no parameters are known"):
        score(pair.model, partial(pair.guide), pair.x, **options)
    score(ZOO["bound_methods"]().model, ZOO["bound_methods"]().guide, pair.x, **options)


def test_a_pair_that_nothing_trained_does_not_see_the_scope_of_another() -> None:
    trained, other = ZOO["linear_gaussian"](), ZOO["linear_gaussian"]()
    expected = score(other.model, other.guide, other.x, num_samples=5)
    with param_scope(trained.model, trained.guide):
        pyro.param("scale", torch.tensor([9.0, 9.0]))
        again = score(other.model, other.guide, other.x, num_samples=5)
    assert torch.equal(expected.elbo, again.elbo)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_a_bad_seed_is_named(seed: float) -> None:
    pair = ZOO["diagonal"]()
    with pytest.raises(ValueError, match="seed must be an integer from 0"):
        score(pair.model, pair.guide, pair.x, seed=seed)
