"""Stock Pyro reference: the VAE and its posteriors as Pyro's tutorials have them.

Pyro's own flow layers one by one, ``pyro.optim.Adam``, ``SVI.step``, and the KL annealed by
``poutine.scale`` inside the programs.
"""

from collections.abc import Callable, Iterator, Sequence

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.distributions.transforms import ConditionalAffineAutoregressive, ConditionalPlanar
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import ConditionalAutoRegressiveNN
from pyro.optim import Adam
from torch import nn

from benchmarks.plain_torch import batches, mlp


class PlanarMap(nn.Module):
    """b, u and w of a planar layer as a linear map of the context.

    Pyro's ``DenseNN`` has a hidden layer at least, and would do more than what it is compared with.
    """

    def __init__(self, latent_dim: int, context_dim: int) -> None:
        super().__init__()
        self.sizes = [1, latent_dim, latent_dim]
        self.linear = nn.Linear(context_dim, sum(self.sizes))

    def forward(self, context: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.linear(context).split(self.sizes, dim=-1)


def planar(latent_dim: int, context_dim: int) -> ConditionalPlanar:
    return ConditionalPlanar(PlanarMap(latent_dim, context_dim))


def iaf(
    latent_dim: int, context_dim: int, hidden_dim: int, reverse: bool, gate_bias: float
) -> ConditionalAffineAutoregressive:
    order = torch.arange(latent_dim)
    order = order.flip(0) if reverse else order
    made = ConditionalAutoRegressiveNN(latent_dim, context_dim, [hidden_dim], permutation=order)
    return ConditionalAffineAutoregressive(made, stable=True, sigmoid_bias=gate_bias)


class VAE(nn.Module):
    """The model and the guide as methods, as in Pyro's VAE tutorial.

    Args:
        flow: ``diagonal`` (no layers), ``planar`` or ``iaf``.
        made_dim: width of an IAF layer's network.
        gate_bias: added to an IAF layer's gates; 2 is Pyro's.
    """

    def __init__(
        self,
        num_features: int,
        latent_dim: int,
        encoder_dims: Sequence[int],
        decoder_dims: Sequence[int],
        dropout: float,
        flow: str,
        num_flows: int,
        made_dim: int = 24,
        gate_bias: float = 2.0,
    ) -> None:
        super().__init__()
        self.latent_dim, context_dim = latent_dim, encoder_dims[-1]
        layers: dict[str, Callable[[int], nn.Module]] = {
            "planar": lambda k: planar(latent_dim, context_dim),
            "iaf": lambda k: iaf(latent_dim, context_dim, made_dim, k % 2 == 1, gate_bias),
        }
        self.encoder = mlp([num_features, *encoder_dims], dropout)
        self.base = nn.Linear(context_dim, 2 * latent_dim)
        self.flow = nn.ModuleList(layers[flow](k) for k in range(num_flows))
        self.decoder = mlp([latent_dim, *decoder_dims], dropout)
        self.decoder.append(nn.Linear(decoder_dims[-1], num_features))

    def model(self, x: torch.Tensor, beta: float) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=beta):
                zeros = x.new_zeros(len(x), self.latent_dim)
                z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: torch.Tensor, beta: float) -> None:
        for name in ("encoder", "base", "flow"):
            pyro.module(name, getattr(self, name))
        context = self.encoder(x)
        loc, raw = self.base(context).chunk(2, dim=-1)
        posterior = dist.Normal(loc, F.softplus(raw) + 1e-4).to_event(1)
        if self.flow:
            layers = list(self.flow)
            posterior = dist.ConditionalTransformedDistribution(posterior, layers)
            posterior = posterior.condition(context)
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", posterior)


def steps(
    vae: VAE,
    x: torch.Tensor,
    batch_size: int,
    learning_rate: float,
    beta: Callable[[int], float],
) -> Iterator[float]:
    """Trains for as long as it is asked; the loss of each step, nats per row."""
    pyro.clear_param_store()
    svi = SVI(vae.model, vae.guide, Adam({"lr": learning_rate}), loss=Trace_ELBO())
    for step, batch in enumerate(batches(x, batch_size)):
        with pyro.validation_enabled(False):  # as in the tutorial: x is in [0, 1], not 0 or 1
            loss = svi.step(batch, beta(step))
        yield loss / batch_size
