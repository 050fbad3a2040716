"""Claims on work that processes share: held by a living process, gone with a dead one."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def claim(path: Path, patience: float = 0.0) -> Iterator[bool]:
    """Whether `path` is this caller's until the end of the block, and nobody else's meanwhile.

    The operating system's lock on a file: it ends with its holder, however that dies, on this
    machine or, over a file system that shares locks, on another. A file that is left behind means
    nothing: the next claim takes it.

    Args:
        patience: seconds to wait for another holder, negative for as long as it takes.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "work.claim"
        >>> with claim(path) as mine, claim(path) as also_mine:
        ...     print(mine, also_mine)
        True False
        >>> path.exists()
        False
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
