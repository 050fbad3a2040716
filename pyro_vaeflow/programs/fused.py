"""Neighbouring flow layers in one batched pass: a way to run Pyro's layers, not layers of its own.

A flow of fifty layers asks fifty small networks about one context. `fused` finds neighbours of an
exactly known kind and takes their weights together, rows last; autograd differentiates it. A layer
that differs in anything, be it a hook or a method replaced, runs as Pyro runs it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, signature
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions.conditional import ConditionalTransform
from pyro.distributions.transforms import (
    AffineAutoregressive,
    ConditionalAffineAutoregressive,
    ConditionalPlanar,
    Planar,
)
from pyro.distributions.transforms.utils import clamp_preserve_gradients
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from pyro.nn.auto_reg_nn import MaskedLinear
from torch import nn
from torch.distributions import Transform, constraints

# They act entry by entry, so it does not matter to them where the rows are.
ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Softplus, nn.Tanh, nn.Sigmoid)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
CACHED = 2**18  # numbers, for each thread, that stay in the processor's cache: 1 MiB of float32
HIDDEN = 4  # hidden units for each latent dimension, as in `flows.iaf`
Outcome = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # z, log|det|, log-scales if any


class PlanarMap(nn.Linear):
    """The parameters b, u and w of a ``ConditionalPlanar`` layer as one linear map of the context.

    So the paper amortises them; ``pyro.nn.DenseNN`` has a hidden layer at least.

    Example:
        >>> [part.shape[-1] for part in PlanarMap(context_dim=3, latent_dim=2)(torch.zeros(5, 3))]
        [1, 2, 2]
    """

    def __init__(self, context_dim: int, latent_dim: int) -> None:
        super().__init__(context_dim, 1 + 2 * latent_dim)

    def forward(self, context: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """b ``(..., 1)``, u and w ``(..., latent_dim)`` for contexts ``(..., context_dim)``."""
        latent_dim = (self.out_features - 1) // 2
        return super().forward(context).split([1, latent_dim, latent_dim], -1)


def fused(layers: Iterable[nn.Module]) -> list[Any]:
    """The layers in their order, neighbours of one known kind as one `FusedLayers`.

    Args:
        layers: Pyro's transform modules, conditional or not.

    Example:
        >>> from pyro.distributions.transforms import Planar, Radial
        >>> [type(part).__name__ for part in fused([Planar(2), Planar(2), Radial(2), Planar(2)])]
        ['FusedLayers', 'Radial', 'Planar']
    """
    runs = [list(run) for _, run in groupby(layers, key=lambda layer: _kind(layer) or id(layer))]
    return [FusedLayers(run) if len(run) > 1 else run[0] for run in runs]


class FusedLayers(ConditionalTransform):
    """Neighbours of one kind, as `fused` finds them, to be conditioned and run together."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = layers

    def condition(self, context: torch.Tensor) -> "FusedTransform":
        """Their composition for a context ``(..., context_dim)``; plain layers do not read it."""
        return FusedTransform(self.layers, context)


class FusedTransform(Transform):
    """A composition of layers: forward in one pass, backward layer by layer, as Pyro has it."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, layers: Sequence[Any], context: torch.Tensor) -> None:
        super().__init__(cache_size=1)
        self.layers, self.context = layers, context

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        z, context = x, None
        if isinstance(self.layers[0], ConditionalTransform):
            context = self.context
            batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
            z = x.expand(*batch, x.shape[-1])
        run, z = _PASSES[type(self.layers[0])], z.movedim(-1, 0)
        has_draws = z.dim() > (2 if context is None else context.dim())
        if torch.is_grad_enabled() or not has_draws:
            z, self._log_det, log_scale = run(self.layers, z, context)
            # Pyro's affine layers keep theirs under this name too.
            self._cached_log_scale = None if log_scale is None else log_scale.movedim(0, -1)
        else:  # many draws of each row, for scores: of 50 IAF layers in three quarters of the time
            num_draws = max(1, CACHED * torch.get_num_threads() // (HIDDEN * z[:, 0].numel()))
            parts = [run(self.layers, block, context)[:2] for block in z.split(num_draws, 1)]
            z, self._log_det = torch.cat([z for z, _ in parts], 1), torch.cat([d for _, d in parts])
        return z.movedim(0, -1)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        if isinstance(self.layers[0], Planar | ConditionalPlanar):
            raise KeyError(
                "planar layers have no inverse: they can score only the last value that they have "
                "sampled; to score arbitrary z use flow='iaf' or 'spline'"
            )
        for layer in reversed(self.layers):
            if isinstance(layer, ConditionalTransform):
                layer = layer.condition(self.context)
            y = layer.inv(y)
        self._call(y)  # for the log-determinant there
        return y

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``log |det dy/dx|`` of ``(..., latent_dim)``, shape ``(...)``, nats; of all layers."""
        x_old, y_old = self._cached_x_y
        if x is not x_old or y is not y_old:
            self(x)
        return self._log_det


def _planar(layers: Sequence[Any], z: torch.Tensor, context: torch.Tensor | None) -> Outcome:
    """Planar layers on z ``(dim, ...)``, as Pyro's ``ConditionedPlanar``, but finite folded."""
    if context is None:
        parts = _stacked(layers, "bias", "u", "w")
    else:  # three products, not one that is then cut: its gradient would be put together again
        maps = _stacked([layer.nn for layer in layers], "weight", "bias")
        cut = zip(*(part.split([1, len(z), len(z)], 1) for part in maps), strict=True)
        parts = [_of_context(weight, bias, context) for weight, bias in cut]
    b, u, w = (_before_rows(part, z) for part in parts)
    along = (w * u).sum(1, keepdim=True)
    margin = F.softplus(along)  # w^T u_hat + 1: above 0 the layer is invertible
    u_hat = u + (margin - 1.0 - along) / w.square().sum(1, keepdim=True) * w
    acts = []
    for b_k, u_k, w_k in zip(b.unbind(), u_hat.unbind(), w.unbind(), strict=True):
        acts.append(torch.tanh((w_k * z).sum(0, keepdim=True) + b_k))
        z = torch.addcmul(z, u_k, acts[-1])
    # 1 + (1 - tanh^2) w^T u_hat, of which float32 would leave 0 where a layer folds
    square = torch.stack(acts).square()
    return z, (square + (1.0 - square) * margin).log().sum((0, 1)), None


def _autoregressive(
    layers: Sequence[Any], z: torch.Tensor, context: torch.Tensor | None
) -> Outcome:
    """Affine autoregressive layers of one hidden layer on z ``(dim, ...)``."""
    nets = [layer.arn if context is None else layer.nn for layer in layers]
    options = [_options(layer) for layer in layers]
    weight_in, hidden = _masked([net.layers[0] for net in nets])
    weight_out, bias_out = _masked([net.layers[1] for net in nets])
    if context is not None:
        of_context, weight_in = weight_in.split([context.shape[-1], len(z)], -1)
        hidden = _of_context(of_context, hidden, context)
    gated, log_scales = options[0]["stable"], []
    if gated:  # their bias is added once, to all layers' own
        gates = bias_out.new_tensor([[option["sigmoid_bias"]] for option in options])
        bias_out = bias_out + torch.cat([0.0 * gates, gates], 1).repeat_interleave(len(z), 1)
    hidden, bias_out = _before_rows(hidden, z), _before_rows(bias_out, z)
    numbers = [t.unbind() for t in (hidden, weight_in, weight_out, bias_out)]
    for net, option, h, v, w, b in zip(nets, options, *numbers, strict=True):
        shift, raw = _affine(w, net.f(_affine(v, z, h)), b).chunk(2)
        if gated:
            z = torch.lerp(shift, z, raw.sigmoid())
        else:
            low, high = option["log_scale_min_clip"], option["log_scale_max_clip"]
            raw = clamp_preserve_gradients(raw, low, high)
            z = torch.addcmul(shift, raw.exp(), z)
        log_scales.append(raw)
    log_scale = torch.stack(log_scales)
    log_scale = (F.logsigmoid(log_scale) if gated else log_scale).sum(0)
    return z, log_scale.sum(0), log_scale


_PASSES: dict[type, Callable[..., Outcome]] = {
    Planar: _planar,
    ConditionalPlanar: _planar,
    AffineAutoregressive: _autoregressive,
    ConditionalAffineAutoregressive: _autoregressive,
}


def _of_context(weight: torch.Tensor, bias: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Linear maps ``(K, size, context_dim)`` of contexts, in one product: ``(K, size, ...)``."""
    rows = context.reshape(-1, context.shape[-1])
    flat = torch.addmm(bias.reshape(-1, 1), weight.flatten(0, 1), rows.T)
    return flat.view(*bias.shape, *context.shape[:-1])


def _before_rows(numbers: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Numbers ``(K, size, rows...)`` that broadcast over the dimensions of z ``(dim, ...)``."""
    missing = (1,) * (z.dim() + 1 - numbers.dim())
    return numbers.view(*numbers.shape[:2], *missing, *numbers.shape[2:])


def _masked(layers: Sequence[MaskedLinear]) -> tuple[torch.Tensor, torch.Tensor]:
    weight, mask, bias = _stacked(layers, "weight", "mask", "bias")
    return weight * mask, bias


def _stacked(parts: Sequence[Any], *names: str) -> list[torch.Tensor]:
    return [torch.stack([getattr(part, name) for part in parts]) for name in names]


def _affine(weight: torch.Tensor, z: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    if z.dim() == 2:
        return torch.addmm(offset, weight, z)
    return (weight @ z.reshape(len(z), -1)).view(len(weight), *z.shape[1:]) + offset


with torch.random.fork_rng(devices=[]):  # an import draws no random numbers
    _MADE, _CONDITIONAL_MADE = AutoRegressiveNN(2, [2]), ConditionalAutoRegressiveNN(2, 1, [2])
    _NEW = (
        Planar(2),
        ConditionalPlanar(PlanarMap(1, 2)),
        PlanarMap(1, 2),
        AffineAutoregressive(_MADE),
        AffineAutoregressive(_MADE, stable=True),
        ConditionalAffineAutoregressive(_CONDITIONAL_MADE),
        _MADE,
        _CONDITIONAL_MADE,
        MaskedLinear(1, 1, torch.ones(1, 1)),
        nn.LogSigmoid(),
        *(nonlinearity() for nonlinearity in ELEMENTWISE),
    )
_KNOWN = {(type(part), frozenset(vars(part))) for part in _NEW}
_DEFAULTS = {
    name: parameter.default
    for name, parameter in signature(AffineAutoregressive).parameters.items()
    if parameter.default is not Parameter.empty
}


def _kind(layer: Any) -> tuple[Any, ...] | None:
    """What neighbours must share to run in one pass; None for a layer that is Pyro's to run."""
    if type(layer) not in _PASSES or not _is_known(layer):
        return None
    weight, gated = None, False
    if type(layer) is Planar:
        weight = layer.u
    elif type(layer) is ConditionalPlanar:
        weight = layer.nn.weight if type(layer.nn) is PlanarMap and _is_known(layer.nn) else None
    elif type(layer) is AffineAutoregressive and _runs_as_made(layer):
        weight, gated = _masked_network(layer.arn, AutoRegressiveNN), layer.stable
    elif type(layer) is ConditionalAffineAutoregressive and layer.kwargs.keys() <= _DEFAULTS.keys():
        weight = _masked_network(layer.nn, ConditionalAutoRegressiveNN)
        gated = _options(layer)["stable"]
    return None if weight is None else (type(layer), gated, weight.shape, weight.dtype)


def _is_known(part: Any) -> bool:
    """Whether a part has the attributes of a new one, and no hooks of its own.

    Hooks on all modules of the process, such as those of `module_mode`, do not see fused parts;
    these have no mode, and no buffer that a step changes.
    """
    values = vars(part)  # torch has no public way to ask for hooks
    hooked = any(values[name] for name in HOOKS)
    return not hooked and (type(part), frozenset(values)) in _KNOWN


def _masked_network(net: Any, known: Any) -> Any:
    """The first layer's weight, of whose shape all others follow, if the network is known."""
    if not (type(net) is known and _is_known(net) and type(net.f) in ELEMENTWISE):
        return None
    parts = [net.f, *net.layers]
    affine = (net.count_params, net.output_multiplier, net.all_ones) == (2, 2, True)
    if len(parts) != 3 or not (affine and net.skip_layer is None and all(map(_is_known, parts))):
        return None
    weight, last = (layer.weight for layer in net.layers)
    return weight if last.shape == (2 * net.input_dim, len(weight)) else None


def _runs_as_made(layer: AffineAutoregressive) -> bool:
    # Its way of running is chosen when it is made: an attribute changed since does not change it.
    methods = [getattr(layer._call, "__func__", None), type(layer.sigmoid), type(layer.logsigmoid)]
    call = AffineAutoregressive._call_stable if layer.stable else AffineAutoregressive._call
    parts = _is_known(layer.sigmoid) and _is_known(layer.logsigmoid)
    return parts and methods == [call, nn.Sigmoid, nn.LogSigmoid]


def _options(layer: Any) -> Mapping[str, Any]:
    """The settings of an affine layer by name; a conditional one holds those given to it."""
    return vars(layer) if type(layer) is AffineAutoregressive else {**_DEFAULTS, **layer.kwargs}
