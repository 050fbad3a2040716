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

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.optim.clipped_adam import ClippedAdam
from safetensors.torch import load_file
from tqdm.auto import tqdm

from pyro_vaeflow import Checkpoint, cosine, linear
from pyro_vaeflow.inference import checkpoint
from pyro_vaeflow.inference.saved_folder import named_digest, state_of
from tests.programs import module_functions, ours, rows

PHASES = "before the first step|in a step|writing|renaming|after training".split("|")
BEFORE, STEP, WRITE, RENAME, AFTER = range(len(PHASES))
SLOW = 0.003  # seconds that each part of a writing takes longer
EVERY = 3  # steps
TINY = {
    "dataset": "breast_cancer", "num_steps": 15, "num_samples": 3, "encoder_dims": (8,),
    "decoder_dims": (8,), "max_rows": 100, "flow": "iaf", "num_flows": 2,
}  # fmt: skip


def _digest(history: pd.DataFrame, tensors: dict[str, torch.Tensor]) -> str:
    frame = torch.as_tensor(history.drop(columns="seconds").to_numpy(dtype=np.float64))
    return named_digest(tensors | {"history": frame})


def _train(build: Callable, folder: Path | None, **options) -> str:
    pyro.set_rng_seed(3)
    pair = build()
    keep = None if folder is None else Checkpoint(folder, EVERY)
    history = pair.fit(num_steps=24, batch_size=8, checkpoint=keep, **options)
    return _digest(history.frame, state_of(*pair.programs))


def train_modules(folder: Path | None) -> str:
    """The programs that ship, with dropout, a flow and held-out rows that end it early."""
    options = {"held_out": rows(12), "eval_every": 4, "patience": 3, "schedule": linear(10)}
    return _train(partial(ours, "iaf", True), folder, learning_rate=0.05, **options)


def train_functions(folder: Path | None) -> str:
    """Plain functions, weighted rows, an optimizer of Pyro's that keeps numbers in Python."""
    options = {"optimizer": ClippedAdam, "clip_norm": 5.0, "weights": torch.arange(30.0), "seed": 2}
    return _train(module_functions, folder, learning_rate=cosine(24, 0.05, 0.001), **options)


def fit_detector(folder: Path | None) -> str:
    from pyro_vaeflow import VAEFlowDetector  # here: a process that only trains starts sooner

    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"size": draw.normal(size=120), "kind": draw.choice(["a", "b"], 120)})
    options = {"num_steps": 18, "batch_size": 16, "num_samples": 2, "random_state": 0}
    detector = VAEFlowDetector(checkpoint_dir=folder, **options).fit(frame)
    state = state_of(detector.model_, detector.guide_)
    scores = torch.as_tensor(detector.score_samples(frame))
    return _digest(detector.history_, state | {"scores": scores})


def run_study(folder: Path | None) -> str:
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return run_study(Path(temporary))
    from pyro_vaeflow.experiments.config import ExperimentConfig
    from pyro_vaeflow.experiments.fanout import run_all

    outcome = run_all([ExperimentConfig(**TINY)], folder, progress=False)
    if outcome.failed or list(folder.glob("unfinished/*")) or list(folder.glob("runs/.*")):
        raise RuntimeError(f"a finished study failed or left parts behind: {outcome.failed}")
    (run,) = (folder / "runs").iterdir()
    with np.load(run / "scores.npz") as scores:
        arrays = {name: torch.as_tensor(array) for name, array in scores.items()}
    return _digest(
        pd.read_csv(run / "history.csv"), load_file(run / "parameters.safetensors") | arrays
    )


JOBS: dict[str, Callable[[Path | None], str]] = {
    "modules": train_modules,
    "functions": train_functions,
    "detector": fit_detector,
    "study": run_study,
}


def slow_down(phase: mmap) -> None:
    """Slows the writing of checkpoints in this process, and notes what it is at in `phase`."""

    def at(number: int, call: Callable, after: int | None = None) -> Callable:
        def wrapped(*args, **options):
            before, phase[0] = phase[0], number
            pause = SLOW / 2 if number in (WRITE, RENAME) else 0.0
            time.sleep(pause)
            result = call(*args, **options)
            time.sleep(pause)
            phase[0] = before if after is None else after
            return result

        return wrapped

    def open_slowly(path: Path, mode: str = "r", *args, **options):
        file = open_path(path, mode, *args, **options)
        write = file.write

        def write_halves(data: bytes) -> None:
            write(data[: len(data) // 2])
            file.flush()
            time.sleep(SLOW)
            write(data[len(data) // 2 :])

        if path.suffix == ".partial" and mode == "wb":
            file.write = write_halves
        return file

    open_path = Path.open
    Path.open = open_slowly
    os.fsync, os.replace = at(WRITE, os.fsync), at(RENAME, os.replace)
    keeper = Checkpoint
    keeper.start, keeper.end = at(BEFORE, keeper.start, STEP), at(STEP, keeper.end, AFTER)
    keeper._write = at(WRITE, keeper._write)


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
            checkpoint.LEAST_EVERY = EVERY
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
        text = b"".join(iter(partial(os.read, self.read, 100), b""))
        os.close(self.read)
        os.waitpid(self.pid, 0)
        return text.decode()


def kill_forks(kills: int, seed: int) -> Counter:
    """Kills so many forks, some again after they went on; counts where, and how they end."""
    draw, phase, counts = np.random.default_rng(seed), mmap(-1, 1), Counter()
    expected, lasts = {}, {}
    for job, work in JOBS.items():
        expected[job] = work(None)  # in this process: forks find all imported and warm
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            # with checkpoints alone
            counts["mismatches"] += Fork(job, Path(folder), phase).digest() != expected[job]
            lasts[job] = time.perf_counter() - started
    while counts["kills"] < kills:
        job = str(draw.choice(list(JOBS), p=[0.45, 0.35, 0.1, 0.1]))
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(draw.choice([1, 1, 2, 3])):
                phase[0] = BEFORE
                if Fork(job, Path(folder), phase).kill_after(draw.uniform(0.0, 0.95) * lasts[job]):
                    counts.update(["kills", PHASES[phase[0]], f"{job} killed"])
            counts["ends compared"] += 1
            counts["mismatches"] += Fork(job, Path(folder)).digest() != expected[job]
    return counts


def kill_fresh(kills: int, seed: int) -> Counter:
    """Kills as many processes that share nothing, one after the other at one training."""
    draw, counts = np.random.default_rng(seed), Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.json"
        command = [sys.executable, "-m", "tests.kill_run", "--job", "modules", folder]
        for _ in range(kills):
            before = path.stat().st_mtime_ns if path.exists() else 0
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            while process.poll() is None:
                time.sleep(0.001)
                if path.exists() and path.stat().st_mtime_ns != before:
                    break
            time.sleep(draw.uniform(0.0, 0.02))
            process.kill()
            process.communicate()
            counts["kills"] += process.returncode == -signal.SIGKILL
        if kills:
            digest = subprocess.run(command, capture_output=True, text=True).stdout.strip()
            counts["ends compared"] += 1
            counts["mismatches"] += digest != train_modules(None)
    return counts


def section(counts: Counter, fresh: int, seconds: float) -> str:
    """The section of results/reliability.md."""
    jobs = ", ".join(f"{counts[f'{job} killed']} {job}" for job in JOBS)
    where = "\n".join(f"| {name} | {counts[name]} |" for name in PHASES)
    command = shlex.join(["python", "-m", "tests.kill_run", *sys.argv[1:]])
    return f"""## Kill tests

`{command}`: SIGKILL at random moments, then a new process goes on to the end;
some are killed again first. The end must be that of a training without checkpoints, bit for bit:
parameters, scores, history.

| where the kill fell | kills |
| --- | --- |
{where}
| in processes that share nothing | {fresh} |
| all | {counts["kills"] + fresh} |

{counts["ends compared"]} ends compared, {counts["mismatches"]} mismatches, {seconds:.0f} seconds.
Kills by job: {jobs}. torch {torch.__version__}.

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--fresh", type=int, default=2, help="kills of processes of their own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="a file whose section of kills is made anew")
    parser.add_argument("--job", nargs=2, help="runs one job in a folder, and prints its end")
    given = parser.parse_args()
    if given.job:
        print(JOBS[given.job[0]](Path(given.job[1])))
        return 0
    started = time.perf_counter()
    counts, fresh = kill_forks(given.kills, given.seed), kill_fresh(given.fresh, given.seed)
    seconds = time.perf_counter() - started
    print(json.dumps({"forks": counts, "fresh": fresh, "seconds": round(seconds, 1)}))
    if given.write:
        for name in ("ends compared", "mismatches"):
            counts[name] += fresh[name]
        text = section(counts, fresh["kills"], seconds)
        pattern = re.compile(r"^## Kill tests\n.*?(?=^## |\Z)", re.M | re.S)
        given.write.write_text(pattern.sub(lambda _: text, given.write.read_text()))
    return 1 if counts["mismatches"] + fresh["mismatches"] else 0


if __name__ == "__main__":
    sys.exit(main())
