"""Calibration of a guide: ranks of the latents that the model drew among those it draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from scipy.stats import chi2

from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.draws import DRAWS_PER_CHUNK
from pyro_vaeflow.inference.parameters import Program, evaluating
from pyro_vaeflow.inference.traces import Args, as_args, latent_rows, paired_traces, take_rows
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
            found[name] = torch.from_numpy(np.asarray(chi2.sf(statistic, self.num_bins - 1)))
        return found

    def __repr__(self) -> str:
        least = min(float(p.min()) for p in self.p_values.values())
        return f"Calibration: the least p-value of uniform ranks is {least:.3g}"

    def plot(self) -> Any:
        """A matplotlib ``Figure``: the histogram of each coordinate's ranks."""
        from pyro_vaeflow.plots.charts import plot_ranks

        return plot_ranks({name: count.numpy() for name, count in self.counts.items()})

    def to_frame(self) -> pd.DataFrame:
        """One row a coordinate: ``site, coordinate, p_value``."""
        rows = [(n, j, float(p)) for n, ps in self.p_values.items() for j, p in enumerate(ps)]
        return pd.DataFrame(rows, columns=["site", "coordinate", "p_value"])


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
    latents, are broken at random. For a guide that was learned, the test asks about rows such as
    the model makes, which are the rows of a table only so far as the model is right.

    References:
        S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman, Validating Bayesian Inference
        Algorithms with Simulation-Based Calibration, 2018, arXiv:1804.06788, algorithm 1.

    Args:
        model, guide: Pyro programs that meet the contract of `pyro_vaeflow.inference.contract`.
        x: tensor ``(num_data, ...)`` or tuple of arguments, for shapes and further arguments; the
            values of its first are not used unless the model computes with them.
        num_draws: L, of the guide a simulation; L + 1 must be a multiple of `num_bins`.
        num_bins: of the test; `num_simulations` should be at least five times as many.
        assemble: makes the first argument, rows first, from the values of the model's observed
            sites by name. Not needed where one site observes that argument as it is.

    Raises:
        ValueError: the contract is broken, an argument is out of range, or the simulated sites do
            not make the first argument.
        TypeError: `x` is not a tensor.

    Example:
        >>> from pyro_vaeflow import Guide, Model
        >>> model, guide, x = Model(3, latent_dim=2), Guide(3, latent_dim=2), torch.rand(5, 3)
        >>> check = simulation_based_calibration(model, guide, x, num_simulations=200)
        >>> check.ranks["z"].shape, check.p_values["z"].shape
        (torch.Size([200, 2]), torch.Size([2]))
    """
    args = as_args(x)
    check_size("num_simulations", num_simulations)
    check_size("num_draws", num_draws)
    check_size("num_bins", num_bins, 2)
    check_size("rows of x", len(args[0]))
    if (num_draws + 1) % num_bins:
        raise ValueError(f"num_bins must divide num_draws + 1 = {num_draws + 1}, got {num_bins}")
    depth = check_contract(model, guide, args, plate=plate)
    template = take_rows(args, torch.arange(num_simulations, device=args[0].device) % len(args[0]))
    with evaluating(model, guide, seed):
        simulated = poutine.trace(poutine.uncondition(model)).get_trace(*template)
        data = _first_argument(simulated, template, assemble)
        parts: dict[str, list[torch.Tensor]] = {}
        for chunk in torch.arange(num_simulations).split(max(1, DRAWS_PER_CHUNK // num_draws)):
            rows = take_rows((data, *template[1:]), chunk)
            traces = paired_traces(
                model, guide, rows, num_samples=num_draws, max_plate_nesting=depth
            )
            for name, draws in latent_rows(traces[1], plate).items():
                truth = latent_rows(simulated, plate)[name][chunk]
                parts.setdefault(name, []).append(_ranks(draws, truth, num_draws))
    ranks = {name: torch.cat(part).cpu() for name, part in parts.items()}
    return Calibration(ranks, num_draws, num_bins)


def _ranks(draws: torch.Tensor, truth: torch.Tensor, num_draws: int) -> torch.Tensor:
    draws = draws.reshape(len(draws), num_draws, -1)
    truth = truth.reshape(len(truth), 1, -1)
    below, ties = (draws < truth).sum(1), (draws == truth).sum(1)
    return below + (torch.rand(ties.shape, device=ties.device) * (ties + 1)).long()


def _first_argument(trace: Trace, template: Args, assemble: Assemble | None) -> torch.Tensor:
    """The simulated rows; also leaves only latents among the unobserved sites of the trace."""
    observed = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site["infer"].get("was_observed"):
            site["is_observed"] = True
            observed[name] = site["value"]
    if assemble is None and len(observed) == 1:
        data = next(iter(observed.values()))
    elif assemble is not None:
        data = assemble(observed)
    else:
        raise ValueError(
            f"the model observes {len(observed)} sites {sorted(observed)}; pass assemble=, a "
            "function that makes the first argument from their values by name"
        )
    if data.shape != template[0].shape:
        raise ValueError(
            f"the simulated rows have shape {tuple(data.shape)} where the first argument has "
            f"{tuple(template[0].shape)}; pass assemble=, a function that makes it from the values "
            f"of the observed sites {sorted(observed)}"
        )
    return data.to(template[0].dtype)
