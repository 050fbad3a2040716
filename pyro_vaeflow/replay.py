"""Steps of training that replay the torch operations of an earlier one in place of the programs."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.poutine.runtime import am_i_wrapped
from torch import nn
from torch.func import functional_call

from pyro_vaeflow.annealing import anneal
from pyro_vaeflow.isolation import Program, modules
from pyro_vaeflow.recorded import recorded
from pyro_vaeflow.svi import Report, SVIStep
from pyro_vaeflow.traces import Args, row_terms, sample_sites

WORTH = 1000  # steps: a recording takes as long as some 500 of them save
CHECKED = 2  # steps that are taken both ways: other rows, another beta, moved parameters
KNOWN = ("torch", "pyro", "pyro_vaeflow")


class NoReplayWarning(UserWarning):
    """The steps of a training cannot be replayed."""


def can_replay(model: Program, guide: Program) -> bool:
    """Whether a run of the programs is known to be torch operations alone, the same in each step.

    That is known of modules all of whose parts come with this package, Pyro or torch, and that no
    hook and no effect handler watches.
    """
    pair = modules(model, guide)
    parts = [part for module in pair for part in module.modules()]
    are_modules = all(any(program is module for module in pair) for program in (model, guide))
    return are_modules and not am_i_wrapped() and all(map(_is_known, parts))


def _is_known(part: nn.Module) -> bool:
    hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks
    return type(part).__module__.partition(".")[0] in KNOWN and not any(hooks)


class ReplayedStep:
    """Takes the steps of an `SVIStep`, bit for bit, without Pyro and autograd in most of them.

    The first is taken as it is, and recorded: draws, log probabilities, gradients. Two more are
    taken both ways. Where these differ, or nothing can be recorded, all steps are taken as they
    are; else the rest are replayed with their rows, their beta and the parameters of the time.

    Args:
        told: whether a warning says that steps are not replayed.

    Warns:
        NoReplayWarning: with `told`; says why.
    """

    def __init__(self, step: SVIStep, model: Program, guide: Program, told: bool) -> None:
        self.step, self.told = step, told
        self.pair = _Gradients(step, modules(model, guide))
        learned = [(name, p) for name, p in self.pair.named_parameters() if p.requires_grad]
        self.names, self.parameters = [name for name, _ in learned], [p for _, p in learned]
        self.take: Callable[[Args, float], Report] = self._record
        self.num_checked = 0

    def __call__(self, batch: Args, level: float) -> Report:
        """Takes the step with these rows at this beta."""
        return self.take(batch, level)

    def _record(self, batch: Args, level: float) -> Report:
        before = [buffer.clone() for buffer in self.pair.buffers()]
        report = self.step(batch, level)
        state = torch.get_rng_state()
        reason = self._obstacle(batch, before)
        try:
            if not reason:
                self.replay = recorded(self._gradients(batch), *self._inputs(batch, level))
                self.take = self._take_twice
        except Exception as error:  # whatever keeps it from being recorded, training goes on
            reason = str(error)
        finally:
            torch.set_rng_state(state)
        if reason:
            self._give_up(reason)
        return report

    def _obstacle(self, batch: Args, buffers: list[torch.Tensor]) -> str | None:
        loss, group = self.step.loss, self.step.group
        if type(loss) is not Trace_ELBO or (
            loss.num_particles > 1 and not loss.vectorize_particles
        ):
            return "the loss is not Trace_ELBO with one particle or vectorised ones"
        if group.size > 1 or batch[0].device.type != "cpu":
            return "it is not one process on the CPU that trains"
        if len(self.parameters) != len(self.step.optim.parameters):
            return "there are parameters of pyro.param"
        if not all(map(torch.equal, buffers, self.pair.buffers())):
            return "the modules have buffers that a step changes"
        return None

    def _gradients(self, batch: Args) -> Callable[..., list[torch.Tensor | None]]:
        """What a step computes, as a function of the tensors of `_inputs`."""

        def gradients(level: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor | None]:
            values, rows = tensors[: len(self.names)], iter(tensors[len(self.names) :])
            args = [next(rows) if isinstance(arg, torch.Tensor) else arg for arg in batch]
            named = dict(zip(self.names, values, strict=True))
            # With tie_weights torch leaves its stand-ins in a part that has two names, as a
            # spline's network has. A parameter of two parts fails the comparison of steps.
            return functional_call(self.pair, named, (level, values, args), tie_weights=False)

        return gradients

    def _inputs(self, batch: Args, level: float) -> list[torch.Tensor]:
        # float64, as Python's numbers are: products of scales are then the same to the last bit
        tensors = [arg for arg in batch if isinstance(arg, torch.Tensor)]
        return [torch.tensor(level, dtype=torch.float64), *self.parameters, *tensors]

    def _take_twice(self, batch: Args, level: float) -> Report:
        state = torch.get_rng_state()
        report = self._replayed(batch, level)
        norm = self.step.optim.norm().item()
        torch.set_rng_state(state)
        self.step.optim.torch_optimizer.zero_grad()
        taken = self.step(batch, level)
        self.num_checked += 1
        if (*report, norm) != (*taken, self.step.optim.grad_norm):
            self._give_up(f"a replayed step gave {report}, where a step gives {taken}")
        elif self.num_checked == CHECKED:
            self.take = self._take_replayed
        return taken

    def _take_replayed(self, batch: Args, level: float) -> Report:
        state = torch.get_rng_state()
        report = self._replayed(batch, level)
        self.step.optim(())
        if not (math.isfinite(report[0]) and math.isfinite(self.step.optim.grad_norm)):
            torch.set_rng_state(state)
            with self.step.at(level):  # its traces tell what has gone wrong
                self.step.svi.evaluate_loss(*batch)
        return report

    def _replayed(self, batch: Args, level: float) -> Report:
        """The report of a step; the parameters' gradients are left in them."""
        with torch.no_grad():
            report, *gradients = self.replay(*self._inputs(batch, level))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        loss, log_likelihood, kl = report.tolist()
        return loss, log_likelihood, kl

    def _give_up(self, reason: str) -> None:
        self.take = self.step
        if self.told:
            reason = reason.partition("\n")[0]
            warnings.warn(f"steps are not replayed: {reason:.200}", NoReplayWarning, stacklevel=5)


class _Gradients(nn.Module):
    """The numbers of a step as a module, for `functional_call` to give it other parameters."""

    def __init__(self, step: SVIStep, parts: list[nn.Module]) -> None:
        super().__init__()
        self.step, self.parts = step, nn.ModuleList(parts)

    def forward(
        self, level: torch.Tensor, values: tuple[torch.Tensor, ...], args: list[Any]
    ) -> list[torch.Tensor | None]:
        """Loss, log-likelihood and KL, nats a row, ``(3,)``; then the gradient of each value."""
        step, loss = self.step, self.step.loss
        programs = map(loss._vectorized_num_particles, (step.svi.model, step.svi.guide))
        annealed: Any = anneal(1.0)
        annealed.scale = level  # a tensor: the only number that changes from step to step
        with pyro.validation_enabled(False), step.per_row, annealed:
            model_trace, guide_trace = Trace_ELBO._get_trace(loss, *programs, args, {})
        # As Trace_ELBO has them: the bound a sum of Python's numbers, and what it differentiates.
        bound: Any = 0.0
        surrogate: Any = 0.0
        for site in sample_sites(model_trace):
            bound = bound + site["log_prob_sum"].double()
            surrogate = surrogate + site["log_prob_sum"]
        for site in sample_sites(guide_trace):
            if not site["fn"].has_rsample:
                raise ValueError(f"site {site['name']!r} is not reparameterised")
            bound = bound - site["log_prob_sum"].double()
            surrogate = surrogate - site["score_parts"].entropy_term.sum()
        terms = row_terms(model_trace, guide_trace, plate=step.plate)
        report = torch.stack(
            [-bound / loss.num_particles, terms.log_likelihood.mean(), terms.kl.mean()]
        )
        gradients = torch.autograd.grad(-surrogate / loss.num_particles, values, allow_unused=True)
        return [report, *map(_own, gradients)]


def _own(gradient: torch.Tensor | None) -> torch.Tensor | None:
    """A gradient in memory of its own, row after row, as ``.grad`` holds it."""
    return None if gradient is None else gradient.clone(memory_format=torch.contiguous_format)
