"""How much memory a piece of work holds at once, and keeping it for the next one."""

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def hold_memory() -> None:
    """Has the C library keep up to 64 MiB of freed memory for the next step or chunk.

    glibc gives what is freed back to the system, and then waits for new pages to be made: up to a
    third of the time of a chunk. The largest block that it has ever seen freed sets what it keeps;
    this one is never touched. Other C libraries take no notice.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes of new tensors that are alive at a time while `work` runs.

    What was there before does not count, nor does what an operation needs inside itself.

    Example:
        >>> peak_bytes(lambda: (torch.zeros(100) + 1.0) * 2.0)  # float32: two are alive at a time
        800
    """
    with _Live() as live:
        work()
    return live.peak


class _Live(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default would import all of torch's compiler: a second and more

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {s._cdata for s in _storages((args, kwargs))}
        out = func(*args, **kwargs)
        self.sizes = {key: (ref, n) for key, (ref, n) in self.sizes.items() if not ref.expired()}
        for storage in _storages(out):  # a view's storage is one that was given
            if storage._cdata not in given:
                self.sizes[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.sizes.values()))
        return out


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return [leaf.untyped_storage() for leaf in leaves]
