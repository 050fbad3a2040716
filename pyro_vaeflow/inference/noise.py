r"""Noise that belongs to a row's content, so that a score depends on the row and the seed alone.

With one stream of random numbers a row's score would depend on its neighbours in the chunk. Here a
row is hashed, and number j of its noise is the hash of (row, seed, site, j), made normal by the
transform of Box and Muller (1958). Splitting, reordering or repeating the rows changes no score,
and rows that differ have independent noise: the error of a mean over rows falls with their number.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch.overrides import TorchFunctionMode

from pyro_vaeflow.inference.traces import innermost, plate_frame
from pyro_vaeflow.validation import warn

MAX_SEED = 2**63 - 1  # larger ones, and negative ones, are cut to so many bits
_GOLDEN = -7046029254386353131  # the odd constants of splitmix64, as signed 64-bit integers
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


def _mix(value: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64: 64-bit integers in, well mixed 64-bit integers out."""

    def xor_shifted(v: torch.Tensor, bits: int) -> torch.Tensor:  # `>>` alone would keep the sign
        return (v >> bits).bitwise_and_((1 << (64 - bits)) - 1).bitwise_xor_(v)

    value = xor_shifted(value, 30).mul_(_MIX_1)
    value = xor_shifted(value, 27).mul_(_MIX_2)
    return xor_shifted(value, 31)


def row_hash(x: torch.Tensor) -> torch.Tensor:
    """A 64-bit hash of each row's values, shape ``(num_data,)``, the same on every machine.

    Example:
        >>> a, b = row_hash(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
        >>> bool(a == b)
        False
    """
    flat = x.detach().reshape(len(x), math.prod(x.shape[1:]))
    # -0.0 and 0.0 are one, and all NaNs; float64 bits hold every value of the narrower types
    bits = flat.double().add(0.0).masked_fill(flat.isnan(), math.nan).view(torch.int64)
    place = torch.arange(1, bits.shape[1] + 1, device=x.device) * _GOLDEN
    return _mix(_mix(bits + place).sum(1))


Rows = torch.Tensor | Sequence[torch.Tensor]  # what rows hold, each (num_data, ...)


def rows_hash(x: Rows) -> torch.Tensor:
    """The hash of what rows hold in one tensor or in several together, ``(num_data,)``."""
    first, *others = (row_hash(column) for column in ([x] if isinstance(x, torch.Tensor) else x))
    for other in others:
        first = _mix(first * _MIX_1 + other)
    return first


def _seeded(x: Rows, seed: int) -> torch.Tensor:
    hashes = rows_hash(x)
    return _mix(hashes + torch.as_tensor(seed & MAX_SEED, device=hashes.device) * _GOLDEN)


class _RowNumbers(TorchFunctionMode):
    """Answers requests for normal and uniform numbers of a shape that has the rows at an axis.

    With `copies` above 1 that axis has so many copies of all rows, one after another: the numbers
    are those of as many draws on the left, where `between` plates are on the left of the rows.
    """

    def __init__(
        self, hashes: torch.Tensor, axis_from_right: int, copies: int = 1, between: int = 0
    ) -> None:
        super().__init__()
        self.hashes, self.axis_from_right = hashes, axis_from_right
        self.copies, self.between = copies, between

    def _has_rows(self, shape: torch.Size) -> bool:
        n = self.axis_from_right
        return len(shape) >= n and shape[-n] == len(self.hashes) * self.copies

    def _bits(self, before: int, after: int) -> torch.Tensor:
        """Fresh 64-bit numbers, shape ``(before, num_data, after)``, one stream a row."""
        count = torch.arange(1, before * after + 1, device=self.hashes.device)
        places = (count * _GOLDEN).view(before, 1, after)
        numbers = _mix(self.hashes.unsqueeze(-1) + places)
        self.hashes = _mix(self.hashes)  # the next request has another stream
        return numbers

    def _sizes(self, shape: torch.Size) -> tuple[int, int]:
        place = len(shape) - self.axis_from_right
        return self.copies * math.prod(shape[:place]), math.prod(shape[place + 1 :])

    def _shaped(self, numbers: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Numbers ``(before, num_data, after)`` in the shape that was asked for."""
        if self.copies > 1 and self.between:
            rows = len(shape) - self.axis_from_right
            size = math.prod(shape[max(0, rows - self.between) : rows])
            numbers = numbers.unflatten(0, (-1, self.copies, size)).transpose(1, 2)
        return numbers.reshape(shape)

    def normal(self, shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
        before, after = self._sizes(shape)
        bits = self._bits((before + 1) // 2, after)  # each gives two normal numbers
        high, low = (bits >> 32).add_(2**31), bits & 0xFFFFFFFF  # each in [0, 2^32)
        uniform = high.to(like.dtype).add_(0.5).mul_(2.0**-32)  # in (0, 1]
        angle = low.to(like.dtype).mul_(2.0 * math.pi * 2.0**-32)
        radius = uniform.log_().mul_(-2.0).sqrt_()
        pairs = torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)])
        return self._shaped(pairs[:before], shape)

    def uniform(self, shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
        bits = self._bits(*self._sizes(shape))
        uniform = (bits >> 40).add_(2**23).to(like.dtype).mul_(2.0**-24)
        return self._shaped(uniform, shape)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        kwargs = kwargs or {}
        if func is torch.rand and self._has_rows(torch.Size(args[0])):
            like = torch.empty((), dtype=kwargs.get("dtype"), device=kwargs.get("device"))
            return self.uniform(torch.Size(args[0]), like)
        if not args or not isinstance(args[0], torch.Tensor) or not self._has_rows(args[0].shape):
            return func(*args, **kwargs)
        first, shape = args[0], args[0].shape
        if func is torch.Tensor.normal_ and len(args) == 1:
            return first.copy_(self.normal(shape, first))
        if func is torch.normal and len(args) == 2:
            return torch.addcmul(first, args[1], self.normal(shape, first))
        if func is torch.Tensor.uniform_ and len(args) == 3:
            low, high = args[1:]
            return first.copy_(self.uniform(shape, first) * (high - low) + low)
        if func is torch.bernoulli:
            return (self.uniform(shape, first) < first).to(first.dtype)
        return func(*args, **kwargs)


class RowStream:
    """Random numbers of rows, rows first, for arithmetic outside the programs: float64.

    Example:
        >>> stream = RowStream(torch.tensor([[1.0], [2.0]]), seed=0)
        >>> stream.uniform(3).shape, stream.normal(3, 5).shape
        (torch.Size([2, 3]), torch.Size([2, 3, 5]))
    """

    def __init__(self, x: Rows, seed: int) -> None:
        self.hashes = _seeded(x, seed) ^ _GOLDEN  # not the numbers of any site
        self.like = torch.empty((), dtype=torch.float64, device=self.hashes.device)

    def repeated(self, count: int) -> "RowStream":
        """The stream of so many copies of the rows, all first ones first, each with its own."""
        copies = RowStream.__new__(RowStream)
        places = torch.arange(1, count + 1, device=self.hashes.device).unsqueeze(-1) * _GOLDEN
        copies.hashes, copies.like = _mix(self.hashes + places).flatten(), self.like
        return copies

    def _numbers(self) -> _RowNumbers:
        self.hashes = _mix(self.hashes)
        return _RowNumbers(self.hashes, axis_from_right=2)

    def uniform(self, count: int) -> torch.Tensor:
        """Uniform numbers, ``(num_data, count)``."""
        shape = torch.Size([1, len(self.hashes), count])
        return self._numbers().uniform(shape, self.like)[0]

    def normal(self, count: int, size: int) -> torch.Tensor:
        """Normal numbers, ``(num_data, count, size)``."""
        shape = torch.Size([count, len(self.hashes), size])
        return self._numbers().normal(shape, self.like).transpose(0, 1)


class RowNoise(Messenger):
    """Draws a guide's latents from noise that depends on the row's content and the seed alone.

    `x` is what the rows hold, a tensor ``(num_data, ...)`` or several; the programs, with plates of
    this `depth`, may see `copies` of all rows, one after another, in place of draws on the left.

    Distributions that draw normal or uniform numbers, or Bernoulli ones, of the plate's shape are
    covered, with any transform on top. Others, such as Gamma, fall back on torch's stream, with a
    warning: they repeat under a seed, but not under another chunking of the rows.
    """

    def __init__(
        self, x: Rows, seed: int, plate: str = "data", copies: int = 1, depth: int = 1
    ) -> None:
        super().__init__()
        self.seeded = _seeded(x, seed)
        self.plate, self.copies, self.depth = plate, copies, depth
        self.num_sites = 0

    def __enter__(self) -> "RowNoise":
        self.num_sites = 0
        return super().__enter__()

    def _process_message(self, msg: Message) -> None:
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        frame = plate_frame(msg, self.plate)
        if frame is None or site_is_subsample(msg):
            return
        self.num_sites += 1  # sites of one program must not share their noise
        hashes = _mix(self.seeded ^ self.num_sites)
        before = stream(hashes.device)
        axis, between = msg["fn"].event_dim - frame.dim, self.depth + frame.dim
        with _RowNumbers(hashes, axis, self.copies, between):
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])
        if stream(hashes.device) != before:
            warn(
                f"site {msg['name']!r} ({type(innermost(msg['fn'])).__name__}) draws from torch's "
                "stream: its values, and so the scores, depend on chunk_size and on the other rows"
            )


def stream(device: torch.device) -> bytes:
    """The state of the random numbers that torch draws on the device."""
    on_gpu = device.type == "cuda"
    state = torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state()
    return state.numpy().tobytes()
