"""Many runs: finished ones are skipped, the others go to workers, failures are kept."""

import contextlib
import shutil
import socket
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

from tqdm.auto import tqdm

from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.experiment import Result, run
from pyro_vaeflow.experiments.run_folder import is_finished, lock_of, sweep, write
from pyro_vaeflow.experiments.tracking import TensorBoard, check_installed
from pyro_vaeflow.inference.devices import Device, check_device
from pyro_vaeflow.inference.training import NonFiniteError
from pyro_vaeflow.locks import hold_lock
from pyro_vaeflow.programs.fitting import check_registered
from pyro_vaeflow.validation import ConfigError
from pyro_vaeflow.workers import DEATHS, Here, as_ended, died, workers

PATIENCE = 1.0  # seconds that a worker waits for a run another one is at, before it looks further
State = Literal["finished", "skipped", "busy", "failed"]

# A run seeds the process's random numbers and uses Pyro's global store: one at a time, though the
# threads of a Dask worker would start several.
_ONE_RUN = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """What became of a call: names of run folders, and the message of each that failed."""

    finished: list[str]
    skipped: list[str]
    failed: dict[str, str]


def run_all(
    configs: Sequence[ExperimentConfig],
    out: Path,
    jobs: int = 1,
    command: str = "",
    progress: bool = True,
    dask: str | None = None,
    tensorboard: bool = False,
    device: Device = "cpu",
) -> Outcome:
    """Runs what is not yet finished in ``out/runs``, one folder a configuration and seed.

    A run that fails leaves its message, and its history if it has one, in ``out/failed`` and the
    others go on. An interruption keeps the finished runs, and what a stopped or killed one has
    learned in ``out/unfinished``, from where the next call takes it up; where a worker process
    dies, this one does. Calls that share `out` share the runs: each is made by one of them, and
    each call returns when all of its own are made.

    Args:
        jobs: worker processes; the processors are shared out among them. With 1, runs stay in
            this process and show their own progress bars.
        command: kept with each run, to say what made it.
        dask: in place of worker processes, a Dask cluster; see `workers`.
        tensorboard: whether each run leaves event files in a folder of ``out/tensorboard``.
        device: where torch trains and scores; on Dask, of the workers. It is no setting of a run.

    Raises:
        ImportError: TensorBoard is asked for and not installed.
        ConfigError: before the first run, if any configuration is refused.
    """
    for config in {config.digest: config for config in configs}.values():
        check_registered(config)
    if tensorboard:
        check_installed()
    if dask is None:
        check_device(device)
    out = out.resolve()  # a worker may be in another folder
    runs = out / "runs"
    done = [config.run_name for config in configs if is_finished(runs / config.run_name, config)]
    todo = [config for config in configs if config.run_name not in done]
    outcome = Outcome(finished=[], skipped=done, failed={})
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written ({error}); choose a folder") from error
    sweep(runs)
    call = runs / f".{uuid4().hex}.lock"
    bar = tqdm(total=len(configs), initial=len(done), desc="runs", unit="run", disable=not progress)
    with bar, hold_lock(call), workers(jobs, dask) as executor:
        args = executor, todo, call, out, command, progress, tensorboard, device
        for name, state, message in _results(*args):
            if state == "failed":
                outcome.failed[name] = message
            else:
                (outcome.finished if state == "finished" else outcome.skipped).append(name)
            bar.update()
    return outcome


def _results(
    executor: Executor,
    todo: Sequence[ExperimentConfig],
    call: Path,
    out: Path,
    command: str,
    progress: bool,
    tensorboard: bool,
    device: Device,
) -> Iterator[tuple[str, State, str]]:
    """Name, state and message of each run as it ends; a run is tried until it has ended."""
    args = out, call, command, progress and isinstance(executor, Here), tensorboard, device

    def submit(number: int) -> Future:
        return executor.submit(attempt, todo[number], *args)

    numbers = deque(range(len(todo)))
    for number, future in as_ended(numbers, submit):
        config = todo[number]
        try:
            state, message = future.result()
        except Exception as error:  # of the processes: a run's own are messages
            if died(error):
                error = RuntimeError(
                    f"worker processes died at it {DEATHS} times or more: killed, or out of memory"
                )
            state, message = _failed(config, out, error)
        if state == "busy":
            numbers.append(number)
        else:
            yield config.run_name, state, message


def attempt(
    config: ExperimentConfig,
    out: Path,
    call: Path,
    command: str,
    progress: bool,
    tensorboard: bool = False,
    device: Device = "cpu",
) -> tuple[State, str]:
    """One run, written unless it is finished or another process is at it; why, if it failed.

    Args:
        call: a file that whoever asks for the run holds in ``out/runs``.
    """
    name = config.run_name
    folder, checkpoint = out / "runs" / name, out / "unfinished" / name
    if not call.exists():  # of another machine's folder, or the caller has gone
        raise ConfigError(
            f"{call.parent} on {socket.gethostname()} is not the folder of the study: give an "
            "--out on a file system that all workers share"
        )
    with _ONE_RUN, hold_lock(lock_of(folder), PATIENCE) as mine:
        if not mine:
            return "busy", ""
        try:
            if is_finished(folder, config):
                return "skipped", ""
            if progress:
                tqdm.write(name)
            shutil.rmtree(out / "failed" / name, ignore_errors=True)
            made = tracked_run if tensorboard else run
            write(made(config, progress, checkpoint, device), config, folder, command)
            _forget(checkpoint)
        except Exception as error:  # one run that fails must not stop the others
            return _failed(config, out, error)
    return "finished", ""


def tracked_run(
    config: ExperimentConfig, progress: bool, checkpoint: Path, device: Device = "cpu"
) -> Result:
    """A run that writes its steps and its metrics to event files as it goes."""
    with TensorBoard(checkpoint.parents[1] / "tensorboard" / config.run_name) as board:
        result = run(config, progress, checkpoint, device)
        board.add_run(config, result.metrics)
    return result


def _failed(config: ExperimentConfig, out: Path, error: Exception) -> tuple[State, str]:
    with contextlib.suppress(OSError):  # of a full disk, which may be why the run failed
        _keep_failure(error, config, out / "failed" / config.run_name)
    if isinstance(error, NonFiniteError):
        _forget(out / "unfinished" / config.run_name)  # it leads to the same error
    return "failed", f"{type(error).__name__}: {error}"


def _keep_failure(error: Exception, config: ExperimentConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "error.txt").write_text("".join(traceback.format_exception(error)))
    if isinstance(error, NonFiniteError):
        error.history.frame.to_csv(folder / "history.csv", index=False)


def _forget(checkpoint: Path) -> None:
    """Removes a run's checkpoint, and the folder of such if it was the last."""
    shutil.rmtree(checkpoint, ignore_errors=True)
    with contextlib.suppress(OSError):
        checkpoint.parent.rmdir()
