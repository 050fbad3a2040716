"""Calibration of a guide: ranks of the latents that the model drew among those it draws."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from scipy.stats import chi2, wilcoxon

from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.draws import DRAWS_PER_CHUNK
from pyro_vaeflow.inference.pairs import Draws, paired_traces
from pyro_vaeflow.inference.parameters import Program, evaluating
from pyro_vaeflow.inference.traces import (
    Args,
    as_args,
    innermost,
    is_data,
    is_reparametrised,
    of_rows,
    plate_frame,
    sample_sites,
    take_rows,
)
from pyro_vaeflow.validation import check_size

Assemble = Callable[[dict[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Calibration:
    """What `simulation_based_calibration` found, for each latent site."""

    ranks: dict[str, torch.Tensor]
    """How many of the guide's draws lie below the truth, ``(num_simulations, dim)``."""
    num_draws: int
    """The largest rank."""
    num_bins: int
    """Bins of the test, all of the same number of ranks."""

    @property
    def counts(self) -> dict[str, torch.Tensor]:
        """Simulations in each bin of ranks, ``(num_bins, dim)``: the histogram to plot."""
        width = (self.num_draws + 1) // self.num_bins
        bins = torch.arange(self.num_bins).view(-1, 1, 1)
        return {name: (ranks // width == bins).sum(1) for name, ranks in self.ranks.items()}

    @property
    def p_values(self) -> dict[str, torch.Tensor]:
        """Chi-square p-values of uniform ranks, ``(dim,)``; small: not calibrated."""
        found = {}
        for name, count in self.counts.items():
            expected = len(self.ranks[name]) / self.num_bins
            statistic = ((count - expected) ** 2 / expected).sum(0)
            found[name] = torch.from_numpy(chi2.sf(statistic, self.num_bins - 1))
        return found

    @property
    def bias_p_values(self) -> dict[str, torch.Tensor]:
        """P-values of ranks that lie symmetrically, ``(dim,)``; small: draws are too low or high.

        Wilcoxon's signed-rank test of ranks less half of `num_draws`. A guide that is only too
        narrow or too wide passes, as those of variational inference are: it asks for less than
        uniform ranks, of the marginal locations alone.

        References:
            Y. Yao, A. Vehtari, D. Simpson, A. Gelman, Yes, but Did It Work?: Evaluating Variational
            Inference, 2018, arXiv:1802.02538, section 3.2 (VSBC).
        """
        distances = {name: ranks.numpy() - self.num_draws / 2 for name, ranks in self.ranks.items()}
        return {name: torch.from_numpy(wilcoxon(d).pvalue) for name, d in distances.items()}

    def __repr__(self) -> str:
        least = min(float(p.min()) for p in self.p_values.values())
        return f"Calibration: the least p-value of uniform ranks is {least:.3g}"

    def plot(self) -> Any:
        """A matplotlib ``Figure``: the histogram of each coordinate's ranks."""
        from pyro_vaeflow.plots.charts import plot_ranks

        return plot_ranks({name: count.numpy() for name, count in self.counts.items()})

    def to_frame(self) -> pd.DataFrame:
        """One row a coordinate: ``site, coordinate, p_value, bias_p_value``."""
        tests = {"p_value": self.p_values, "bias_p_value": self.bias_p_values}
        rows = [
            (name, j, *(float(p[name][j]) for p in tests.values()))
            for name, ranks in self.ranks.items()
            for j in range(ranks.shape[1])
        ]
        return pd.DataFrame(rows, columns=["site", "coordinate", *tests])


def simulation_based_calibration(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_simulations: int = 1000,
    num_draws: int = 99,
    num_bins: int = 20,
    assemble: Assemble | None = None,
    seed: int = 0,
    plate: str = "data",
) -> Calibration:
    r"""Ranks of the latents that made simulated rows among the guide's draws for those rows.

    The model draws :math:`(\tilde z, \tilde x)`, the guide :math:`z_1, \dots, z_L` given
    :math:`\tilde x`. If the guide is the posterior, each rank
    :math:`\sum_l 1[z_l < \tilde z]` is uniform on 0, ..., L. Ranks heaped at both ends mean a
    guide too narrow, in the middle too wide, at one end too low or too high. Ties, of discrete
    latents, are broken at random. Latents that all rows share are drawn once, from the guide. For a
    guide that was learned, the test asks about rows such as the model makes, which are the rows of
    a table only so far as the model is right.

    References:
        S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman, Validating Bayesian Inference
        Algorithms with Simulation-Based Calibration, 2018, arXiv:1804.06788, algorithm 1.

    Args:
        model, guide: Pyro programs that meet the contract of `pyro_vaeflow.inference.contract`.
        x: tensor ``(num_data, ...)`` or tuple of arguments: what the model observes in them is
            simulated, the rest is given.
        num_draws: L, of the guide a simulation; L + 1 must be a multiple of `num_bins`.
        num_bins: of the test; `num_simulations` should be at least five times as many.
        assemble: makes the first argument, rows first, from the values of the model's observed
            sites by name. Not needed where each observes an argument or a part of one, such as
            ``x[:, 0]``: the simulated values are written there, and other arguments stay.

    Raises:
        ValueError: the contract is broken, an argument is out of range, or the observed values
            cannot be simulated.
        TypeError: `x` is not a tensor.

    Example:
        >>> from pyro_vaeflow import Guide, Model
        >>> model, guide, x = Model(3, latent_dim=2), Guide(3, latent_dim=2), torch.rand(5, 3)
        >>> check = simulation_based_calibration(model, guide, x, num_simulations=200)
        >>> check.ranks["z"].shape, check.p_values["z"].shape, check.bias_p_values["z"].shape
        (torch.Size([200, 2]), torch.Size([2]), torch.Size([2]))
    """
    args = as_args(x)
    check_size("num_simulations", num_simulations)
    check_size("num_draws", num_draws)
    check_size("num_bins", num_bins, 2)
    check_size("rows of x", len(args[0]))
    if (num_draws + 1) % num_bins:
        raise ValueError(f"num_bins must divide num_draws + 1 = {num_draws + 1}, got {num_bins}")
    way = replace(check_contract(model, guide, args, plate=plate), enumerated=False)
    index = torch.arange(num_simulations, device=args[0].device) % len(args[0])
    with evaluating(model, guide, seed):
        if way.shared:
            shared = _shared_latents(guide, args, plate)
            model, guide = (poutine.replay(program, trace=shared) for program in (model, guide))
        simulated, data = _simulated(model, args, index, assemble)
        as_drawn = [(simulated, simulated)], 1, num_simulations, replace(way, guide="runs"), plate
        truths = Draws(*as_drawn).latents
        parts: dict[str, list[torch.Tensor]] = {}
        for rows in torch.arange(num_simulations).split(max(1, DRAWS_PER_CHUNK // num_draws)):
            draws = paired_traces(
                model, guide, data, rows, num_samples=num_draws, way=way, plate=plate
            )
            for name, values in draws.latents.items():
                if name in truths:
                    parts.setdefault(name, []).append(_ranks(values, truths[name][rows]))
    ranks = {name: torch.cat(part).cpu() for name, part in parts.items()}
    return Calibration(ranks, num_draws, num_bins)


def _ranks(draws: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    draws, truth = (values.reshape(*values.shape[:2], -1) for values in (draws, truth))
    below, ties = (draws < truth).sum(1), (draws == truth).sum(1)
    return below + (torch.rand(ties.shape, device=ties.device) * (ties + 1)).long()


def _shared_latents(guide: Program, args: Args, plate: str) -> Trace:
    """A draw of what all rows share, the same for all simulations and the draws for them."""
    trace = poutine.trace(guide).get_trace(*args)
    for name in [n for n, site in trace.nodes.items() if site["type"] == "sample"]:
        site = trace.nodes[name]
        if site["is_observed"] or plate_frame(site, plate) or site_is_subsample(site):
            trace.remove_node(name)
    return trace


class _Simulation(poutine.messenger.Messenger):
    """Draws what a model observes, and writes it where the observed values came from.

    So sites that observe parts of an argument need no more said, and what is computed from it
    afterwards, as the next value of a series, is computed from the simulated values.
    """

    def __init__(self, args: Args) -> None:
        super().__init__()
        tensors = [arg for arg, own in zip(args, of_rows(args), strict=True) if own]
        self.storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.elsewhere: list[str] = []
        self.factors: list[str] = []

    def _pyro_sample(self, msg: Message) -> None:
        fn = innermost(msg["fn"])
        if isinstance(fn, dist.Unit) or is_reparametrised(msg) and (fn.log_density != 0).any():
            self.factors.append(msg["name"])
        if not is_data(msg):
            return
        seen, drawn = msg["value"], msg["fn"]()
        if isinstance(seen, torch.Tensor) and seen.untyped_storage().data_ptr() in self.storages:
            seen.copy_(drawn)
        else:
            self.elsewhere.append(msg["name"])
        msg["value"], msg["done"] = drawn, True


def _simulated(
    model: Program, args: Args, index: torch.Tensor, assemble: Assemble | None
) -> tuple[Trace, Args]:
    """A trace of simulated rows, and the programs' arguments that hold them."""
    data = take_rows(args, index)  # copies
    simulation = _Simulation(data)
    try:
        simulated = poutine.trace(simulation(model)).get_trace(*data)
    except NotImplementedError as error:
        raise ValueError(
            f"the model cannot be simulated: {str(error).partition(chr(10))[0]}"
        ) from error
    if simulation.factors:
        raise ValueError(
            f"sites {simulation.factors} of the model add a density that no draw follows, as "
            "pyro.factor does, so that rows cannot be simulated; calibrate a model without them"
        )
    values = {s["name"]: s["value"] for s in sample_sites(simulated) if is_data(s)}
    if assemble is not None:
        first = assemble(values)
        if first.shape != data[0].shape:
            raise ValueError(
                f"assemble= made rows of shape {tuple(first.shape)} where the first argument has "
                f"{tuple(data[0].shape)}"
            )
        data[0].copy_(first)  # in place: what each row has of the arguments stays known
    elif simulation.elsewhere:
        raise ValueError(
            f"sites {sorted(simulation.elsewhere)} observe values that are computed from the "
            "arguments; pass assemble=, a function that makes the first argument from the values "
            "of the observed sites by name"
        )
    again = poutine.trace(poutine.replay(model, trace=simulated)).get_trace(*data)
    for name in values:  # masks, which may tell what is missing, may differ
        sites = (trace.nodes[name] for trace in (simulated, again))
        one, other = (site["fn"].log_prob(site["value"]).double() for site in sites)
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"the model computes site {name!r} from the values that it observes there, so that "
                "they cannot be simulated at once: observe one after another, each given the "
                "values before it"
            )
    return simulated, data
