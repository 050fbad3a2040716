"""A stopping rule: training goes on until the held-out bound is flat, then cools down and ends."""

import math
from collections.abc import Sequence
from typing import Any

from pyro_vaeflow.inference.annealing import Schedule, constant
from pyro_vaeflow.inference.callbacks import Callback, Run
from pyro_vaeflow.validation import check_number, check_size

ROUNDING = 1e-6  # of a bound in float32, which is no slope


def is_flat(steps: Sequence[float], bounds: Sequence[float]) -> bool:
    """Whether the slope of bounds over steps is below its own standard error.

    Example:
        >>> steps = [10, 20, 30, 40, 50]
        >>> is_flat(steps, [1.0, 2.1, 2.9, 4.2, 5.0]), is_flat(steps, [1.0, 1.3, 0.7, 1.2, 0.9])
        (False, True)
    """
    from scipy.stats import linregress  # most trainings need it not

    line, span = linregress(steps, bounds), steps[-1] - steps[0]
    noise = line.stderr * span if line.stderr > 0.0 else 0.0  # of equal bounds SciPy's is NaN
    return bool(line.slope * span <= max(noise, ROUNDING * abs(bounds[-1])))


class Cooldown(Callback):
    """A learning rate that stays until the held-out bound is flat, then falls to 0; training ends.

    Flat is a bound whose slope over the last evaluations is below its noise, once the annealing
    has come to its end. What a high learning rate's noise hides comes out as the rate falls, for
    which a quarter of the steps so far is taken; at the latest it begins so that `num_steps` of the
    training suffice. Pass it twice, beside rows that are held out:
    ``train(..., num_steps=8000, learning_rate=rule, callbacks=[rule], held_out=rows)``.

    References:
        S. Hu and others, MiniCPM, 2024, arXiv:2404.06395, section 4: warm up, stay, decay.
        M. Welandawe, M. R. Andersen, A. Vehtari, J. H. Huggins, A Framework for Improving the
        Reliability of Black-box Variational Inference, 2024, arXiv:2203.15945: stationary, then a
        smaller learning rate.

    Args:
        learning_rate: before the bound is flat: a number, or a schedule that warms up.
        window: evaluations, of which `train` makes one each `eval_every` steps, that a slope is of.
        share: steps of the fall, in shares of those before it.

    Example:
        >>> rule = Cooldown(0.01)
        >>> rule.flat_at = 100  # as it will be once the bound of step 100 is flat
        >>> rule(99), round(rule(110), 6), rule(125)
        (0.01, 0.006, 0.0)
    """

    def __init__(
        self, learning_rate: float | Schedule = 1e-3, window: int = 8, share: float = 0.25
    ) -> None:
        check_size("window", window, 3)
        check_number("share", share, above=0.0)
        self.rate = learning_rate if callable(learning_rate) else constant(learning_rate)
        self.window, self.share = window, share
        self.flat_at: int | None = None

    def __call__(self, step: int) -> float:
        """The learning rate of a step."""
        if self.flat_at is None or step < self.flat_at:
            return self.rate(step)
        fall = (step - self.flat_at) / (self.share * self.flat_at)
        return self.rate(self.flat_at) * max(0.0, 1.0 - fall)

    def start(self, run: Run) -> None:
        self.flat_at = None

    def after_step(self, run: Run) -> None:
        is_evaluated = not math.isnan(run.records[-1]["held_out_elbo"])
        if self.flat_at is not None:
            if is_evaluated and run.step >= self.flat_at * (1.0 + self.share):
                run.stop()
        elif run.step >= run.num_steps / (1.0 + self.share) or is_evaluated and self._is_flat(run):
            self.flat_at = run.step

    def _is_flat(self, run: Run) -> bool:
        evaluated = [record for record in run.records if not math.isnan(record["held_out_elbo"])]
        recent = evaluated[-self.window :]
        if len(recent) < self.window or recent[0]["anneal"] != recent[-1]["anneal"]:
            return False
        return is_flat([r["step"] for r in recent], [r["held_out_elbo"] for r in recent])

    def state_dict(self) -> dict[str, Any]:
        return {"flat_at": self.flat_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.flat_at = state["flat_at"]
