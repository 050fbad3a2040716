"""Every row with its own copy of the guide's parameters: the family's best posterior for that row.

The guide program is the family, so nothing has to be known of it: its parameters, whatever holds
them, are stacked ``(rows, ...)``, and the programs run on one row under ``torch.vmap``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch.overrides import TorchFunctionMode

from pyro_vaeflow.inference.annealing import cosine
from pyro_vaeflow.inference.noise import RowNoise
from pyro_vaeflow.inference.parameters import Program, named_parameters
from pyro_vaeflow.inference.traces import Args, paired_traces, row_terms, take_rows

Values = list[torch.Tensor]  # of the guide's parameters, in their order, each (rows, ...)


class RowGuides:
    """A pair of programs whose guide has parameters of its own for each row.

    ``parameters`` are those that the guide's draws or density depend on and the model's do not:
    what the two share, named in ``shared``, belongs to the model and stays as it is. To be used
    inside `param_scope`, with Pyro's validation off.
    """

    def __init__(self, model: Program, guide: Program, args: Args, depth: int, plate: str) -> None:
        self.model, self.guide, self.args = model, guide, args
        self.depth, self.plate = depth, plate
        self.vectorized = True
        few = take_rows(args, slice(0, 2))
        with torch.enable_grad():
            guide_trace = self._traces(few, 1, 0)[1]  # makes those of `pyro.param` as `score` does
            model_trace = poutine.trace(model).get_trace(*few)
            model_trace.compute_log_prob()
            named = named_parameters(model, guide)
            leaves = list(named.values())
            by_guide, by_model = (_depends(t, leaves) for t in (guide_trace, model_trace))
        used = list(zip(named.items(), by_guide, by_model, strict=True))
        self.parameters = [leaf for (_, leaf), guides, models in used if guides and not models]
        self.shared = [name for (name, _), guides, models in used if guides and models]

    def amortized(self, rows: torch.Tensor) -> Values:
        """The parameters as they are, for each of these rows."""
        return [p.detach().expand(len(rows), *p.shape) for p in self.parameters]

    def log_weights(
        self, values: Values, rows: torch.Tensor, num_samples: int, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log weights, nats, and log q of latents that are not reparameterised.

        Both are ``(num_samples, rows)``. The draws are those of `score` with this seed.
        """

        def one_row(
            values: Sequence[torch.Tensor], row: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            args = take_rows(self.args, row.unsqueeze(0))
            with _InPlaceOf(self.parameters, values, row):
                model_trace, guide_trace = self._traces(args, num_samples, seed)
                log_weight = row_terms(model_trace, guide_trace, self.plate).log_weight.squeeze(-1)
                score = torch.zeros_like(log_weight) + _score_function(guide_trace, num_samples)
                return log_weight, score

        if self.vectorized:
            try:
                return torch.vmap(one_row, out_dims=1, randomness="same")(values, rows)
            except RuntimeError:  # an operation that vmap cannot do: boolean masks, for one
                self.vectorized = False
        of_rows = zip(*(v.unbind() for v in values), strict=True) if values else [()] * len(rows)
        pairs = [one_row(v, row) for v, row in zip(of_rows, rows, strict=True)]
        log_weight, score = zip(*pairs, strict=True)
        return torch.stack(log_weight, 1), torch.stack(score, 1)

    def _traces(self, args: Args, num_samples: int, seed: int) -> tuple[Trace, Trace]:
        return paired_traces(
            self.model,
            self.guide,
            args,
            num_samples=num_samples,
            max_plate_nesting=self.depth,
            noise=RowNoise(args[0], seed, self.plate),
        )


class _InPlaceOf(TorchFunctionMode):
    """Shows every torch function a row's values in place of the parameters.

    By identity, so that it does not matter whether a module, a closure or Pyro's store holds them,
    and that the store never sees the value of a row.
    """

    def __init__(
        self, parameters: Values, values: Sequence[torch.Tensor], row: torch.Tensor
    ) -> None:
        super().__init__()
        self.values = {id(p): v for p, v in zip(parameters, values, strict=True)}
        self.zero = row * 0

    def _shown(self, arg: Any) -> Any:
        if type(arg) in (list, tuple):
            return type(arg)(self.values.get(id(a), a) for a in arg)
        return self.values.get(id(arg), arg)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        kwargs = {name: self._shown(value) for name, value in (kwargs or {}).items()}
        out = func(*map(self._shown, args), **kwargs)
        # distributions fill new memory with random numbers in place: under vmap a row needs its own
        return out + self.zero.to(out.dtype) if func is torch.empty else out


def _score_function(guide_trace: Trace, num_samples: int) -> torch.Tensor | float:
    """log q of the latents without a path for gradients, of one row, ``(num_samples,)``."""
    sites = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
    terms = [site["score_parts"].score_function for site in sites]
    found = [t.reshape(num_samples, -1).sum(1) for t in terms if isinstance(t, torch.Tensor)]
    return torch.stack(found).sum(0) if found else 0.0


def _depends(trace: Trace, leaves: Values) -> list[bool]:
    """Which leaves the draws or log probabilities of a trace depend on."""
    trace = prune_subsample_sites(trace)
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    total = sum(site["value"].sum() + site["log_prob"].sum() for site in sites)
    if not (leaves and total.requires_grad):
        return [False] * len(leaves)
    return [g is not None for g in torch.autograd.grad(total, leaves, allow_unused=True)]


def optimise(
    guides: RowGuides,
    rows: torch.Tensor,
    *,
    num_steps: int,
    num_draws: int,
    learning_rate: float,
    seed: int,
) -> Values:
    """Maximises each row's ELBO from the amortized values; returns the last ones.

    Latents that are not reparameterised have the score-function gradient.

    Args:
        num_draws: draws a row and step, at least 2.
        learning_rate: about the length of the first step over all parameters of a row; it falls
            to 0 on a cosine.
    """
    values = guides.amortized(rows)
    if not values or num_steps == 0:
        return values
    values = [v.clone().requires_grad_() for v in values]
    optimizer = RowAdam(values)
    rate = cosine(num_steps, learning_rate, 0.0)
    for step in range(num_steps):
        with torch.enable_grad():
            log_weight, score = guides.log_weights(values, rows, num_draws, seed + step)
            # what a draw has over the mean of the others: the baseline of the score function
            excess = (log_weight - log_weight.mean(0)).detach() * num_draws / (num_draws - 1)
            elbo = (log_weight + excess * score).mean(0)
            gradient = torch.autograd.grad(
                elbo.sum(), values, allow_unused=True, materialize_grads=True
            )
        optimizer.ascend(gradient, rate(step))
    return [v.detach() for v in values]


class RowAdam:
    """Adam with one second moment a row, that of its whole gradient's length.

    A step is about as long as the learning rate, whether a row has two parameters or 100,000: with
    a moment a parameter, no learning rate suits both. On 20 rows of KDD Cup 99, 200 steps went as
    far as 1,500 of Adam for a diagonal guide, and as far as 200 for 50 planar layers.
    """

    def __init__(self, values: Values, beta: float = 0.9) -> None:
        self.values, self.beta, self.step = values, beta, 0
        self.mean = [torch.zeros_like(v) for v in values]
        self.square: torch.Tensor | float = 0.0

    @torch.no_grad()
    def ascend(self, gradient: Sequence[torch.Tensor], learning_rate: float) -> None:
        """One step along the gradient of each parameter, ``(rows, ...)``."""
        self.step += 1
        squares = [g.reshape(len(g), -1).norm(dim=1).square() for g in gradient]
        square = self.beta * self.square + (1.0 - self.beta) * torch.stack(squares).sum(0)
        unbias = 1.0 - self.beta**self.step
        length = (unbias * square).sqrt().clamp(min=torch.finfo(square.dtype).tiny)
        self.square = square
        rate = learning_rate / length
        for value, mean, g in zip(self.values, self.mean, gradient, strict=True):
            mean.lerp_(g, 1.0 - self.beta)
            value.addcmul_(mean, rate.view(-1, *[1] * (value.dim() - 1)))
