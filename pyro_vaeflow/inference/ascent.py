"""The ascent of every row's ELBO at once, each in the parameters of its own guide."""

from collections.abc import Sequence

import torch

from pyro_vaeflow.inference.annealing import cosine
from pyro_vaeflow.inference.row_guides import RowGuides, Values


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

    A step is about as long as the learning rate, whether a row has two parameters or 100,000. With
    a moment a parameter, a step of a large network moves the posterior far more than one of a small
    one, and no learning rate suits both. On 20 rows of KDD Cup 99, 200 steps of this went as far
    as 1,500 of Adam (learning rate 0.001) for a diagonal guide; for 50 planar layers, 200 steps of
    either were level.
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
