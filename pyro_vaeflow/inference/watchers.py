"""Callbacks that see each step of a training, wherever in the block it is started."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

Callback = Callable[[Mapping[str, float]], object]
_CALLBACKS: ContextVar[tuple[Callback, ...]] = ContextVar("callbacks", default=())


@contextmanager
def watching(callback: Callback) -> Iterator[None]:
    """Calls `callback` with the record of each step that `train` makes inside the block.

    A record is a row of `History.frame`: ``step``, ``loss``, ``elbo`` and so on, in nats a row;
    ``held_out_elbo`` is NaN where it was not evaluated. What the callback raises ends training. It
    should draw no random numbers of torch's global stream: the training draws from it too.

    Example:
        >>> from pyro_vaeflow import Guide, Model, train
        >>> import torch; seen = []
        >>> with watching(lambda record: seen.append(record["elbo"])):
        ...     history = train(Model(3), Guide(3), torch.rand(9, 3), num_steps=4, progress=False)
        >>> seen == list(history.frame["elbo"])
        True
    """
    token = _CALLBACKS.set((*_CALLBACKS.get(), callback))
    try:
        yield
    finally:
        _CALLBACKS.reset(token)


def watched() -> bool:
    """Whether a callback sees the steps of a training that is started here."""
    return bool(_CALLBACKS.get())


def tell(record: Mapping[str, float]) -> None:
    """Passes a step's record on to the callbacks, the outermost first."""
    for callback in _CALLBACKS.get():
        callback(record)
