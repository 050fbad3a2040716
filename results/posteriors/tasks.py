"""Six tasks of the simulation-based inference benchmark whose likelihood is known, as Pyro models.

Observations and reference draws are read from the benchmark's wheel: ``pip download sbibm==1.1.0
--no-deps``, into the folder that VAEFLOW_DATA names.
"""

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from torch.distributions.transforms import ReshapeTransform

from pyro_vaeflow.datasets.registry import require

WHEEL = "sbibm-1.1.0-py2.py3-none-any.whl"
SOURCE = "PyPI (pip download sbibm==1.1.0 --no-deps)"
OBSERVATIONS = range(1, 11)
EDGE = 0.003  # width of the wall in place of the moons' edge, beyond which there is no density


@dataclass(frozen=True)
class Task:
    """A prior and a likelihood; the model's site z is what real numbers stand for the parameters.

    References:
        J.-M. Lueckmann, J. Boelts, D. Greenberg, P. Gonçalves, J. Macke, Benchmarking
        Simulation-Based Inference, 2021, arXiv:2101.04653.

    Example:
        >>> x = TASKS["two_moons"].simulate(5, seed=0)
        >>> trace = pyro.poutine.trace(TASKS["two_moons"].model).get_trace(x)
        >>> trace.nodes["z"]["value"].shape, x.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    name: str
    prior: TorchDistribution
    likelihood: Callable[[torch.Tensor], TorchDistribution]
    bound: float | None = None

    def parameters(self, z: torch.Tensor) -> torch.Tensor:
        """The benchmark's parameters: z, or what makes a standard normal uniform up to a bound."""
        return z if self.bound is None else self.bound * torch.erf(z / math.sqrt(2.0))

    def model(self, x: torch.Tensor) -> None:
        """Draws z and observes rows x ``(num_data, num_features)``."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", self.likelihood(self.parameters(z)), obs=x)

    def simulate(self, num_data: int, seed: int) -> torch.Tensor:
        """Rows that the model makes, ``(num_data, num_features)``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.likelihood(self.parameters(self.prior.sample((num_data,)))).sample()

    def observation(self, number: int) -> torch.Tensor:
        """The benchmark's observation of this number from 1 to 10, ``(1, num_features)``."""
        return torch.from_numpy(_table(self.name, number, "observation.csv"))

    def reference(self, number: int) -> torch.Tensor:
        """Draws of the posterior that come with the benchmark, ``(10_000, dim)``."""
        return torch.from_numpy(_table(self.name, number, "reference_posterior_samples.csv.bz2"))


def _table(task: str, number: int, name: str) -> np.ndarray:
    path = f"sbibm/tasks/{task}/files/num_observation_{number}/{name}"
    with zipfile.ZipFile(require(WHEEL, None, SOURCE)) as wheel:
        packed = "bz2" if name.endswith("bz2") else None
        return pd.read_csv(io.BytesIO(wheel.read(path)), compression=packed).to_numpy(np.float32)


def _standard(dim: int, scale: float = 1.0) -> TorchDistribution:
    return dist.Normal(torch.zeros(dim), scale).to_event(1)


def _around(theta: torch.Tensor) -> TorchDistribution:
    return dist.Normal(theta, math.sqrt(0.1)).to_event(1)


def _two_widths(theta: torch.Tensor) -> TorchDistribution:
    shares = dist.Categorical(theta.new_ones(*theta.shape[:-1], 2))
    widths = theta.new_tensor([[1.0], [0.1]])
    return dist.MixtureSameFamily(shares, dist.Normal(theta.unsqueeze(-2), widths).to_event(1))


def _four_points(theta: torch.Tensor) -> TorchDistribution:
    """SLCP: four draws of a normal in the plane, whose scales are squares of two parameters."""
    one, two = theta[..., 2].square(), theta[..., 3].square()
    first = (one.square() + 1e-6).sqrt()
    mixed = theta[..., 4].tanh() * one * two / first
    second = (two.square() + 1e-6 - mixed.square()).clamp(min=1e-7).sqrt()
    rows = [torch.stack([first, torch.zeros_like(first)], -1), torch.stack([mixed, second], -1)]
    point = dist.MultivariateNormal(
        theta[..., None, :2], scale_tril=torch.stack(rows, -2).unsqueeze(-3)
    )
    points = point.expand([*theta.shape[:-1], 4]).to_event(1)
    return dist.TransformedDistribution(points, [ReshapeTransform((4, 2), (8,))])


class Moon(TorchDistribution):
    """Rows on a thin half circle, whose place follows the absolute value of a parameters' sum."""

    support = constraints.real_vector

    def __init__(self, theta: torch.Tensor) -> None:
        self.place = theta @ theta.new_tensor([[1.0, -1.0], [1.0, 1.0]]) * math.sqrt(0.5)
        super().__init__(theta.shape[:-1], theta.shape[-1:], validate_args=False)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Rows ``(..., 2)``."""
        angle = (torch.rand(self.shape(torch.Size(sample_shape))[:-1]) - 0.5) * math.pi
        radius = 0.1 + 0.01 * torch.randn_like(angle)
        along = angle.cos() * radius + 0.25 - self.place[..., 0].abs()
        return torch.stack([along, angle.sin() * radius + self.place[..., 1]], -1)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """Nats; beyond the half circle's edge it falls as a normal of width `EDGE`."""
        u, v = x[..., 0] + self.place[..., 0].abs() - 0.25, x[..., 1] - self.place[..., 1]
        radius = (u.square() + v.square() + 1e-12).sqrt()
        log_density = dist.Normal(0.1, 0.01).log_prob(radius) - (math.pi * radius).log()
        return log_density - 0.5 * (F.relu(-u) / EDGE).square()


class Spikes(TorchDistribution):
    """Sums over 100 bins of spikes and stimuli, of a generalised linear model; density up to a
    factor that parameters do not enter.
    """

    support = constraints.real_vector

    def __init__(self, theta: torch.Tensor) -> None:
        self.theta = theta
        stimulus = np.random.RandomState(42).randn(100).astype(np.float32)
        delays = [np.pad(stimulus, (j, 0))[:100] for j in range(9)]
        self.design = torch.from_numpy(np.stack([np.ones(100, np.float32), *delays], 1))
        super().__init__(theta.shape[:-1], theta.shape[-1:], validate_args=False)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Rows ``(..., 10)``."""
        logits = (self.theta @ self.design.T).expand(*sample_shape, *self.batch_shape, 100)
        return torch.bernoulli(logits.sigmoid()) @ self.design

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """Nats, up to a constant of the row."""
        return (x * self.theta).sum(-1) - F.softplus(self.theta @ self.design.T).sum(-1)


def _smooth_filter() -> TorchDistribution:
    """The prior of an offset and of a filter whose second differences are small."""
    step = torch.eye(9) - torch.diag(torch.ones(8), -1)
    rough = step @ step + torch.diag(torch.arange(9) / 9.0).sqrt()
    precision = torch.block_diag(torch.tensor([[0.5]]), rough.T @ rough)
    return dist.MultivariateNormal(torch.zeros(10), precision_matrix=precision)


TASKS = {
    task.name: task
    for task in (
        Task("gaussian_linear", _standard(10, math.sqrt(0.1)), _around),
        Task("gaussian_linear_uniform", _standard(10), _around, bound=1.0),
        Task("gaussian_mixture", _standard(2), _two_widths, bound=10.0),
        Task("two_moons", _standard(2), Moon, bound=1.0),
        Task("slcp", _standard(5), _four_points, bound=3.0),
        Task("bernoulli_glm", _smooth_filter(), Spikes),
    )
}
