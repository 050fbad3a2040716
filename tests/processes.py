"""Processes of the tests: forks of one that has imported torch, so that each starts at once."""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
RELIABILITY = ["results.reliability.kills", "results.reliability.damage"]
CONTEXT.set_forkserver_preload([*RELIABILITY, "distributed", "pyro_vaeflow.files.score"])


def start(target: Callable[..., None], *arguments: Any) -> multiprocessing.Process:
    """A process of its own that calls."""
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def is_killed(target: Callable[..., None], *arguments: Any) -> bool:
    """Calls in a process of its own; whether that was killed."""
    process = start(target, *arguments)
    process.join(120)
    return process.exitcode == -signal.SIGKILL


def die(*_: Any, **__: Any) -> None:
    """Kills its own process, as the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_command(argv: list[str], said: Path) -> None:
    """The ``vaeflow`` command, in a session of its own, as from a terminal."""
    from pyro_vaeflow.cli import main

    os.setsid()
    with said.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        code = main(argv)
    sys.exit(code)


class ForkedPool(ProcessPoolExecutor):
    """In place of the pool of `Processes`, whose own imports torch anew."""

    def __init__(self, max_workers: int, **_: Any) -> None:
        super().__init__(max_workers, CONTEXT)

    def shutdown(self, wait: bool = True, **_: Any) -> None:
        """Also with the loky pool's option."""
        super().shutdown(wait)


@contextmanager
def dask_cluster() -> Iterator[str]:
    """The scheduler's address of a cluster of two forks."""
    import dask
    from distributed import LocalCluster

    multiprocessing.forkserver.ensure_running()  # before Dask asks for one that has less
    options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        with LocalCluster(n_workers=2, processes=True, **options) as cluster:
            yield cluster.scheduler_address
