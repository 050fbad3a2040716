"""Ctrl-C as a question that a loop asks between two steps, where it can end with all in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InterruptedWarning(UserWarning):
    """Ctrl-C ended a training early; its programs are usable as they are."""


class CtrlC:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.pressed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second acts at once


@contextmanager
def ctrl_c() -> Iterator[CtrlC]:
    """Notes the first Ctrl-C inside instead of raising KeyboardInterrupt; the second raises it.

    Only Python's own handler is put aside, and put back at the end: where another one is set, or
    in a thread beside the main one, which no signal reaches, nothing changes.

    Example:
        >>> with ctrl_c() as asked:
        ...     for step in range(3):
        ...         if asked.pressed:
        ...             break
        >>> step
        2
    """
    noted = CtrlC()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    signal.signal(signal.SIGINT, noted)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
