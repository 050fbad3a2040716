"""Annealing of the KL term: schedules, the handler that applies beta, the capacity loss.

A schedule is a pure function of the step, so plotting it documents it. ``anneal`` is an effect
handler, so neither model nor guide carries a beta.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.util import torch_item
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.scale_messenger import ScaleMessenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyro_vaeflow.inference.traces import is_data
from pyro_vaeflow.validation import check_number, check_size

Schedule = Callable[[int], float]


def constant(value: float = 1.0) -> Schedule:
    """The same value at every step.

    Example:
        >>> constant(0.5)(1000)
        0.5
    """
    return lambda step: value


def as_schedule(schedule: Schedule | None) -> Schedule:
    """The schedule, or 1 at every step; refuses what is no function of the step."""
    if not (schedule is None or callable(schedule)):
        raise TypeError(f"schedule must be a function of the step, got {schedule!r}; say linear(9)")
    return schedule or constant(1.0)


def linear(num_steps: int, start: float = 0.0, stop: float = 1.0) -> Schedule:
    """From `start` to `stop` on a line over `num_steps` steps, then `stop`: a warm-up.

    Example:
        >>> [linear(4)(step) for step in (0, 2, 4, 100)]
        [0.0, 0.5, 1.0, 1.0]
    """
    check_size("num_steps", num_steps)
    return lambda step: start + (stop - start) * min(step / num_steps, 1.0)


def cosine(num_steps: int, start: float = 1.0, stop: float = 0.0) -> Schedule:
    """From `start` to `stop` on half a cosine over `num_steps` steps, then `stop`.

    Meant for learning rates: ``train(..., learning_rate=cosine(5000, 1e-3, 1e-5))``.

    Example:
        >>> round(cosine(100, 2.0, 1.0)(50), 6)
        1.5
    """
    check_size("num_steps", num_steps)

    def schedule(step: int) -> float:
        done = min(step / num_steps, 1.0)
        return stop + (start - stop) * 0.5 * (1.0 + math.cos(math.pi * done))

    return schedule


def warmup(num_steps: int, then: Schedule) -> Schedule:
    """From 0 on a line to where `then` starts, in `num_steps` steps, then `then` from its start.

    Example:
        >>> schedule = warmup(10, cosine(100, 2.0, 0.0))
        >>> schedule(0), schedule(5), schedule(10)
        (0.0, 1.0, 2.0)
    """
    check_size("num_steps", num_steps, 0)
    return lambda step: step / num_steps * then(0) if step < num_steps else then(step - num_steps)


def cyclical(
    num_steps: int, num_cycles: int = 4, ratio: float = 0.5, start: float = 0.0, stop: float = 1.0
) -> Schedule:
    r"""In each of `num_cycles` cycles a line from `start` to `stop`, then `stop`.

    With :math:`\tau = (t \bmod T/M) / (T/M)`, the weight is :math:`\min(\tau / R, 1)` between
    `start` and `stop`; past `num_steps` it stays at `stop`.

    References:
        H. Fu et al., Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing,
        2019, arXiv:1903.10145, eq. (6)-(7).

    Args:
        num_steps: T, the steps of the whole schedule.
        num_cycles: M.
        ratio: R, the part of a cycle that rises, in (0, 1].

    Example:
        >>> beta = cyclical(num_steps=100, num_cycles=2, ratio=0.5)
        >>> [beta(step) for step in (0, 25, 49, 50, 75, 100)]
        [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    """
    check_size("num_steps", num_steps)
    check_size("num_cycles", num_cycles, 1, num_steps)
    check_number("ratio", ratio, above=0.0, high=1.0)
    period = num_steps / num_cycles

    def schedule(step: int) -> float:
        if step >= num_steps:
            return stop
        return start + (stop - start) * min(step % period / period / ratio, 1.0)

    return schedule


class anneal(ScaleMessenger):
    r"""Weights the Kullback-Leibler term of any loss by `beta`: ``with anneal(beta): svi.step(x)``.

    The log probabilities of all unobserved sites, in model and guide, are scaled by `beta`, so
    the loss becomes :math:`-E_q[\log p(x|z)] + \beta\, E_q[\log q(z|x) - \log p(z)]`. Unlike
    ``poutine.scale``, 0 is allowed: cyclical schedules start there. Scores ignore it.

    Raises:
        ValueError: `beta` is negative or not finite.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))
        >>> with anneal(0.0):
        ...     trace = pyro.poutine.trace(model).get_trace()
        >>> trace.nodes["z"]["scale"], trace.nodes["x"]["scale"]
        (0.0, 1.0)
    """

    def __init__(self, beta: float) -> None:
        check_number("beta", beta, low=0.0)
        Messenger.__init__(self)  # ScaleMessenger's own refuses 0
        self.scale = beta

    def _process_message(self, msg: Message) -> None:
        if torch.jit.is_tracing():
            raise ValueError(
                "a Jit*_ELBO keeps the beta of its first step; use the loss of the same name "
                "without Jit inside anneal"
            )
        if msg["type"] == "sample" and not is_data(msg) and not site_is_subsample(msg):
            super()._process_message(msg)


class CapacityELBO(Trace_ELBO):
    r"""The loss with a target for the KL: :math:`-E_q[\log p(x|z)] + \gamma\,|KL - C|`.

    Under `train`, `KL` and the capacity `C` are in nats per row, and ``schedule`` gives `C`:
    ``train(..., loss=CapacityELBO(gamma=1000), schedule=linear(num_steps, stop=25.0))``. In an SVI
    loop of one's own: ``with loss.at(capacity): svi.step(x)``; `KL` is then the sum over the batch.

    References:
        C. Burgess et al., Understanding disentangling in beta-VAE, 2018, arXiv:1804.03599, eq. (8).

    Args:
        gamma: the stiffness, at least 0; the paper's code uses 1000.
        options: those of ``pyro.infer.Trace_ELBO``. `KL` is the mean over vectorised particles;
            particles that are not vectorised each pay for their own :math:`|KL - C|`.

    Raises:
        ValueError: at the first step, for a latent site that is not reparameterised: the gradient
            of its KL needs a score-function term, which the absolute value does not admit.

    Example:
        >>> loss = CapacityELBO(gamma=10.0)
        >>> with loss.at(5.0):
        ...     loss.capacity
        5.0
    """

    def __init__(self, gamma: float = 1000.0, **options: Any) -> None:
        check_number("gamma", gamma, low=0.0)
        super().__init__(**options)
        self.gamma = gamma
        self.capacity = 0.0

    @contextmanager
    def at(self, capacity: float) -> Iterator[None]:
        """Holds the capacity, in nats, for the steps inside."""
        check_number("capacity", capacity, low=0.0)
        before, self.capacity = self.capacity, capacity
        try:
            yield
        finally:
            self.capacity = before

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """The loss without a gradient, nats."""
        with torch.no_grad():
            traces = self._get_traces(model, guide, args, kwargs)
            losses = [self._differentiable_loss_particle(*pair)[0] for pair in traces]
        return sum(losses) / self.num_particles

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[float, torch.Tensor]:
        log_likelihood: Any = 0.0
        kl: Any = 0.0
        for site in model_trace.nodes.values():
            if site["type"] == "sample" and is_data(site):
                log_likelihood = log_likelihood + site["log_prob_sum"]
            elif site["type"] == "sample":
                kl = kl - site["log_prob_sum"]
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample":
                if not site["fn"].has_rsample:
                    raise ValueError(
                        f"site {name!r} is not reparameterised ({type(site['fn']).__name__}); "
                        "CapacityELBO needs latents with rsample, use Trace_ELBO with anneal"
                    )
                kl = kl + site["log_prob_sum"]
        at_once = self.num_particles if self.vectorize_particles else 1  # summed in the terms above
        excess = torch_item(kl) - at_once * self.capacity
        # |KL - C| has the gradient of sign(KL - C) KL.
        surrogate = -log_likelihood + self.gamma * math.copysign(1.0, excess) * kl
        return -torch_item(log_likelihood) + self.gamma * abs(excess), surrogate
