"""Plain torch reference: the VAE and its posteriors as a loop written layer by layer.

No Pyro and no distributions: one small network for each flow layer, densities in terms of the
noise, constants that cancel left out, torch's dropout and one fused Adam.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class Planar(nn.Module):
    """One planar layer, its b, u and w a linear map of the context."""

    def __init__(self, latent_dim: int, context_dim: int) -> None:
        super().__init__()
        self.sizes = [1, latent_dim, latent_dim]
        self.parameter_map = nn.Linear(context_dim, sum(self.sizes))

    def forward(self, z: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z ``(num_data, latent_dim)`` moved, and log|det| of each row."""
        b, u, w = self.parameter_map(context).split(self.sizes, dim=-1)
        along = (w * u).sum(-1, keepdim=True)
        u = u + (F.softplus(along) - 1.0 - along) * w / w.square().sum(-1, keepdim=True)
        act = torch.tanh((w * z).sum(-1, keepdim=True) + b)
        psi = (1.0 - act.square()) * w
        return z + u * act, (1.0 + (psi * u).sum(-1)).abs().log()


class IAF(nn.Module):
    """One gated inverse autoregressive layer: a masked network (MADE) of the context and z."""

    def __init__(
        self, latent_dim: int, context_dim: int, hidden_dim: int, reverse: bool, gate_bias: float
    ) -> None:
        super().__init__()
        self.first = nn.Linear(context_dim + latent_dim, hidden_dim)
        self.last = nn.Linear(hidden_dim, 2 * latent_dim)
        self.gate_bias = gate_bias
        degree = torch.arange(1, latent_dim + 1)
        degree = degree.flip(0) if reverse else degree
        hidden = torch.linspace(1, latent_dim, hidden_dim).round() - 1.0  # 0 sees the context alone
        inputs = torch.cat([torch.zeros(context_dim), degree])
        self.register_buffer("mask_first", (hidden[:, None] >= inputs).to(self.first.weight))
        self.register_buffer("mask_last", (degree.repeat(2)[:, None] > hidden).to(self.last.weight))

    def forward(self, z: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z ``(num_data, latent_dim)`` moved, and log|det| of each row."""
        inputs = torch.cat([context, z], -1)
        hidden = F.relu(F.linear(inputs, self.first.weight * self.mask_first, self.first.bias))
        out = F.linear(hidden, self.last.weight * self.mask_last, self.last.bias)
        shift, gate = out.chunk(2, dim=-1)
        gate = gate + self.gate_bias
        scale = gate.sigmoid()
        return scale * z + (1.0 - scale) * shift, F.logsigmoid(gate).sum(-1)


class Network(nn.Module):
    """Encoder, flow and decoder.

    Args:
        flow: ``diagonal`` (no layers), ``planar`` or ``iaf``.
        made_dim: width of an IAF layer's network.
        gate_bias: added to an IAF layer's gates.
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
        context_dim = encoder_dims[-1]
        layers: dict[str, Callable[[int], nn.Module]] = {
            "planar": lambda k: Planar(latent_dim, context_dim),
            "iaf": lambda k: IAF(latent_dim, context_dim, made_dim, k % 2 == 1, gate_bias),
        }
        self.encoder = mlp([num_features, *encoder_dims], dropout)
        self.base = nn.Linear(context_dim, 2 * latent_dim)
        self.flow = nn.ModuleList(layers[flow](k) for k in range(num_flows))
        self.decoder = mlp([latent_dim, *decoder_dims], dropout)
        self.logits = nn.Linear(decoder_dims[-1], num_features)

    def loss(self, x: torch.Tensor, beta: float) -> torch.Tensor:
        """The annealed loss, nats per row."""
        context = self.encoder(x)
        loc, raw = self.base(context).chunk(2, dim=-1)
        scale = F.softplus(raw) + 1e-4
        noise = torch.randn_like(loc)
        z = loc + scale * noise
        log_det = scale.log().sum()
        for layer in self.flow:
            z, of_layer = layer(z, context)
            log_det = log_det + of_layer.sum()
        logits = self.logits(self.decoder(z))
        nats = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = 0.5 * (z.square() - noise.square()).sum() - log_det  # log q - log p
        return (nats + beta * kl) / len(x)


def mlp(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Hidden layers of these sizes, the first one the input's."""
    layers: list[nn.Module] = []
    for pair in pairwise(sizes):
        layers += [nn.Linear(*pair), nn.LeakyReLU(0.1, inplace=True), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def batches(x: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """Rows in one random order, again and again; a remainder below `batch_size` is left out."""
    order = torch.randperm(len(x))
    while True:
        for start in range(0, len(x) - batch_size + 1, batch_size):
            yield x[order[start : start + batch_size]]


def steps(
    network: Network,
    x: torch.Tensor,
    batch_size: int,
    learning_rate: float,
    beta: Callable[[int], float],
) -> Iterator[float]:
    """Trains for as long as it is asked; the loss of each step, nats per row."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    for step, batch in enumerate(batches(x, batch_size)):
        loss = network.loss(batch, beta(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()
