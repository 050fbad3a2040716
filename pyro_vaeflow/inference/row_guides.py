"""Every row with its own copy of the guide's parameters: the family's best posterior for that row.

The guide program is the family, so nothing has to be known of it: its parameters, whatever holds
them, are stacked ``(rows, ...)``, and the programs run on one row under ``torch.vmap``.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch.overrides import TorchFunctionMode

from pyro_vaeflow.inference.annealing import cosine
from pyro_vaeflow.inference.noise import MAX_SEED
from pyro_vaeflow.inference.pairs import APART, Draws, Way, paired_traces
from pyro_vaeflow.inference.parameters import Program, named_parameters, seeded
from pyro_vaeflow.inference.traces import Args, guide_sites, plate_frame, sample_sites, take_rows

_REQUIRES_GRAD: Any = vars(torch._C.TensorBase)["requires_grad"].__get__
Values = list[torch.Tensor]  # of the guide's parameters, in their order, each (rows, ...)


class RowWeights(NamedTuple):
    """Draws for rows, each ``(num_samples, rows)``, nats."""

    log_weight: torch.Tensor
    elbo: torch.Tensor
    """log p(x, z) - log q(z | x): the log weight, unless discrete latents are summed out there."""
    score: torch.Tensor
    """log q of latents that are not reparameterised."""


class RowGuides:
    """A pair of programs whose guide has parameters of its own for each row.

    ``parameters`` are those that the guide's draws or density depend on and the model's do not:
    what the two share, named in ``shared``, belongs to the model and stays as it is. To be used
    inside `param_scope`, with Pyro's validation off.
    """

    def __init__(self, model: Program, guide: Program, args: Args, way: Way, plate: str) -> None:
        self.model, self.guide, self.args = model, guide, args
        self.way, self.plate = way, plate
        self.drawing = _Fixed(plate)(guide) if way.shared else guide
        # of torch.vmap, the best first: draws of torch's stream that all rows share, or their own
        self.randomness = ["same", "different"]
        with torch.enable_grad():
            first = self._draws(slice(0, 2), 1, 0)  # makes those of `pyro.param` as `score` does
            guide_trace, few = first.traces[0][1], take_rows(args, slice(0, 2))
            with torch.no_grad():
                values = poutine.trace(guide).get_trace(*few)
            model_trace = poutine.trace(poutine.replay(model, values)).get_trace(*few)
            model_trace.compute_log_prob()
            named = named_parameters(model, guide)
            leaves = list(named.values())
            by_guide = _depends(guide_sites(guide_trace, plate), leaves)
            by_model = _depends(sample_sites(model_trace), leaves)
        used = list(zip(named.items(), by_guide, by_model, strict=True))
        self.parameters = [leaf for (_, leaf), guides, models in used if guides and not models]
        self.shared = [name for (name, _), guides, models in used if guides and models]

    def amortized(self, rows: torch.Tensor) -> Values:
        """The parameters as they are, for each of these rows."""
        return [p.detach().expand(len(rows), *p.shape) for p in self.parameters]

    def weights(
        self, values: Values, rows: torch.Tensor, num_samples: int, seed: int
    ) -> RowWeights:
        """Of draws with these values; those of a row's own latents are `score`'s of this seed."""
        runs = self.way.guide == "runs"
        seeds: Any = seed
        if runs:  # one draw a run
            seeds = [seed + run * APART & MAX_SEED for run in range(num_samples)]
            seeds = torch.tensor(seeds, device=rows.device)

        def one_row(
            values: Sequence[torch.Tensor], row: torch.Tensor, seed: Any
        ) -> tuple[torch.Tensor, ...]:
            with _InPlaceOf(self.parameters, values, row + seed):
                draws = self._draws(row.unsqueeze(0), 1 if runs else num_samples, seed)
                log_weight, elbo = draws.terms.log_weight[:, 0], draws.terms.elbo[:, 0]
                return log_weight, elbo, torch.zeros_like(elbo) + _score_function(draws)

        while self.randomness:
            try:
                every: Any = torch.vmap(one_row, (0, 0, None), 1, self.randomness[0])
                if runs:
                    every = torch.vmap(every, (None, None, 0), randomness="different")
                with seeded(seed % 2**32):
                    parts = every(values, rows, seeds)
                return RowWeights(*(part.flatten(0, -2) for part in parts))
            except RuntimeError:  # an operation that vmap cannot do: boolean masks, for one
                del self.randomness[0]
        of_rows = zip(*(v.unbind() for v in values), strict=True) if values else [()] * len(rows)
        columns = []
        for row_values, row in zip(of_rows, rows, strict=True):
            with seeded(seed % 2**32):
                draws = [one_row(row_values, row, s) for s in (seeds if runs else [seed])]
            columns.append([torch.cat(part) for part in zip(*draws, strict=True)])
        return RowWeights(*(torch.stack(part, 1) for part in zip(*columns, strict=True)))

    def _draws(self, rows: torch.Tensor | slice, num_samples: int, seed: int) -> Draws:
        options: dict[str, Any] = {"way": self.way, "seed": seed, "plate": self.plate}
        programs = self.model, self.drawing, self.args
        return paired_traces(*programs, rows, num_samples=num_samples, **options)


class _Fixed(Messenger):
    """Latents that all rows share are no row's own: no gradient goes through them."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_post_sample(self, msg: Message) -> None:
        if plate_frame(msg, self.plate) is None:
            msg["value"] = msg["value"].detach()


class _InPlaceOf(TorchFunctionMode):
    """Shows every torch function a row's values in place of the parameters.

    By identity, so that it does not matter whether a module, a closure or Pyro's store holds them,
    and that the store never sees the value of a row.
    """

    def __init__(
        self, parameters: Values, values: Sequence[torch.Tensor], number: torch.Tensor
    ) -> None:
        super().__init__()
        self.values = {id(p): v for p, v in zip(parameters, values, strict=True)}
        self.zero = number * 0

    def _shown(self, arg: Any) -> Any:
        if type(arg) in (list, tuple):
            return type(arg)(self.values.get(id(a), a) for a in arg)
        return self.values.get(id(arg), arg)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        if func == _REQUIRES_GRAD:  # pyro.module asks the parameter itself
            return func(*args)
        kwargs = {name: self._shown(value) for name, value in (kwargs or {}).items()}
        out = func(*map(self._shown, args), **kwargs)
        # distributions fill new memory with random numbers in place: under vmap a row needs its own
        return out + self.zero.to(out.dtype) if func is torch.empty else out


def _score_function(draws: Draws) -> torch.Tensor | float:
    """log q of the latents without a path for gradients, of one row, ``(num_samples,)``."""
    ((_, guide_trace),) = draws.traces
    total: torch.Tensor | float = 0.0
    for site in guide_sites(guide_trace, draws.plate):
        term = site["score_parts"].score_function
        if isinstance(term, torch.Tensor) and "_enumerate_dim" not in site["infer"]:
            total = total + term.reshape(draws.num_samples, -1).sum(1)
    return total


def _depends(sites: Iterable[Any], leaves: Values) -> list[bool]:
    """Which leaves the draws or log probabilities of sites depend on."""
    total = sum((s["value"].sum() + s["log_prob"].sum() for s in sites), torch.zeros(()))
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
            _, elbo, score = guides.weights(values, rows, num_draws, seed + step)
            # what a draw has over the mean of the others: the baseline of the score function
            excess = (elbo - elbo.mean(0)).detach() * num_draws / (num_draws - 1)
            elbo = (elbo + excess * score).mean(0)
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
