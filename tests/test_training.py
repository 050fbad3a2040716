"""`train`: what it minimises and records, when it stops, what it says when it cannot go on."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.optim.clipped_adam import ClippedAdam

from pyro_vaeflow import Guide, Model, NonFiniteError, constant, cosine, linear, train
from pyro_vaeflow.inference.svi import Batches, LastTraces
from tests.programs import ZOO, LinearGaussian, Pair, rows

COLUMNS = [
    "step", "loss", "elbo", "log_likelihood", "kl", "anneal", "learning_rate", "grad_norm",
    "seconds", "held_out_elbo",
]  # fmt: skip


def latent_alone(x: torch.Tensor, loc: torch.Tensor | float = 0.0) -> None:
    """A guide of one number a row."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(()) + loc, 1.0))


def independent(x: torch.Tensor, loc: torch.Tensor | float = 0.0) -> None:
    """A model whose rows do not depend on z: what it says of them has no noise."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0).expand(x.shape[1:]).to_event(x.dim() - 1), obs=x)


def test_the_loss_falls(pair: Pair) -> None:
    if pair.starts_at_optimum:
        pytest.skip("starts at its optimum")
    loss = pair.fit(num_steps=60, learning_rate=0.05).frame["loss"]
    assert loss.tail(20).mean() < loss.head(5).mean() - 0.1


def test_the_history_of_every_pair(pair: Pair, request: pytest.FixtureRequest) -> None:
    frame = pair.fit(num_steps=6, schedule=linear(4), batch_size=8).frame
    assert list(frame.columns) == COLUMNS and list(frame["step"]) == list(range(6))
    elbo = frame["log_likelihood"] - frame["kl"]
    assert frame["elbo"].to_numpy() == pytest.approx(elbo, rel=1e-5)
    assert frame["anneal"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert (frame["learning_rate"] == 0.02).all() and (frame["grad_norm"] > 0).all()
    assert frame["seconds"].is_monotonic_increasing and frame["held_out_elbo"].isna().all()
    if "shared_latent" not in request.node.name:  # the loss is the annealed ELBO, nats a row
        expected = -frame["log_likelihood"] + frame["anneal"] * frame["kl"]
        assert frame["loss"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-4, abs=1e-4)


def test_a_shared_latent_counts_once_over_all_rows() -> None:
    """30 rows in batches of 10: the batch's mean, and a thirtieth of the shared site."""
    terms = []

    def posterior():
        return dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.1)

    def model(x):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        independent(x, offset)
        likelihood = dist.Normal(offset, 1.0).log_prob(x).sum(-1).mean()
        kl = posterior().log_prob(offset) - dist.Normal(0.0, 1.0).log_prob(offset)
        terms.append((kl / 30.0 - likelihood).item())

    def guide(x):
        pyro.sample("offset", posterior())
        latent_alone(x)

    frame = Pair(model, guide, rows()).fit(num_steps=3, batch_size=10).frame
    assert frame["loss"].tolist() == pytest.approx(terms[-3:], rel=1e-5)


def test_training_finds_the_closed_form() -> None:
    """The best factorised normal: posterior means, and variances 1 / precision_jj."""
    exact = LinearGaussian()

    def guide(x):
        gain = pyro.param("gain", torch.zeros(3, 2))
        offset = pyro.param("offset", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ gain + offset, scale).to_event(1))

    pair = Pair(exact.model, guide, exact.sample(500))
    loss = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    pair.fit(num_steps=400, learning_rate=cosine(400, 0.05, 1e-4), batch_size=100, loss=loss)
    best_scale = torch.linalg.inv(exact.covariance).diagonal().rsqrt()
    torch.testing.assert_close(pair.param("gain"), exact.gain.T, rtol=0, atol=0.01)
    offset = -exact.gain @ exact.offset
    torch.testing.assert_close(pair.param("offset"), offset, rtol=0, atol=0.01)
    torch.testing.assert_close(pair.param("scale"), best_scale, rtol=0.03, atol=0)


@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        Trace_ELBO(num_particles=3),
        Trace_ELBO(num_particles=3, vectorize_particles=True),
        TraceMeanField_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
    ],
)
def test_losses_of_pyro(loss) -> None:
    pair = ZOO["diagonal"]()
    before = pair.score().elbo.mean()
    frame = pair.fit(num_steps=60, learning_rate=0.03, loss=loss).frame
    assert pair.score().elbo.mean() > before + 0.3
    if not isinstance(loss, TraceMeanField_ELBO) and loss.num_particles == 1:
        assert frame["loss"].to_numpy() == pytest.approx(-frame["elbo"].to_numpy(), rel=1e-4)


@pytest.mark.parametrize("vectorised", [False, True])
def test_more_particles_make_the_loss_steadier(vectorised: bool) -> None:
    losses = [Trace_ELBO(num_particles=k, vectorize_particles=vectorised) for k in (1, 16)]
    options = {"num_steps": 25, "learning_rate": 0.0}
    one, many = (ZOO["param_functions"]().fit(loss=k, **options).frame["loss"] for k in losses)
    assert many.std() < 0.5 * one.std()
    assert many.mean() == pytest.approx(one.mean(), abs=0.5)


@pytest.mark.parametrize("optimizer", [ClippedAdam, torch.optim.SGD, torch.optim.AdamW])
def test_optimizers_of_torch_and_pyro(optimizer) -> None:
    loss = ZOO["param_functions"]().fit(num_steps=50, optimizer=optimizer).frame["loss"]
    assert loss.tail(10).mean() < loss.head(10).mean()


def test_the_learning_rate_schedule_is_applied() -> None:
    """Plain gradient descent without noise: each step is rate times gradient."""

    def model(x):
        independent(x, pyro.param("gain", torch.zeros(())))

    pair, rate = Pair(model, latent_alone, torch.full((4,), 1.0)), linear(4, 0.4, 0.0)
    frame = pair.fit(num_steps=4, optimizer=torch.optim.SGD, learning_rate=rate).frame
    assert frame["learning_rate"].tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])
    left = 0.6 * 0.7 * 0.8 * 0.9  # each step removes rate of what is left of 1
    assert pair.param("gain").item() == pytest.approx(1.0 - left)
    assert frame["grad_norm"].tolist() == pytest.approx([1.0, 0.6, 0.42, 0.336])

    pair.fit(num_steps=1, optimizer=torch.optim.SGD, learning_rate=1.0, clip_norm=0.01)
    assert pair.param("gain").item() == pytest.approx(1.0 - left + 0.01)  # as far as the clip lets


def test_a_gradient_whose_square_overflows_is_clipped_or_named() -> None:
    def model(x):
        gain = 1.0 * pyro.param("gain", torch.zeros(2))
        if gain.requires_grad:
            gain.register_hook(lambda gradient: gradient * 1e25)
        independent(x, gain.sum())

    pair = Pair(model, latent_alone, torch.full((4,), 1.0))
    options = {"num_steps": 1, "optimizer": torch.optim.SGD, "learning_rate": 1.0}
    frame = pair.fit(clip_norm=0.01, **options).frame
    assert pair.param("gain").norm().item() == pytest.approx(0.01, rel=1e-4)
    assert frame["grad_norm"].item() == pytest.approx(2**0.5 * 1e25, rel=0.1)
    with pytest.raises(NonFiniteError, match=r"not finite for parameters \['gain'\]"):
        pair.fit(**options)


def test_gradients_left_on_parameters_do_not_matter() -> None:
    ends = []
    for left in (0.0, 1e3):
        torch.manual_seed(0)
        pair = ZOO["diagonal"]()
        for p in pair.guide.parameters():
            p.grad = torch.full_like(p, left)
        pair.fit(num_steps=2)
        ends.append(pair.guide.base.weight.clone())
    assert torch.equal(*ends)


def seen_rows(num_data: int = 12, **options) -> list[list[int]]:
    """The rows of each batch, by their number."""
    batches = []

    def model(x):
        independent(x, pyro.param("gain", torch.zeros(())))
        batches.append(x.int().tolist())

    pair = Pair(model, latent_alone, torch.arange(float(num_data)))
    pair.fit(**{"num_steps": 6} | options)
    return batches[-6:]


def test_a_pass_sees_every_row_once_in_an_order_of_the_seeds() -> None:
    batches = seen_rows(batch_size=4)
    for number in (0, 1):
        one_pass = sum(batches[3 * number : 3 * number + 3], [])
        assert sorted(one_pass) == list(range(12)) and one_pass != sorted(one_pass)
    assert batches[:3] != batches[3:]
    assert seen_rows(batch_size=4) == batches != seen_rows(batch_size=4, seed=1)
    assert [len(batch) for batch in seen_rows(batch_size=5)] == [5] * 6
    assert sorted(seen_rows(batch_size=100)[0]) == list(range(12))


def test_weights_draw_rows_in_proportion() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0])
    draw = Batches(torch.zeros(4), 4, weights, seed=0)
    batches = [draw(step).tolist() for step in range(500)]
    assert seen_rows(4, batch_size=4, weights=weights) == batches[:6]
    counts = torch.tensor(sum(batches, [])).bincount(minlength=4) / 2000
    torch.testing.assert_close(counts, weights / 4.0, rtol=0, atol=0.04)
    assert counts[0] == counts[3] == 0.0


@pytest.mark.parametrize(("name", "absurd"), [("masked", 5.0), ("batch_norm", 0.5)])
def test_held_out_rows_choose_parameters_and_running_means(name: str, absurd: float) -> None:
    """A rate that becomes absurd: the best evaluation is not the last, and comes back."""
    pair, held_out = ZOO[name](), rows(20)
    if len(pair.args) == 2:
        held_out = held_out, torch.ones(20, dtype=torch.bool)
    options = {"num_steps": 60, "eval_every": 10, "held_out": held_out}
    history = pair.fit(learning_rate=lambda step: 0.02 if step < 40 else absurd, **options)
    evaluated = history.frame["held_out_elbo"].dropna()
    assert evaluated.index.tolist() == [9, 19, 29, 39, 49, 59]
    assert history.best_step == evaluated.idxmax() != 59
    again = pair.score(held_out, num_samples=8).elbo.mean().item()
    assert again == pytest.approx(evaluated.max(), rel=1e-5)


def test_patience_stops_after_so_many_evaluations_without_a_better_one() -> None:
    options = {"eval_every": 5, "held_out": rows(20), "learning_rate": 0.0}
    history = ZOO["two_latents"]().fit(patience=3, **options)
    assert history.best_step == 4 and len(history.frame) == 20  # then 9, 14 and 19 are no better
    assert len(ZOO["two_latents"]().fit(**options).frame) == 30
    assert ZOO["two_latents"]().fit().best_step is None


def test_dropout_is_on_in_every_step_and_off_where_held_out_rows_are_scored() -> None:
    modes = []
    pair = ZOO["bound_methods"]()
    vae = pair.model.__self__.eval()
    vae.decoder.register_forward_hook(lambda module, *_: modes.append(module.training))
    pair.fit(num_steps=2, eval_every=1, held_out=rows(5))
    switches = [mode for mode, before in zip(modes, [None, *modes], strict=False) if mode != before]
    assert switches == [False, True, False, True, False]  # contract, step, score, step, score
    assert not vae.training


def test_a_second_call_goes_on_from_the_first() -> None:
    pair = ZOO["param_functions"]()
    first = pair.fit(num_steps=100).frame["elbo"]
    second = pair.fit(num_steps=20, learning_rate=0.0).frame["elbo"]
    assert second.mean() > first.head(20).mean() + 0.3


def exploding_guide(what: str):
    """The scale, or its gradient alone, is not finite from the seventh step on."""
    calls = iter(range(10_000))

    def guide(x):
        scale = 1.0 * pyro.param("scale", torch.tensor(0.5))
        if x.shape[0] == 8 and next(calls) > 6:  # the first call makes the parameters
            if what == "gradient":
                scale.register_hook(lambda gradient: gradient * math.inf)
            else:
                scale = scale * math.nan
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(()), scale, validate_args=False))

    return guide


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("loss", r"step 6: the loss is nan at site 'z'.*largest log-scale is nan at site 'z'"),
        ("gradient", r"step 6: the gradient is not finite for parameters \['scale'\].*is -0\.\d+"),
    ],
)
def test_what_is_not_finite_stops_the_run_by_name_and_keeps_the_history(what, message) -> None:
    pair = Pair(ZOO["param_functions"]().model, exploding_guide(what), rows())
    with pytest.raises(NonFiniteError, match=message) as caught:
        pair.fit(batch_size=8)
    assert caught.value.history.frame["step"].tolist() == list(range(6))
    assert all(value.isfinite().all() for value in pair.parameters().values())

    pair = ZOO["param_functions"]()
    pair.x[2:] = math.nan
    with pytest.raises(NonFiniteError) as caught:
        pair.fit()  # it cannot start: an empty history of the same columns
    frame = caught.value.history.frame
    assert list(frame.columns) == COLUMNS and len(frame) == 0


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_the_widest_log_scale_is_found_under_a_flow() -> None:
    model = Model(3, 2, (8,), likelihood="normal")
    guide = Guide(3, 2, (8,), flow="iaf", num_flows=2)
    with torch.no_grad():
        guide.base.bias.fill_(1e25)  # its logarithm is 57.6, its square overflows
    message = r"loss is nan at site .z.*largest log-scale is 57\.\d at site 'z'"
    with pytest.raises(NonFiniteError, match=message):
        train(model, guide, rows(), num_steps=3, progress=False)


@pytest.mark.parametrize("num_flows", [1, 3])
def test_a_flows_log_scale_is_reported(num_flows: int) -> None:
    options = {"flow": "iaf", "num_flows": num_flows, "flow_options": {"stable": False}}
    guide, last = Guide(3, 2, (8,), conditioned=False, **options), LastTraces()
    assert last.largest_log_scale()[0] is None
    last.guide = poutine.trace(guide).get_trace(rows())
    assert last.largest_log_scale()[1] < 2.0
    with torch.no_grad():
        guide.flow[-1].arn.layers[-1].bias.fill_(2.5)
    last.guide = poutine.trace(guide).get_trace(rows())
    assert last.largest_log_scale()[1] > 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_steps": 2.0}, "num_steps must be .* got 2.0"),
        ({"num_steps": True}, "num_steps must be .* got True"),
        ({"batch_size": 0}, "batch_size must be .* got 0"),
        ({"eval_every": 0}, "eval_every must be .* got 0"),
        ({"patience": 0, "held_out": rows()}, "patience must be .* got 0"),
        ({"patience": 2}, "patience=2 needs held_out"),
        ({"held_out": rows()[:0]}, "held_out has no rows"),
        ({"held_out": rows()[:, :2]}, r"held_out must have rows like those of x.*\(2,\)"),
        ({"learning_rate": -0.01}, "learning_rate must be a finite number, at least 0, got -0.01"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number, at least 0, got nan"),
        ({"clip_norm": 0.0}, "clip_norm must be a finite number, more than 0, got 0.0"),
        ({"clip_norm": -1.0}, "clip_norm must be a finite number, more than 0, got -1.0"),
        ({"weights": torch.ones(3)}, r"weights must be 30 numbers of at least 0.*\(3,\)"),
        ({"weights": -torch.ones(30)}, "weights must be 30 numbers of at least 0"),
        ({"weights": torch.full((30,), math.nan)}, "weights must be 30 numbers of at least 0"),
        ({"weights": torch.zeros(30)}, "weights must be 30 numbers of at least 0"),
        ({"schedule": constant(-1.0)}, "beta must be a finite number, at least 0, got -1.0"),
    ],
)
def test_a_bad_argument_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZOO["param_functions"]().fit(**options)


def test_nothing_to_train_and_no_rows_are_named() -> None:
    with pytest.raises(ValueError, match="nothing to train.*pyro.param"):
        Pair(independent, latent_alone, rows()).fit()
    with pytest.raises(ValueError, match="x has no rows"):
        Pair(*ZOO["diagonal"]().programs, rows()[:0]).fit()


def test_parameters_that_a_later_branch_makes_learn_too() -> None:
    calls = iter(range(1000))

    def guide(x):
        loc = pyro.param("gain", torch.zeros(3))
        late = pyro.param("late", torch.tensor(0.0)) if next(calls) > 10 else 0.0
        latent_alone(x, x @ loc + late)

    pair = Pair(ZOO["param_functions"]().model, guide, rows() + 1.0)
    history = pair.fit(num_steps=40, held_out=rows() + 1.0, eval_every=20)
    assert pair.param("late").abs() > 1e-3
    again = pair.score(num_samples=8).elbo.mean().item()
    assert again == pytest.approx(history.frame["held_out_elbo"].max())


def test_parts_that_take_no_gradient_stay() -> None:
    pair = ZOO["diagonal"]()
    pair.guide.encoder.requires_grad_(False)
    before = pair.guide.encoder[0].weight.clone()
    pair.fit(num_steps=3)
    assert torch.equal(pair.guide.encoder[0].weight, before)


def test_progress_is_shown_where_it_is_asked_for(capfd: pytest.CaptureFixture) -> None:
    ZOO["diagonal"]().fit(num_steps=3)
    assert capfd.readouterr().err == ""
    ZOO["diagonal"]().fit(num_steps=3, progress=True)
    assert "train: 100%" in capfd.readouterr().err
