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
from pyro.nn import DenseNN, PyroModule
from torch import nn

from pyro_vaeflow import (
    CapacityELBO,
    Guide,
    Model,
    NonFiniteError,
    cyclical,
    train,
    watching,
)
from pyro_vaeflow.inference import replay as replay_module
from pyro_vaeflow.inference.memory import peak_bytes
from pyro_vaeflow.inference.parameters import modules
from pyro_vaeflow.inference.recorded import recorded
from pyro_vaeflow.inference.replay import CHECKED, NoReplayWarning, can_replay
from pyro_vaeflow.programs.priors import ExemplarPrior
from tests.programs import ZOO, Pair, rows

# The others have pyro.param, a PyroParam, moving buffers, or masks of numbers, as splines do.
REPLAYED = {
    "bernoulli_likelihood", "bound_methods", "diagonal", "iaf", "iaf_gated", "iaf_unconditioned",
    "mixed", "planar", "planar_unconditioned", "unannounced_methods",
}  # fmt: skip


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


@pytest.mark.filterwarnings("ignore::pyro_vaeflow.inference.replay.NoReplayWarning")
@pytest.mark.parametrize("name", [*sorted(ZOO), "exemplar"])
def test_training_is_the_same_to_the_last_bit(name: str, replays: list) -> None:
    make = exemplar if name == "exemplar" else ZOO[name]
    as_it_is = trained(make, replay=False)
    assert not replays
    assert same(trained(make, replay=True), as_it_is)
    assert len(replays) == (9 - 1 - CHECKED if name in REPLAYED or name == "exemplar" else 0)


def test_vectorised_particles_are_replayed(replays: list) -> None:
    def loss() -> Trace_ELBO:
        return Trace_ELBO(5, max_plate_nesting=1, vectorize_particles=True)

    as_it_is = trained(ZOO["planar"], replay=False, loss=loss())
    assert same(trained(ZOO["planar"], replay=True, loss=loss()), as_it_is)
    assert len(replays) == 9 - 1 - CHECKED


def test_long_trainings_of_known_programs_are_replayed(monkeypatch, replays: list) -> None:
    monkeypatch.setattr("pyro_vaeflow.inference.training.WORTH", 9)
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

    class Twice(nn.Identity):
        pass

    def pair(**options) -> tuple[Model, Guide]:
        return Model(3, **options), Guide(3)

    assert can_replay(*pair())
    assert can_replay(*pair(prior=nn.Identity()))
    assert not can_replay(Mine(3), Guide(3))
    assert not can_replay(Model(3).forward, Guide(3))
    assert not can_replay(*pair(prior=Twice()))
    assert not can_replay(*pair(prior=PyroModule[Twice]()))
    assert not can_replay(*pair(prior=DenseNN(3, [4], nonlinearity=lambda h: h)))
    model, guide = pair()
    guide.forward = lambda x: None
    assert not can_replay(model, guide)


def test_what_is_watched_is_not_replayed_unasked() -> None:
    model, guide = Model(3), Guide(3)
    encoder = guide.encoder
    for hook in (
        encoder.register_forward_hook,
        encoder.register_forward_pre_hook,
        encoder.register_full_backward_hook,
        encoder.register_full_backward_pre_hook,
        nn.modules.module.register_module_forward_hook,
    ):
        handle = hook(lambda *_: None)
        assert not can_replay(model, guide)
        handle.remove()
        assert can_replay(model, guide)
    with poutine.trace():
        assert not can_replay(model, guide)
    with watching(lambda record: None):
        assert not can_replay(model, guide)


class Plain(nn.Module):
    def __init__(self, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3)) if weight is None else weight

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * self.weight, 1.0).to_event(1), obs=x)


class Shifted(nn.Module):
    """A guide with something in between that Python does."""

    def __init__(self, shift, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3)) if weight is None else weight
        self.shift, self.calls = shift, 0

    def forward(self, x: torch.Tensor) -> None:
        self.calls += 1
        loc = (x * self.weight).sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + self.shift(self, loc), 1.0))


def decides(guide: Shifted, loc: torch.Tensor) -> float:
    return 1.0 if loc.mean().item() > 0.0 else 0.0


def kept(guide: Shifted, loc: torch.Tensor) -> torch.Tensor:
    """What was once made of a parameter, made anew every other call."""
    if guide.calls % 2:
        guide.product = guide.weight.detach().square().sum()
    return guide.product


def of_positive(guide: Shifted, loc: torch.Tensor) -> torch.Tensor:
    return loc[loc >= loc.mean()].mean()


def silent(guide: Shifted, loc: torch.Tensor) -> float:
    """Refuses to be recorded, without a word."""
    assert not torch.utils._python_dispatch._get_current_dispatch_mode()
    return 0.0


@pytest.mark.parametrize(
    ("shift", "reason"),
    [
        (decides, "_local_scalar_dense"),
        (of_positive, "shape"),
        (silent, "AssertionError"),
        (lambda guide, loc: random.random(), "a replayed step gave"),
        (lambda guide, loc: guide.calls, "a replayed step gave"),
        (kept, "a replayed step gave"),
    ],
    ids=["decides", "masks", "silent", "draws elsewhere", "counts its calls", "keeps a product"],
)
def test_what_python_decides_is_found_out(shift, reason: str, replays: list, request) -> None:
    def make() -> Pair:
        return Pair(Plain(), Shifted(shift), rows())

    with pytest.warns(NoReplayWarning, match=reason):
        found = trained(make, replay=True)
    assert not replays
    if reason != "a replayed step gave" or "draws" in request.node.callspec.id:
        assert same(found, trained(make, replay=False))  # of the others a recording is a call


@pytest.mark.parametrize(
    "chosen",
    [
        lambda x: x[x > 0.0],
        lambda x: x[(x > 0.0).to(torch.uint8)],
        lambda x: x.masked_select(x > 0.0),
        lambda x: x[x.nonzero()],
        lambda x: x.unique(),
    ],
)
def test_shapes_that_depend_on_numbers_are_not_recorded(chosen) -> None:
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match="depends on numbers"):
        warnings.simplefilter("ignore")  # uint8 masks are deprecated
        recorded(lambda x: [chosen(x).sum()], torch.arange(-2.0, 3.0))


def test_whole_numbers_and_branches_of_torch_are_recorded() -> None:
    def function(x: torch.Tensor) -> list[torch.Tensor]:
        sine = torch.cond(x.sum() > 0.0, torch.sin, torch.cos, (x,))
        return [x[torch.tensor([0, 2])], sine]

    x = torch.arange(3.0)
    replayed = recorded(function, torch.ones(3))
    for values in (x, -x):
        assert all(map(torch.equal, replayed(values), function(values)))


def tied() -> Pair:
    weight = nn.Parameter(torch.ones(3))
    return Pair(Plain(weight), Shifted(lambda *_: 0.0, weight), rows())


def hooked() -> Pair:
    pair = Pair(Plain(), Shifted(lambda *_: 0.0), rows())
    pair.model.weight.register_hook(lambda grad: -grad)  # of the same norm
    return pair


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (ZOO["planar"], {"loss": CapacityELBO(gamma=10.0)}, "not Trace_ELBO"),
        (ZOO["planar"], {"loss": Trace_ELBO(num_particles=2)}, "not Trace_ELBO"),
        (ZOO["param_functions"], {}, "pyro.param"),
        (ZOO["two_latents"], {}, "PyroParam"),
        (ZOO["batch_norm"], {}, "buffers"),
        (tied, {}, "in common"),
        (hooked, {}, "a hook"),
    ],
)
def test_a_training_that_cannot_be_replayed_says_why(make, options: dict, reason: str) -> None:
    as_it_is = trained(make, replay=False, **options)
    with pytest.warns(NoReplayWarning, match=reason):
        assert same(trained(make, replay=True, **options), as_it_is)


def test_gradients_lie_in_memory_as_their_parameters_do(replays: list) -> None:
    def make() -> Pair:
        pair = ZOO["unannounced_methods"]()
        decoder = modules(pair.model, pair.guide)[0].decoder
        decoder.weight = nn.Parameter(torch.randn(2, 3).t())
        return pair

    assert same(trained(make, replay=True), trained(make, replay=False))
    assert len(replays) == 9 - 1 - CHECKED


def test_steps_without_a_kl_are_not_counted_as_compared(replays: list) -> None:
    def late(step: int) -> float:
        return 0.0 if step < 5 else 1.0

    as_it_is = trained(ZOO["planar"], replay=False, schedule=late)
    assert same(trained(ZOO["planar"], replay=True, schedule=late), as_it_is)
    assert len(replays) == 9 - 5 - CHECKED


def test_a_replayed_beta_is_checked_as_any(replays: list) -> None:
    with pytest.raises(ValueError, match="beta must be finite and at least 0, got -"):
        trained(ZOO["planar"], replay=True, schedule=lambda step: 1.0 - 0.2 * step)
    assert replays


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_replayed_step_that_is_not_finite_is_explained_alike(replays: list) -> None:
    def message(replay: bool) -> str:
        with pytest.raises(NonFiniteError) as caught:
            schedule = lambda step: 1.0 if step < 6 else 1e300  # noqa: E731
            trained(ZOO["planar"], replay=replay, schedule=schedule)
        return str(caught.value)

    assert message(True) == message(False)
    assert len(replays) == 4


def test_results_are_freed_as_soon_as_nothing_needs_them() -> None:
    def many(x: torch.Tensor) -> list[torch.Tensor]:
        for _ in range(20):
            x = x + 1.0
        return [x]

    replayed, x = recorded(many, torch.zeros(1)), torch.zeros(1000)
    assert peak_bytes(lambda: replayed(x)) == 2 * 4000


def test_recorded_operations_keep_their_order() -> None:
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
