"""The zoo: pairs of Pyro programs that meet the contract, each written in another way.

A builder makes its pair anew: new functions, so new parameters, and rows in the default precision.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

from pyro_vaeflow import FLOWS, Guide, Model
from pyro_vaeflow.tables.columns import Column

NUM_FEATURES = 3
DEPTHS = {"diagonal": 0, "planar": 3, "iaf": 3, "spline": 2}


@dataclass(frozen=True)
class Pair:
    """A model, a guide, and arguments that start with the rows."""

    model: Callable
    guide: Callable
    x: Any
    depth: int = 1  # of plates
    starts_at_optimum: bool = False

    @property
    def args(self) -> tuple:
        return self.x if isinstance(self.x, tuple) else (self.x,)


def rows(num_data: int = 30) -> torch.Tensor:
    """Correlated columns, the same at each call."""
    z = torch.randn(num_data, 2, generator=torch.Generator().manual_seed(1))
    x = z @ torch.tensor([[1.0, 0.5, -1.0], [0.0, 0.8, 0.6]], dtype=z.dtype)
    return x + 0.3 * torch.randn(num_data, 3, generator=torch.Generator().manual_seed(2))


MIXED_COLUMNS = [
    Column("size", "continuous"),
    Column("kind", "categorical", levels=("icmp", "tcp", "udp")),
    Column("rate", "continuous"),
    Column("count", "discrete", lows=(0.0, 1.0, 5.0), highs=(0.0, 4.0, 5.0)),
]


def mixed_rows(num_data: int = 30) -> torch.Tensor:
    """Rows of `MIXED_COLUMNS` that depend on each other; an eighth of the entries is missing."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(num_data, 4, generator=draw)
    x[:, 1] = 1.0 + (x[:, 0] > 0.0) + (x[:, 0] > 1.0)
    x[:, 3] = 1.0 + (x[:, 2] > 0.0) + (x[:, 2] > 1.0)
    return x.masked_fill(torch.rand(num_data, 4, generator=draw) < 0.125, torch.nan)


class LinearGaussian:
    """z ~ N(0, I), x | z ~ N(W z + c, s^2 I): its evidence and posterior have closed forms.

    The posterior's correlation is 0.19. Below 1/4 the weights of the best factorised guide have a
    fourth moment, without which their standard errors would not be normal at any number of draws.
    """

    def __init__(self) -> None:
        self.weight = torch.tensor([[1.0, 0.2], [0.5, 0.8], [-1.0, 0.3]])
        self.offset = torch.tensor([0.3, -0.2, 0.1])
        self.scale = 0.5
        precision = torch.eye(2) + self.weight.T @ self.weight / self.scale**2
        self.covariance = torch.linalg.inv(precision)
        self.gain = self.covariance @ self.weight.T / self.scale**2

    def posterior_loc(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.offset) @ self.gain.T

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z @ self.weight.T + self.offset
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)

    def exact_guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(self.posterior_loc(x), self.covariance))

    def diagonal_guide(self, x: torch.Tensor) -> None:
        """At its start the best factorised normal for each row."""
        start = torch.linalg.inv(self.covariance).diagonal().rsqrt()
        scale = pyro.param("scale", start, constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.posterior_loc(x), scale).to_event(1))

    def log_evidence(self, x: torch.Tensor) -> torch.Tensor:
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(3)
        return dist.MultivariateNormal(self.offset, covariance).log_prob(x)

    def sample(self, num_data: int) -> torch.Tensor:
        z = torch.randn(num_data, 2)
        return z @ self.weight.T + self.offset + self.scale * torch.randn(num_data, 3)


def linear_gaussian() -> Pair:
    exact = LinearGaussian()
    return Pair(exact.model, exact.diagonal_guide, rows(), starts_at_optimum=True)


class _ChainModel(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.middle, self.out = nn.Linear(1, 2), nn.Linear(2, NUM_FEATURES)
        self.noise = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            cause = pyro.sample("cause", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            effect = pyro.sample("effect", dist.Normal(self.middle(cause), 0.5).to_event(1))
            pyro.sample("seen", dist.Normal(self.out(effect), self.noise).to_event(1), obs=x)


class _ChainGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.effect, self.cause = nn.Linear(NUM_FEATURES, 4), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, log_scale = self.effect(x).chunk(2, -1)
            effect = pyro.sample("effect", dist.Normal(loc, log_scale.exp()).to_event(1))
            loc, log_scale = self.cause(effect).chunk(2, -1)
            pyro.sample("cause", dist.Normal(loc, log_scale.exp()).to_event(1))


def two_latents() -> Pair:
    return Pair(_ChainModel(), _ChainGuide(), rows())


def param_functions() -> Pair:
    def model(x: torch.Tensor) -> None:
        loading = pyro.param("loading", torch.ones(NUM_FEATURES))
        noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = z.unsqueeze(-1) * loading
            pyro.sample("x", dist.Normal(loc, noise).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        gain = pyro.param("gain", torch.zeros(NUM_FEATURES))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ gain, scale))

    return Pair(model, guide, rows())


def module_functions() -> Pair:
    decoder, encoder = nn.Linear(2, NUM_FEATURES), nn.Linear(NUM_FEATURES, 4)

    def model(x: torch.Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Pair(model, guide, rows())


def masked() -> Pair:
    """Two arguments: rows whose flag is off are not observed."""

    def model(x: torch.Tensor, seen: torch.Tensor) -> None:
        loading = pyro.param("loading", torch.ones(NUM_FEATURES))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with poutine.mask(mask=seen):
                loc = z.unsqueeze(-1) * loading
                pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(x: torch.Tensor, seen: torch.Tensor) -> None:
        gain = pyro.param("gain", torch.zeros(NUM_FEATURES))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.where(seen, x @ gain, 0.0), 0.8))

    x = rows()
    return Pair(model, guide, (x, torch.arange(len(x)) % 3 != 0))


def discrete_latent() -> Pair:
    """Bernoulli latents: no reparameterised draws."""

    def model(x: torch.Tensor) -> None:
        loading = pyro.param("loading", torch.eye(NUM_FEATURES))
        with pyro.plate("data", len(x)):
            on = pyro.sample("on", dist.Bernoulli(torch.full((NUM_FEATURES,), 0.3)).to_event(1))
            pyro.sample("x", dist.Normal(on @ loading, 0.8).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        gain = pyro.param("gain", torch.eye(NUM_FEATURES))
        with pyro.plate("data", len(x)):
            pyro.sample("on", dist.Bernoulli(logits=x @ gain).to_event(1))

    return Pair(model, guide, rows())


def nested_plate() -> Pair:
    """Columns are a plate inside that of the rows, not an event dimension; some are missing."""

    def model(x: torch.Tensor) -> None:
        loading = pyro.param("loading", torch.ones(NUM_FEATURES))
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("columns", NUM_FEATURES, dim=-1), poutine.mask(mask=x > -1.0):
                pyro.sample("x", dist.Normal(z * loading, 0.5), obs=x)

    def guide(x: torch.Tensor) -> None:
        gain = pyro.param("gain", torch.zeros(NUM_FEATURES, 1))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x @ gain, 0.8))

    return Pair(model, guide, rows(), depth=2)


def sequential_columns() -> Pair:
    """Columns are a plate that is a Python loop."""

    def model(x: torch.Tensor) -> None:
        loading = pyro.param("loading", torch.ones(NUM_FEATURES))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            for j in pyro.plate("columns", NUM_FEATURES):
                pyro.sample(f"x_{j}", dist.Normal(z * loading[j], 0.5), obs=x[..., j])

    def guide(x: torch.Tensor) -> None:
        gain = pyro.param("gain", torch.zeros(NUM_FEATURES))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ gain, 0.8))

    return Pair(model, guide, rows())


def shared_latent() -> Pair:
    """An offset that all rows share, outside the plate."""

    def model(x: torch.Tensor) -> None:
        loading = pyro.param("loading", torch.ones(NUM_FEATURES))
        offset = pyro.sample("offset", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = z.unsqueeze(-1) * loading + offset.unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        gain = pyro.param("gain", torch.zeros(NUM_FEATURES))
        pyro.sample("offset", dist.Normal(pyro.param("offset_loc", torch.tensor(0.0)), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ gain, 0.8))

    return Pair(model, guide, rows() + 2.0)


class TutorialVAE(nn.Module):
    """As in Pyro's VAE tutorial: model and guide are methods of one plain module."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.Linear(8, NUM_FEATURES))
        self.encoder = nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.Dropout(0.2), nn.Linear(8, 4))

    def model(self, x: torch.Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def bound_methods() -> Pair:
    vae = TutorialVAE()
    return Pair(vae.model, vae.guide, rows())


class UnannouncedVAE(PyroModule):
    """Methods of a PyroModule say no ``pyro.param``: Pyro's SVI alone would train nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = nn.Linear(2, NUM_FEATURES), nn.Linear(NUM_FEATURES, 2)

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def unannounced_methods() -> Pair:
    vae = UnannouncedVAE()
    return Pair(vae.model, vae.guide, rows())


def batch_norm() -> Pair:
    """A buffer that training moves, and a method behind a partial."""
    net = nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    decoder = nn.Linear(2, NUM_FEATURES)

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.decoder = net, decoder

        def model(self, x: torch.Tensor, scale: float) -> None:
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), scale).to_event(1), obs=x)

        def guide(self, x: torch.Tensor) -> None:
            pyro.module("net", self.net)
            with pyro.plate("data", len(x)):
                loc, log_scale = self.net(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    halves = Halves()
    return Pair(partial(halves.model, scale=0.5), halves.guide, rows())


def lazy_start() -> Pair:
    """Start values that are computed at the first call."""

    def model(x: torch.Tensor) -> None:
        offset = pyro.param("offset", lambda: x.new_zeros(NUM_FEATURES))
        loading = pyro.param("loading", lambda: torch.ones(NUM_FEATURES))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample(
                "x", dist.Normal(z.unsqueeze(-1) * loading + offset, 0.5).to_event(1), obs=x
            )

    def guide(x: torch.Tensor) -> None:
        gain = pyro.param("gain", lambda: torch.full((NUM_FEATURES,), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ gain, 0.8))

    return Pair(model, guide, rows())


def ours(flow: str, conditioned: bool, likelihood: str = "normal", **options: Any) -> Pair:
    """The programs that ship, small."""
    x = rows() if likelihood == "normal" else rows().sigmoid()
    sizes = {"latent_dim": 2, "hidden_dims": (8,)}
    guide = Guide(
        NUM_FEATURES,
        flow=flow,
        num_flows=DEPTHS.get(flow, 2),
        conditioned=conditioned,
        flow_options=options,
        **sizes,
    )
    return Pair(Model(NUM_FEATURES, likelihood=likelihood, **sizes), guide, x)


def mixed() -> Pair:
    """The programs that ship on a mixed table with missing entries."""
    sizes = {"latent_dim": 2, "hidden_dims": (8,)}
    model = Model(MIXED_COLUMNS, likelihood="mixed", **sizes)
    return Pair(model, Guide(MIXED_COLUMNS, flow="iaf", num_flows=2, **sizes), mixed_rows())


ZOO: dict[str, Callable[[], Pair]] = {
    f.__name__: f
    for f in (
        linear_gaussian,
        two_latents,
        param_functions,
        module_functions,
        masked,
        discrete_latent,
        nested_plate,
        sequential_columns,
        shared_latent,
        bound_methods,
        unannounced_methods,
        batch_norm,
        lazy_start,
        mixed,
    )
}
ZOO["bernoulli_likelihood"] = partial(ours, "diagonal", True, "bernoulli")
ZOO["iaf_gated"] = partial(ours, "iaf", True, stable=True)
ZOO |= {
    f"{flow}{'' if conditioned else '_unconditioned'}": partial(ours, flow, conditioned)
    for flow in FLOWS
    for conditioned in (True, False)
    if conditioned or flow != "diagonal"
}
