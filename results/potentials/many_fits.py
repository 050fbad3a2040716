r"""Many fits of one kind of posterior at once: row i of x is fit i, with parameters of its own.

A guide alone stands before a known two-dimensional density :math:`p(z) = e^{-U(z)} / Z`: no
decoder, no encoder, nothing but the flexibility of the posterior. A layer of two units costs about
as much for one fit as for twenty: nearly all of it is the call. Where the rows are the fits and
their draws the particles, `train` fits all of them in one run, and

.. math:: KL(q\|p) = \log Z - ELBO .
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import SplineAutoregressive
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import Transform

from pyro_vaeflow.programs.flows import FLOWS
from results.potentials.energies import Energy

Values = dict[str, torch.Tensor]  # of parameters, by name, each (rows, ...)


class Potentials(PyroModule):
    """The program whose row i has density exp(-U_i(z)) / Z_i; x holds the rows' i, ``(rows, 1)``.

    The energy is a factor beside a flat prior, so `anneal` with beta above 1 weights the entropy
    of q more: the tempering that Rezende & Mohamed use, their section 6.1.

    Args:
        energies: U of each fit.
    """

    def __init__(self, energies: Sequence[Energy]) -> None:
        super().__init__()
        self.energies = list(dict.fromkeys(energies))  # each once: rows may share one
        self.index = torch.tensor([self.energies.index(energy) for energy in energies])

    def forward(self, x: torch.Tensor) -> None:
        index = self.index[x.squeeze(-1).long()]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (2,)))
            each = torch.stack([energy(z) for energy in self.energies])
            pyro.factor("energy", -each.gather(0, index.expand(1, *each.shape[1:])).squeeze(0))


class FlowGuide(nn.Module):
    """An unconditional flow over a learned normal: the posterior of a program without data.

    Args:
        flow: a name in `FLOWS`.
        num_flows: K.
        options: those of the flow's builder.

    Example:
        >>> FlowGuide("planar", 2)(torch.zeros(5, 0)).shape
        torch.Size([5, 2])
    """

    def __init__(self, flow: str, num_flows: int, **options: Any) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))
        self.log_scale = nn.Parameter(torch.zeros(2))
        self.flow = nn.ModuleList(FLOWS[flow](2, num_flows, None, **options))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.TransformedDistribution(base, list(self.flow)))


class FlowGuides(nn.Module):
    """Guides of one architecture as one: row i is drawn from guide i; x holds the rows' i.

    The parameters are stacked copies of the guides' own. Masks are those of the first: they say in
    which order layers take the coordinates, which the architecture decides.

    Example:
        >>> guide = FlowGuides([FlowGuide("planar", 2) for _ in range(3)])
        >>> guide(torch.arange(3.0).unsqueeze(-1)).shape
        torch.Size([3, 2])
    """

    def __init__(self, guides: Sequence[FlowGuide]) -> None:
        super().__init__()
        self.first = (guides[0],)  # in a tuple, for its own parameters are not trained
        parameters, _ = torch.func.stack_module_state(list(guides))
        self.names = list(parameters)
        self.stacked = nn.ParameterList(parameters.values())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.squeeze(-1).long()
        values = {n: p[rows] for n, p in zip(self.names, self.stacked, strict=True)}
        base = dist.Normal(values.pop("loc"), values.pop("log_scale").exp()).to_event(1)
        transforms = _transforms(self.first[0].flow, values)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.TransformedDistribution(base, transforms))


class AdamByFit(torch.optim.Adam):
    """Adam after the gradient of each fit is clipped: one that jumps leaves the others alone.

    Every parameter has the fits as its first dimension.

    Args:
        clip_norm: the largest norm of a fit's whole gradient.
    """

    def __init__(self, params: Any, lr: float, clip_norm: float) -> None:
        super().__init__(params, lr=lr, fused=True)
        self.clip_norm = clip_norm

    def step(self, closure: Any = None) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in gradients]).norm(dim=0)
        scale = (self.clip_norm / norms).clamp(max=1.0)
        for grad in gradients:
            grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))
        return super().step(closure)


def _transforms(flow: nn.ModuleList, values: Values) -> list[Transform]:
    """The layers of a flow, each with parameters of its own for every row."""
    transforms: list[Transform] = []
    for number, layer in enumerate(flow):
        of_layer = _below(values, f"flow.{number}.")
        if isinstance(layer, SplineAutoregressive):  # its boolean masks are more than vmap can do
            network: Any = partial(_by_row, layer.arn, _below(of_layer, "arn."))
            options = (layer.spline.count_bins, layer.spline.bound, layer.spline.order)
            transforms.append(SplineAutoregressive(2, network, *options))
        else:
            transforms.append(_RowTransform(layer, of_layer))
    return transforms


def _below(values: Values, prefix: str) -> Values:
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _by_row(module: nn.Module, values: Values, x: torch.Tensor) -> Any:
    """The module with the parameters ``values[...][i]`` at row i of x, its last dimension but one.

    Outputs have the rows as many dimensions from the left as x has them.
    """

    def one_row(values: Values, x: torch.Tensor) -> Any:
        return torch.func.functional_call(module, values, (x,))

    return torch.vmap(one_row, (0, -2), x.dim() - 2)(values, x)


class _RowTransform(Transform):
    """A layer whose parameters differ from row to row; like a planar layer, without an inverse."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, layer: nn.Module, values: Values) -> None:
        super().__init__(cache_size=1)
        self.layer = _WithLogDet(layer)
        self.values = {f"layer.{name}": value for name, value in values.items()}

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        y, self._log_det = _by_row(self.layer, self.values, x)
        return y

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        raise KeyError("layers with parameters by row can score only what they have just drawn")

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x_old, y_old = self._cached_x_y
        if x is not x_old or y is not y_old:
            self(x)
        return self._log_det


class _WithLogDet(nn.Module):
    """A layer's output ``(..., 2)`` and log |det| ``(...)``."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.layer(x)
        return y, self.layer.log_abs_det_jacobian(x, y)
