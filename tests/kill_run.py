"""Kills trainings at random moments, lets new processes go on, and compares how they end.

``python -m tests.kill_run --kills 200 --write results/reliability.md`` prints the counts and puts
them into that file. Trainings run in forks of one process that has imported torch, a few in
processes of their own. Writing is slowed down, so that many kills fall into it. A training that was
killed, once or more often, must end as one without checkpoints: the same bits in each parameter,
score and row of its history (all but the seconds).
"""

import argparse
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.optim.clipped_adam import ClippedAdam
from safetensors.torch import load_file
from tqdm.auto import tqdm

from pyro_vaeflow import Checkpoint, VAEFlowDetector, cosine, linear, train
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.inference import resume
from pyro_vaeflow.inference.checkpoint import state_of
from pyro_vaeflow.inference.fingerprint import named_digest
from tests.programs import module_functions, ours, rows

PHASES = "before the first step|in a step|writing|renaming|after training".split("|")
BEFORE, STEP, WRITE, RENAME, AFTER = range(len(PHASES))
SLOW = 0.004  # seconds that each part of a writing takes longer
EVERY = 3  # steps
TINY = ExperimentConfig(
    dataset="breast_cancer", num_steps=25, num_samples=3, encoder_dims=(8,), decoder_dims=(8,),
    max_rows=100, flow="iaf", num_flows=2,
)  # fmt: skip


def _frame_tensor(history: pd.DataFrame) -> torch.Tensor:
    return torch.as_tensor(history.drop(columns="seconds").to_numpy(dtype=np.float64))


def train_modules(folder: Path | None) -> str:
    """The programs that ship, with dropout, a flow and held-out rows that end it early."""
    pyro.set_rng_seed(3)
    pair = ours("iaf", conditioned=True)
    options = {"held_out": rows(12), "eval_every": 4, "patience": 3, "schedule": linear(10)}
    checkpoint = None if folder is None else Checkpoint(folder, EVERY)
    history = train(
        pair.model, pair.guide, pair.x, num_steps=40, batch_size=8, learning_rate=0.05,
        checkpoint=checkpoint, progress=False, **options,
    )  # fmt: skip
    history_tensor = {"history": _frame_tensor(history.frame)}
    return named_digest(state_of(pair.model, pair.guide) | history_tensor)


def train_functions(folder: Path | None) -> str:
    """Plain functions, weighted rows, an optimizer of Pyro's that keeps numbers in Python."""
    pyro.set_rng_seed(4)
    pair = module_functions()
    checkpoint = None if folder is None else Checkpoint(folder, EVERY)
    history = train(
        pair.model, pair.guide, pair.x, num_steps=40, batch_size=8, seed=2, progress=False,
        learning_rate=cosine(40, 0.05, 0.001), optimizer=ClippedAdam, clip_norm=5.0,
        weights=torch.arange(30.0), checkpoint=checkpoint,
    )  # fmt: skip
    history_tensor = {"history": _frame_tensor(history.frame)}
    return named_digest(state_of(pair.model, pair.guide) | history_tensor)


def fit_detector(folder: Path | None) -> str:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"size": draw.normal(size=120), "kind": draw.choice(["a", "b"], 120)})
    detector = VAEFlowDetector(
        num_steps=30, batch_size=16, num_samples=2, random_state=0, checkpoint_dir=folder
    ).fit(frame)
    found = {"history": _frame_tensor(detector.history_)}
    found["scores"] = torch.as_tensor(detector.score_samples(frame))
    return named_digest(state_of(detector.model_, detector.guide_) | found)


def run_study(folder: Path | None) -> str:
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return run_study(Path(temporary))
    outcome = run_all([TINY], folder, progress=False)
    if outcome.failed:
        raise RuntimeError(str(outcome.failed))
    (run,) = (folder / "runs").iterdir()
    found = load_file(run / "parameters.safetensors")
    found["history"] = _frame_tensor(pd.read_csv(run / "history.csv"))
    with np.load(run / "scores.npz") as kept:
        found |= {name: torch.as_tensor(array) for name, array in kept.items()}
    if list(folder.glob("unfinished/*")) or list(folder.glob("runs/.*")):
        raise RuntimeError("a finished study left parts behind")
    return named_digest(found)


JOBS: dict[str, Callable[[Path | None], str]] = {
    "modules": train_modules,
    "functions": train_functions,
    "detector": fit_detector,
    "study": run_study,
}


class _HalfAtATime:
    """A file that waits in the middle of a write."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def __enter__(self) -> "_HalfAtATime":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        time.sleep(SLOW)
        self.file.write(data[len(data) // 2 :])

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


def slow_down(phase: mmap) -> None:
    """Slows the writing of checkpoints in this process, and notes what it is at in `phase`."""

    def at(number: int, call: Callable, after: int | None = None) -> Callable:
        def wrapped(*args, **options):
            before, phase[0] = phase[0], number
            if number in (WRITE, RENAME):
                time.sleep(SLOW / 2)
            result = call(*args, **options)
            if number == RENAME:
                time.sleep(SLOW / 2)
            phase[0] = before if after is None else after
            return result

        return wrapped

    def open_slowly(path: Path, mode: str = "r", *args, **options):
        file = open_path(path, mode, *args, **options)
        return _HalfAtATime(file) if path.suffix == ".partial" and mode == "wb" else file

    open_path = Path.open
    Path.open = open_slowly
    os.fsync, os.replace = at(WRITE, os.fsync), at(RENAME, os.replace)
    keeper = resume.Keeper
    keeper.take_up = at(BEFORE, keeper.take_up, STEP)
    keeper._write = at(WRITE, keeper._write)
    keeper.end = at(STEP, keeper.end, AFTER)


class Fork:
    """A job in a fork of this process; `digest` waits for its end.

    Its bars lock with threads alone: the lock that tqdm shares among forks would stay held for all
    of them if one is killed while holding it.
    """

    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # no thread that may hold it at a fork

    def __init__(self, job: str, folder: Path | None, slowed: mmap | None = None) -> None:
        self.read, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            return
        try:
            signal.alarm(600)  # a hang is a mismatch too
            resume.LEAST_EVERY = EVERY
            if slowed is not None:
                slow_down(slowed)
            os.write(write, JOBS[job](folder).encode())
        finally:
            os._exit(0)

    def kill_after(self, seconds: float) -> bool:
        """Whether it was still at work."""
        alive = not select.select([self.read], [], [], seconds)[0]
        os.kill(self.pid, signal.SIGKILL)
        self.digest()
        return alive

    def digest(self) -> str:
        found = b"".join(iter(partial(os.read, self.read, 100), b""))
        os.close(self.read)
        os.waitpid(self.pid, 0)
        return found.decode()


def kill_forks(kills: int, seed: int) -> Counter:
    """Kills so many forks, some again after they went on; counts where, and how they end."""
    draw, phase, counts = np.random.default_rng(seed), mmap(-1, 1), Counter()
    expected, lasts = {}, {}
    for job in JOBS:
        expected[job] = JOBS[job](None)  # in this process: forks find all imported and warm
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            if Fork(job, Path(folder), phase).digest() != expected[job]:
                counts["mismatches"] += 1  # with checkpoints alone
            lasts[job] = time.perf_counter() - started
    while counts["kills"] < kills:
        job = str(draw.choice(list(JOBS), p=[0.4, 0.3, 0.15, 0.15]))
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(draw.choice([1, 1, 2, 3])):
                phase[0] = BEFORE
                fork = Fork(job, Path(folder), phase)
                if fork.kill_after(draw.uniform(0.0, 0.95) * lasts[job]):
                    counts["kills"] += 1
                    counts[PHASES[phase[0]]] += 1
                    counts[f"{job} killed"] += 1
            counts["ends compared"] += 1
            if Fork(job, Path(folder)).digest() != expected[job]:
                counts["mismatches"] += 1
    return counts


def kill_fresh(kills: int, seed: int) -> Counter:
    """Kills as many processes that share nothing, one after the other at one training."""
    draw, counts = np.random.default_rng(seed), Counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.kill_run", "--job", "modules", folder]
        for _ in range(kills):
            before = _written(folder)
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            while _written(folder) == before and process.poll() is None:
                time.sleep(0.001)
            time.sleep(draw.uniform(0.0, 0.02))
            process.kill()
            process.communicate()
            counts["kills"] += process.returncode == -signal.SIGKILL
        if kills:
            found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
            counts["ends compared"] += 1
            counts["mismatches"] += found != train_modules(None)
    return counts


def _written(folder: str) -> int:
    """A number that each new checkpoint changes."""
    path = Path(folder) / "training.json"
    return path.stat().st_mtime_ns if path.exists() else 0


def section(counts: Counter, fresh: Counter, seconds: float, command: str) -> str:
    """The section of results/reliability.md."""
    jobs = ", ".join(f"{counts[f'{job} killed']} {job}" for job in JOBS)
    where = "\n".join(f"| {name} | {counts[name]} |" for name in PHASES)
    return f"""## Kill tests

`{command}`: SIGKILL at random moments, then a new process goes on to the end;
some are killed again first. The end must be that of a training without checkpoints, bit for bit:
parameters, scores, history.

| where the kill fell | kills |
| --- | --- |
{where}
| in processes that share nothing | {fresh["kills"]} |
| all | {counts["kills"] + fresh["kills"]} |

{counts["ends compared"] + fresh["ends compared"]} ends compared, {
        counts["mismatches"] + fresh["mismatches"]
    } mismatches, {seconds:.0f} seconds. Kills by job: {jobs}. torch {torch.__version__}.
"""


def put(path: Path, text: str) -> None:
    """Puts the section into the file, in place of the one that is there."""
    title = text.partition("\n")[0]
    whole = path.read_text() if path.exists() else "# Reliability\n"
    pattern = re.compile(rf"^{re.escape(title)}\n.*?(?=^## |\Z)", re.M | re.S)
    if pattern.search(whole):
        whole = pattern.sub(lambda _: text + "\n", whole).rstrip() + "\n"
    else:
        whole = f"{whole.rstrip()}\n\n{text}"
    path.write_text(whole)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--fresh", type=int, default=2, help="kills of processes of their own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="a file to put the section into")
    parser.add_argument("--job", nargs=2, help="runs one job in a folder, and prints its end")
    given = parser.parse_args()
    if given.job:
        print(JOBS[given.job[0]](Path(given.job[1])))
        return 0
    started = time.perf_counter()
    counts = kill_forks(given.kills, given.seed)
    fresh = kill_fresh(given.fresh, given.seed)
    seconds = time.perf_counter() - started
    print(json.dumps({"forks": counts, "fresh": fresh, "seconds": round(seconds, 1)}))
    if given.write:
        command = shlex.join(["python", "-m", "tests.kill_run", *sys.argv[1:]])
        put(given.write, section(counts, fresh, seconds, command))
    return 1 if counts["mismatches"] + fresh["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
