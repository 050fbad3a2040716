"""Random numbers of a process's part of a batch: those that one process would draw for it.

All processes have the same stream of random numbers. Each draws those of the whole batch, as one
process would, and takes its part: so the streams stay alike, and the sum of the gradients is that
of one process, up to rounding.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch.overrides import TorchFunctionMode

from pyro_vaeflow.inference.group import Group
from pyro_vaeflow.inference.noise import stream
from pyro_vaeflow.inference.parameters import seeded

FILLS = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.exponential_)
LIKE = {torch.rand_like: torch.Tensor.uniform_, torch.randn_like: torch.Tensor.normal_}
FACTORIES = (torch.rand, torch.randn)
OF_PARAMETERS = (torch.normal, torch.bernoulli)
DRAWS = frozenset([*FILLS, *LIKE, *FACTORIES, *OF_PARAMETERS, F.dropout])


class _WholeBatch(TorchFunctionMode):
    """Draws what has an axis of rows for the whole batch, and gives the part of this process.

    Attributes:
        axis: where the rows are: so many dimensions from the right, 0 if there are none; None for
            the first or, beside particles, the second that has as many entries as the part.
        stream: the state of the random numbers after the last draw that was made like this.
    """

    def __init__(self, span: slice, batch_size: int, device: torch.device) -> None:
        super().__init__()
        self.span, self.batch_size, self.device = span, batch_size, device
        self.size = span.stop - span.start
        self.axis: int | None = None
        self.stream = stream(device)

    def _place(self, shape: torch.Size) -> int | None:
        if self.axis is None:
            return next((i for i, size in enumerate(shape[:2]) if size == self.size), None)
        place = len(shape) - self.axis
        return place if 0 <= place < len(shape) and shape[place] == self.size else None

    def _whole(self, shape: torch.Size, place: int) -> tuple[int, ...]:
        return (*shape[:place], self.batch_size, *shape[place + 1 :])

    def _draw(self, func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
        """The part's numbers of one of `DRAWS`; None where no axis is that of the rows."""
        if func in FACTORIES:
            sizes = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            if (place := self._place(torch.Size(sizes))) is None:
                return None
            return self._part(func(self._whole(torch.Size(sizes), place), **kwargs), place)
        if not args or not isinstance(args[0], torch.Tensor):
            return None
        first = args[0]
        if (place := self._place(first.shape)) is None:
            return None
        shape = self._whole(first.shape, place)
        if func in FILLS:
            return first.copy_(self._part(func(first.new_empty(shape), *args[1:], **kwargs), place))
        if func in LIKE:
            return self._part(LIKE[func](torch.empty_like(first, **kwargs).new_empty(shape)), place)
        if func in OF_PARAMETERS:
            whole = [self._widened(arg, place, shape) for arg in args]
            return self._part(func(*whole, **kwargs), place)
        return first * self._part(F.dropout(first.new_ones(shape), *args[1:], **kwargs), place)

    def _part(self, whole: torch.Tensor, place: int) -> torch.Tensor:
        return whole.narrow(place, self.span.start, self.size)

    def _widened(self, value: torch.Tensor, place: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The parameters of the part among others, which change neither number nor order."""
        whole = value.new_full(shape, 0.5)
        self._part(whole, place).copy_(value)
        return whole

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        kwargs = kwargs or {}
        found = self._draw(func, args, kwargs) if func in DRAWS else None
        if found is None:
            return func(*args, **kwargs)
        self.stream = stream(self.device)
        return found


class _Sites(Messenger):
    """Tells where the rows are in what a sample statement draws."""

    def __init__(self, mode: _WholeBatch, group: Group, plate: str) -> None:
        super().__init__()
        self.mode, self.group, self.plate = mode, group, plate

    def _process_message(self, msg: Message) -> None:
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        if site_is_subsample(msg):
            return
        mode, fn = self.mode, msg["fn"]
        frame = next((f for f in msg["cond_indep_stack"] if f.name == self.plate), None)
        mode.axis = 0 if frame is None else fn.event_dim - frame.dim
        mode.stream = stream(mode.device)
        before = mode.stream
        try:
            msg["value"] = fn(*msg["args"], **msg["kwargs"])
            if frame is not None and stream(mode.device) != mode.stream:
                _rewind(mode.device, before)
                msg["value"] = self._of_its_own(msg)
        finally:
            mode.axis = None

    def _of_its_own(self, msg: Message) -> torch.Tensor:
        """A draw from a stream of this process alone; all go on alike after it."""
        warnings.warn(
            f"site {msg['name']!r} draws numbers that cannot be shared out to the processes of the "
            "group: each draws its own, and the result is not that of one process",
            stacklevel=2,
        )
        seed = int(torch.randint(2**31, ()))
        with torch.random.fork_rng(), seeded(seed + self.group.rank):
            return msg["fn"](*msg["args"], **msg["kwargs"])


def _rewind(device: torch.device, state: bytes) -> None:
    """Puts the random numbers of a device back to where `stream` has found them."""
    found = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    if device.type == "cuda":
        torch.cuda.set_rng_state(found, device)
    else:
        torch.set_rng_state(found)


@contextmanager
def part_of_noise(
    group: Group, batch_size: int, device: torch.device, plate: str = "data"
) -> Iterator[None]:
    """Inside, programs that get this process's part of a batch draw the numbers of that part.

    Sample statements may draw normal, uniform and Bernoulli numbers, with any transform on top; of
    others the processes draw their own, with a warning. Modules may do so too, and use dropout, if
    the rows are the first axis, or the second after particles.
    """
    if group.size == 1:
        yield
        return
    mode = _WholeBatch(group.span(batch_size), batch_size, device)
    with mode, _Sites(mode, group, plate):
        yield
