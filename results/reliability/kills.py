"""Kills trainings, fits and saves at random moments, lets new processes go on, compares the ends.

``python -m results.reliability.kills --write results/reliability/README.md`` puts the counts into
that file. Writing is slowed down, so that many kills fall into it. A training that was killed, once
or more often, must end as one without checkpoints in this process, which shares nothing with the
killed ones: the same bits in each parameter, score and row of its history (all but the seconds).
"""

import argparse
import io
import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyro
import pyro.distributions as dist
import torch
import torch._dynamo  # what jobs import late, for seconds, is there before the forks
from pyro.optim.clipped_adam import ClippedAdam
from safetensors.torch import load_file
from tqdm import tqdm

from pyro_vaeflow import Checkpoint, Guide, Model, VAEFlowDetector, cosine, linear, train
from pyro_vaeflow.cli import main as main_of_command
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.files import fit as _fit  # noqa: F401
from pyro_vaeflow.inference import checkpoint, saved_folder
from pyro_vaeflow.inference.saved_folder import named_digest, state_of
from pyro_vaeflow.plain_files import write_whole

CONTEXT = get_context("forkserver")  # a process that has imported torch, and forks
PHASES = "before the first step|in a step|writing|renaming|after training".split("|")
BEFORE, STEP, WRITE, RENAME, AFTER = range(len(PHASES))
SLOW = 0.003  # seconds that each part of a writing takes longer
PATIENCE = 1200  # seconds for an end, and for workers to follow their parent: a machine may be busy
EVERY = 3  # steps
TINY = {
    "dataset": "breast_cancer", "num_steps": 15, "num_samples": 3, "encoder_dims": (8,),
    "decoder_dims": (8,), "max_rows": 100, "flow": "iaf", "num_flows": 2,
}  # fmt: skip


def _digest(history: pd.DataFrame, tensors: dict[str, torch.Tensor]) -> str:
    frame = torch.as_tensor(history.drop(columns="seconds").to_numpy(dtype=np.float64))
    return named_digest(tensors | {"history": frame})


def _rows(num_data: int) -> torch.Tensor:
    return torch.randn(num_data, 3, generator=torch.Generator().manual_seed(1))


def _modules() -> tuple[Callable, Callable]:
    sizes: dict[str, Any] = {"latent_dim": 2, "hidden_dims": (8,)}
    return Model(3, likelihood="normal", **sizes), Guide(3, flow="iaf", num_flows=2, **sizes)


def _functions() -> tuple[Callable, Callable]:
    decoder, encoder = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)

    def model(x: torch.Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    return model, guide


def _train(make: Callable, folder: Path | None, **options: Any) -> str:
    pyro.set_rng_seed(3)
    pair = make()
    options |= {"num_steps": 24, "batch_size": 8, "progress": False}
    keep = None if folder is None else Checkpoint(folder, EVERY)
    history = train(*pair, _rows(30), checkpoint=keep, **options)
    return _digest(history.frame, state_of(*pair))


def train_modules(folder: Path | None) -> str:
    """The programs that ship, with dropout, a flow and held-out rows that end it early."""
    options = {"held_out": _rows(12), "eval_every": 4, "patience": 3, "schedule": linear(10)}
    return _train(_modules, folder, learning_rate=0.05, **options)


def train_functions(folder: Path | None) -> str:
    """Plain functions, weighted rows, an optimizer of Pyro's that keeps numbers in Python."""
    options = {"optimizer": ClippedAdam, "clip_norm": 5.0, "weights": torch.arange(30.0), "seed": 2}
    return _train(_functions, folder, learning_rate=cosine(24, 0.05, 0.001), **options)


def fit_detector(folder: Path | None) -> str:
    """A fit with checkpoints in a folder of its own, and its scores."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"size": draw.normal(size=120), "kind": draw.choice(["a", "b"], 120)})
    options = {"num_steps": 18, "batch_size": 16, "num_samples": 2, "random_state": 0}
    detector = VAEFlowDetector(checkpoint_dir=folder, **options).fit(frame)
    state = state_of(detector.model_, detector.guide_)
    scores = torch.as_tensor(detector.score_samples(frame))
    return _digest(detector.history_, state | {"scores": scores})


def run_study(folder: Path | None, jobs: int = 1) -> str:
    """A study of a run for each worker, which leaves nothing behind."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return run_study(Path(temporary), jobs)
    configs = [ExperimentConfig(**TINY, seed=seed) for seed in range(jobs)]
    outcome = run_all(configs, folder, jobs=jobs, progress=False)
    if outcome.failed or list(folder.glob("unfinished/*")) or list(folder.glob("runs/.*")):
        raise RuntimeError(f"a finished study failed or left parts behind: {outcome.failed}")
    ends = []
    for run in sorted((folder / "runs").iterdir()):
        with np.load(run / "scores.npz") as scores:
            arrays = {name: torch.as_tensor(array) for name, array in scores.items()}
        tensors = load_file(run / "parameters.safetensors") | arrays
        ends.append(_digest(pd.read_csv(run / "history.csv"), tensors))
    return " ".join(ends)


def save_models(folder: Path | None) -> str:
    """Two threads save into one folder, over what a killed process has left there."""
    if folder is None:
        return named_digest({"a": torch.zeros(3)})
    if (folder / "detector.json").exists():
        content, tensors = saved_folder.read(folder)
        if not (tensors["a"] == content["n"]).all():
            raise RuntimeError("content and tensors are of two saves")

    def save(number: int) -> None:
        saved_folder.write(folder, {"n": number}, {"a": torch.full((3,), float(number))})

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(save, range(1, 7)))
    save(0)
    if len(files := list(folder.iterdir())) != 2:
        raise RuntimeError(f"there should be two files, not {files}")
    return named_digest(saved_folder.read(folder)[1])


def fit_files(folder: Path | None) -> str:
    """``vaeflow fit`` over a model, the same or one of another seed."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return fit_files(Path(temporary))
    frame = pd.DataFrame({"size": np.linspace(-1.0, 1.0, 80), "kind": 40 * ["a", "b"]})
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "rows.csv", frame.to_csv(index=False).encode())
    options = ["--num_steps", "6", "--num_samples", "2", "--hidden_dims", "[8]"]
    model = folder / "model"
    for seed in ("1", "0"):
        if (model / "detector.json").exists():  # the old one or the new, whole
            VAEFlowDetector.load(model).score_samples(frame.head(3))
        call = ["fit", str(folder / "rows.csv"), "--out", str(model), "--seed", seed, "--overwrite"]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            main_of_command([*call, *options])
    detector = VAEFlowDetector.load(model)
    scores = torch.as_tensor(detector.score_samples(frame))
    return _digest(detector.history_, {"scores": scores})


JOBS: dict[str, Callable[[Path | None], str]] = {
    "modules": train_modules,
    "functions": train_functions,
    "detector": fit_detector,
    "study": run_study,
    "saves": save_models,
    "fit": fit_files,
    "parent": partial(run_study, jobs=2),  # whose workers end with it
}
SHARES = (0.3, 0.25, 0.1, 0.1, 0.15, 0.06, 0.04)  # of the kills, by job


def slow_down(phase: Any) -> None:
    """Slows the writing of checkpoints in this process, and notes what it is at in `phase`."""

    def at(number: int, call: Callable, after: int | None = None) -> Callable:
        def wrapped(*args, **options):
            before, phase.value = phase.value, number
            pause = SLOW / 2 if number in (WRITE, RENAME) else 0.0
            time.sleep(pause)
            result = call(*args, **options)
            time.sleep(pause)
            phase.value = before if after is None else after
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

        if path.suffix == ".partial" and mode == "xb":
            file.write = write_halves
        return file

    open_path = Path.open
    Path.open = open_slowly
    os.fsync, os.replace = at(WRITE, os.fsync), at(RENAME, os.replace)
    keeper = Checkpoint
    keeper.start, keeper.end = at(BEFORE, keeper.start, STEP), at(STEP, keeper.end, AFTER)
    keeper._write = at(WRITE, keeper._write)


def work(job: str, folder: Path, phase: Any, answer: Connection) -> None:
    """In a process of its own: says that it starts, and how the job has ended."""
    checkpoint.LEAST_EVERY = EVERY
    if phase is not None:
        slow_down(phase)
    answer.send("started")
    answer.send(JOBS[job](folder))


def start(job: str, folder: Path, phase: Any = None) -> tuple[ForkServerProcess, Connection]:
    """The process of a job that has just started, and where its answer comes."""
    answer, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=work, args=(job, folder, phase, theirs))
    process.start()
    theirs.close()
    answer.recv()
    return process, answer


def kill_after(seconds: float, job: str, folder: Path, phase: Any) -> tuple[bool, float]:
    """Whether it was still at work, and the seconds until its own processes were gone, too."""
    phase.value = BEFORE
    process, answer = start(job, folder, phase)
    if not (alive := not answer.poll(seconds)):
        answer.recv()  # EOFError: it failed, and has said why
    workers = psutil.Process(process.pid).children(recursive=True) if alive else []
    process.kill()
    process.join()
    killed = time.perf_counter()
    _, left = psutil.wait_procs(workers, timeout=PATIENCE)
    return alive, float("inf") if left else time.perf_counter() - killed if workers else 0.0


def end(job: str, folder: Path, phase: Any = None) -> str:
    """The digest of the job's end, or EOFError; a hang is an end like no other."""
    process, answer = start(job, folder, phase)
    digest = answer.recv() if answer.poll(PATIENCE) else "hangs"
    process.kill()
    process.join()
    return digest


def kill(kills: int, seed: int) -> Counter:
    """Kills so many times, some again after they went on; counts where, and how they end."""
    draw, phase = np.random.default_rng(seed), CONTEXT.Value("b", lock=False)
    counts: Counter = Counter()
    expected: dict[str, str] = {}
    lasts: dict[str, float] = {}
    bar = tqdm(total=kills, desc="kills", mininterval=5)
    while counts["kills"] < kills:
        job = str(draw.choice(list(JOBS), p=SHARES))
        with tempfile.TemporaryDirectory() as folder:
            if job not in lasts:  # with checkpoints alone
                expected[job] = JOBS[job](None)
                started = time.perf_counter()
                counts["mismatches"] += end(job, Path(folder, "whole"), phase) != expected[job]
                lasts[job] = time.perf_counter() - started
            for _ in range(draw.choice([1, 1, 2, 3])):
                moment = draw.uniform(0.0, 0.95) * lasts[job]
                alive, gone = kill_after(moment, job, Path(folder, "killed"), phase)
                counts["slowest worker"] = max(counts["slowest worker"], gone)
                if alive:
                    counts.update(["kills", PHASES[phase.value], f"{job} killed"])
                    bar.update()
            counts["ends compared"] += 1
            counts["mismatches"] += end(job, Path(folder, "killed")) != expected[job]
            bar.set_postfix_str(f"{counts['mismatches']} mismatches, {job}")
    bar.close()
    return counts


def section(counts: Counter, seconds: float) -> str:
    """The section of results/reliability/README.md."""
    jobs = ", ".join(f"{counts[f'{job} killed']} {job}" for job in JOBS)
    slowest = counts["slowest worker"]
    where = "\n".join(f"| {name} | {counts[name]} |" for name in PHASES)
    command = shlex.join(["python", "-m", "results.reliability.kills", *sys.argv[1:]])
    return f"""## Kill tests

`{command}`: SIGKILL at random moments, then a new process goes on to the end;
some are killed again first. The end must be that of a training without checkpoints, bit for bit:
parameters, scores, history.

| where the kill fell | kills |
| --- | --- |
{where}
| all | {counts["kills"]} |

{counts["ends compared"]} ends compared, {counts["mismatches"]} mismatches, {seconds:.0f} seconds.
Kills by job: {jobs}. After a killed parent
its workers were gone within {slowest:.0f} seconds. torch {torch.__version__}.
Saves, `vaeflow fit` and a study's parent note no steps, so their kills before a writing
count as before the first step.

"""


def main() -> int:
    """Kills as often as the command line says; 1 if an end differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="a file whose section of kills is made anew")
    given = parser.parse_args()
    CONTEXT.set_forkserver_preload(["results.reliability.kills"])
    started = time.perf_counter()
    counts = kill(given.kills, given.seed)
    seconds = time.perf_counter() - started
    print(json.dumps(counts | {"seconds": round(seconds, 1)}))
    if given.write:
        text = section(counts, seconds)
        pattern = re.compile(r"^## Kill tests\n.*?(?=^## |\Z)", re.M | re.S)
        given.write.write_text(pattern.sub(lambda _: text, given.write.read_text()))
    return int(counts["mismatches"] > 0)


if __name__ == "__main__":
    from results.reliability import kills as module  # whose functions another process can import

    sys.exit(module.main())
