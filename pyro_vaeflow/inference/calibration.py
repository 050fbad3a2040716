"""Calibration of a guide: ranks of the latents that the model drew among those it draws."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from scipy.stats import chi2, wilcoxon

from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.draws import DRAWS_PER_CHUNK
from pyro_vaeflow.inference.pairs import Draws, paired_traces
from pyro_vaeflow.inference.parameters import Program, evaluating
from pyro_vaeflow.inference.simulation import Assemble, simulated_rows
from pyro_vaeflow.inference.traces import Args, as_args, plate_frame
from pyro_vaeflow.validation import check_number, check_size

Statistic = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Calibration:
    """What `simulation_based_calibration` found, for each latent site."""

    ranks: dict[str, torch.Tensor]
    """How many of the guide's draws lie below the truth, ``(num_simulations, dim)``."""
    num_draws: int
    """The largest rank."""
    num_bins: int
    """Bins of the test, all of the same number of ranks."""
    x: torch.Tensor
    """The simulated rows, ``(num_simulations, ...)``."""

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

    def local_coverage(
        self, by: Statistic | None = None, *, num_regions: int = 5, level: float = 0.9
    ) -> pd.DataFrame:
        """Whether the guide is calibrated in each region of the rows, not on average alone.

        A guide that does not look at the row passes when all are taken together, if it is the
        prior; and what is too wide in one region may make up for what is too narrow elsewhere.

        References:
            D. Zhao, N. Dalmasso, R. Izbicki, A. B. Lee, Diagnostics for Conditional Density Models
            and Bayesian Inference Algorithms, 2021, arXiv:2102.10473.

        Args:
            by: rows ``(num_simulations, ...)`` to numbers ``(num_simulations,)``, by which regions
                of equal size are made, such as ``lambda x: x[:, 0]``. By default the distance from
                the mean row in standard deviations of the columns: the last region has outliers.
            level: of the central intervals between the guide's draws.

        Returns:
            A row a region and coordinate: ``region``, ``low`` and ``high`` of `by`,
            ``simulations``; ``site, coordinate, p_value, bias_p_value`` as in `to_frame`;
            ``nominal``, the share of ranks that is nearest to `level`, and ``coverage``, how often
            the truth is there.
        """
        check_size("num_regions", num_regions, 1, len(self.x))
        check_number("level", level, above=0.0, below=1.0)
        statistic = (by or _distance)(self.x)
        if statistic.shape != self.x.shape[:1]:
            raise ValueError(
                f"by must give a number for each of {len(self.x)} rows, got shape "
                f"{tuple(statistic.shape)}"
            )
        cut = round((self.num_draws + 1) * (1.0 - level) / 2)
        frames = []
        for number, index in enumerate(statistic.argsort().tensor_split(num_regions)):
            part = replace(
                self, ranks={name: r[index] for name, r in self.ranks.items()}, x=self.x[index]
            )
            inside = [(cut <= r) & (r <= self.num_draws - cut) for r in part.ranks.values()]
            low, high = statistic[index[[0, -1]]].tolist()
            told = {"region": number, "low": low, "high": high, "simulations": len(index)}
            told["nominal"] = 1.0 - 2.0 * cut / (self.num_draws + 1)
            coverage = torch.cat([share.double().mean(0) for share in inside]).numpy()
            frames.append(part.to_frame().assign(**told, coverage=coverage))
        return pd.concat(frames, ignore_index=True)

    def plot_local_coverage(self, by: Statistic | None = None, **options: Any) -> Any:
        """A matplotlib ``Figure`` of `local_coverage`, which says what the arguments are."""
        from pyro_vaeflow.plots.charts import plot_coverage

        return plot_coverage(self.local_coverage(by, **options))

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
        simulated, data = simulated_rows(model, args, index, assemble)
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
    return Calibration(ranks, num_draws, num_bins, data[0].cpu())


def _ranks(draws: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    draws, truth = (values.reshape(*values.shape[:2], -1) for values in (draws, truth))
    below, ties = (draws < truth).sum(1), (draws == truth).sum(1)
    return below + (torch.rand(ties.shape, device=ties.device) * (ties + 1)).long()


def _distance(x: torch.Tensor) -> torch.Tensor:
    """Of rows from their mean, in standard deviations of the columns."""
    centred = x.reshape(len(x), -1).double()
    centred = centred - centred.nanmean(0)
    variance = centred.square().nanmean(0).clamp(min=torch.finfo(centred.dtype).tiny)
    return (centred.square() / variance).nanmean(1).sqrt()


def _shared_latents(guide: Program, args: Args, plate: str) -> Trace:
    """A draw of what all rows share, the same for all simulations and the draws for them."""
    trace = poutine.trace(guide).get_trace(*args)
    for name in [n for n, site in trace.nodes.items() if site["type"] == "sample"]:
        site = trace.nodes[name]
        if site["is_observed"] or plate_frame(site, plate) or site_is_subsample(site):
            trace.remove_node(name)
    return trace
