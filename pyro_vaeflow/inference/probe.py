"""The fastest way for draws that gives the numbers of the way that is always right."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace

from pyro_vaeflow.inference.pairs import Draws, Way, draw_axes, paired_traces
from pyro_vaeflow.inference.parameters import (
    Program,
    modules,
    own_parameters,
    random_state,
    set_random_state,
)
from pyro_vaeflow.inference.traces import Args, RowTerms, latent_sites, plate_frame

NUM_DRAWS = 5, 20  # from, to; unlike the number of rows
OF_PLACE = (
    "the numbers of a row depend on its place among the rows, or on the other rows: if a "
    "parameter or other data is read at the plate's index, mini-batches and new rows would read "
    "another row's; compute from a row what is its own"
)
FAILURES = (IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


def fastest_way(
    model: Program,
    guide: Program,
    args: Args,
    rows: torch.Tensor,
    *,
    slow: Way,
    known: set[str],
    plate: str,
    training: bool,
) -> Way:
    """The way with the most on the left among those that give, to rounding, the numbers of `slow`.

    All ways have the same rows and noise. Parameters are moved a little: where an entry for each
    row starts at one value, a program that reads another row's would not show.

    Args:
        rows: numbers of some rows.
        slow: the way that is right whatever the programs are.
        known: parameters of the store before the programs ran.
        training: whether a row's numbers may depend on the other rows where draws are on the left.

    Raises:
        ValueError: the programs run on one number of rows alone, or a row's numbers depend on its
            place among the rows, or on the other rows.
    """
    with _moved_parameters(modules(model, guide), len(args[0])):
        probe = _Probe(model, guide, args, rows, plate)
        try:
            try:
                draws = probe.draws(slow)
            except FAILURES:  # more rows than x has: draws must come one after another
                slow = replace(slow, guide="runs", model="runs")
                draws = probe.draws(slow)
            expected = draws.terms
            moved = slow.model == "runs" and probe.moves_rows(slow, expected)
        except FAILURES as error:
            raise ValueError(_of_one_number(model, guide, len(rows), known, error)) from error
        given = [_on_left(draws)] if slow.model == "runs" else None
        ways = [replace(slow, guide="left", model="left")]
        if slow.model == "rows" and not slow.enumerated:
            ways.append(replace(slow, guide="left"))
        way, why = slow, ""
        for fast in ways:
            try:
                terms = probe.draws(fast, given=given).terms
            except FAILURES as error:
                why = why or str(error).partition("\n")[0]
                continue
            if _same(expected, terms):
                way = fast
                break
            why = why or "the programs run with draws on the left, but give other numbers"
        if slow.model == "rows" and (way is slow or not training):
            with suppress(*FAILURES):  # then nothing can be said
                moved = probe.moves_rows(slow, expected)
        if moved:
            raise ValueError(OF_PLACE)
        return replace(way, why=why)


class _Probe:
    def __init__(
        self, model: Program, guide: Program, args: Args, rows: torch.Tensor, plate: str
    ) -> None:
        self.model, self.guide, self.args, self.rows = model, guide, args, rows
        self.plate, self.state = plate, random_state()
        least, most = NUM_DRAWS  # if they make more rows than x has, that is seen too
        self.num_draws = min(max(least, len(args[0]) // len(rows) + 1), most)

    def draws(self, way: Way, *, rows: Any = None, given: Any = None, count: int = 0) -> Draws:
        rows, count = self.rows if rows is None else rows, count or self.num_draws
        options: dict[str, Any] = {"seed": 0, "plate": self.plate, "given": given}
        set_random_state(self.state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scores will warn
            programs = self.model, self.guide, self.args
            return paired_traces(*programs, rows, num_samples=count, way=way, **options)

    def moves_rows(self, slow: Way, expected: RowTerms) -> bool:
        """Whether the numbers for a row, at the same draws, depend on its place among which rows.

        A row's noise is its own, so that draws made anew are the same, but for those that come from
        torch's stream: where numbers differ they are computed at draws that are given.
        """
        if slow.unasked:  # the model draws them anew
            return False
        some = torch.arange(len(self.rows), device=self.rows.device).flip(0)[:4]
        if alike(expected.elbo[:, some], self.draws(slow, rows=self.rows[some]).terms.elbo):
            return False
        way = replace(slow, guide="runs", model="runs")
        draws = self.draws(way, count=1)
        again: Any = {"rows": self.rows[some], "given": [_of_rows(draws, some)], "count": 1}
        moved = self.draws(way, **again).terms.elbo
        if alike(draws.terms.elbo[:, some], moved):
            return False
        # Of programs that keep state or draw from a generator of their own nothing can be said.
        return alike(moved, self.draws(way, **again).terms.elbo)


@contextmanager
def _moved_parameters(parts: list[torch.nn.Module], num_data: int) -> Iterator[None]:
    """Moves what ``pyro.param`` holds, and what modules hold for each of `num_data` rows."""
    store = pyro.get_param_store()
    for name, value in own_parameters(set()).items():
        moved = _moved(value).requires_grad_()
        store._params[name], store._param_to_name[moved] = moved, name
    of_rows = [p for part in parts for p in part.parameters() if num_data in p.shape]
    before = [p.detach().clone() for p in of_rows]
    try:
        for p in of_rows:
            p.data.copy_(_moved(p))
        yield
    finally:
        for p, value in zip(of_rows, before, strict=True):
            p.data.copy_(value)


def _moved(value: torch.Tensor) -> torch.Tensor:
    return value.detach() + 0.1 * torch.rand_like(value)


def _of_one_number(
    model: Program, guide: Program, num_rows: int, known: set[str], error: Exception
) -> str:
    """What to say of programs that run on one number of rows alone."""
    made = own_parameters(known)
    for part in modules(model, guide):  # an autoguide makes its parameters itself
        made |= dict(part.named_parameters())
    for name, value in made.items():
        if num_rows in value.shape:
            return (
                f"parameter {name!r} has shape {tuple(value.shape)} for {num_rows} rows, an entry "
                "for each; all rows share the parameters, so the guide must compute from a row "
                "what is the row's own"
            )
    return (
        f"the programs run on {num_rows} rows but not on another number of them "
        f"({str(error).partition(chr(10))[0]:.300}); make the size of the plate len(x), and "
        "compute from a row what is its own"
    )


def _on_left(draws: Draws) -> Trace:
    """The guide's values of all runs in one trace, with draws on the left."""
    stacked = Trace()
    for site in latent_sites(draws.traces[0][1]):
        values = torch.stack([guide.nodes[site["name"]]["value"] for _, guide in draws.traces])
        missing = draws.way.depth + 1 + site["fn"].event_dim - values.dim()
        values = values.reshape(len(values), *[1] * missing, *values.shape[1:])
        stacked.nodes[site["name"]] = site | {"value": values}
    return stacked


def _of_rows(draws: Draws, rows: torch.Tensor) -> Trace:
    """The guide's values of a lone run for some rows; what is enumerated will be so again."""
    taken = Trace()
    ((_, guide_trace),) = draws.traces
    for site in latent_sites(guide_trace):
        if "_enumerate_dim" in site["infer"]:
            continue
        value = site["value"]
        if plate_frame(site, draws.plate) is not None:
            value = value.index_select(draw_axes(site, draws.way, "runs", draws.plate)[1], rows)
        taken.nodes[site["name"]] = site | {"value": value}
    return taken


def _same(one: RowTerms, other: RowTerms) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(value is None or alike(value, given) for value, given in pairs)


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether numbers of one shape are the same to rounding."""
    eps = torch.finfo(one.dtype).eps ** 0.5
    close = {"rtol": eps, "atol": eps, "equal_nan": True}
    return one.shape == other.shape and torch.allclose(one, other, **close)
