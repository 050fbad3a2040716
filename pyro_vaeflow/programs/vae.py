"""The two programs that ship: the variational autoencoder's model and its flow guide."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import nn

from pyro_vaeflow.programs.depths import depth
from pyro_vaeflow.programs.flows import FLOWS
from pyro_vaeflow.programs.fused import fused
from pyro_vaeflow.programs.likelihoods import LIKELIHOODS, BernoulliHead
from pyro_vaeflow.programs.mixed import MixedHead, MixedInput
from pyro_vaeflow.validation import check_names, check_number, check_size

if TYPE_CHECKING:
    from pyro_vaeflow.tables.columns import Column

ROUNDING = 1e-5  # of numbers scaled to [0, 1]
MIN_SCALE = 1e-4  # of the posterior's base: keeps its log-scale and the KL finite

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.1, inplace=True),  # the paper's
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}

Row = Union[int, "Sequence[Column]"]  # what x holds: so many numbers a row, or these columns


def mlp(first: nn.Module, sizes: Sequence[int], dropout: float, activation: str) -> nn.Sequential:
    """Hidden layers of these sizes, each with activation and dropout; the first is given."""
    make = _registered("activation", activation, ACTIVATIONS)
    linear = (nn.Linear(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True))
    layers: list[nn.Module] = []
    for layer in (first, *linear):
        layers += [layer, make()]
        layers += [nn.Dropout(dropout)] if dropout > 0 else []
    return nn.Sequential(*layers)


class Model(PyroModule):
    r"""The generative program: :math:`z \sim p(z)`, :math:`x \sim p(x | z)`, plate ``data``.

    Args:
        num_features: columns of x: how many or, for a mixed table, what each holds.
        latent_dim: size of z.
        hidden_dims: the decoder's widths, from z to x.
        likelihood: a name in `pyro_vaeflow.programs.likelihoods.LIKELIHOODS`; ``mixed`` takes what
            the columns hold, and the others how many there are.
        dropout: in the hidden layers, while training.
        activation: a name in `ACTIVATIONS`.
        likelihood_options: passed on to the likelihood head.
        prior: a module from x to the distribution of z, such as
            `pyro_vaeflow.programs.priors.ExemplarPrior`, in place of :math:`N(0, I)`.

    Raises:
        ValueError: a size is below 1, or the likelihood or activation is not registered.

    Example:
        >>> x = torch.rand(5, 3)
        >>> trace = pyro.poutine.trace(Model(3, latent_dim=2)).get_trace(x)
        >>> trace.nodes["z"]["value"].shape
        torch.Size([5, 2])
        >>> Model(3, latent_dim=2)(7).shape  # rows that it makes up
        torch.Size([7, 3])
    """

    def __init__(
        self,
        num_features: Row,
        latent_dim: int = 12,
        hidden_dims: Sequence[int] = (64, 128),
        likelihood: str = "bernoulli",
        dropout: float = 0.2,
        activation: str = "leaky_relu",
        likelihood_options: Mapping[str, Any] | None = None,
        prior: nn.Module | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(num_features, latent_dim=latent_dim, hidden_dims=hidden_dims)
        head = _registered("likelihood", likelihood, LIKELIHOODS)
        if (head is MixedHead) != isinstance(num_features, Sequence):
            raise ValueError(
                "likelihood='mixed' is for num_features=MixedEncoder().fit(frame).columns_, the "
                f"others are for a number of features; got likelihood={likelihood!r} and "
                f"num_features={num_features!r:.60}"
            )
        self.latent_dim, self.prior = latent_dim, prior
        first = nn.Linear(latent_dim, hidden_dims[0])
        self.decoder = mlp(first, hidden_dims, dropout, activation)
        self.likelihood = head(hidden_dims[-1], num_features, **(likelihood_options or {}))

    def decode(self, z: torch.Tensor) -> TorchDistribution:
        """p(x | z): a distribution of rows, batch shape that of z ``(..., latent_dim)``."""
        return self.likelihood(self.decoder(z))

    def forward(self, x: torch.Tensor | int) -> torch.Tensor:
        """Samples z and scores the rows x ``(num_data, num_features)``, which it returns.

        Of a number in place of x, it samples so many rows.
        """
        given = None if isinstance(x, int) else x
        if given is not None and isinstance(self.likelihood, BernoulliHead):
            _check_shares(given)
        rows = next(self.parameters()).new_empty(x, 0) if given is None else given
        standard = dist.Normal(rows.new_zeros(self.latent_dim), 1.0).to_event(1)
        prior = standard if self.prior is None else self.prior(rows)
        with pyro.plate("data", len(rows)):
            z = pyro.sample("z", prior)
            return pyro.sample("x", self.decode(z), obs=given)


class Guide(PyroModule):
    r"""The posterior program: :math:`z_0 \sim N(\mu(x), \sigma(x))`, :math:`z = f_K \circ \dots
    \circ f_1(z_0)`, plate ``data``.

    Args:
        num_features: columns of x: how many or, for a mixed table, what each holds.
        latent_dim: size of z.
        hidden_dims: the encoder's widths, from x to z.
        flow: a name in `pyro_vaeflow.programs.flows.FLOWS`; ``diagonal`` has no transform.
        num_flows: K, from 1 to 100; by default 10 for ``planar``, 5 for ``iaf``, 4 for
            ``coupling``, 2 for ``spline``, and 1 for ``full``, which has no other.
        conditioned: whether the flow's parameters depend on the encoder's last hidden layer, its
            context, as in the paper, or are the same for all rows.
        dropout: in the hidden layers, while training.
        input_dropout: of a mixed table, the share of a row's entries that are hidden from the
            encoder while training, as if they were missing.
        start_scale: of the posterior's base in an untrained guide; small where the prior is a
            mixture, or its parts never come apart.
        activation: a name in `ACTIVATIONS`.
        flow_options: passed on to the flow's builder.

    References:
        D. Rezende, S. Mohamed, Variational Inference with Normalizing Flows, 2015,
        arXiv:1505.05770.

    Raises:
        ValueError: a size is out of range, or the flow or activation is not registered.

    Example:
        >>> guide = Guide(3, latent_dim=2, flow="planar", num_flows=5)
        >>> guide(torch.rand(4, 3)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        num_features: Row,
        latent_dim: int = 12,
        hidden_dims: Sequence[int] = (128, 64),
        flow: str = "diagonal",
        num_flows: int | None = None,
        conditioned: bool = True,
        dropout: float = 0.2,
        input_dropout: float = 0.0,
        start_scale: float = math.log(2.0),
        activation: str = "leaky_relu",
        flow_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(num_features, latent_dim=latent_dim, hidden_dims=hidden_dims)
        check_number("start_scale", start_scale, above=0.0)
        builder = _registered("flow", flow, FLOWS)
        if isinstance(num_features, Sequence):
            first: nn.Module = MixedInput(num_features, hidden_dims[0], input_dropout)
        elif input_dropout:
            raise ValueError(f"input_dropout={input_dropout!r} is for mixed tables; leave it at 0")
        else:
            first = nn.Linear(num_features, hidden_dims[0])
        self.encoder = mlp(first, hidden_dims, dropout, activation)
        self.base = nn.Linear(hidden_dims[-1], 2 * latent_dim)
        with torch.no_grad():  # softplus of 0 is log 2
            self.base.bias[latent_dim:] += math.log(math.expm1(start_scale))
        context_dim = hidden_dims[-1] if conditioned else None
        self.flow = nn.ModuleList(
            builder(latent_dim, depth(flow, num_flows), context_dim, **(flow_options or {}))
        )

    def locate(self, x: torch.Tensor) -> torch.Tensor:
        r""":math:`\mu(x)`, the location of the posterior's base, ``(num_data, latent_dim)``."""
        return self.base(self.encoder(x)).chunk(2, dim=-1)[0]

    def posterior(self, x: torch.Tensor) -> TorchDistribution:
        """q(z | x), batch shape ``(num_data,)``: for a plate of one's own, in a larger guide."""
        context = self.encoder(x)
        loc, raw_scale = self.base(context).chunk(2, dim=-1)
        posterior: Any = dist.Normal(loc, F.softplus(raw_scale) + MIN_SCALE).to_event(1)
        if len(self.flow):
            layers = fused(self.flow)  # Pyro's layers, neighbours that are alike in one pass
            conditional = dist.ConditionalTransformedDistribution(posterior, layers)
            posterior = conditional.condition(context)
        return posterior

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A sample of z, ``(num_data, latent_dim)``, for rows x ``(num_data, num_features)``."""
        posterior = self.posterior(x)
        with pyro.plate("data"):  # as many rows as x; so a larger guide can open it once more
            return pyro.sample("z", posterior)


def _check_shares(x: torch.Tensor) -> None:
    """Beyond [0, 1] a Bernoulli "likelihood" grows without bound."""
    if x.is_meta or not x.numel():
        return
    low, high = torch.aminmax(x.detach())
    if low < -ROUNDING or high > 1.0 + ROUNDING:
        raise ValueError(
            f"likelihood='bernoulli' takes numbers in [0, 1], got x from {low:.3g} to {high:.3g}; "
            "scale x, as TableEncoder does, or choose likelihood='normal'"
        )


def _registered(name: str, value: str, registry: Mapping[str, Any]) -> Any:
    check_names([value], registry, name)
    return registry[value]


def _check_sizes(num_features: Row, hidden_dims: Sequence[int], **sizes: int) -> None:
    count = len(num_features) if isinstance(num_features, Sequence) else num_features
    check_size("num_features", count)
    for name, value in sizes.items():
        check_size(name, value)
    if not hidden_dims:
        raise ValueError(f"hidden_dims must be at least one size, got {hidden_dims!r}")
    for place, value in enumerate(hidden_dims):
        check_size(f"hidden_dims[{place}]", value)
