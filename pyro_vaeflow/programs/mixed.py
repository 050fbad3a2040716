"""The two ends of the networks for rows of mixed tables: their first layer and their likelihood."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn
from torch.distributions import constraints

from pyro_vaeflow.validation import check_number

if TYPE_CHECKING:
    from pyro_vaeflow.tables.columns import Column

LEAST_DF = 1.0  # degrees of freedom: below it Student's t has no mean
START_DF = 4.0
LARGE = 2**24  # entries of a matrix
NOISES = 8.0  # of a number that the others all but give: the least that its scale is allowed
MAX_LOGIT = 25.0  # a value that no training row shows costs at most about twice as many nats


def degrees_of_freedom(num_features: int) -> nn.Parameter:
    """A learned tail for each column, ``(num_features,)``, for `with_tails`."""
    return nn.Parameter(torch.full((num_features,), math.log(START_DF - LEAST_DF)))


def with_tails(normal: dist.Normal, log_df: torch.Tensor) -> dist.StudentT:
    r"""Student's t of the normal's location and scale, :math:`1 + e^{log\_df}` degrees of freedom.

    Example:
        >>> normal = dist.Normal(torch.zeros(2), torch.ones(2))
        >>> far = torch.tensor([0.0, 100.0])
        >>> with_tails(normal, degrees_of_freedom(2)).log_prob(far)[1] > normal.log_prob(far)[1]
        tensor(True)
    """
    df = LEAST_DF + log_df.exp()
    return dist.StudentT(df, normal.loc, normal.scale, validate_args=False)


class MixedLayout(nn.Module):
    """Where the columns of a mixed row are: the discrete ones' logits and the continuous ones."""

    discrete: torch.Tensor
    continuous: torch.Tensor
    order: torch.Tensor
    start: torch.Tensor
    owner: torch.Tensor

    def __init__(self, columns: "Sequence[Column]") -> None:
        super().__init__()
        sizes = [column.num_levels for column in columns]
        discrete = [j for j, size in enumerate(sizes) if size]
        continuous = [j for j, size in enumerate(sizes) if not size]
        self.sizes = [sizes[j] for j in discrete]
        self.num_columns, self.num_logits = len(columns), sum(sizes)
        self.register_buffer("discrete", torch.tensor(discrete, dtype=torch.long))
        self.register_buffer("continuous", torch.tensor(continuous, dtype=torch.long))
        self.register_buffer("order", torch.tensor(discrete + continuous).argsort())
        self.register_buffer("start", torch.tensor([0, *self.sizes]).cumsum(0)[:-1])
        # Sums the levels of each column: (num_logits, num_discrete), in one matrix product, or in
        # a table of thousands of discrete columns, whose matrix would be large, (num_logits,)
        if sum(self.sizes) * len(discrete) > LARGE:
            owner = torch.arange(len(discrete)).repeat_interleave(torch.tensor(self.sizes))
        else:
            ones = [torch.ones(size, 1) for size in self.sizes]
            owner = torch.block_diag(*ones) if ones else torch.ones(0, 0)
        self.register_buffer("owner", owner)

    def level_sums(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over each discrete column's levels of ``(..., num_logits)``."""
        if self.owner.dim() == 2:
            return values @ self.owner
        sums = values.new_zeros(*values.shape[:-1], len(self.sizes))
        return sums.index_add_(-1, self.owner, values)


class MixedRow(TorchDistribution):
    r"""Independent columns: categorical over levels, or numbers; NaN entries count for nothing.

    .. math:: \log p(x) = \sum_{j \text{ observed}} \log p_j(x_j)

    A missing entry is thereby marginalised: given z the columns are independent. `logits`
    ``(..., num_logits)`` are the columns' levels one after another, `numbers`
    ``(..., num_continuous)`` the distributions of the continuous columns.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(
        self, layout: MixedLayout, logits: torch.Tensor, numbers: TorchDistribution
    ) -> None:
        self.layout, self.numbers = layout, numbers
        self.logits = logits.clamp(-MAX_LOGIT, MAX_LOGIT)
        event_shape = torch.Size([layout.num_columns])
        super().__init__(logits.shape[:-1], event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "MixedRow":
        """The same rows for a batch shape that theirs broadcasts to."""
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        numbers = self.numbers.expand((*batch_shape, self.numbers.batch_shape[-1]))
        return MixedRow(self.layout, logits, numbers)

    def feature_log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p_j(x_j) of each column, shape ``(..., num_columns)``, nats; 0 where missing."""
        missing = value.isnan()
        value = value.nan_to_num()
        layout, parts = self.layout, []
        if layout.sizes:
            codes = value[..., layout.discrete].long() + layout.start
            shape = torch.broadcast_shapes(codes.shape[:-1], self.logits.shape[:-1])
            picked = self.logits.expand(*shape, -1).gather(-1, codes.expand(*shape, -1))
            parts.append(picked - layout.level_sums(self.logits.exp()).log())
        if len(layout.continuous):
            parts.append(self.numbers.log_prob(value[..., layout.continuous]))
        features = parts[0] if len(parts) == 1 else torch.cat(parts, -1)[..., layout.order]
        return features.masked_fill(missing, 0.0)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p(x) of rows ``(..., num_columns)``, summed over the observed columns, nats."""
        return self.feature_log_prob(value).sum(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Complete rows ``sample_shape + batch_shape + (num_columns,)``, levels as codes."""
        levels = [
            dist.Categorical(logits=logits, validate_args=False).sample(sample_shape)
            for logits in self.logits.split(self.layout.sizes, -1)
        ]
        numbers = self.numbers.sample(sample_shape)
        columns = [level.to(numbers.dtype) for level in levels] + list(numbers.unbind(-1))
        return torch.stack(columns, -1)[..., self.layout.order]


class MixedHead(nn.Module):
    """p(x | z) of mixed rows: logits of all levels from one layer; means, and a scale a column.

    Args:
        hidden_dim: size of the decoder's last hidden layer.
        columns: what the columns hold.
        min_scale: the least scale of the continuous columns, in their standard deviations; of one
            that the others all but give, eight times its `noise` if that is less.
        start_scale: what their scales have above it in an untrained head.
        student_t: whether they are Student-t and not normal: tails that are learned a column.

    Example:
        >>> from pyro_vaeflow import Column
        >>> columns = [Column("kind", "categorical", levels=("a", "b")), Column("x", "continuous")]
        >>> row = MixedHead(8, columns)(torch.zeros(5, 8))
        >>> row.feature_log_prob(torch.tensor([2.0, float("nan")])).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        hidden_dim: int,
        columns: "Sequence[Column]",
        min_scale: float = 1e-3,
        start_scale: float = 1.0,
        student_t: bool = False,
    ) -> None:
        super().__init__()
        check_number("start_scale", start_scale, above=0.0)
        self.layout = MixedLayout(columns)
        noise = [column.noise for column in columns if not column.num_levels]
        self.min_scales = [min(min_scale, NOISES * value) for value in noise]
        num_continuous = len(self.layout.continuous)
        self.out = nn.Linear(hidden_dim, self.layout.num_logits + num_continuous)
        self.log_scale = nn.Parameter(torch.full((num_continuous,), math.log(start_scale)))
        self.log_df = degrees_of_freedom(num_continuous) if student_t else None

    def forward(self, h: torch.Tensor) -> MixedRow:
        """p(x | z), rows of ``(..., num_columns)``, of hidden layers ``(..., hidden_dim)``."""
        out = self.out(h)
        logits, loc = out.tensor_split([self.layout.num_logits], -1)
        scale = self.log_scale.exp() + loc.new_tensor(self.min_scales)
        numbers = dist.Normal(loc, scale, validate_args=False)
        if self.log_df is not None:
            numbers = with_tails(numbers, self.log_df)
        return MixedRow(self.layout, logits, numbers)


class MixedInput(nn.Module):
    """The encoder's first layer on mixed rows: a vector a level, linear in the numbers.

    Missing entries have a vector of their own a column, and so the encoder knows them; unseen
    categories are read as missing.

    Args:
        columns: what the columns hold.
        width: size of the output.
        dropout: the share of entries that are hidden while training, as if they were missing: the
            encoder learns to do without them.

    Example:
        >>> from pyro_vaeflow import Column
        >>> columns = [Column("kind", "categorical", levels=("a", "b")), Column("x", "continuous")]
        >>> MixedInput(columns, width=8)(torch.tensor([[2.0, 0.3], [float("nan"), 1.0]])).shape
        torch.Size([2, 8])
    """

    def __init__(self, columns: "Sequence[Column]", width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layout = MixedLayout(columns)
        self.dropout = dropout
        numbers, self.level, self.number = len(self.layout.continuous), None, None
        if self.layout.sizes:
            self.level = nn.EmbeddingBag(self.layout.num_logits, width, mode="sum")
            # The sum over a row's entries starts with a variance of at most 1.
            nn.init.normal_(self.level.weight, std=len(columns) ** -0.5)
        if numbers:
            self.number = nn.Linear(2 * numbers, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer ``(..., width)`` of rows ``(..., num_columns)``, NaN where missing."""
        if self.training and self.dropout > 0:
            x = x.masked_fill(torch.rand_like(x) < self.dropout, torch.nan)
        missing, x, layout = x.isnan(), x.nan_to_num(), self.layout
        out = self.bias
        if self.level is not None:
            out = out + self.level(x[..., layout.discrete].long() + layout.start)
        if self.number is not None:
            flags = missing[..., layout.continuous].to(x.dtype)
            out = out + self.number(torch.cat([x[..., layout.continuous], flags], -1))
        return out
