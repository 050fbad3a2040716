"""Draws of a pair of programs: a draw is a row, unless something faster gives the same numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vaeflow.inference.noise import RowNoise
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.inference.traces import (
    Args,
    RowTerms,
    has_enumerated,
    latent_sites,
    of_rows,
    plate_frame,
    row_terms,
    take_rows,
)

APART = 0x9E3779B97F4A7C15  # from a run's seed to the next one's


@dataclass(frozen=True)
class Way:
    """How draws go through the programs: ``rows``, ``left`` or ``runs``.

    As rows the programs see all rows once for each draw, one after another, as they were written.
    On the left, draws are one more dimension, at which what does not depend on a draw is worked out
    once. Latents that all rows share need a run for each draw where they cannot be on the left.
    """

    depth: int
    """Of the programs' plates."""
    guide: str = "left"
    model: str = "left"
    enumerated: bool = False
    """Whether discrete latents are summed out."""
    shared: bool = False
    """Whether there are latents outside the plate of rows."""
    alone: frozenset[str] = frozenset()
    """Latents that the model enumerates and the guide has no site for."""
    unasked: frozenset[str] = frozenset()
    """Latents that ``obs_mask`` makes of missing values and the guide has no site for."""
    why: str = ""
    """Why draws are not on the left."""


@dataclass(frozen=True)
class Draws:
    """Draws of a pair for some rows: its traces, and how the draws stand in them."""

    traces: list[tuple[Trace, Trace]]
    """Of model and guide; one pair, or one for each draw."""
    num_samples: int
    num_data: int
    way: Way
    plate: str

    @property
    def terms(self) -> RowTerms:
        """Log probabilities, ``(num_samples, num_data)``, nats."""
        first, *others = (self._terms(*pair) for pair in self.traces)
        if others:
            first = {name: torch.cat([first[name], *(o[name] for o in others)]) for name in first}
        return RowTerms(**first)

    def _terms(self, model_trace: Trace, guide_trace: Trace) -> dict[str, torch.Tensor]:
        layouts = {"log_guide": self.way.guide}
        found = vars(terms_of_traces(model_trace, guide_trace, self.plate))
        terms = {name: term for name, term in found.items() if term is not None}
        return {n: self._split(t, layouts.get(n, self.way.model)) for n, t in terms.items()}

    def _split(self, term: torch.Tensor, layout: str) -> torch.Tensor:
        num_samples = 1 if layout == "runs" else self.num_samples
        if layout != "left":
            flat = term.reshape(-1) if term.numel() > 1 else term.reshape(())
            return flat.expand(num_samples * self.num_data).view(num_samples, self.num_data)
        while term.dim() > 2:  # between rows and draws there may be plates that are summed out
            term = term.squeeze(-2 if term.shape[-2] == 1 else -1)
        return term.expand(num_samples, self.num_data)

    @property
    def latents(self) -> dict[str, torch.Tensor]:
        """The guide's values of each latent of the rows, ``(num_data, num_samples, ...)``."""
        parts: dict[str, list[torch.Tensor]] = {}
        for _, guide_trace in self.traces:
            for site in latent_sites(guide_trace):
                if plate_frame(site, self.plate) is not None:
                    draws = self.draws_of(site["value"], site, self.way.guide)
                    parts.setdefault(site["name"], []).append(draws.transpose(0, 1))
        return {name: torch.cat(values, 1) for name, values in parts.items()}

    def draws_of(self, value: torch.Tensor, site: Any, layout: str) -> torch.Tensor:
        """A value, or log probabilities of its entries, as ``(num_samples, num_data, ...)``."""
        axes = draw_axes(site, self.way, layout, self.plate)
        return split_draws(value, axes, layout, 1 if layout == "runs" else self.num_samples)


def draw_axes(
    site: Any, way: Way, layout: str, plate: str, event_dim: int | None = None
) -> tuple[int, int]:
    """Where draws and rows are in a site's value, from the right, once they are apart."""
    event_dim = site["fn"].event_dim if event_dim is None else event_dim
    rows = plate_frame(site, plate).dim - event_dim
    return (rows - 1 if layout == "rows" else -way.depth - 1 - event_dim), rows


def split_draws(
    value: torch.Tensor, axes: tuple[int, int], layout: str, num_samples: int
) -> torch.Tensor:
    """A value with draws where `draw_axes` says, as ``(num_samples, num_data, ...)``."""
    if layout == "rows":
        return value.unflatten(axes[1], (num_samples, -1)).movedim(axes, (0, 1))
    value = value[(None,) * (-axes[0] - value.dim())].movedim(axes, (0, 1))
    return value.expand(num_samples, *value.shape[1:])


def join_draws(draws: torch.Tensor, axes: tuple[int, int], layout: str) -> torch.Tensor:
    """What `split_draws` undoes."""
    value = draws.movedim((0, 1), axes)
    return value.flatten(*axes) if layout == "rows" else value


class UnseenParams(Messenger):
    """Shows ``pyro.param`` statements to no handler outside: they then cost next to nothing.

    Two modules make a dozen a run, and each would go through eight handlers and back.
    """

    def _process_message(self, msg: Message) -> None:
        msg["stop"] = msg["stop"] or msg["type"] == "param"

    def _postprocess_message(self, msg: Message) -> None:
        pass


def without_names(program: Program) -> Program:
    """The program without Pyro's context of a module, where that would only name its parameters.

    In that context each part that a ``PyroModule`` reaches for makes a param statement for each of
    its parameters: a sixth of what a step takes beside its arithmetic. A module that has a
    ``PyroParam`` or ``PyroSample`` needs it and is left alone.
    """
    if not isinstance(program, PyroModule) or type(program).__call__ is not PyroModule.__call__:
        return program
    parts = [part for part in program.modules() if isinstance(part, PyroModule)]
    # Pyro has no public way to ask for them without making their values.
    if any(part._pyro_params or part._pyro_samples for part in parts):
        return program
    return partial(torch.nn.Module.__call__, program)


@contextmanager
def called_modules() -> Iterator[dict[torch.nn.Module, None]]:
    """The modules that are called inside, each once, in order."""
    called: dict[torch.nn.Module, None] = {}

    def note(part: torch.nn.Module, *_: Any) -> None:
        if not torch.compiler.is_compiling():  # no hook is called inside what was compiled
            called.update(dict.fromkeys(part.modules() if "_orig_mod" in part._modules else [part]))

    with register_module_forward_pre_hook(note):
        yield called


class SeenRows:
    """Rows of the arguments as a program sees them with draws in a layout: ``runs`` shows one draw.

    Args:
        rows: numbers of rows, or a slice.
    """

    def __init__(
        self, args: Args, rows: torch.Tensor | slice, num_samples: int, way: Way, layout: str
    ) -> None:
        if layout == "rows":
            if isinstance(rows, slice):
                rows = torch.arange(len(args[0]), device=args[0].device)[rows]
            rows = rows.repeat(num_samples)
        self.args, self.num_samples = take_rows(args, rows), num_samples
        self.way, self.layout = way, layout

    def trace(self, program: Program, *handlers: Any, first_dim: int | None = None) -> Trace:
        """A trace of the program inside handlers, the first of them innermost.

        Args:
            first_dim: the first dimension for values of discrete latents that are summed out.
        """
        program, quiet = without_names(program), UnseenParams()

        def one() -> None:
            with quiet:
                program(*self.args)

        def many() -> None:
            with pyro.plate("num_samples", self.num_samples, dim=-self.way.depth - 1), quiet:
                program(*self.args)

        drawing = many if self.layout == "left" else one
        if self.way.enumerated:
            handlers = EnumMessenger(first_dim), *handlers
        for handler in handlers:
            drawing = handler(drawing)
        return prune_subsample_sites(poutine.trace(drawing).get_trace())


def paired_traces(
    model: Program,
    guide: Program,
    args: Args,
    rows: torch.Tensor | slice = slice(None),
    *,
    num_samples: int,
    way: Way,
    seed: int | None = None,
    plate: str = "data",
    given: Sequence[Trace] | None = None,
) -> Draws:
    """Traces of the guide with `num_samples` draws for these rows, and of the model replayed.

    Args:
        rows: numbers of rows, or a slice; all by default.
        seed: of noise that belongs to a row; without one it is torch's stream.
        given: traces with values of latents in place of draws, one a run.
    """
    first_dim = -way.depth - 1 - (way.guide == "left")
    copies = {"rows": num_samples, "left": 1, "runs": 1}
    traces = []
    for run in range(num_samples if way.guide == "runs" else 1):
        seen = {  # anew for each run: programs may work in place
            layout: SeenRows(args, rows, num_samples, way, layout)
            for layout in {way.guide, way.model}
        }
        num_data = len(seen[way.guide].args[0]) // copies[way.guide]
        guided: list[Any] = [] if given is None else [ReplayMessenger(trace=given[run])]
        priors: list[Any] = []
        if seed is not None:
            every = zip(seen[way.guide].args, of_rows(args), strict=True)
            columns = [column[:num_data] for column, own in every if own]
            noise = partial(RowNoise, columns, plate=plate, depth=way.depth)
            guided.append(noise(seed + run * APART, copies=copies[way.guide]))
            if way.unasked:  # drawn by the model, from noise of its own
                priors.append(noise(~seed - run * APART, copies=copies[way.model]))
        guide_trace = seen[way.guide].trace(guide, *guided, first_dim=first_dim)
        values = guide_trace if way.guide == way.model else _as_rows(guide_trace, way, plate)
        model_trace = seen[way.model].trace(model, ReplayMessenger(trace=values), *priors)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        traces.append((model_trace, guide_trace))
    return Draws(traces, num_samples, num_data, way, plate)


def terms_of_traces(model_trace: Trace, guide_trace: Trace, plate: str) -> RowTerms:
    """The terms of a loss's traces, with enumerated values weighted by their chances."""
    if not has_enumerated(model_trace, guide_trace):
        return row_terms(model_trace, guide_trace, plate)
    from pyro_vaeflow.inference.enumeration import enumerated_terms  # most programs need it not

    return enumerated_terms(model_trace, guide_trace, plate)


def _as_rows(guide_trace: Trace, way: Way, plate: str) -> Trace:
    """The values of draws on the left, for a model that takes each draw as a row."""
    moved = guide_trace.copy()
    for site in latent_sites(moved):
        left, rows = (draw_axes(site, way, layout, plate) for layout in ("left", "rows"))
        value = join_draws(site["value"].movedim(left, (0, 1)), rows, "rows")
        moved.nodes[site["name"]] = site | {"value": value}
    return moved
