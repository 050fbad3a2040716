"""Training that was stopped or killed and goes on: to the same end, or not at all."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.optim.clipped_adam import ClippedAdam
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from pyro_vaeflow import (
    Checkpoint,
    CheckpointError,
    History,
    InterruptedWarning,
    VAEFlowDetector,
    linear,
    train,
)
from pyro_vaeflow.cli import main
from pyro_vaeflow.inference import checkpoint, resume
from pyro_vaeflow.inference.checkpoint import state_of
from pyro_vaeflow.inference.fingerprint import structure
from pyro_vaeflow.inference.svi import OneOptimizer
from tests.programs import ZOO, Pair, rows

pytestmark = [
    pytest.mark.filterwarnings("ignore::pyro_vaeflow.inference.scoring.KhatWarning"),
    pytest.mark.filterwarnings("ignore::pyro_vaeflow.inference.callbacks.InterruptedWarning"),
]
LAST = 14
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
def in_step(monkeypatch: pytest.MonkeyPatch):
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


def fit(pair: Pair, folder: Path | None = None, **options) -> History:
    given = {"num_steps": LAST, "batch_size": 8, "learning_rate": 0.02, "schedule": linear(5)}
    options = given | {"optimizer": torch.optim.Adam, "progress": False} | options
    keep = None if folder is None else Checkpoint(folder, every=4)
    return train(pair.model, pair.guide, pair.x, checkpoint=keep, **options)


def make(name: str, seed: int) -> Pair:
    pyro.set_rng_seed(seed)
    return ZOO[name]()


def assert_same(one: tuple[History, Pair], other: tuple[History, Pair]) -> None:
    (history, pair), (expected, as_pair) = one, other
    found, wanted = state_of(pair.model, pair.guide), state_of(as_pair.model, as_pair.guide)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
    pd.testing.assert_frame_equal(
        history.frame.drop(columns="seconds"),
        expected.frame.drop(columns="seconds"),
        check_exact=True,
    )
    assert history.best_step == expected.best_step


def edit(folder: Path, change) -> None:
    """Changes the JSON and puts the right hash on it, as a hostile hand would."""
    path = folder / resume.FILES.content
    document = json.loads(path.read_text())
    document.pop("sha256")
    change(document["content"])
    path.write_text(json.dumps(document | {"sha256": checkpoint._digest(document)}))


# To the same end


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_pair_ends_as_if_nothing_had_stopped_it(name: str, in_step, tmp_path: Path) -> None:
    options = {} if name == "shared_latent" else {"held_out": ZOO[name]().x, "eval_every": 3}
    straight = make(name, 0)
    expected = fit(straight, **options)
    in_step(7, ctrl_c)
    stopped = fit(make(name, 0), tmp_path, **options)
    assert stopped.interrupted and len(stopped.frame) == 7
    other = make(name, 1)  # its own start values are nothing to a training that goes on
    history = fit(other, tmp_path, **options)
    assert (history.resumed_at, history.interrupted) == (7, False)
    assert history.frame["seconds"].is_monotonic_increasing
    assert_same((history, other), (expected, straight))


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
def test_optimizers_go_on(optimizer, in_step, tmp_path: Path) -> None:
    straight, killed, other = (make("diagonal", seed) for seed in (0, 0, 1))
    expected = fit(straight, optimizer=optimizer)
    in_step(10, die)
    with pytest.raises(Killed):
        fit(killed, tmp_path, optimizer=optimizer)
    history = fit(other, tmp_path, optimizer=optimizer)
    assert history.resumed_at == 8
    assert_same((history, other), (expected, straight))


def test_an_optimizer_that_keeps_other_things_is_refused(tmp_path: Path) -> None:
    class Hoarder(torch.optim.SGD):
        def step(self, *args):
            self.state[self.param_groups[0]["params"][0]]["kept"] = {1, 2}
            return super().step(*args)

    with pytest.raises(ValueError, match="optimizer Hoarder keeps kept={1, 2}"):
        fit(make("diagonal", 0), tmp_path, optimizer=Hoarder)


def test_early_stopping_goes_on(in_step, tmp_path: Path) -> None:
    """With a rate so high that the first evaluation stays the best."""
    options = {"num_steps": 60, "learning_rate": 1.0, "eval_every": 5, "patience": 4}
    straight, killed, other = (make("diagonal", seed) for seed in (0, 0, 1))
    expected = fit(straight, held_out=rows(9), **options)
    assert len(expected.frame) < 60 and expected.best_step < len(expected.frame) - 20
    for step in (expected.best_step + 12, 4):  # within the patience, twice
        in_step(step, die)
        with pytest.raises(Killed):
            fit(killed, tmp_path, held_out=rows(9), **options)
    history = fit(other, tmp_path, held_out=rows(9), **options)
    assert history.resumed_at > expected.best_step
    assert_same((history, other), (expected, straight))
    again = make("diagonal", 2)
    finished = fit(again, tmp_path, held_out=rows(9), **options)
    assert finished.resumed_at == len(expected.frame)  # nothing is trained twice
    assert_same((finished, again), (expected, straight))


def noisy() -> Pair:
    """A guide that draws from each stream of random numbers, and norms with running means."""
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    base = ZOO["param_functions"]()

    def guide(x):
        pyro.module("encoder", encoder)
        noise = random.gauss(0.0, 0.1) + np.random.normal(scale=0.1)  # noqa: NPY002
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x).squeeze(-1) + noise, 0.8))

    pair = Pair(base.model, guide, base.x)
    object.__setattr__(pair, "encoder", encoder)
    return pair


def test_every_stream_of_random_numbers_and_every_buffer_goes_on(in_step, tmp_path: Path) -> None:
    pyro.set_rng_seed(0)
    straight, killed, other = noisy(), noisy(), noisy()
    killed.encoder.load_state_dict(straight.encoder.state_dict())
    expected = fit(straight, held_out=rows(9), eval_every=3)
    in_step(6, die)  # after an odd number of draws from random.gauss, which makes two at once
    with pytest.raises(Killed):
        fit(killed, tmp_path, held_out=rows(9), eval_every=3)
    history = fit(other, tmp_path, held_out=rows(9), eval_every=3)
    assert history.resumed_at == 4
    assert_same((history, other), (expected, straight))
    for name, value in straight.encoder.state_dict().items():
        assert torch.equal(value, other.encoder.state_dict()[name]), name


def late(constraint=dist.constraints.positive) -> Pair:
    """A parameter behind a branch that no step before the fifth reaches."""

    def guide(x):
        loc = pyro.param("gain", torch.zeros(3))
        start = torch.tensor(0.5)
        wide = start if loc.max() < 0.07 else pyro.param("late", start, constraint=constraint)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ loc, 0.5 + wide))

    return Pair(ZOO["param_functions"]().model, guide, rows() + 1.0)


def test_parameters_of_a_later_branch_go_on(in_step, tmp_path: Path) -> None:
    straight, killed, other = late(), late(), late()
    expected = fit(straight)
    in_step(10, die)
    with pytest.raises(Killed):
        fit(killed, tmp_path)
    assert "param.late" in state_of(killed.model, killed.guide)
    history = fit(other, tmp_path)
    assert_same((history, other), (expected, straight))


def test_a_late_parameter_whose_constraint_has_no_name_is_refused(in_step, tmp_path: Path) -> None:
    in_step(10, die)
    with pytest.raises(Killed):
        fit(late(dist.constraints.interval(0.0, 3.0)), tmp_path)
    with pytest.raises(CheckpointError, match="parameter 'late' came up in a later step"):
        fit(late(dist.constraints.interval(0.0, 3.0)), tmp_path)


# Refused by name


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
    change, named: str, in_step, tmp_path: Path
) -> None:
    in_step(7, ctrl_c)
    fit(make("diagonal", 0), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    pair = make("diagonal", 1)
    start = state_of(pair.model, pair.guide)
    with pytest.raises(CheckpointError, match=f"another training: not the same {named}\\."):
        fit(pair, tmp_path, **change)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert all(torch.equal(v, start[k]) for k, v in state_of(pair.model, pair.guide).items())


def test_other_rows_and_programs_are_refused(in_step, tmp_path: Path) -> None:
    in_step(7, ctrl_c)
    pair = make("diagonal", 0)
    fit(pair, tmp_path)
    with pytest.raises(CheckpointError, match="not the same x"):
        fit(Pair(pair.model, pair.guide, pair.x + 1e-6), tmp_path)
    with pytest.raises(CheckpointError, match="not the same guide"):
        fit(make("planar", 0), tmp_path)
    drops = make("diagonal", 0)
    drops.guide.encoder[2].p += 0.1
    with pytest.raises(CheckpointError, match="not the same guide"):
        fit(drops, tmp_path)
    with pytest.raises(CheckpointError, match="not the same model, guide"):
        fit(make("two_latents", 0), tmp_path)


def test_what_a_partial_binds_is_part_of_a_program() -> None:
    def model(x, scale):
        pass

    assert structure(partial(model, scale=0.5)) == structure(partial(model, scale=0.5))
    assert structure(partial(model, scale=0.5)) != structure(partial(model, scale=0.6))


def test_a_folder_serves_one_process_at_a_time(tmp_path: Path) -> None:
    with resume.keeping(tmp_path, {"num_steps": 1}):
        with pytest.raises(resume.CheckpointInUseError, match="in use by another process"):
            fit(make("diagonal", 0), tmp_path)
    fit(make("diagonal", 0), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("random"), "lacks random"),
        (lambda c: c.update(more=1), "unknown key 'more'"),
        (lambda c: c["call"].pop("x"), "lacks x"),
        (lambda c: c.update(call=[]), "must hold an object"),
        (lambda c: c.update(best="code"), "does not hold a training"),
        (lambda c: c.update(random={"python": [3, None]}), "does not hold a training"),
        (
            lambda c: c["random"].update(numpy=["__import__('os')", 0, 0, 0.0]),
            "not hold a training",
        ),
        (lambda c: c["optimizer"].update(names=["x"]), "the optimizer has the parameters"),
        (lambda c: c["optimizer"].update(groups={}), "does not hold a training"),
        (lambda c: c["optimizer"].update(plain={"10000000000": {}}), "does not hold a training"),
    ],
)
def test_hostile_files_do_nothing_but_raise(change, message: str, in_step, tmp_path: Path) -> None:
    in_step(7, ctrl_c)
    fit(make("diagonal", 0), tmp_path)
    edit(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        fit(make("diagonal", 0), tmp_path)


@pytest.mark.parametrize("file", ["training.json", "training-*.safetensors"])
def test_damaged_files_are_refused_by_name(file: str, in_step, tmp_path: Path) -> None:
    in_step(7, ctrl_c)
    fit(make("diagonal", 0), tmp_path)
    (path,) = tmp_path.glob(file)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=path.name):
        fit(make("diagonal", 0), tmp_path)


def test_a_full_disk_is_said_and_the_checkpoint_before_is_whole(
    in_step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    straight, other = make("diagonal", 0), make("diagonal", 1)
    expected = fit(straight)
    in_step(6, lambda: monkeypatch.setattr(os, "fsync", full))
    with pytest.raises(OSError, match="the one before it, if any, is whole"):
        fit(make("diagonal", 0), tmp_path)
    monkeypatch.undo()
    history = fit(other, tmp_path)
    assert history.resumed_at == 4
    assert_same((history, other), (expected, straight))


def test_a_folder_that_cannot_be_made_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="no checkpoint can be written to"):
        fit(make("diagonal", 0), tmp_path / "file" / "folder")
    with pytest.raises(ValueError, match="every must be an integer"):
        Checkpoint(tmp_path, every=0)


# Ctrl-C


def test_ctrl_c_leaves_programs_to_use_and_says_how_to_go_on(in_step, tmp_path: Path) -> None:
    in_step(5, ctrl_c)
    with pytest.warns(InterruptedWarning, match=r"after 5 of 14 steps.*goes on from"):
        history = fit(make("diagonal", 0), tmp_path)
    assert history.interrupted and len(history.frame) == 5
    pair = make("diagonal", 0)
    in_step(9, ctrl_c)
    with pytest.warns(InterruptedWarning, match="with a folder for its checkpoint"):
        stopped = fit(pair, held_out=rows(9), eval_every=3)
    assert stopped.best_step in (2, 5, 8)
    more = fit(pair)  # without a checkpoint: another training, from where the first has led
    assert more.resumed_at == 0 and len(more.frame) == LAST


def test_ctrl_c_in_the_last_step_is_not_lost(in_step, tmp_path: Path) -> None:
    in_step(LAST, ctrl_c)
    history = fit(make("diagonal", 0), tmp_path)
    assert history.interrupted and len(history.frame) == LAST
    assert fit(make("diagonal", 0), tmp_path).resumed_at == LAST


def test_the_second_ctrl_c_ends_training_at_once(in_step, tmp_path: Path) -> None:
    def twice() -> None:
        ctrl_c()
        ctrl_c()

    straight, other = make("diagonal", 0), make("diagonal", 1)
    expected = fit(straight)
    in_step(7, twice)
    with pytest.raises(KeyboardInterrupt):
        fit(make("diagonal", 0), tmp_path)
    history = fit(other, tmp_path)
    assert history.resumed_at == 4
    assert_same((history, other), (expected, straight))


def test_a_handler_of_ones_own_stays(in_step) -> None:
    calls = []
    signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        in_step(3, ctrl_c)
        assert not fit(make("diagonal", 0)).interrupted and calls == [1]
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_threads_train_and_resume_too(in_step, tmp_path: Path) -> None:
    found = []
    straight, other = make("diagonal", 0), make("diagonal", 1)
    expected = fit(straight)
    for act, pair in ((die, make("diagonal", 0)), (lambda: None, other)):
        in_step(7, act)

        def work(pair: Pair = pair) -> None:
            try:
                found.append(fit(pair, tmp_path))
            except Killed:
                found.append(None)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found[0] is None and found[1].resumed_at == 4
    assert_same((found[1], other), (expected, straight))


# The detector


def table() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.DataFrame({"size": draw.normal(size=80), "kind": draw.choice(["a", "b"], 80)})


def detector(folder: Path | None = None, **options) -> VAEFlowDetector:
    given = {"num_steps": 20, "num_samples": 3, "random_state": 0, "checkpoint_dir": folder}
    return VAEFlowDetector(**given | options)


def quick(folder: Path | None = None, **options) -> VAEFlowDetector:
    return detector(folder, num_steps=4, validation_share=0.0, **options)


def test_an_interrupted_fit_is_fitted_and_the_next_goes_on(in_step, tmp_path: Path) -> None:
    expected = detector().fit(table())
    in_step(11, ctrl_c)
    with pytest.warns(InterruptedWarning, match="after 11 of 20 steps"):
        stopped = detector(tmp_path).fit(table())
    assert len(stopped.history_) == 11 and np.isfinite(stopped.score_samples(table())).all()
    steps = []
    in_step(9, lambda: steps.append(9))
    found = detector(tmp_path).fit(table())
    assert steps == [9]  # the nine that were left, and a tenth would go on counting
    np.testing.assert_array_equal(found.score_samples(table()), expected.score_samples(table()))
    assert found.offset_ == expected.offset_
    pd.testing.assert_frame_equal(
        found.history_.drop(columns="seconds"),
        expected.history_.drop(columns="seconds"),
        check_exact=True,
    )


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


def test_a_warm_start_trains_on_and_is_no_finished_fit(tmp_path: Path) -> None:
    warm = quick(tmp_path, warm_start=True).fit(table())
    plain = quick(warm_start=True).fit(table())
    for one in (warm, plain):
        one.fit(table())
    assert len(list(tmp_path.iterdir())) == 2
    np.testing.assert_array_equal(warm.score_samples(table()), plain.score_samples(table()))


def test_a_saved_detector_forgets_the_folder_of_its_checkpoints(tmp_path: Path) -> None:
    quick(tmp_path / "kept").fit(table()).save(tmp_path / "saved")
    assert VAEFlowDetector.load(tmp_path / "saved").checkpoint_dir is None


# Studies


def test_a_stopped_study_takes_up_its_training(in_step, tmp_path: Path, capsys) -> None:
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    file.write_text(STUDY)
    assert main(["run", str(file), "--out", str(tmp_path / "straight")]) == 0
    in_step(12 + 7, ctrl_c)  # in the second run
    assert main(["run", str(file), "--out", str(out)]) == 130
    assert "what is finished is kept, and the same command takes up" in capsys.readouterr().err
    assert len(list((out / "runs").iterdir())) == len(list((out / "unfinished").iterdir())) == 1
    assert main(["run", str(file), "--out", str(out)]) == 0
    assert "1 run, 1 already finished" in capsys.readouterr().out
    assert not (out / "unfinished").exists()
    runs = sorted((out / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        straight = tmp_path / "straight" / "runs" / run.name
        one, other = (load_file(folder / "parameters.safetensors") for folder in (run, straight))
        assert all(torch.equal(one[name], other[name]) for name in other)
        with np.load(run / "scores.npz") as one, np.load(straight / "scores.npz") as other:
            for name in other:
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        metrics = json.loads((run / "metrics.json").read_text())
        seconds = pd.read_csv(run / "history.csv")["seconds"]
        assert len(seconds) == 12 and metrics["train_seconds"] >= seconds.iloc[-1] * 0.999


# Real kills


def test_twenty_kills_at_random_moments_change_no_bit() -> None:
    command = [sys.executable, "-m", "tests.kill_run", "--kills", "20", "--fresh", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    forks, fresh = found["forks"], found["fresh"]
    assert forks["kills"] >= 20 and fresh["kills"] == 2
    assert forks.get("mismatches", 0) == fresh.get("mismatches", 0) == 0
    # Where a kill falls depends on what else the machine does: not each place is hit each time.
    assert sum(forks.get(place, 0) for place in ("in a step", "writing", "renaming")) > 0
