"""Locks on work that processes share: held by a living process, gone with a dead one."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


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
