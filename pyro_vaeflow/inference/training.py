"""Stochastic variational inference of any pair of Pyro programs, in one readable loop."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim

from pyro_vaeflow.inference.annealing import CapacityELBO, Schedule, anneal, as_schedule
from pyro_vaeflow.inference.callbacks import (
    RECORD,
    BestOnHeldOut,
    Callback,
    CtrlC,
    History,
    InterruptedWarning,
    OfRecords,
    ProgressBar,
    Record,
    Run,
)
from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.draws import hold_memory
from pyro_vaeflow.inference.optimizers import make_loss, optimizer_and_rate
from pyro_vaeflow.inference.pairs import terms_of_traces
from pyro_vaeflow.inference.parameters import (
    Program,
    module_mode,
    named_parameters,
    param_scope,
    seeded,
    show,
)
from pyro_vaeflow.inference.svi import (
    Batches,
    LastTraces,
    OneOptimizer,
    PerRow,
    check_announced,
    make_parameters,
    make_svi,
)
from pyro_vaeflow.inference.traces import Args, as_args, take_rows
from pyro_vaeflow.validation import check_size, warn

ADAM = partial(torch.optim.Adam, fused=True)  # one call for all parameters


class NonFiniteError(ArithmeticError):
    """A loss or gradient is not finite; ``history`` holds the steps before it."""

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


def train(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_steps: int,
    batch_size: int = 256,
    learning_rate: float | Schedule | None = None,
    schedule: Schedule | None = None,
    loss: ELBO | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | PyroOptim = ADAM,
    clip_norm: float | None = None,
    weights: torch.Tensor | None = None,
    held_out: Any = None,
    eval_every: int = 100,
    patience: int | None = None,
    plate: str = "data",
    seed: int = 0,
    progress: bool = True,
    checkpoint: Callback | str | Path | None = None,
    callbacks: Iterable[Callback | Callable[[Record], object]] = (),
) -> History:
    r"""Fits `model` and `guide` to the rows of `x` by SVI; returns the history, in nats per row.

    Minimises :math:`-E_q[\log p(x|z)] + \beta_t\,KL(q(z|x)\,\|\,p(z))`, averaged over a mini-batch,
    with ``pyro.infer.SVI``. Parameters of modules change in place; those of ``pyro.param`` belong
    to the pair (see `param_scope`), and Pyro's store shows them. A second call goes on from there.
    The programs run at every step; Pyro's validation runs once, before the first, and is off in the
    loop.

    Ctrl-C ends training after the step at hand, with a warning; a second Ctrl-C ends it at once.

    Args:
        model, guide: Pyro programs that meet the contract of `pyro_vaeflow.inference.contract`.
        x: tensor ``(num_data, ...)``, or a tuple of arguments that starts with it.
        num_steps: mini-batches.
        batch_size: rows a batch, drawn without replacement within a pass over the data.
        learning_rate: at least 0; a number, or a schedule such as ``cosine(num_steps, 1e-3, 0.0)``.
            By default that of a Pyro optimizer, or 0.001.
        schedule: beta as a function of the step, 1 by default; with `CapacityELBO`, the capacity.
        loss: a trace-based loss of ``pyro.infer``; by default ``Trace_ELBO()``, or
            ``TraceEnum_ELBO(...)`` where the programs enumerate discrete latents.
        optimizer: makes a torch optimizer from parameters and ``lr``, such as ``torch.optim.SGD``;
            or one of Pyro's, such as ``pyro.optim.ClippedAdam({"lr": 0.01})``, whose schedulers
            take a step after each mini-batch.
        clip_norm: the largest norm of the whole gradient, above 0; none by default.
        weights: ``(num_data,)``; rows are drawn in proportion, with replacement.
        held_out: further rows, like `x`; the programs end with the parameters and buffers of the
            evaluation that gave the best ELBO of these: see `BestOnHeldOut`.
        eval_every: steps from one evaluation to the next.
        patience: stop after as many evaluations without a better one.
        plate: the name of the plate of rows.
        seed: of the batches, the draws, and start values that the programs draw themselves.
        progress: whether to show a bar; `score` shows none by default.
        checkpoint: a folder, or a `Checkpoint`. What the steps change is kept there, and the same
            call with programs made as before, in a new process say, resumes from there: it ends
            with the parameters and history of a training that nothing stopped, bit for bit.
        callbacks: called after each step: functions of its record, or `Callback` objects.

    Raises:
        ValueError: the contract is broken, nothing can be trained, or an argument is out of range.
        CheckpointError: the folder holds another training, is damaged, or is in use.
        NonFiniteError: a loss or gradient is not finite; names the step, the site and the largest
            log-scale of the guide.

    Warns:
        InterruptedWarning: Ctrl-C was pressed; says how to resume.

    Example:
        >>> from pyro_vaeflow import Guide, Model, cyclical, train
        >>> history = train(Model(3), Guide(3), torch.rand(64, 3), num_steps=20, batch_size=32,
        ...                 schedule=cyclical(20), progress=False)
        >>> history.frame[["loss", "elbo", "kl"]].shape
        (20, 3)
    """
    args = _checked_rows(x, held_out, num_steps, batch_size, eval_every, patience)
    with torch.inference_mode(False), param_scope(model, guide):
        way = check_contract(model, guide, args, plate=plate, seed=seed, training=True)
    batches = Batches(args[0], batch_size, weights, seed)
    optimizer, rate = optimizer_and_rate(optimizer, learning_rate, num_steps)
    level = as_schedule(schedule)
    last = LastTraces()
    loss = last.watch(make_loss(loss, way))
    annealed = loss.at if isinstance(loss, CapacityELBO) else anneal
    watchers = _watchers(held_out, eval_every, patience, plate, callbacks, checkpoint, progress)
    # what decides the numbers, and so which training a checkpoint is of
    call: dict[str, Any] = {"num_steps": num_steps, "clip_norm": clip_norm}
    call |= {"batch_size": batches.batch_size, "plate": plate, "seed": seed}
    call |= {"learning_rate": rate, "schedule": level, "loss": loss, "weights": batches.weights}
    call |= {"x": args, "held_out": held_out, "eval_every": eval_every, "patience": patience}
    hold_memory()
    with (
        torch.inference_mode(False),  # gradients, whatever the caller has switched off
        param_scope(model, guide),
        module_mode(model, guide, training=True),
        seeded(seed),
        pyro.validation_enabled(False),
        ExitStack() as stack,
    ):
        called = make_parameters(model, guide, take_rows(args, batches(0)), seed)
        per_row = PerRow(loss, plate, batches.batch_size, len(args[0]), way.unasked)
        parameters = named_parameters(model, guide)
        check_announced(called, parameters)
        optim = OneOptimizer(parameters, optimizer, clip_norm, per_row.divisor)
        svi = make_svi(model, guide, optim, loss)
        run = Run(model, guide, optim, num_steps, call, called, watchers)
        for watcher in watchers:
            stack.callback(watcher.close)
            watcher.start(run)
        start = time.perf_counter() - (run.records[-1]["seconds"] if run.records else 0.0)
        while run.step < num_steps and not run.stopped:
            batch, beta = take_rows(args, batches(run.step)), float(level(run.step))
            optim.set_learning_rate(rate(run.step))
            with per_row, annealed(beta):
                value = np.sum(svi.step(*batch)).item() / per_row.divisor
            record = _record(run, value, beta, last, plate)
            run.records.append(record | {"seconds": time.perf_counter() - start})
            for watcher in watchers:
                watcher.after_step(run)
        for watcher in reversed(watchers):
            watcher.end(run)
    show(model, guide)
    if run.interrupted:
        warn(_how_to_resume(run, checkpoint), InterruptedWarning)
    return _history(run)


def _checked_rows(
    x: Any, held_out: Any, num_steps: int, batch_size: int, eval_every: int, patience: int | None
) -> Args:
    """The rows as the programs' arguments; refuses what no training can be made of."""
    check_size("num_steps", num_steps)
    check_size("batch_size", batch_size)
    check_size("eval_every", eval_every)
    if patience is not None:
        check_size("patience", patience)
        if held_out is None:
            raise ValueError(f"patience={patience} needs held_out rows to evaluate")
    args = as_args(x)
    others = args if held_out is None else as_args(held_out)
    for name, rows in {"x": args, "held_out": others}.items():
        if not len(rows[0]):
            raise ValueError(f"{name} has no rows")
    shape, like = (tuple(rows[0].shape[1:]) for rows in (others, args))
    if shape != like:
        raise ValueError(f"held_out must have rows like those of x, {like}, got {shape}")
    return args


def _watchers(
    held_out: Any,
    eval_every: int,
    patience: int | None,
    plate: str,
    callbacks: Iterable[Callback | Callable[[Record], object]],
    checkpoint: Callback | str | Path | None,
    progress: bool,
) -> list[Callback]:
    """All callbacks of a training in their order: what a checkpoint keeps comes before it."""
    watchers: list[Callback] = []
    if held_out is not None:
        watchers.append(BestOnHeldOut(held_out, eval_every, patience, plate))
    watchers += [c if isinstance(c, Callback) else OfRecords(c) for c in callbacks]
    watchers.append(CtrlC())
    if checkpoint is not None:
        from pyro_vaeflow.inference.checkpoint import Checkpoint

        watchers.append(checkpoint if isinstance(checkpoint, Callback) else Checkpoint(checkpoint))
    return watchers + ([ProgressBar()] if progress else [])


def _record(run: Run, loss: float, beta: float, last: LastTraces, plate: str) -> Record:
    """What `History.frame` has of the step just taken.

    Raises:
        NonFiniteError: the loss or the gradient is not finite.
    """
    optim = run.optim
    if not (math.isfinite(loss) and math.isfinite(optim.grad_norm)):
        raise NonFiniteError(f"step {run.step}: {last.explain(loss, optim)}", _history(run))
    with torch.no_grad():
        terms = terms_of_traces(last.model, last.guide, plate)
    log_likelihood, kl = terms.log_likelihood.mean().item(), terms.kl.mean().item()
    return {
        "step": run.step,
        "loss": loss,
        "elbo": log_likelihood - kl,
        "log_likelihood": log_likelihood,
        "kl": kl,
        "anneal": beta,
        "learning_rate": optim.learning_rate,
        "grad_norm": optim.grad_norm,
        "held_out_elbo": math.nan,
    }


def _how_to_resume(run: Run, checkpoint: Callback | str | Path | None) -> str:
    advice = "with a folder for its checkpoint, the same call could resume it later"
    if checkpoint is not None:
        advice = f"the same call resumes from {getattr(checkpoint, 'folder', checkpoint)}"
    return (
        f"Ctrl-C ended training after {run.step} of {run.num_steps} steps; the programs can be "
        f"used as they are, and {advice}"
    )


def _history(run: Run) -> History:
    frame = pd.DataFrame(run.records, columns=RECORD)
    return History(frame, run.best_step, run.resumed_at, run.interrupted)
