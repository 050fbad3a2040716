"""What the guide's draws say of the latents: which of their coordinates carry information."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from pyro_vaeflow.inference.draws import trace_chunks
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.inference.traces import as_args
from pyro_vaeflow.validation import check_size


@dataclass(frozen=True)
class ActiveUnits:
    """What `active_units` found; dictionaries hold one tensor ``(dim,)`` for each latent site."""

    variance: dict[str, torch.Tensor]
    """Var_x(E_q[z]) of each coordinate, in the units of z squared."""
    threshold: float

    @property
    def active(self) -> dict[str, torch.Tensor]:
        """Whether each coordinate's variance is above the threshold."""
        return {name: value > self.threshold for name, value in self.variance.items()}

    @property
    def count(self) -> int:
        """Active coordinates of all sites together."""
        return sum(int(active.sum()) for active in self.active.values())

    def to_frame(self) -> pd.DataFrame:
        """One row a coordinate: ``site, coordinate, variance, active``."""
        rows = [
            (name, j, float(v), float(v) > self.threshold)
            for name, variance in self.variance.items()
            for j, v in enumerate(variance)
        ]
        return pd.DataFrame(rows, columns=["site", "coordinate", "variance", "active"])


def active_units(
    model: Program,
    guide: Program,
    x: Any,
    *,
    threshold: float = 0.01,
    num_samples: int = 100,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str = "data",
) -> ActiveUnits:
    r"""The coordinates of each latent whose posterior mean varies with the row, ``(dim,)`` a site.

    .. math:: A_j = \mathrm{Var}_x\left(E_{q(z|x)}[z_j]\right) > \text{threshold}

    A collapsed coordinate has q = p for all rows and a variance of 0. A mean of `num_samples` draws
    would add its own error to the variance, 0.01 at the default for a collapsed normal: the mean of
    the within-row variances over `num_samples` is taken off, so the estimate is unbiased and can
    lie a little below 0.

    References:
        Y. Burda, R. Grosse, R. Salakhutdinov, Importance Weighted Autoencoders, 2016,
        arXiv:1509.00519, section 5.2.

    Args:
        model, guide, x, seed, chunk_size, plate: as in `score`; at least two rows.
        threshold: in the units of z squared; 0.01 for a standard normal prior.
        num_samples: draws a row behind each mean, at least 2.

    Raises:
        ValueError: the contract is broken, or there are fewer than two rows or draws.
        TypeError: `x` is not a tensor.

    Example:
        >>> from pyro_vaeflow import Guide, Model
        >>> units = active_units(Model(3), Guide(3, latent_dim=12), torch.rand(50, 3))
        >>> units.variance["z"].shape, units.count <= 12
        (torch.Size([12]), True)
    """
    check_size("num_samples", num_samples, 2)
    check_size("rows of x", len(as_args(x)[0]), 2)
    means: dict[str, list[torch.Tensor]] = {}
    noises: dict[str, list[torch.Tensor]] = {}
    options: dict[str, Any] = {"seed": seed, "chunk_size": chunk_size, "plate": plate}
    for chunk in trace_chunks(model, guide, x, num_samples=num_samples, **options):
        for name, value in chunk.latents.items():
            draws = value.to(torch.get_default_dtype()).reshape(len(value), num_samples, -1)
            means.setdefault(name, []).append(draws.mean(1))
            noises.setdefault(name, []).append(draws.var(1) / num_samples)
    variance = {
        name: torch.cat(parts).var(0) - torch.cat(noises[name]).mean(0)
        for name, parts in means.items()
    }
    return ActiveUnits(variance, threshold)
