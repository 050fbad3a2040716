"""Work that ends although processes die: what a dead one was at is done again, a few times."""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import BrokenExecutor, Future
from queue import SimpleQueue
from typing import TypeVar

DEATHS = 3  # of processes under one piece of work, after which it is given up
Work = TypeVar("Work", bound=Hashable)


def as_ended(todo: deque[Work], submit: Callable[[Work], Future]) -> Iterator[tuple[Work, Future]]:
    """Submits all work and yields each piece, as it ends, with its future, which is done.

    Where a process died the work is submitted again; under `DEATHS` of them, the last future is
    given, whose error `died` knows.

    Args:
        todo: is emptied; whoever iterates may add what has to be tried again.
        submit: waits, or makes the call itself, where no process is free for it.

    Raises:
        ConnectionError: a Dask scheduler has gone.

    Example:
        >>> from pyro_vaeflow.workers import Here
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
            if isinstance(future.exception(), BrokenExecutor):
                deaths[work] += 1
                if deaths[work] < DEATHS:
                    todo.append(work)
                    continue
            yield work, future


def died(error: Exception) -> bool:
    """Whether a future's error says that processes died: of this machine, or Dask's."""
    # Dask tries again by itself, and need not be installed.
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"
