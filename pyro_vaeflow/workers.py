"""Where calls are made: in this process, in processes of this machine, or on a Dask cluster.

All three are executors of ``concurrent.futures``, so the caller's loop is one.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import joblib
from joblib.externals.loky import ProcessPoolExecutor

from pyro_vaeflow.validation import ConfigError

CONNECT = "10s"  # to wait for a scheduler
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def workers(jobs: int = 1, dask: str | None = None) -> Iterator[Executor]:
    """An executor; what it has not finished when the block ends is stopped or, on Dask, let go.

    Args:
        jobs: worker processes of this machine; 1 is this process itself.
        dask: the address of a scheduler, ``tcp://host:8786``, or its scheduler file. Without,
            the cluster of a surrounding ``joblib.parallel_config("dask")``, if there is one.

    Raises:
        ConfigError: there is no Dask, or no scheduler at the address.

    Warns:
        UserWarning: a Dask cluster has no workers, or they have threads that will be idle.
    """
    backend, _ = joblib.parallel.get_active_backend()
    with ExitStack() as stack:
        if dask is not None:
            executor = _on_dask(stack.enter_context(_connect(dask)))
        elif hasattr(backend, "client"):
            executor = _on_dask(backend.client)
        else:
            executor = Here() if jobs == 1 else Processes(jobs)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)


class Here(Executor):
    """Calls at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """The call's future, done; an interruption is the caller's."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Executor):
    """Worker processes, each a pool of its own: one that dies takes no other's call with it.

    A pool of many is broken as a whole when one of its processes dies. Here the call that was lost
    raises `BrokenExecutor`, and a new process takes the next. The processors are shared out: each
    process has as many threads as there are processors to one, unless the environment says.

    Args:
        jobs: processes, and so calls at a time; one more waits in `submit`.
    """

    def __init__(self, jobs: int) -> None:
        share = str(max(1, joblib.cpu_count() // jobs))
        self.env = {name: os.environ.get(name, share) for name in THREADS}
        self.idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        self.pools: list[ProcessPoolExecutor] = []
        for _ in range(jobs):
            self._add()

    def _add(self) -> None:
        pool = ProcessPoolExecutor(max_workers=1, env=self.env)
        self.pools.append(pool)
        self.idle.put(pool)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """The call's future, once a process is free for it."""
        pool = self.idle.get()

        def free(future: Future) -> None:
            if not future.cancelled() and isinstance(future.exception(), BrokenExecutor):
                self.pools.remove(pool)
                self._add()
            else:
                self.idle.put(pool)

        future = pool.submit(fn, *args, **kwargs)
        future.add_done_callback(free)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes, whatever they are at."""
        for pool in self.pools:
            pool.shutdown(kill_workers=True)


def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError(
            f"dask={address!r} needs a package: pip install 'pyro_vaeflow[dask]'"
        ) from error
    try:
        if Path(address).is_file():
            return Client(scheduler_file=address, timeout=CONNECT)
        return Client(address, timeout=CONNECT)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {address!r} ({error}); start one with `dask scheduler`, "
            "and workers with `dask worker ADDRESS --nthreads 1`"
        ) from error


def _on_dask(client: Any) -> Executor:
    """Dask itself gives what a dead worker was at to another, three times, then `KilledWorker`."""
    threads = client.nthreads()
    if not threads:
        warnings.warn(
            "the Dask cluster has no workers yet, and the work waits for them: start some with "
            "`dask worker ADDRESS --nthreads 1`",
            stacklevel=3,
        )
    if crowded := {name: count for name, count in threads.items() if count > 1}:
        warnings.warn(
            f"Dask workers {sorted(crowded)[:3]} have more than one thread, and a process makes "
            "one run at a time: start them with --nthreads 1, one for each core",
            stacklevel=3,
        )
    return client.get_executor(pure=False)
