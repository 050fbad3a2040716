"""Mini-batches as a function of the seed and the step: a training can go on from any step."""

import math

import torch


class Batches:
    """The rows of each step, drawn without replacement within a pass over the data.

    Args:
        rows: ``(num_data, ...)``.
        batch_size: rows a step; all, if there are fewer.
        weights: ``(num_data,)``; rows are then drawn in proportion, with replacement.
        seed: of the draws.

    Raises:
        ValueError: the weights are not one number of at least 0 a row.

    Example:
        >>> batches = Batches(torch.zeros(4, 2), batch_size=2, weights=None, seed=0)
        >>> torch.cat([batches(0), batches(1)]).sort().values
        tensor([0, 1, 2, 3])
    """

    def __init__(
        self, rows: torch.Tensor, batch_size: int, weights: torch.Tensor | None, seed: int
    ) -> None:
        self.num_data, self.device, self.seed = len(rows), rows.device, seed
        self.batch_size = min(batch_size, self.num_data)
        self.weights = None if weights is None else torch.as_tensor(weights)
        if self.weights is not None:
            self._check(self.weights)
        self.per_pass = self.num_data // self.batch_size
        self.current: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int) -> torch.Tensor:
        """The indices of the step's rows, ``(batch_size,)``."""
        number, place = divmod(step, self.per_pass)
        if self.current[0] != number:
            self.current = number, self._pass(number)
        rows = self.current[1][place * self.batch_size : (place + 1) * self.batch_size]
        return rows.to(self.device)

    def _pass(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        if self.weights is None:
            return torch.randperm(self.num_data, generator=generator)
        count = self.per_pass * self.batch_size
        return torch.multinomial(self.weights.cpu(), count, replacement=True, generator=generator)

    def _check(self, weights: torch.Tensor) -> None:
        shape = weights.shape == (self.num_data,)
        if not (shape and (weights >= 0).all() and 0 < weights.sum() < math.inf):
            raise ValueError(
                f"weights must be {self.num_data} numbers of at least 0, one a row of x, not all "
                f"0; got shape {tuple(weights.shape)} and sum {weights.sum():.3g}"
            )
