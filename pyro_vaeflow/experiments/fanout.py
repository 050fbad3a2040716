"""Many runs: finished ones are skipped, the others go to workers, failures are kept."""

import contextlib
import shutil
import socket
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from uuid import uuid4

from tqdm.auto import tqdm

from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.experiment import check_registered, run
from pyro_vaeflow.experiments.run_folder import is_finished, lock_of, sweep, write
from pyro_vaeflow.inference.parameters import Device, check_device
from pyro_vaeflow.inference.training import NonFiniteError
from pyro_vaeflow.locks import ONE_THREAD, hold_lock
from pyro_vaeflow.plain_files import inside, write_whole
from pyro_vaeflow.validation import ConfigError
from pyro_vaeflow.workers import DEATHS, Here, as_ended, died, workers

PATIENCE = 1.0  # seconds that a worker waits for a run another one is at, before it looks further
State = Literal["finished", "skipped", "busy", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of a call: names of run folders, and the message of each that failed."""

    finished: list[str]
    skipped: list[str]
    failed: dict[str, str]


@dataclass(frozen=True)
class Call:
    """What all runs of one call share."""

    out: Path  # the results folder, absolute: a worker may be in another folder
    lock: Path  # a file that whoever asks for the runs holds in ``out/runs``
    command: str = ""
    progress: bool = False
    device: Device = "cpu"


def run_all(
    configs: Sequence[ExperimentConfig],
    out: str | Path,
    jobs: int = 1,
    command: str = "",
    progress: bool = True,
    dask: str | None = None,
    device: Device = "cpu",
) -> Outcome:
    """Runs what is not yet finished in ``out/runs``, one folder per configuration and seed.

    A run that fails leaves its message, and its history if it has one, in ``out/failed`` and the
    others go on. An interruption keeps the finished runs, and what a stopped or killed one has
    learned in ``out/unfinished``, from where the next call resumes it; where a worker process
    dies, this one does. Calls that share `out` share the runs: each is made by one of them, and
    each call returns when all of its own are made.

    Args:
        jobs: worker processes; the processors are shared out among them. With 1, runs stay in
            this process and show their own progress bars.
        command: kept with each run, to say what made it.
        dask: in place of worker processes, a Dask cluster; see `workers`.
        device: where torch trains and scores; on Dask, of the workers. It is no setting of a run.

    Raises:
        ConfigError: before the first run, if any configuration is refused.
    """
    for config in {config.digest: config for config in configs}.values():
        check_registered(config)
    if dask is None:
        check_device(device)
    out = Path(out).resolve()
    for name in ("runs", "unfinished", "failed"):
        inside(out / name, out)
    runs = out / "runs"
    done = [config.run_name for config in configs if is_finished(runs / config.run_name, config)]
    todo = [config for config in configs if config.run_name not in done]
    outcome = Outcome(finished=[], skipped=done, failed={})
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written ({error}); choose a folder") from error
    sweep(runs)
    call = Call(out, runs / f".{uuid4().hex}.lock", command, progress, device)
    bar = tqdm(total=len(configs), initial=len(done), desc="runs", unit="run", disable=not progress)
    with bar, hold_lock(call.lock), workers(jobs, dask) as executor:
        for name, state, message in _results(executor, todo, call):
            if state == "failed":
                outcome.failed[name] = message
            else:
                (outcome.finished if state == "finished" else outcome.skipped).append(name)
            bar.update()
    return outcome


def _results(
    executor: Executor, todo: Sequence[ExperimentConfig], call: Call
) -> Iterator[tuple[str, State, str]]:
    """Name, state and message of each run as it ends; one that is busy is tried again."""
    call = replace(call, progress=call.progress and isinstance(executor, Here))
    numbers = deque(range(len(todo)))
    for number, future in as_ended(numbers, lambda n: executor.submit(attempt, todo[n], call)):
        config = todo[number]
        try:
            state, message = future.result()
        except Exception as error:  # of the processes: a run's own are messages
            if died(error):
                error = RuntimeError(
                    f"worker processes died at it {DEATHS} times or more: killed, or out of memory"
                )
            state, message = _failed(config, call.out, error)
        if state == "busy":
            numbers.append(number)
        else:
            yield config.run_name, state, message


def attempt(config: ExperimentConfig, call: Call) -> tuple[State, str]:
    """One run, written unless it is finished or another process is at it; why, if it failed."""
    name, out = config.run_name, call.out
    folder, checkpoint = out / "runs" / name, out / "unfinished" / name
    if not call.lock.exists():  # of another machine's folder, or the caller has gone
        raise ConfigError(
            f"{call.lock.parent} on {socket.gethostname()} is not the folder of the study: give an "
            "--out on a file system that all workers share"
        )
    # The threads of a Dask worker would start several.
    with ONE_THREAD, hold_lock(lock_of(folder), PATIENCE) as mine:
        if not mine:
            return "busy", ""
        try:
            if is_finished(folder, config):
                return "skipped", ""
            if call.progress:
                tqdm.write(name)
            shutil.rmtree(out / "failed" / name, ignore_errors=True)
            result = run(config, call.progress, checkpoint, call.device)
            write(result, config, folder, call.command)
            _forget(checkpoint)
        except Exception as error:  # one run that fails must not stop the others
            return _failed(config, out, error)
    return "finished", ""


def _failed(config: ExperimentConfig, out: Path, error: Exception) -> tuple[State, str]:
    with contextlib.suppress(OSError):  # of a full disk, which may be why the run failed
        folder = out / "failed" / config.run_name
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "config.yaml", config.to_yaml().encode())
        write_whole(folder / "error.txt", "".join(traceback.format_exception(error)).encode())
        if isinstance(error, NonFiniteError):
            history = error.history.frame.to_csv(index=False)
            write_whole(folder / "history.csv", history.encode())
    if isinstance(error, NonFiniteError):
        _forget(out / "unfinished" / config.run_name)  # it leads to the same error
    return "failed", f"{type(error).__name__}: {error}"


def _forget(checkpoint: Path) -> None:
    """Removes a run's checkpoint, and the folder of such if it was the last."""
    shutil.rmtree(checkpoint, ignore_errors=True)
    with contextlib.suppress(OSError):
        checkpoint.parent.rmdir()
