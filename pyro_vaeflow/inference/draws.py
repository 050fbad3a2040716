"""Draws of the guide for many rows, chunk after chunk: memory does not grow with the rows."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode  # torch documents it under this name
from torch.utils._pytree import tree_leaves  # torch has no public one for nested containers
from tqdm.auto import tqdm

from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.pairs import Draws, paired_traces
from pyro_vaeflow.inference.parameters import Program, evaluating, own_parameters
from pyro_vaeflow.inference.traces import as_args
from pyro_vaeflow.validation import check_size, warn

# Rows times draws of one chunk, for each thread, if they fit into memory: the more, the less does
# the time around a run of the programs count, some 3 ms; with more than these, programs fall out of
# the cache.
DRAWS_PER_CHUNK = 30_000
MEMORY_BUDGET = 512 * 2**20  # bytes of tensors that a chunk may hold at once


def trace_chunks(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_samples: int,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str = "data",
    progress: bool = False,
    summed: bool = False,
) -> Iterator[Draws]:
    """Yields, chunk after chunk of rows, `num_samples` draws of the guide with the model's traces.

    Their log probabilities are computed, without gradients and with the modules in evaluation
    mode. A row's draws depend on the row and the seed alone (see `pyro_vaeflow.inference.noise`).
    Discrete latents that the programs enumerate are drawn, or summed out if `summed`.
    """
    args = as_args(x)
    check_size("num_samples", num_samples)
    if chunk_size is not None:
        check_size("chunk_size", chunk_size)
    if len(args[0]) == 0:
        return
    way = check_contract(model, guide, args, plate=plate)
    way = replace(way, enumerated=way.enumerated and summed)
    draw = partial(paired_traces, model, guide, args, way=way, seed=seed, plate=plate)
    if len(args[0]) == 1:  # it cannot be split
        chunk_size = 1
    if chunk_size is None:
        in_a_run = 1 if way.guide == "runs" else num_samples
        with evaluating(model, guide, seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the chunks will warn
            of_two = peak_bytes(lambda: draw(slice(0, 2), num_samples=in_a_run))
        a_row = num_samples // in_a_run * of_two // min(2, len(args[0]))
        at_once = DRAWS_PER_CHUNK * torch.get_num_threads() // in_a_run
        chunk_size = max(1, min(at_once, MEMORY_BUDGET // max(1, a_row)))
    starts = range(0, len(args[0]), chunk_size)
    hold_memory()
    for start in tqdm(starts, desc="score", unit="chunk", disable=not progress):
        with evaluating(model, guide, seed):
            known = set(pyro.get_param_store().keys())
            draws_of_rows = draw(slice(start, start + chunk_size), num_samples=num_samples)
            untrained = sorted(own_parameters(known))
        if untrained and start == 0:
            warn(
                f"no parameters are known of this model and guide: {untrained} have their initial "
                "values; train the pair, or pass the very functions that were trained together"
            )
        yield draws_of_rows


def log_weights(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_samples: int = 64,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str = "data",
) -> torch.Tensor:
    r"""The log importance weights :math:`\log p(x, z_k) - \log q(z_k|x)`, nats.

    Returns:
        Shape ``(num_samples, num_data)``. They are all kept: for many rows use `score`.

    Raises:
        ValueError, TypeError: as in `score`.

    Example:
        >>> from pyro_vaeflow import Guide, Model, log_weights
        >>> log_weights(Model(3), Guide(3), torch.rand(5, 3), num_samples=7).shape
        torch.Size([7, 5])
    """
    options: Any = {"seed": seed, "chunk_size": chunk_size, "plate": plate, "summed": True}
    chunks = trace_chunks(model, guide, x, num_samples=num_samples, **options)
    parts = [chunk.terms.log_weight for chunk in chunks]
    return torch.cat(parts, dim=1) if parts else as_args(x)[0].new_empty(num_samples, 0)


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


class _Live(TorchDispatchMode):  # torch's public profiler would keep an event an operation
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default would import all of torch's compiler: a second and more

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {s.data_ptr() for s in _storages((args, kwargs))}
        out = func(*args, **kwargs)
        self.sizes = {key: (ref, n) for key, (ref, n) in self.sizes.items() if not ref.expired()}
        for storage in _storages(out):  # a view's storage is one that was given
            if storage.data_ptr() not in given:
                self.sizes[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.sizes.values()))
        return out


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return [leaf.untyped_storage() for leaf in leaves]
