"""Many runs: finished ones are skipped, the others go to worker processes, failures are kept."""

import shutil
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
from tqdm.auto import tqdm

from pyro_vaeflow.config import ExperimentConfig
from pyro_vaeflow.experiment import Result, run
from pyro_vaeflow.recipe import check_registered
from pyro_vaeflow.runfolder import is_finished, sweep, write
from pyro_vaeflow.tracking import TensorBoard, check_installed
from pyro_vaeflow.training import NonFiniteError


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
    tensorboard: bool = False,
) -> Outcome:
    """Runs what is not yet finished in ``out/runs``, one folder a configuration and seed.

    A run that fails leaves its message, and its history if it has one, in ``out/failed`` and the
    others go on. An interruption keeps the finished runs.

    Args:
        jobs: worker processes; the processors are shared out among them. With 1, runs stay in
            this process and show their own progress bars.
        command: kept with each run, to say what made it.
        tensorboard: whether each run leaves event files in a folder of ``out/tensorboard``.

    Raises:
        ImportError: TensorBoard is asked for and not installed.
        ConfigError: before the first run, if any configuration is refused.
    """
    for config in {config.digest: config for config in configs}.values():
        check_registered(config)
    if tensorboard:
        check_installed()
    runs = out / "runs"
    done = [config.run_name for config in configs if is_finished(runs / config.run_name, config)]
    todo = [config for config in configs if config.run_name not in done]
    runs.mkdir(parents=True, exist_ok=True)
    sweep(runs)
    failed: dict[str, str] = {}
    bar = tqdm(total=len(configs), initial=len(done), desc="runs", unit="run", disable=not progress)
    # loky shares the processors out: OMP_NUM_THREADS of a worker is their number over `jobs`.
    with bar, joblib.parallel_config("loky", n_jobs=jobs):
        parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch=jobs)
        for name, message in parallel(
            joblib.delayed(attempt)(c, out, command, progress and jobs == 1, tensorboard)
            for c in todo
        ):
            if message:
                failed[name] = message
            bar.update()
    finished = [c.run_name for c in todo if c.run_name not in failed]
    return Outcome(finished=finished, skipped=done, failed=failed)


def attempt(
    config: ExperimentConfig, out: Path, command: str, progress: bool, tensorboard: bool = False
) -> tuple[str, str | None]:
    """One run, written; the name of its folder and, if it failed, why."""
    name = config.run_name
    if progress:
        tqdm.write(name)
    shutil.rmtree(out / "failed" / name, ignore_errors=True)
    try:
        result = tracked_run(config, out, progress) if tensorboard else run(config, progress)
        write(result, config, out / "runs" / name, command)
    except Exception as error:  # one run that fails must not stop the others
        folder = out / "failed" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml())
        (folder / "error.txt").write_text(traceback.format_exc())
        if isinstance(error, NonFiniteError):
            error.history.frame.to_csv(folder / "history.csv", index=False)
        return name, f"{type(error).__name__}: {error}"
    return name, None


def tracked_run(config: ExperimentConfig, out: Path, progress: bool) -> Result:
    """A run that writes its steps and its metrics to event files as it goes."""
    with TensorBoard(out / "tensorboard" / config.run_name) as board:
        result = run(config, progress)
        board.add_run(config, result.metrics)
    return result
