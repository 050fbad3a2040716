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

from pyro_vaeflow import FLOWS, Guide, History, Model, Scores, param_scope, score, train
from pyro_vaeflow.inference.parameters import named_parameters
from pyro_vaeflow.tables.columns import Column

NUM_FEATURES = 3
DEPTHS = {"diagonal": 0, "full": 1, "planar": 3, "iaf": 3, "spline": 2}


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

    @property
    def programs(self) -> tuple[Callable, Callable]:
        return self.model, self.guide

    def fit(self, **options: Any) -> History:
        given = {"num_steps": 30, "learning_rate": 0.02, "progress": False}
        return train(self.model, self.guide, self.x, **given | options)

    def score(self, x: Any = None, **options: Any) -> Scores:
        x = self.x if x is None else x
        return score(self.model, self.guide, x, **{"num_samples": 30} | options)

    def parameters(self) -> dict[str, torch.Tensor]:
        """Copies of the unconstrained parameters that training changes."""
        with param_scope(*self.programs):
            return {k: p.detach().clone() for k, p in named_parameters(*self.programs).items()}

    def param(self, name: str) -> torch.Tensor:
        """A copy of the value of a ``pyro.param``."""
        with param_scope(*self.programs):
            return pyro.param(name).detach().clone()


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

    def narrow_guide(self, scale: float) -> Callable:
        """Normals at the posterior means, all of one scale."""

        def guide(x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.posterior_loc(x), scale).to_event(1))

        return guide

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
            effect = pyro.sample("effect", _normal(self.effect(x)))
            pyro.sample("cause", _normal(self.cause(effect)))


def _normal(output: torch.Tensor) -> dist.TorchDistribution:
    """A network's output as location and logarithm of the scale."""
    loc, log_scale = output.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def two_latents() -> Pair:
    return Pair(_ChainModel(), _ChainGuide(), rows())


def gain_guide(*shape: int, start: Callable = torch.zeros, **plate: int) -> Callable:
    """A new function: q(z | x) = N(x @ gain, 0.8), of which `gain` is all that is learned."""

    def guide(x: torch.Tensor) -> None:
        gain = pyro.param("gain", lambda: start(NUM_FEATURES, *shape))
        with pyro.plate("data", len(x), **plate):
            pyro.sample("z", dist.Normal(x @ gain, 0.8))

    return guide


def param_functions() -> Pair:
    def model(x: torch.Tensor) -> None:
        loading = pyro.param("loading", torch.ones(NUM_FEATURES))
        noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * loading, noise).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        gain = pyro.param("gain", torch.zeros(NUM_FEATURES))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ gain, scale))

    return Pair(model, guide, rows())


def masked() -> Pair:
    """Two arguments: rows whose flag is off are not observed."""

    def model(x: torch.Tensor, seen: torch.Tensor) -> None:
        loading = pyro.param("loading", torch.ones(NUM_FEATURES))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(z[..., None] * loading, 0.5).to_event(1), obs=x)

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

    return Pair(model, gain_guide(1, dim=-2), rows(), depth=2)


def sequential_columns() -> Pair:
    """Columns are a plate that is a Python loop."""

    def model(x: torch.Tensor) -> None:
        loading = pyro.param("loading", torch.ones(NUM_FEATURES))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            for j in pyro.plate("columns", NUM_FEATURES):
                pyro.sample(f"x_{j}", dist.Normal(z * loading[j], 0.5), obs=x[..., j])

    return Pair(model, gain_guide(), rows())


def shared_latent() -> Pair:
    """An offset that all rows share, outside the plate."""

    def model(x: torch.Tensor) -> None:
        loading = pyro.param("loading", torch.ones(NUM_FEATURES))
        offset = pyro.sample("offset", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = z[..., None] * loading + offset[..., None]
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    of_rows = gain_guide()

    def guide(x: torch.Tensor) -> None:
        pyro.sample("offset", dist.Normal(pyro.param("offset_loc", torch.tensor(0.0)), 0.1))
        of_rows(x)

    return Pair(model, guide, rows() + 2.0)


def lazy_start() -> Pair:
    """Start values that are computed at the first call."""

    def model(x: torch.Tensor) -> None:
        offset = pyro.param("offset", lambda: x.new_zeros(NUM_FEATURES))
        loading = pyro.param("loading", lambda: torch.ones(NUM_FEATURES))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = z[..., None] * loading + offset
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    return Pair(model, gain_guide(start=lambda n: torch.full((n,), 0.1)), rows())


class TutorialVAE(nn.Module):
    """As in Pyro's VAE tutorial: model and guide are methods of one plain module."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.Linear(8, NUM_FEATURES))
        self.encoder = nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.Dropout(0.2), nn.Linear(8, 4))

    def model(self, x: torch.Tensor, scale: float = 0.5) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), scale).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", _normal(self.encoder(x)))


def bound_methods() -> Pair:
    vae = TutorialVAE()
    return Pair(vae.model, vae.guide, rows())


def batch_norm() -> Pair:
    """A buffer that training moves, and a method behind a partial."""
    vae = TutorialVAE()
    vae.encoder[1], vae.decoder = nn.BatchNorm1d(8), nn.Linear(2, NUM_FEATURES)
    return Pair(partial(vae.model, scale=0.5), vae.guide, rows())


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
            pyro.sample("z", _normal(encoder(x)))

    return Pair(model, guide, rows())


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


def one_class(base: type[nn.Module] = PyroModule) -> Pair:
    """Two modules of one class, here with an argument that says which is the model."""

    class Half(base):
        def __init__(self, is_model: bool) -> None:
            super().__init__()
            self.is_model, self.net = is_model, nn.Linear(NUM_FEATURES, NUM_FEATURES)

        def forward(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc = torch.zeros(NUM_FEATURES) if self.is_model else self.net(x)
                z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
                if self.is_model:
                    pyro.sample("x", dist.Normal(self.net(z), 0.5).to_event(1), obs=x)

    return Pair(Half(True), Half(False), rows())


def ours(flow: str, conditioned: bool, likelihood: str = "normal", **options: Any) -> Pair:
    """The programs that ship, small."""
    sizes = {"latent_dim": 2, "hidden_dims": (8,)}
    given = {"flow": flow, "num_flows": DEPTHS.get(flow, 2), "conditioned": conditioned}
    guide = Guide(NUM_FEATURES, flow_options=options, **given, **sizes)
    x = rows() if likelihood == "normal" else rows().sigmoid()
    return Pair(Model(NUM_FEATURES, likelihood=likelihood, **sizes), guide, x)


def mixed() -> Pair:
    """The programs that ship on a mixed table with missing entries."""
    sizes = {"latent_dim": 2, "hidden_dims": (8,)}
    model = Model(MIXED_COLUMNS, likelihood="mixed", **sizes)
    return Pair(model, Guide(MIXED_COLUMNS, flow="iaf", num_flows=2, **sizes), mixed_rows())


BUILDERS = [
    linear_gaussian, two_latents, param_functions, module_functions, masked, discrete_latent,
    nested_plate, sequential_columns, shared_latent, bound_methods, unannounced_methods, batch_norm,
    lazy_start, one_class, mixed,
]  # fmt: skip
ZOO: dict[str, Callable[[], Pair]] = {builder.__name__: builder for builder in BUILDERS}
ZOO["plain_modules"] = partial(one_class, nn.Module)
ZOO["bernoulli_likelihood"] = partial(ours, "diagonal", True, "bernoulli")
ZOO["iaf_scaled"] = partial(ours, "iaf", True, stable=False)
ZOO |= {
    f"{flow}{'' if conditioned else '_unconditioned'}": partial(ours, flow, conditioned)
    for flow in FLOWS
    for conditioned in (True, False)
    if conditioned or flow != "diagonal"
}
