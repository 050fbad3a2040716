"""Losses and optimizers as users of Pyro and torch pass them, and a learning rate's schedule."""

from collections.abc import Callable
from functools import partial
from inspect import isclass
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceTailAdaptive_ELBO, TraceTMC_ELBO
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler

from pyro_vaeflow.inference.annealing import Schedule, constant
from pyro_vaeflow.inference.pairs import Way

Maker = Callable[..., torch.optim.Optimizer]


def make_loss(loss: ELBO | None, way: Way) -> ELBO:
    """The loss that suits the programs, if it is not given.

    Raises:
        TypeError: it is no loss of traces.
        ValueError: it is compiled, or knows nothing of the enumerated sites.
    """
    if loss is None:
        return TraceEnum_ELBO(max_plate_nesting=way.depth) if way.enumerated else Trace_ELBO()
    name = type(loss).__name__
    if not isinstance(loss, ELBO):
        raise TypeError(
            f"loss must be an object of a subclass of pyro.infer.ELBO, such as Trace_ELBO(), got "
            f"{loss!r:.60}; train with others in a loop of your own, inside param_scope"
        )
    if isinstance(loss, TraceTailAdaptive_ELBO):
        raise ValueError(
            f"{name} has gradients but no value, which training watches; take its steps in a loop "
            "of your own, inside param_scope"
        )
    if any(parent.__name__.startswith("Jit") for parent in type(loss).__mro__):
        raise ValueError(
            f"{name} keeps what its first step computed with, the schedule's beta too; pass "
            f"loss={name.removeprefix('Jit')}(...)"
        )
    if way.alone and not isinstance(loss, TraceEnum_ELBO | TraceTMC_ELBO):
        raise ValueError(
            f"{name} does not sum over {sorted(way.alone)}, which the model enumerates and the "
            f"guide has no site for; pass loss=TraceEnum_ELBO(max_plate_nesting={way.depth})"
        )
    return loss


def optimizer_and_rate(
    optimizer: Maker | PyroOptim, learning_rate: float | Schedule | None, num_steps: int
) -> tuple[Maker, Schedule]:
    """What makes the torch optimizer from parameters and ``lr``, and the learning rate of a step.

    Args:
        optimizer: a torch class or a partial of it, or an optimizer or scheduler of Pyro's.
        learning_rate: a number or schedule; of a Pyro optimizer by default its own.
        num_steps: for how many steps a scheduler of Pyro's is followed.

    Raises:
        TypeError, ValueError: the optimizer is of another kind; says what to pass.

    Example:
        >>> import pyro
        >>> make, rate = optimizer_and_rate(pyro.optim.Adam({"lr": 0.5}), None, num_steps=3)
        >>> rate(2)
        0.5
    """
    of_torch = _unbound(optimizer)
    if isinstance(optimizer, torch.optim.Optimizer):
        name = type(optimizer).__name__
        raise TypeError(
            f"optimizer is a {name} that has parameters already; pass what makes it, such as "
            f"torch.optim.{name} or functools.partial(torch.optim.{name}, weight_decay=0.01)"
        )
    if isclass(of_torch) and issubclass(of_torch, torch.optim.LBFGS):
        raise TypeError(
            "optimizer LBFGS runs the loss several times a step, on one mini-batch; "
            "pass torch.optim.Adam or another that takes one gradient a step"
        )
    if not isinstance(optimizer, PyroOptim):
        if not callable(optimizer) or (
            not isclass(of_torch) and str(of_torch.__module__).startswith("pyro.optim")
        ):
            name = getattr(of_torch, "__name__", repr(optimizer))
            raise TypeError(
                f"optimizer must make an optimizer from parameters, got {name}; pass "
                f"pyro.optim.Adam({{'lr': 0.001}}) or torch.optim.Adam"
            )
        rate = 1e-3 if learning_rate is None else learning_rate
        return optimizer, rate if callable(rate) else constant(rate)
    settings = optimizer.pt_optim_args
    if callable(settings) or optimizer.pt_clip_args:
        raise ValueError(
            "a Pyro optimizer with settings or clipping for each parameter is not supported; pass "
            "one dictionary of settings for all, and train(..., clip_norm=...)"
        )
    if learning_rate is not None:
        raise ValueError(
            "the learning rate is given twice, by learning_rate= and by a Pyro optimizer; leave "
            "one out, as in optimizer=torch.optim.Adam"
        )
    rates = _rates(optimizer, settings, num_steps)
    others = {name: value for name, value in settings.items() if name != "lr"}
    return partial(optimizer.pt_optim_constructor, **others), lambda step: rates[step]


def _unbound(optimizer: Any) -> Any:
    while isinstance(optimizer, partial):
        optimizer = optimizer.func
    return optimizer


def _rates(optimizer: PyroOptim, settings: dict[str, Any], num_steps: int) -> list[float]:
    """The learning rate at each step, of an optimizer that follows its scheduler if it has one."""
    torch_optimizer = optimizer.pt_optim_constructor(
        [torch.zeros(1, requires_grad=True)], **settings
    )
    (group,) = torch_optimizer.param_groups
    step = lambda: None  # noqa: E731
    try:
        if isinstance(optimizer, PyroLRScheduler):
            step = optimizer.pt_scheduler_constructor(torch_optimizer, **optimizer.kwargs).step
        rates = []
        for _ in range(num_steps):
            rates.append(float(group["lr"]))
            torch_optimizer.step()
            step()
    except TypeError as error:
        raise ValueError(
            f"{optimizer.pt_scheduler_constructor.__name__} needs more than the number of the step "
            f"({error}); pass learning_rate=, a function of the step"
        ) from error
    return rates
