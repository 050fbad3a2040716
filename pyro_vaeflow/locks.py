"""Locks: on work that processes share, and on what threads of one process share."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

# Pyro's handlers, parameter store and validation, hooks on modules and seeds are one in a process,
# whatever its threads: who runs programs holds this lock. A fork waits for it, so that no child
# begins in the midst of another thread's run.
ONE_THREAD = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=ONE_THREAD.acquire,
        after_in_parent=ONE_THREAD.release,
        after_in_child=ONE_THREAD.release,
    )


@contextmanager
def hold_lock(path: Path, patience: float = 0.0) -> Iterator[bool]:
    """Whether the lock `path` is this caller's until the end of the block, and nobody else's.

    It is the operating system's lock on a file, which ends with its holder, however that dies, on
    this machine or, over a file system that shares locks, on another. A file that is left behind
    means nothing: the next caller gets the lock.

    Args:
        patience: seconds to wait for another holder, negative for as long as it takes.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "work.lock"
        >>> with hold_lock(path) as mine, hold_lock(path) as also_mine:
        ...     print(mine, also_mine)
        True False
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(PermissionError):  # Windows removes no file that is open
            path.unlink(missing_ok=True)  # while it is held: who has opened it will open it anew
        lock.release()
