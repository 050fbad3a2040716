"""Stochastic variational inference of any pair of Pyro programs, in one readable loop."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from tqdm.auto import tqdm

from pyro_vaeflow.inference.annealing import Schedule, constant
from pyro_vaeflow.inference.contract import Args, as_args, check_contract, run_once, take_rows
from pyro_vaeflow.inference.fingerprint import plain_text
from pyro_vaeflow.inference.group import Group, joined
from pyro_vaeflow.inference.group_training import check_group, lost_group
from pyro_vaeflow.inference.interrupt import InterruptedWarning, ctrl_c
from pyro_vaeflow.inference.memory import hold_memory
from pyro_vaeflow.inference.parameters import (
    Program,
    called_modules,
    module_mode,
    named_parameters,
    param_scope,
    seeded,
)
from pyro_vaeflow.inference.replay import WORTH, ReplayedStep, can_replay
from pyro_vaeflow.inference.resume import Checkpoint, folder_of, keeping
from pyro_vaeflow.inference.run_state import RECORD, Run
from pyro_vaeflow.inference.scoring import score
from pyro_vaeflow.inference.svi import LastTraces, OneOptimizer, Report, SVIStep
from pyro_vaeflow.inference.watchers import tell
from pyro_vaeflow.validation import check_size

ADAM = partial(torch.optim.Adam, fused=True)  # fused: one call for all parameters


@dataclass(frozen=True)
class History:
    """What `train` saw.

    Attributes:
        frame: one row a step: ``loss`` (annealed, nats a row), ``elbo`` (the true bound, nats a
            row; it leaves out the KL of a latent that all rows share) and its parts
            ``log_likelihood`` and ``kl``, ``anneal`` (beta or capacity),
            ``learning_rate``, ``grad_norm`` (before clipping), ``seconds`` since the start, and
            ``held_out_elbo`` where it was evaluated, else NaN.
        best_step: the step whose parameters the programs hold, if held-out rows chose it.
        resumed_at: the step that this call began with: above 0 if it went on from a checkpoint.
        interrupted: whether Ctrl-C was pressed.
    """

    frame: pd.DataFrame
    best_step: int | None = None
    resumed_at: int = 0
    interrupted: bool = False


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
    learning_rate: float | Schedule = 1e-3,
    schedule: Schedule | None = None,
    loss: ELBO | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    clip_norm: float | None = None,
    weights: torch.Tensor | None = None,
    held_out: Any = None,
    eval_every: int = 100,
    patience: int | None = None,
    plate: str = "data",
    seed: int = 0,
    progress: bool = True,
    checkpoint: Checkpoint | str | Path | None = None,
    replay: bool | None = None,
) -> History:
    r"""Fits `model` and `guide` to the rows of `x` by SVI; returns the history, in nats a row.

    Minimises :math:`-E_q[\log p(x|z)] + \beta_t\,KL(q(z|x)\,\|\,p(z))`, averaged over a mini-batch,
    with ``pyro.infer.SVI``. Parameters of modules change in place; those of ``pyro.param`` belong
    to the pair (see `param_scope`). A second call goes on from there. Pyro's validation runs once,
    before the first step, and is off in the loop.

    Inside `join_group` the processes of the group share out each batch; each makes this call, and
    all end with the parameters that one process would have, up to rounding.

    Ctrl-C ends training after the step at hand, with a warning; a second Ctrl-C ends it at once.

    Args:
        model, guide: Pyro programs that meet the contract of `pyro_vaeflow.inference.contract`.
        x: tensor ``(num_data, ...)``, or a tuple of arguments that starts with it.
        num_steps: mini-batches.
        batch_size: rows a batch, drawn without replacement within a pass over the data.
        learning_rate: at least 0; a number, or a schedule such as ``cosine(num_steps, 1e-3, 0.0)``.
        schedule: beta as a function of the step, 1 by default; with `CapacityELBO`, the capacity.
        loss: a trace-based loss of ``pyro.infer``, ``Trace_ELBO()`` by default.
        optimizer: makes a torch optimizer from parameters and ``lr``: Adam by default, or
            ``pyro.optim.clipped_adam.ClippedAdam``, say.
        clip_norm: the largest norm of the whole gradient, above 0; none by default.
        weights: ``(num_data,)``; rows are drawn in proportion, with replacement.
        held_out: further rows, like `x`; the programs end with the parameters and buffers of the
            evaluation that gave the best ELBO of these.
        eval_every: steps from one evaluation to the next.
        patience: stop after as many evaluations without a better one.
        plate: the name of the plate of rows.
        seed: of the batches, the draws, and start values that the programs draw themselves.
        progress: whether to show a bar; `score` shows none by default.
        checkpoint: a folder, or a `Checkpoint`. What the steps change is kept there, and the same
            call with programs made as before, in a new process say, goes on from there: it ends
            with the parameters and history of a training that nothing stopped, bit for bit.
        replay: whether a step's torch operations are recorded once and replayed, without the
            programs: the same numbers in less time, if nothing that Python decides changes from
            step to step, in the programs, the schedules or what watches. By default only in long
            trainings that nothing watches of programs of which that is known: those whose parts
            all come with this package, Pyro or torch.

    Raises:
        ValueError: the contract is broken, there is nothing to train, or an argument is out of
            range.
        CheckpointError: the folder holds another training, is damaged, or is in use.
        GroupError: another process of the group has ended; says what to go on from.
        NonFiniteError: a loss or gradient is not finite; names the step, the site and the largest
            log-scale of the guide.

    Warns:
        InterruptedWarning: Ctrl-C was pressed; says how to go on.
        NoReplayWarning: with ``replay=True``, that it cannot be done, and why.

    Example:
        >>> from pyro_vaeflow import Guide, Model, cyclical, train
        >>> history = train(Model(3), Guide(3), torch.rand(64, 3), num_steps=20, batch_size=32,
        ...                 schedule=cyclical(20), progress=False)
        >>> history.frame[["loss", "elbo", "kl"]].shape
        (20, 3)
    """
    args, group = as_args(x), joined()
    num_data, device = len(args[0]), args[0].device
    check_size("num_steps", num_steps)
    check_size("batch_size", batch_size)
    check_size("eval_every", eval_every)
    if patience is not None:
        check_size("patience", patience)
        if held_out is None:
            raise ValueError(f"patience={patience} needs held_out rows to evaluate")
    for name, rows in {"x": args, "held_out": args if held_out is None else held_out}.items():
        if not len(as_args(rows)[0]):
            raise ValueError(f"{name} has no rows")
        if (shape := as_args(rows)[0].shape[1:]) != args[0].shape[1:]:
            raise ValueError(
                f"held_out must have rows like those of x, {tuple(args[0].shape[1:])}, got "
                f"{tuple(shape)}"
            )
    # Held-out rows are scored one by one: then no latent may be outside the plate.
    with param_scope(model, guide):
        check_contract(model, guide, args, plate=plate, seed=seed, shared_latents=held_out is None)
    batch_size = min(batch_size, num_data)
    draw = _Batches(num_data, batch_size, weights, seed)
    loss = Trace_ELBO() if loss is None else loss
    level_at = constant(1.0) if schedule is None else schedule
    if not callable(level_at):
        raise TypeError(
            f"schedule must be a function of the step, got {schedule!r}; try linear(100)"
        )
    rate_at = learning_rate if callable(learning_rate) else constant(learning_rate)
    call = {
        "num_steps": num_steps,
        "batch_size": batch_size,
        "learning_rate": rate_at,
        "schedule": level_at,
        "loss": plain_text(loss),
        "clip_norm": clip_norm,
        "x": args,
        "weights": draw.weights,
        "held_out": held_out,
        "eval_every": eval_every,
        "patience": patience,
        "plate": plate,
        "seed": seed,
    }
    known = replay is None and can_replay(model, guide)
    hold_memory()
    start = time.perf_counter()

    with (
        param_scope(model, guide),
        module_mode(model, guide, training=True),
        seeded(seed),
        lost_group(checkpoint),
        keeping(checkpoint if group.first else None, call) as keeper,
        ctrl_c() as interruption,
    ):
        with called_modules() as called:
            _make_parameters(model, guide, take_rows(args, draw(0).to(device)), seed)
        check_group(group, call, called)
        optim = OneOptimizer(named_parameters(model, guide), optimizer, clip_norm, group)
        svi_step = SVIStep(
            model,
            guide,
            optim,
            loss,
            plate=plate,
            batch_size=batch_size,
            num_data=num_data,
            group=group,
        )
        run = Run(model, guide, called, optim, device)
        keeper.take_up(run, group)
        records, best, first = run.records, run.best, len(run.records)
        start -= records[-1]["seconds"] if records else 0.0
        take_step: Callable[[Args, float], Report] = svi_step
        if replay or (known and num_steps - first >= WORTH):
            take_step = ReplayedStep(svi_step, model, guide, told=bool(replay))
        finished = True
        steps = range(first, first if keeper.finished else num_steps)
        own = group.span(batch_size)
        share = (own.stop - own.start) / batch_size
        shown = progress and group.first
        bar = tqdm(steps, "train", num_steps, initial=first, unit="step", disable=not shown)
        for step in bar:
            optim.set_learning_rate(rate_at(step))
            batch = take_rows(args, draw(step)[own].to(device))
            value, log_likelihood, kl = take_step(batch, level_at(step))
            found = [value, log_likelihood * share, kl * share, interruption.pressed]
            value, log_likelihood, kl, pressed = group.total(found)
            if not (math.isfinite(value) and math.isfinite(optim.grad_norm)):
                message = _explain(step, value, optim, svi_step.last)
                raise NonFiniteError(message, History(_frame(records)))
            record = {
                "step": step,
                "loss": value,
                "elbo": log_likelihood - kl,
                "log_likelihood": log_likelihood,
                "kl": kl,
                "anneal": float(level_at(step)),
                "learning_rate": float(rate_at(step)),
                "grad_norm": optim.grad_norm,
                "seconds": time.perf_counter() - start,
                "held_out_elbo": math.nan,
            }
            records.append(record)
            if step % 20 == 0:
                bar.set_postfix(loss=f"{value:.3f}", elbo=f"{record['elbo']:.3f}", refresh=False)
            finished = step + 1 == num_steps
            if held_out is not None and ((step + 1) % eval_every == 0 or finished):
                record["held_out_elbo"] = _elbo(model, guide, as_args(held_out), plate, group)
                best.see(step, record["held_out_elbo"])
            if group.first:
                tell(record)
            if patience is not None and best.evaluations_since >= patience:
                finished = True
                break
            interruption.pressed |= bool(pressed)  # in any process of the group
            if interruption.pressed:
                break
            keeper.after(step)
        keeper.end(finished)
    if interruption.pressed:
        warnings.warn(_how_to_go_on(len(records), num_steps, checkpoint), InterruptedWarning, 2)
    return History(_frame(records), best.step, first, interruption.pressed)


def _how_to_go_on(done: int, num_steps: int, checkpoint: Checkpoint | str | Path | None) -> str:
    advice = "with a folder for its checkpoint, the same call could go on later"
    if checkpoint is not None:
        advice = f"the same call goes on from {folder_of(checkpoint)}"
    return (
        f"Ctrl-C ended training after {done} of {num_steps} steps; the programs can be used as "
        f"they are, and {advice}"
    )


def _frame(records: list[dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame(records, columns=RECORD)


def _make_parameters(model: Program, guide: Program, batch: Args, seed: int) -> None:
    """Runs the programs on a batch, so that start values taken from the data see a whole one.

    It leaves the random numbers of the steps, and running means of modules, as they are.
    """
    with module_mode(model, guide, training=False), seeded(seed):
        with torch.no_grad(), pyro.validation_enabled(False):
            run_once(model, guide, batch)


def _elbo(model: Program, guide: Program, args: Args, plate: str, group: Group) -> float:
    """Held-out ELBO in nats a row, from the same noise at each evaluation."""
    own = take_rows(args, group.span(len(args[0])))
    elbo = score(model, guide, own, num_samples=8, plate=plate).elbo
    if group.size == 1:
        return float(elbo.mean())
    return group.total([elbo.double().sum().item()])[0] / len(args[0])


def _explain(step: int, value: float, optim: OneOptimizer, last: LastTraces) -> str:
    site, (widest, log_scale) = last.odd_site(), last.largest_log_scale()
    what = f"the loss is {value}" if not math.isfinite(value) else "the gradient is not finite"
    where = f" at site {site!r}" if site else f" for parameters {optim.not_finite[:3]}"
    if widest is not None:
        where += f"; the guide's largest log-scale is {log_scale:.3g} at site {widest!r}"
    advice = "Try a lower learning_rate, a clip_norm, fewer flows or scaled columns"
    return f"step {step}: {what}{where}. {advice}"


class _Batches:
    """The rows of a step, a function of the seed and the step alone: a run can go on anywhere."""

    def __init__(
        self, num_data: int, batch_size: int, weights: torch.Tensor | None, seed: int
    ) -> None:
        weights = None if weights is None else torch.as_tensor(weights)
        if weights is not None and not (
            weights.shape == (num_data,) and (weights >= 0).all() and 0 < weights.sum() < math.inf
        ):
            raise ValueError(
                f"weights must be {num_data} numbers of at least 0, one a row of x, not all 0; got "
                f"shape {tuple(weights.shape)} and sum {weights.sum():.3g}"
            )
        self.num_data, self.batch_size = num_data, batch_size
        self.weights, self.seed = weights, seed
        self.per_pass = num_data // batch_size
        self.current: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def __call__(self, step: int) -> torch.Tensor:
        number, place = divmod(step, self.per_pass)
        if self.current[0] != number:
            self.current = number, self._pass(number)
        return self.current[1][place * self.batch_size : (place + 1) * self.batch_size]

    def _pass(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        if self.weights is None:
            return torch.randperm(self.num_data, generator=generator)
        count = self.per_pass * self.batch_size
        return torch.multinomial(self.weights.cpu(), count, replacement=True, generator=generator)
