"""The same arithmetic in plain torch, as somebody in a hurry for speed would write it.

No Pyro and no distributions: fused losses, densities in terms of the noise, constants that cancel
left out, one fused Adam. `FUSED` computes the parameters of all layers of a flow in one product,
as the package does; `LAYERWISE` is the straightforward way, one small network a layer, and torch's
dropout.
"""

import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from pyro_vaeflow.programs.dropout import Dropout
from pyro_vaeflow.programs.iaf import ConditionalIAFStack, gate_bias
from pyro_vaeflow.programs.iaf_steps import IAFSteps
from pyro_vaeflow.programs.planar import ConditionalPlanarStack
from pyro_vaeflow.programs.planar_steps import PlanarSteps
from torch import nn

from pyro_vaeflow.programs.vae import MIN_SCALE, Guide, Model

Flow = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, Any]]


class NoFlow(nn.Module):
    def forward(self, z: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, float]:
        return z, 0.0


class FusedPlanar(nn.Module):
    """One matrix product for u, w and b of all layers, and the package's gradient by hand."""

    def __init__(self, stack: ConditionalPlanarStack) -> None:
        super().__init__()
        self.map, self.num_flows = stack.parameter_map, stack.num_flows

    def forward(self, z: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = torch.addmm(self.map.bias.unsqueeze(-1), self.map.weight, context.T)
        z, log_det = PlanarSteps.apply(z.T, flat.view(self.num_flows, -1, len(context)))
        return z.T, log_det


class LayerwisePlanar(nn.Module):
    """A linear map of the context, and a determinant, a layer."""

    def __init__(self, stack: ConditionalPlanarStack) -> None:
        super().__init__()
        whole, self.sizes = stack.parameter_map, stack.sizes
        width = sum(self.sizes)
        self.maps = nn.ModuleList(
            nn.Linear(whole.in_features, width) for _ in range(stack.num_flows)
        )
        with torch.no_grad():
            for k, layer in enumerate(self.maps):
                layer.weight.copy_(whole.weight[k * width : (k + 1) * width])
                layer.bias.copy_(whole.bias[k * width : (k + 1) * width])

    def forward(self, z: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_det = torch.zeros_like(z[:, 0])
        for layer in self.maps:
            b, u, w = layer(context).split(self.sizes, dim=-1)
            along = (w * u).sum(-1, keepdim=True)
            u = u + (F.softplus(along) - 1.0 - along) * w / w.square().sum(-1, keepdim=True)
            act = torch.tanh((z * w).sum(-1, keepdim=True) + b)
            psi = (1.0 - act.square()) * w
            log_det = log_det + (1.0 + (psi * u).sum(-1)).abs().log()
            z = z + u * act
        return z, log_det


class FusedIAF(nn.Module):
    """One matrix product of the context for all layers, masks once, the gradient by hand."""

    def __init__(self, stack: ConditionalIAFStack) -> None:
        super().__init__()
        self.stack = stack
        gates = torch.full((stack.bias_out.shape[1],), gate_bias(len(stack.weight_in)))
        gates[: len(gates) // 2] = 0.0
        self.gates = gates

    def forward(self, z: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stack, linear = self.stack, self.stack.context_map
        flat = torch.addmm(linear.bias.unsqueeze(-1), linear.weight, context.T)
        hidden = flat.view(*stack.weight_in.shape[:2], len(context))
        weight_in, weight_out = stack.weight_in * stack.mask_in, stack.weight_out * stack.mask_out
        layers = (hidden, weight_in, weight_out, stack.bias_out + self.gates)
        z, log_scale = IAFSteps.apply(z.T, *layers, None)
        return z.T, log_scale


class LayerwiseIAF(nn.Module):
    """A masked network of z and the context a layer; masks are applied in each forward pass."""

    def __init__(self, stack: ConditionalIAFStack) -> None:
        super().__init__()
        self.gate_bias = gate_bias(len(stack.weight_in))
        context, width = stack.context_map, stack.weight_in.shape[1]
        self.masks = list(zip(stack.mask_in, stack.mask_out, strict=True))
        self.first = nn.ParameterList()
        self.first_bias = nn.ParameterList()
        self.last = nn.ParameterList(w.clone() for w in stack.weight_out.detach())
        self.last_bias = nn.ParameterList(b.clone() for b in stack.bias_out.detach())
        self.first_mask = []
        for k, weight in enumerate(stack.weight_in.detach()):
            of_layer = slice(k * width, (k + 1) * width)
            from_context = context.weight[of_layer].detach()
            self.first.append(torch.cat([from_context, weight], 1))
            self.first_bias.append(context.bias[of_layer].detach().clone())
            self.first_mask.append(torch.cat([torch.ones_like(from_context), stack.mask_in[k]], 1))

    def forward(self, z: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_det = torch.zeros_like(z[:, 0])
        for k, (_, mask_out) in enumerate(self.masks):
            both = torch.cat([context, z], -1)
            act = F.relu(F.linear(both, self.first[k] * self.first_mask[k], self.first_bias[k]))
            out = F.linear(act, self.last[k] * mask_out, self.last_bias[k])
            shift, raw = out.chunk(2, dim=-1)
            gate = raw + self.gate_bias
            scale = gate.sigmoid()
            z = scale * z + (1.0 - scale) * shift
            log_det = log_det + F.logsigmoid(gate).sum(-1)
        return z, log_det


FUSED: dict[type, Callable[..., nn.Module]] = {
    ConditionalPlanarStack: FusedPlanar,
    ConditionalIAFStack: FusedIAF,
}
LAYERWISE: dict[type, Callable[..., nn.Module]] = {
    ConditionalPlanarStack: LayerwisePlanar,
    ConditionalIAFStack: LayerwiseIAF,
    Dropout: lambda layer: nn.Dropout(layer.p),
}


class Network(nn.Module):
    """Encoder, flow and decoder with copies of the parameters of two programs.

    Args:
        ways: how parts of these types are written; others are copied.
    """

    def __init__(
        self, model: Model, guide: Guide, ways: dict[type, Callable[..., nn.Module]]
    ) -> None:
        super().__init__()

        def written(parts: Iterable[nn.Module]) -> nn.Sequential:
            copies = deepcopy(list(parts))
            return nn.Sequential(*(ways[type(c)](c) if type(c) in ways else c for c in copies))

        self.encoder, self.decoder = written(guide.encoder), written(model.decoder)
        self.base, self.out = deepcopy(guide.base), deepcopy(model.likelihood.logits)
        self.flow: Any = written(guide.flow)[0] if len(guide.flow) else NoFlow()

    def loss(self, x: torch.Tensor, beta: float) -> torch.Tensor:
        """The annealed loss, nats a row."""
        context = self.encoder(x)
        loc, raw = self.base(context).chunk(2, dim=-1)
        scale = F.softplus(raw) + MIN_SCALE
        noise = torch.randn_like(loc)
        z, log_det = self.flow(loc + scale * noise, context)
        nats = F.binary_cross_entropy_with_logits(self.out(self.decoder(z)), x, reduction="sum")
        # log q - log p; log 2 pi cancels
        kl = 0.5 * (z.square() - noise.square()).sum() - scale.log().sum()
        if torch.is_tensor(log_det):
            kl = kl - log_det.sum()
        return (nats + beta * kl) / len(x)


def loop(
    network: Network,
    x: torch.Tensor,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    beta: Callable[[int], float],
    clock: Callable[[], float] = time.process_time,
) -> tuple[list[float], list[float]]:
    """Trains; the loss of each step, and the clock at its end. Draws are torch's, as seeded."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    losses, times = [], []
    for step in range(num_steps):
        place = step % (len(x) // batch_size) * batch_size
        batch = x.index_select(0, order[place : place + batch_size])
        loss = network.loss(batch, beta(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        times.append(clock())
    return losses, times
