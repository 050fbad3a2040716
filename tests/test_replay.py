"""Replayed steps: the numbers of training as it is, or training as it is."""

import random
import warnings
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vaeflow import CapacityELBO, Guide, Model, NonFiniteError, cyclical, train
from pyro_vaeflow import replay as replay_module
from pyro_vaeflow.isolation import modules
from pyro_vaeflow.priors import ExemplarPrior
from pyro_vaeflow.recorded import recorded
from pyro_vaeflow.replay import CHECKED, NoReplayWarning, can_replay
from tests.programs import ZOO, Pair, rows

OURS = ["diagonal", "planar", "planar_unconditioned", "iaf", "iaf_gated", "spline", "mixed"]
OURS += ["bernoulli_likelihood"]


def exemplar() -> Pair:
    guide = Guide(3, latent_dim=2, hidden_dims=(8,), flow="planar", num_flows=2)
    prior = ExemplarPrior(rows(), guide.locate, latent_dim=2, per_step=20)
    return Pair(Model(3, 2, (8,), likelihood="normal", prior=prior), guide, rows())


def trained(make, replay: bool | None, **options) -> tuple[list, list[torch.Tensor]]:
    """The history and the parameters of a short training, for comparison to the last bit."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pair = make()
    options = {"num_steps": 9, "batch_size": 8, "clip_norm": 1.0, "learning_rate": 0.05} | options
    schedule = options.pop("schedule", cyclical(9, num_cycles=2, start=0.0, stop=1.3))
    history = train(
        pair.model, pair.guide, pair.x, schedule=schedule, replay=replay, progress=False, **options
    )
    values = [p.detach() for m in modules(pair.model, pair.guide) for p in m.parameters()]
    return history.frame.drop(columns="seconds").astype(str).to_numpy().tolist(), values


def same(one: tuple, other: tuple) -> bool:
    return one[0] == other[0] and all(map(torch.equal, one[1], other[1]))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list]:
    """A list with an entry for each step that was replayed and not taken beside."""
    found: list = []
    real = replay_module.ReplayedStep._take_replayed
    monkeypatch.setattr(
        replay_module.ReplayedStep,
        "_take_replayed",
        lambda self, *args: found.append(args) or real(self, *args),
    )
    yield found


@pytest.mark.parametrize("name", [*OURS, "exemplar", "bound_methods"])
def test_a_replayed_training_is_the_same_to_the_last_bit(name: str, replays: list) -> None:
    make = exemplar if name == "exemplar" else ZOO[name]
    as_it_is = trained(make, replay=False)
    assert not replays
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoReplayWarning)
        assert same(trained(make, replay=True), as_it_is)
    assert len(replays) == 9 - 1 - CHECKED


def test_vectorised_particles_are_replayed(replays: list) -> None:
    def loss() -> Trace_ELBO:
        return Trace_ELBO(5, max_plate_nesting=1, vectorize_particles=True)

    as_it_is = trained(ZOO["planar"], replay=False, loss=loss())
    assert same(trained(ZOO["planar"], replay=True, loss=loss()), as_it_is)
    assert len(replays) == 9 - 1 - CHECKED


@pytest.mark.filterwarnings("ignore::pyro_vaeflow.replay.NoReplayWarning")
@pytest.mark.parametrize("name", sorted(set(ZOO) - set(OURS)))
def test_any_pair_trains_alike_whether_it_can_be_replayed_or_not(name: str) -> None:
    assert same(trained(ZOO[name], replay=True), trained(ZOO[name], replay=False))


def test_long_trainings_of_known_programs_are_replayed(monkeypatch, replays: list) -> None:
    monkeypatch.setattr("pyro_vaeflow.training.WORTH", 9)
    trained(ZOO["planar"], replay=None, num_steps=8)
    assert not replays
    trained(ZOO["two_latents"], replay=None)
    assert not replays
    trained(ZOO["planar"], replay=None)
    assert len(replays) == 9 - 1 - CHECKED
    with warnings.catch_warnings():  # nobody has asked for it
        warnings.simplefilter("error", NoReplayWarning)
        trained(ZOO["planar"], replay=None, loss=CapacityELBO(gamma=10.0))


def test_what_could_do_more_than_torch_operations_is_not_known() -> None:
    class Mine(Model):
        pass

    def pair(**options) -> tuple[Model, Guide]:
        return Model(3, **options), Guide(3)

    assert can_replay(*pair())
    assert not can_replay(Mine(3), Guide(3))
    assert not can_replay(Model(3).forward, Guide(3))
    assert not can_replay(*pair(prior=type("Prior", (nn.Identity,), {})()))
    watched = pair()
    handle = watched[1].encoder.register_forward_hook(lambda *_: None)
    assert not can_replay(*watched)
    handle.remove()
    assert can_replay(*watched)
    with poutine.trace():
        assert not can_replay(*watched)


class Shifted(nn.Module):
    """A guide with something in between that Python does; a model of as many latents beside it."""

    def __init__(self, shift) -> None:
        super().__init__()
        self.weight, self.shift, self.calls = nn.Parameter(torch.ones(3)), shift, 0

    def forward(self, x: torch.Tensor) -> None:
        self.calls += 1
        loc = (x * self.weight).sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + self.shift(self, loc), 1.0))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * self.weight, 1.0).to_event(1), obs=x)


def kept(guide: Shifted, loc: torch.Tensor) -> torch.Tensor:
    """What was once made of a parameter, made anew every other call."""
    if guide.calls % 2:
        guide.product = guide.weight.detach().square().sum()
    return guide.product


@pytest.mark.parametrize(
    ("shift", "reason"),
    [
        (lambda guide, loc: 1.0 if loc.mean().item() > 0.0 else 0.0, "_local_scalar_dense"),
        (lambda guide, loc: guide.calls, "a replayed step gave"),
        (kept, "a replayed step gave"),
        (lambda guide, loc: random.random(), "a replayed step gave"),
    ],
    ids=["looks at numbers", "counts its calls", "keeps a product", "draws elsewhere"],
)
def test_what_python_decides_is_found_out(shift, reason: str, replays: list) -> None:
    with pytest.warns(NoReplayWarning, match=reason):
        trained(lambda: Pair(Plain(), Shifted(shift), rows()), replay=True)
    assert not replays


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("planar", {"loss": CapacityELBO(gamma=10.0)}, "not Trace_ELBO"),
        ("planar", {"loss": Trace_ELBO(num_particles=2)}, "not Trace_ELBO"),
        ("param_functions", {}, "pyro.param"),
        ("batch_norm", {}, "buffers"),
    ],
)
def test_a_training_that_cannot_be_replayed_says_why(name: str, options: dict, reason: str) -> None:
    with pytest.warns(NoReplayWarning, match=reason):
        trained(ZOO[name], replay=True, **options)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_replayed_step_that_is_not_finite_is_explained_alike(replays: list) -> None:
    def message(replay: bool) -> str:
        with pytest.raises(NonFiniteError) as caught:
            schedule = lambda step: 1.0 if step < 6 else 1e300  # noqa: E731
            trained(ZOO["planar"], replay=replay, schedule=schedule)
        return str(caught.value)

    assert message(True) == message(False)
    assert len(replays) == 4


def test_recorded_operations_free_their_results_and_keep_their_order() -> None:
    def noisy(x: torch.Tensor) -> list[torch.Tensor]:
        torch.rand(2)  # used by nobody: later draws come after it all the same
        parts = torch.rand_like(x).split([1, 2], -1)
        return [torch.cat([parts[1], parts[0] * x[..., :1]], -1).add_(1.0)]

    replayed = recorded(noisy, torch.ones(2, 3))
    x = torch.arange(6.0).view(2, 3)
    torch.manual_seed(5)
    expected = noisy(x)[0]
    torch.manual_seed(5)
    assert torch.equal(replayed(x)[0], expected)
