"""Processes that train one model together: which they are, and what they share out and add up.

``torchrun`` starts them, torch.distributed carries what they say: gloo between CPUs, NCCL between
GPUs. Each has the programs and the rows, takes its part of each batch, and adds its gradient to
those of the others, so that all make the step of the whole batch.
"""

import json
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save

CHECKS = 2**12  # values of a check that is added up: exact in float32 for as many processes


class GroupError(RuntimeError):
    """The other processes of a training are gone, or do something else."""


class Group:
    """The processes of a training; of one alone nothing is sent.

    Args:
        rank: which of them this is, from 0.
        size: how many they are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def span(self, count: int) -> slice:
        """This process's part of `count` rows in order; parts differ by one row at most.

        Example:
            >>> [Group(rank, 3).span(8) for rank in range(3)]
            [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
        """
        share, more = divmod(count, self.size)
        start = self.rank * share + min(self.rank, more)
        return slice(start, start + share + (self.rank < more))

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value's sum over the processes, the same bits in all of them."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        self._send(dist.all_reduce, sums)
        return sums.tolist()

    def add_gradients(self, parameters: Sequence[torch.Tensor], random_state: bytes) -> None:
        """Puts the sum over the processes in the place of each gradient, in one message.

        Args:
            random_state: what all must have alike, or their next random numbers would differ.

        Raises:
            ValueError: the random states differ.
        """
        if self.size == 1:
            return
        check = zlib.crc32(random_state) % CHECKS
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        there = torch.tensor([p.grad is not None for p in parameters] + [check])
        flat = torch.cat([*(g.reshape(-1) for g in grads), there.to(grads[0].device)])
        self._send(dist.all_reduce, flat)
        *parts, there = flat.split([*(g.numel() for g in grads), len(there)])
        if there[-1] != self.size * check:
            raise ValueError(
                "the processes of the group no longer draw the same random numbers: outside of "
                "sample statements a program may draw normal and uniform ones, or use dropout"
            )
        for p, grad, part, count in zip(parameters, grads, parts, there.tolist(), strict=False):
            p.grad = grad.copy_(part.view_as(grad)) if count else None

    def from_first(
        self, content: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """The first process's plain values and tensors, in each of them."""
        if self.size == 1:
            return content, dict(tensors)
        parts = (json.dumps(content).encode(), save(dict(tensors)))
        found = [self._bytes_of_first(part) for part in parts]
        return json.loads(found[0]), load(found[1])

    def _bytes_of_first(self, data: bytes) -> bytes:
        size = torch.tensor([len(data)])
        self._send(dist.broadcast, size, 0)
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.first else None
        if buffer is None:
            buffer = torch.empty(int(size), dtype=torch.uint8)
        self._send(dist.broadcast, buffer, 0)
        return buffer.numpy().tobytes()

    def _send(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except RuntimeError as error:
            raise GroupError(
                f"process {self.rank} of {self.size} lost the others: one of them has ended, or "
                "does not answer"
            ) from error


ALONE = Group()
_JOINED = ContextVar("_JOINED", default=ALONE)


def joined() -> Group:
    """The group of the `join_group` around the caller; else this process alone."""
    return _JOINED.get()


@contextmanager
def sharing(group: Group) -> Iterator[Group]:
    """Inside, `joined` is this group."""
    token = _JOINED.set(group)
    try:
        yield group
    finally:
        _JOINED.reset(token)


@contextmanager
def join_group(timeout: float = 300.0) -> Iterator[Group]:
    """The group of the processes that ``torchrun`` has started, which inside train as one.

    Else this process alone; where torch.distributed is set up already, its processes.

    Args:
        timeout: seconds without an answer after which a process counts as lost: more than the
            longest that one may be behind the others, such as in reading the rows.

    Raises:
        GroupError: inside, when another process has died.

    Example:
        >>> with join_group() as group:
        ...     group.rank, group.size
        (0, 1)
    """
    started = not dist.is_initialized() and {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    if started:
        dist.init_process_group(timeout=timedelta(seconds=timeout))
    group = Group(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE
    with sharing(group), _told_to_end(group) if started else nullcontext():
        yield group
    if started:  # not after an error: it might wait for those who are gone
        dist.destroy_process_group()


@contextmanager
def _told_to_end(group: Group) -> Iterator[None]:
    """torchrun ends the others by SIGTERM when one has died: then they say so."""

    def say(number: int, frame: Any) -> None:
        raise GroupError(
            f"process {group.rank} of {group.size} was told to end: another one has failed, or the "
            "whole was stopped"
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, say)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
