"""Workers: calls made in this process, in processes of this machine, or on a Dask cluster.

All three are executors of ``concurrent.futures``, so the caller's loop is one. Where a worker dies
its call is made again, a few times.
"""

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar
from weakref import WeakSet

import joblib
from joblib.externals.loky import ProcessPoolExecutor

from pyro_vaeflow.escaping import warn_in_lines
from pyro_vaeflow.validation import ConfigError, warn

CONNECT = "10s"  # to wait for a scheduler
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
DEATHS = 3  # of workers under one piece of work, after which it is given up
Work = TypeVar("Work", bound=Hashable)


@contextmanager
def workers(jobs: int = 1, dask: str | None = None) -> Iterator[Executor]:
    """An executor; what it has not finished when the block ends is stopped or, on Dask, let go.

    Args:
        jobs: worker processes of this machine; 1 is this process itself.
        dask: the address of a scheduler, ``tcp://host:8786``, or its scheduler file. Without,
            the cluster of a surrounding ``joblib.parallel_config("dask")``, if there is one.
    """
    backend, _ = joblib.parallel.get_active_backend()
    cluster = _connect(dask) if dask is not None else nullcontext(getattr(backend, "client", None))
    with cluster as client:
        if client is not None:
            executor = _on_dask(client)
        else:
            executor = Here() if jobs == 1 else Processes(jobs)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)


def as_ended(todo: deque[Work], submit: Callable[[Work], Future]) -> Iterator[tuple[Work, Future]]:
    """Submits all work and yields each piece, as it ends, with its future, which is done.

    Where a worker died the work is submitted again; under `DEATHS` of them, the last future is
    given, whose error `died` knows.

    Args:
        todo: is emptied; whoever iterates may add what has to be tried again.
        submit: waits, or makes the call itself, where no worker is free for it.

    Example:
        >>> for work, future in as_ended(deque([3, 4]), lambda n: Here().submit(pow, n, 2)):
        ...     print(work, future.result())
        3 9
        4 16
    """
    running: dict[Future, Work] = {}
    done: SimpleQueue[Future] = SimpleQueue()
    deaths: Counter[Work] = Counter()
    while todo or running:
        if todo:
            work = todo.popleft()
            future = submit(work)
            running[future] = work
            future.add_done_callback(done.put)
        while running and not (todo and done.empty()):
            future = done.get()
            work = running.pop(future)
            if future.cancelled():
                raise ConnectionError("the Dask scheduler has ended, or has dropped the work")
            deaths[work] += isinstance(future.exception(), BrokenExecutor)
            if isinstance(future.exception(), BrokenExecutor) and deaths[work] < DEATHS:
                todo.append(work)
            else:
                yield work, future


def died(error: Exception) -> bool:
    """Whether a future's error says that workers died: of this machine, or Dask's."""
    # Dask tries again by itself, and need not be installed.
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


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

    The call of a dead process raises `BrokenExecutor`, and a new process takes the next. The
    processors are shared out: each process has as many threads as there are processors to one,
    unless the environment says. They end with their parent, however that does.
    """

    def __init__(self, jobs: int) -> None:
        share = str(max(1, joblib.cpu_count() // jobs))
        self.env = {name: os.environ.get(name, share) for name in THREADS}
        self.pools: list[ProcessPoolExecutor] = []
        self.idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        self.futures: WeakSet[Future] = WeakSet()
        for _ in range(jobs):
            self.idle.put(self._new())

    def _new(self) -> ProcessPoolExecutor:
        options: dict[str, Any] = {"initializer": _start, "initargs": (os.getpid(),)}
        self.pools.append(ProcessPoolExecutor(max_workers=1, env=self.env, **options))
        return self.pools[-1]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """The call's future, once a process is free for it."""
        pool = self.idle.get()

        def free(future: Future) -> None:
            is_dead = not future.cancelled() and isinstance(future.exception(), BrokenExecutor)
            self.idle.put(self._new() if is_dead else pool)

        future = pool.submit(fn, *args, **kwargs)
        self.futures.add(future)
        future.add_done_callback(free)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes, whatever they are at; idle ones by themselves, and so cleanly."""
        for future in self.futures:
            future.cancel()  # where it has not begun: loky's thread fails over it if it is killed
        idle = [self.idle.get() for _ in range(self.idle.qsize())]
        for pool in self.pools:
            pool.shutdown(kill_workers=pool not in idle)


def _start(parent: int) -> None:
    """Warns in lines; ends this process soon after its parent has gone, at whatever it is."""
    warn_in_lines()  # a line of the source would be loky's

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError(
            f"dask={address!r} needs a package: pip install 'pyro_vaeflow[dask]'"
        ) from error
    at = {"scheduler_file" if Path(address).is_file() else "address": address}
    try:
        return Client(**at, timeout=CONNECT)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {address!r} ({error}); start one with `dask scheduler`, "
            "and workers with `dask worker ADDRESS --nthreads 1`"
        ) from error


def _on_dask(client: Any) -> Executor:
    """Dask itself gives what a dead worker was at to another, three times, then `KilledWorker`."""
    threads = client.nthreads()
    crowded = sorted(name for name, count in threads.items() if count > 1)
    if crowded:
        warn(
            f"Dask workers {crowded[:3]} have more than one thread, and a process makes one run at "
            "a time: start one for each core, with --nthreads 1"
        )
    elif not threads:
        warn(
            "the Dask cluster has no workers yet, and the work waits for them: start some with "
            "`dask worker ADDRESS --nthreads 1`"
        )
    return client.get_executor(pure=False)
