"""Training that was stopped or killed and is resumed: to the same end, or not at all."""

import errno
import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from filelock import FileLock
from pyro.optim.clipped_adam import ClippedAdam
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from pyro_vaeflow import (
    Callback,
    Checkpoint,
    CheckpointError,
    Cooldown,
    History,
    InterruptedWarning,
    VAEFlowDetector,
    linear,
)
from pyro_vaeflow.cli import main
from pyro_vaeflow.inference import saved_folder
from pyro_vaeflow.inference.checkpoint import CheckpointInUseError
from pyro_vaeflow.inference.fingerprint import structure
from pyro_vaeflow.inference.saved_folder import state_of
from pyro_vaeflow.inference.svi import OneOptimizer
from tests.programs import ZOO, Pair, rows

pytestmark = pytest.mark.filterwarnings("ignore:Ctrl-C ended training")
LAST = 11
STUDY = """
dataset: breast_cancer
max_rows: 80
num_steps: 12
num_samples: 3
encoder_dims: [8]
decoder_dims: [8]
seeds: [0, 1]
"""


@pytest.fixture(autouse=True)
def pythons_own_handler() -> Iterator[None]:
    """What a test runner does with Ctrl-C is not what is tested."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


class Killed(Exception):
    """Stands in for the end of the process."""


@pytest.fixture
def in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable], None]:
    """``in_step(7, act)`` calls `act` at the end of the seventh step from now."""
    real, acts = OneOptimizer.__call__, {}

    def step(self, *args):
        real(self, *args)
        acts["left"] = acts.get("left", 0) - 1
        if acts["left"] == 0:
            acts["act"]()

    monkeypatch.setattr(OneOptimizer, "__call__", step)
    return lambda left, act: acts.update(left=left, act=act)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def die() -> None:
    raise Killed


def fill_the_disk() -> None:
    real = os.fsync

    def full(*_):
        os.fsync = real
        raise OSError(errno.ENOSPC, "No space left on device")

    os.fsync = full


def fit(pair: Pair, folder: Path | None = None, **options: Any) -> History:
    given = {"num_steps": LAST, "batch_size": 8, "schedule": linear(5)}
    given |= {"optimizer": torch.optim.Adam}
    keep = None if folder is None else Checkpoint(folder, every=4)
    return pair.fit(checkpoint=keep, **given | options)


def make(name: str, seed: int) -> Pair:
    pyro.set_rng_seed(seed)
    return ZOO[name]()


def assert_same(one: tuple[History, Pair], other: tuple[History, Pair]) -> None:
    (history, pair), (expected, as_pair) = one, other
    state, wanted = state_of(*pair.programs), state_of(*as_pair.programs)
    assert state.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(state[name], wanted[name]), name
    frame, as_frame = (h.frame.drop(columns="seconds") for h in (history, expected))
    pd.testing.assert_frame_equal(frame, as_frame, check_exact=True)
    assert history.frame["seconds"].is_monotonic_increasing
    assert history.best_step == expected.best_step


@pytest.fixture
def goes_on(in_step, tmp_path: Path) -> Callable[..., History]:
    """Trains one pair straight on, and one that is killed and another process goes on with.

    Whatever start values that one has drawn are nothing to the training: the ends must be equal.
    """

    def check(
        build: Callable[[int], Pair], *steps: int, act: Callable = die, **options: Any
    ) -> History:
        straight, killed, other = build(0), build(0), build(1)
        expected = fit(straight, **options)
        for step in steps:
            in_step(step, act)
            try:
                assert fit(killed, tmp_path, **options).interrupted
            except (Killed, KeyboardInterrupt):
                pass
            except OSError as error:
                assert "the one before it, if any, is whole" in str(error)
            else:
                assert act is ctrl_c
        history = fit(other, tmp_path, **options)
        assert not history.interrupted
        assert_same((history, other), (expected, straight))
        return history

    return check


# To the same end


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_pair_ends_as_if_nothing_had_stopped_it(name: str, goes_on) -> None:
    options = {} if name == "shared_latent" else {"held_out": ZOO[name]().x, "eval_every": 3}
    assert goes_on(partial(make, name), 7, act=ctrl_c, **options).resumed_at == 7


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.Adam,
        partial(torch.optim.Adam, fused=True),
        partial(torch.optim.AdamW, amsgrad=True),
        partial(torch.optim.SGD, momentum=0.9, nesterov=True),
        torch.optim.SGD,
        torch.optim.NAdam,
        torch.optim.ASGD,
        torch.optim.Rprop,
        ClippedAdam,
    ],
)
def test_optimizers_go_on(optimizer, goes_on) -> None:
    assert goes_on(partial(make, "diagonal"), 10, optimizer=optimizer).resumed_at == 8


def test_early_stopping_goes_on(goes_on, tmp_path: Path) -> None:
    """With a rate so high that the first evaluation stays the best, and two kills after that."""
    options = {"num_steps": 60, "learning_rate": 1.0, "patience": 4}
    options |= {"held_out": rows(9), "eval_every": 5}
    history = goes_on(partial(make, "diagonal"), 17, 4, **options)
    assert len(history.frame) < 60 and history.best_step < history.resumed_at
    finished, straight = make("diagonal", 2), make("diagonal", 0)
    again, expected = fit(finished, tmp_path, **options), fit(straight, **options)
    assert again.resumed_at == len(history.frame)  # nothing is trained twice
    assert_same((again, finished), (expected, straight))


def test_a_rate_that_falls_where_the_bound_is_flat_goes_on(goes_on) -> None:
    rule = Cooldown(0.01, window=3, share=0.5)
    options = {"num_steps": 60, "learning_rate": rule, "callbacks": [rule]}
    options |= {"held_out": rows(9), "eval_every": 2, "schedule": linear(24)}
    history = goes_on(partial(make, "diagonal"), 13, 30, **options)
    assert rule.flat_at < history.resumed_at < len(history.frame) < 60


def noisy(seed: int) -> Pair:
    """A guide that draws from each stream of random numbers, and norms with running means."""
    pyro.set_rng_seed(seed)
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    base = ZOO["param_functions"]()

    def guide(x):
        pyro.module("encoder", encoder)
        noise = random.gauss(0.0, 0.1) + np.random.normal(scale=0.1)  # noqa: NPY002
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x).squeeze(-1) + noise, 0.8))

    guide.encoder = encoder
    return Pair(base.model, guide, base.x)


def test_every_stream_of_random_numbers_and_every_buffer_goes_on(goes_on) -> None:
    made = []

    def build(seed: int) -> Pair:
        made.append(noisy(seed))
        return made[-1]

    # after an odd number of draws from random.gauss, which makes two at once
    assert goes_on(build, 6, held_out=rows(9), eval_every=3).resumed_at == 4
    straight, _, other = (pair.guide.encoder.state_dict() for pair in made)
    for name, value in straight.items():
        assert torch.equal(value, other[name]), name


def late(seed: int, constraint=dist.constraints.positive) -> Pair:
    """A parameter behind a branch that no step before the fifth reaches."""

    def guide(x):
        loc = pyro.param("gain", torch.zeros(3))
        start = torch.tensor(0.5)
        wide = start if loc.max() < 0.07 else pyro.param("late", start, constraint=constraint)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ loc, 0.5 + wide))

    return Pair(ZOO["param_functions"]().model, guide, rows() + 1.0)


def test_parameters_of_a_later_branch_go_on_if_their_constraint_has_a_name(
    goes_on, in_step, tmp_path: Path
) -> None:
    made = []
    goes_on(lambda seed: made.append(late(seed)) or made[-1], 10)
    assert all("late" in pair.parameters() for pair in made)
    interval = dist.constraints.interval(0.0, 3.0)
    in_step(10, die)
    with pytest.raises(Killed):
        fit(late(0, interval), tmp_path / "other")
    with pytest.raises(CheckpointError, match="parameter 'late' came up in a later step"):
        fit(late(0, interval), tmp_path / "other")


def test_a_full_disk_is_said_and_the_checkpoint_before_is_whole(goes_on) -> None:
    assert goes_on(partial(make, "diagonal"), 6, act=fill_the_disk).resumed_at == 4


# Refused by name


class Hoarder(torch.optim.SGD):
    def step(self, *args):
        self.state[self.param_groups[0]["params"][0]]["kept"] = {1, 2}
        return super().step(*args)


class HoardingCallback(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"kept": {1, 2}}


@pytest.mark.parametrize(
    "options",
    [{"optimizer": Hoarder}, {"callbacks": [HoardingCallback()]}],
    ids=["optimizer", "callback"],
)
def test_what_no_checkpoint_can_hold_is_refused(options: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.kept is \{1, 2\}, which no checkpoint can hold"):
        fit(make("diagonal", 0), tmp_path, **options)


@pytest.fixture
def stopped(in_step, tmp_path: Path) -> Path:
    """The folder of a training that Ctrl-C ended after seven steps."""
    in_step(7, ctrl_c)
    fit(make("diagonal", 0), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_steps": 15}, "num_steps"),
        ({"batch_size": 9}, "batch_size"),
        ({"learning_rate": 0.01}, "learning_rate"),
        ({"schedule": linear(6)}, "schedule"),
        ({"seed": 1}, "seed"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"loss": pyro.infer.Trace_ELBO(num_particles=2)}, "loss"),
        ({"optimizer": partial(torch.optim.Adam, betas=(0.8, 0.9))}, "optimizer"),
        ({"weights": torch.ones(30)}, "weights"),
        ({"held_out": rows(5)}, "held_out"),
        ({"num_steps": 15, "seed": 1}, "num_steps, seed"),
    ],
)
def test_another_call_is_refused_by_name_and_overwrites_nothing(
    change, named: str, stopped: Path
) -> None:
    before = {path: path.read_bytes() for path in stopped.iterdir()}
    pair = make("diagonal", 1)
    start = state_of(*pair.programs)
    with pytest.raises(CheckpointError, match=f"another training: not the same {named}\\."):
        fit(pair, stopped, **change)
    assert {path: path.read_bytes() for path in stopped.iterdir()} == before
    assert all(torch.equal(v, start[k]) for k, v in state_of(*pair.programs).items())


def test_other_rows_and_programs_are_refused(stopped: Path) -> None:
    pair, drops = make("diagonal", 0), make("diagonal", 0)
    drops.guide.encoder[2].p += 0.1
    others = [
        ("x", Pair(*pair.programs, pair.x + 1e-6)),
        ("guide", make("planar", 0)),
        ("guide", drops),
        ("model, guide", make("two_latents", 0)),
    ]
    for named, other in others:
        with pytest.raises(CheckpointError, match=f"not the same {named}\\."):
            fit(other, stopped)
    one, same, other = (structure(partial(pair.model, scale=s)) for s in (0.5, 0.5, 0.6))
    assert one == same != other


def test_a_folder_serves_one_process_at_a_time(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(CheckpointInUseError, match="in use by another process"):
            fit(make("diagonal", 0), tmp_path)
    fit(make("diagonal", 0), tmp_path)
    fit(make("diagonal", 1), tmp_path)  # it is given back


def put(*path: str, value: Any) -> Callable[[dict], None]:
    """Replaces a value, which is nested in packed ones, of a training's file."""

    def change(content: dict) -> None:
        inner = content["run"]
        for key in path:
            pair = next(pair for pair in inner["items"] if pair[0] == key)
            inner = pair[1]
        pair[1] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("run"), "lacks run"),
        (lambda c: c.update(more=1), "unknown key 'more'"),
        (lambda c: c["call"].pop("x"), "lacks x"),
        (lambda c: c.update(call=[]), "must hold an object"),
        (lambda c: c.update(run="code"), "does not hold a training"),
        (lambda c: c.update(run={"tensor": "999"}), "does not hold a training"),
        (lambda c: c.update(run={"__import__('os')": 1}), "does not hold a training"),
        (put("random", value={"items": [["python", [3, None]]]}), "does not hold a training"),
        (put("random", "numpy", value=["__import__('os')"]), "does not hold a training"),
        (put("names", value=["x"]), "the optimizer has .* not .*x"),
        (put("optimizer", "param_groups", value=[]), "does not hold a training"),
        (put("optimizer", "state", value=[1]), "does not hold a training"),
        (put("callbacks", value=[1]), "does not hold a training"),
        (put("records", value=7), "does not hold a training"),
        (put("programs", value={"items": []}), "the tensors are not those of these programs"),
    ],
)
def test_hostile_files_do_nothing_but_raise(change, message: str, stopped: Path) -> None:
    path = stopped / "training.json"
    document = json.loads(path.read_text())
    document.pop("sha256")
    change(document["content"])
    # the right hash is put on it, as a hostile hand would
    path.write_text(json.dumps(document | {"sha256": saved_folder._digest(document)}))
    with pytest.raises(CheckpointError, match=message):
        fit(make("diagonal", 0), stopped)


@pytest.mark.parametrize("file", ["training.json", "training-*.safetensors"])
def test_damaged_files_are_refused_by_name(file: str, stopped: Path) -> None:
    (path,) = stopped.glob(file)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=path.name):
        fit(make("diagonal", 0), stopped)


def test_a_folder_that_cannot_be_made_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="no checkpoint can be written to"):
        fit(make("diagonal", 0), tmp_path / "file" / "folder")
    with pytest.raises(ValueError, match="every must be an integer"):
        Checkpoint(tmp_path, every=0)


# Ctrl-C


def test_ctrl_c_leaves_programs_to_use_and_says_how_to_go_on(in_step, tmp_path: Path) -> None:
    in_step(5, ctrl_c)
    with pytest.warns(InterruptedWarning, match=r"after 5 of 11 steps.*resumes from"):
        history = fit(make("diagonal", 0), tmp_path)
    assert history.interrupted and len(history.frame) == 5
    pair = make("diagonal", 0)
    in_step(9, ctrl_c)
    with pytest.warns(InterruptedWarning, match="with a folder for its checkpoint"):
        best = fit(pair, held_out=rows(9), eval_every=3).best_step
    assert best in (2, 5, 8)
    more = fit(pair)  # without a checkpoint: another training, from where the first has led
    assert more.resumed_at == 0 and len(more.frame) == LAST
    in_step(LAST, ctrl_c)  # in the last step it is not lost
    last = fit(make("diagonal", 0), tmp_path / "last")
    assert last.interrupted and len(last.frame) == LAST
    assert fit(make("diagonal", 0), tmp_path / "last").resumed_at == LAST


def test_the_second_ctrl_c_ends_training_at_once(goes_on) -> None:
    def twice() -> None:
        ctrl_c()
        ctrl_c()

    assert goes_on(partial(make, "diagonal"), 7, act=twice).resumed_at == 4


def test_a_handler_of_ones_own_stays(in_step) -> None:
    calls = []
    signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        in_step(3, ctrl_c)
        assert not fit(make("diagonal", 0)).interrupted and calls == [1]
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_threads_train_and_resume_too(goes_on) -> None:
    resumed_at = []

    def work() -> None:
        resumed_at.append(goes_on(partial(make, "diagonal"), 7).resumed_at)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert resumed_at == [4]


# The detector


def table() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.DataFrame({"size": draw.normal(size=80), "kind": draw.choice(["a", "b"], 80)})


def detector(folder: Path | None = None, **options: Any) -> VAEFlowDetector:
    given = {"num_steps": 20, "num_samples": 3, "random_state": 0, "checkpoint_dir": folder}
    return VAEFlowDetector(**given | options)


def quick(folder: Path | None = None, **options: Any) -> VAEFlowDetector:
    return detector(folder, num_steps=4, validation_share=0.0, **options)


def test_an_interrupted_fit_is_fitted_and_the_next_goes_on(in_step, tmp_path: Path) -> None:
    expected = detector().fit(table())
    in_step(11, ctrl_c)
    with pytest.warns(InterruptedWarning, match="after 11 of 20 steps"):
        stopped = detector(tmp_path).fit(table())
    assert len(stopped.history_) == 11 and np.isfinite(stopped.score_samples(table())).all()
    steps = []
    in_step(9, lambda: steps.append(9))
    resumed = detector(tmp_path).fit(table())
    assert steps == [9]  # the nine that were left, and a tenth would go on counting
    np.testing.assert_array_equal(resumed.score_samples(table()), expected.score_samples(table()))
    assert resumed.offset_ == expected.offset_
    frames = (of.history_.drop(columns="seconds") for of in (resumed, expected))
    pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_fits_of_other_rows_and_settings_have_folders_of_their_own(tmp_path: Path) -> None:
    first = quick(tmp_path).fit(table())
    quick(tmp_path, learning_rate=0.01).fit(table())
    quick(tmp_path).fit(table().iloc[:60])
    quick(tmp_path).fit(table(), sample_weight=np.ones(80))
    assert len(list(tmp_path.glob("fit-*/training.json"))) == 4
    again = clone(first).fit(table())
    assert len(list(tmp_path.iterdir())) == 4 and again.checkpoint_dir == tmp_path
    np.testing.assert_array_equal(again.score_samples(table()), first.score_samples(table()))


def test_a_search_over_settings_takes_one_folder(tmp_path: Path) -> None:
    grid = {"latent_dim": [1, 2]}
    search = GridSearchCV(quick(tmp_path), grid, cv=2, refit=False, error_score="raise")
    scores = search.fit(table()).cv_results_["mean_test_score"]
    assert len(list(tmp_path.iterdir())) == 2 * 2
    np.testing.assert_array_equal(search.fit(table()).cv_results_["mean_test_score"], scores)
    assert len(list(tmp_path.iterdir())) == 2 * 2


def test_a_warm_start_trains_on_and_a_saved_detector_forgets_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "fits"
    warm, plain = quick(folder, warm_start=True), quick(warm_start=True)
    for one in (warm, plain, warm, plain):
        one.fit(table())
    assert len(list(folder.iterdir())) == 2  # the second is no finished fit
    np.testing.assert_array_equal(warm.score_samples(table()), plain.score_samples(table()))
    warm.save(tmp_path / "saved")
    assert VAEFlowDetector.load(tmp_path / "saved").checkpoint_dir is None


# Studies


def test_a_stopped_study_resumes_its_training(in_step, tmp_path: Path, capsys) -> None:
    file, out, straight = tmp_path / "mine.yaml", tmp_path / "out", tmp_path / "straight"
    file.write_text(STUDY)
    assert main(["run", str(file), "--out", str(straight)]) == 0
    in_step(12 + 7, ctrl_c)  # in the second run
    assert main(["run", str(file), "--out", str(out)]) == 130
    assert "what is finished is kept, and the same command" in capsys.readouterr().err
    assert len(list((out / "runs").iterdir())) == len(list((out / "unfinished").iterdir())) == 1
    assert main(["run", str(file), "--out", str(out)]) == 0
    assert "1 run, 1 already finished" in capsys.readouterr().out
    assert not (out / "unfinished").exists()
    runs = sorted((out / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        folders = run, straight / "runs" / run.name
        one, other = (load_file(folder / "parameters.safetensors") for folder in folders)
        with np.load(folders[0] / "scores.npz") as scores, np.load(folders[1] / "scores.npz") as of:
            one |= {name: torch.as_tensor(scores[name]) for name in of}
            other |= {name: torch.as_tensor(of[name]) for name in of}
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        metrics = json.loads((run / "metrics.json").read_text())
        seconds = pd.read_csv(run / "history.csv")["seconds"]
        assert len(seconds) == 12 and metrics["train_seconds"] >= seconds.iloc[-1] * 0.999
