"""Steps of training that replay the torch operations of an earlier one in place of the programs."""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.poutine.runtime import am_i_wrapped
from pyro.util import get_rng_state, set_rng_state
from torch import nn
from torch.func import functional_call
from torch.nn.modules import module as torch_module

from pyro_vaeflow.inference.annealing import anneal
from pyro_vaeflow.inference.contract import Args, row_terms, sample_sites
from pyro_vaeflow.inference.parameters import Program, modules
from pyro_vaeflow.inference.recorded import recorded
from pyro_vaeflow.inference.svi import Report, SVIStep
from pyro_vaeflow.inference.watchers import watched

WORTH = 500  # steps: a recording takes as long as some 200 of them save
CHECKED = 2  # steps that are taken both ways: other rows, another beta, moved parameters
KNOWN = {"torch", "pyro", "pyro_vaeflow", "builtins", "abc", "typing"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = [f"_global{name}" for name in HOOKS]


class NoReplayWarning(UserWarning):
    """The steps of a training cannot be replayed."""


def can_replay(model: Program, guide: Program) -> bool:
    """Whether a run of the programs is known to be torch operations alone, the same in each step.

    That is known of modules all of whose parts come with this package, Pyro or torch, if no hook,
    effect handler or callback sees them.
    """
    pair = modules(model, guide)
    are_modules = all(any(program is module for module in pair) for program in (model, guide))
    seen = am_i_wrapped() or watched() or any(getattr(torch_module, n, None) for n in GLOBAL_HOOKS)
    return are_modules and not seen and all(_is_known(p) for m in pair for p in m.modules())


def _is_known(part: nn.Module) -> bool:
    own = vars(part)
    code = [*type(part).__mro__, *(value for value in own.values() if callable(value))]
    homes = {(getattr(each, "__module__", None) or "?").partition(".")[0] for each in code}
    return homes <= KNOWN and "forward" not in own and not any(own.get(name) for name in HOOKS)


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
        self.numbers = _Numbers(step, modules(model, guide))
        learned = [(name, p) for name, p in self.numbers.named_parameters() if p.requires_grad]
        self.names, self.parameters = [name for name, _ in learned], [p for _, p in learned]
        self.take: Callable[[Args, float], Report] = self._record
        self.num_checked = 0

    def __call__(self, batch: Args, level: float) -> Report:
        """Takes the step with these rows at this beta."""
        return self.take(batch, level)

    def _record(self, batch: Args, level: float) -> Report:
        before = [buffer.clone() for buffer in self.numbers.buffers()]
        report = self.step(batch, level)
        reason = self._obstacle(batch, before)
        state = get_rng_state()
        try:
            if reason is None:
                self.replay = recorded(self._of_tensors(batch), *self._inputs(batch, level))
                self.take = self._take_twice
        except Exception as error:  # whatever keeps it from being recorded, training goes on
            reason = f"{type(error).__name__}: {error}"
        finally:
            set_rng_state(state)
        if reason is not None:
            self._give_up(reason)
        return report

    def _obstacle(self, batch: Args, buffers: list[torch.Tensor]) -> str | None:
        loss, group, parts = self.step.loss, self.step.group, list(self.numbers.modules())
        if type(loss) is not Trace_ELBO or (
            loss.num_particles > 1 and not loss.vectorize_particles
        ):
            return "the loss is not Trace_ELBO with one particle or vectorised ones"
        if group.size > 1 or batch[0].device.type != "cpu":
            return "it is not one process on the CPU that trains"
        if len(self.parameters) != len(self.step.optim.parameters):
            return "there are parameters of pyro.param, or of modules behind functions"
        if any(getattr(part, "_pyro_params", None) for part in parts):
            return "there is a PyroParam"
        if max(Counter(id(p) for part in parts for p in part._parameters.values()).values()) > 1:
            return "two parts have a parameter in common"
        if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self.parameters):
            return "a parameter has a hook"
        if not all(map(torch.equal, buffers, self.numbers.buffers())):
            return "the modules have buffers that a step changes"
        return None

    def _of_tensors(self, batch: Args) -> Callable[..., list[torch.Tensor | None]]:
        """What a step computes, as a function of the tensors of `_inputs`."""

        def numbers(level: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor | None]:
            values, rows = tensors[: len(self.names)], iter(tensors[len(self.names) :])
            args = [next(rows) if isinstance(arg, torch.Tensor) else arg for arg in batch]
            named = dict(zip(self.names, values, strict=True))
            # With tie_weights torch leaves its stand-ins in a part that has two names, as a
            # spline's network has.
            return functional_call(self.numbers, named, (level, values, args), tie_weights=False)

        return numbers

    def _inputs(self, batch: Args, level: float) -> list[torch.Tensor]:
        # float64, as Python's numbers are: products of scales are then the same to the last bit
        beta = torch.tensor(anneal(level).scale, dtype=torch.float64)
        return [beta, *self.parameters, *(arg for arg in batch if isinstance(arg, torch.Tensor))]

    def _take_twice(self, batch: Args, level: float) -> Report:
        if not level:  # the KL's gradient is nothing then, right or wrong
            return self.step(batch, level)
        optim, state = self.step.optim, get_rng_state()
        replayed: tuple[Any, list[torch.Tensor | None]]
        try:
            replayed = self._replayed(batch, level), self._gradients()
        except Exception as error:  # shapes that go by the numbers, say
            replayed = f"{type(error).__name__}: {error}", []
        set_rng_state(state)
        optim.torch_optimizer.zero_grad()
        gradients: list[torch.Tensor | None] = []
        optim.before_step = lambda: gradients.extend(self._gradients())
        taken = self.step(batch, level)
        optim.before_step = lambda: None
        self.num_checked += 1
        if replayed[0] != taken or not all(map(_same, replayed[1], gradients)):
            self._give_up(f"a replayed step gave {replayed[0]}, where a step gives {taken}")
        elif self.num_checked == CHECKED:
            self.take = self._take_replayed
        return taken

    def _take_replayed(self, batch: Args, level: float) -> Report:
        state = torch.get_rng_state()
        report = self._replayed(batch, level)
        finite = math.isfinite(report[0])
        if not finite:
            self._trace_again(batch, level, state)
        self.step.optim(())
        if finite and not math.isfinite(self.step.optim.grad_norm):
            self._trace_again(batch, level, state)
        return report

    def _trace_again(self, batch: Args, level: float, state: torch.Tensor) -> None:
        """Leaves the traces of a step that went wrong, for `train` to say what did."""
        torch.set_rng_state(state)
        with self.step.at(level):
            self.step.svi.evaluate_loss(*batch)

    def _replayed(self, batch: Args, level: float) -> Report:
        """The report of a step; the parameters' gradients are left in them."""
        with torch.no_grad():
            report, *gradients = self.replay(*self._inputs(batch, level))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        loss, log_likelihood, kl = report.tolist()
        return loss, log_likelihood, kl

    def _gradients(self) -> list[torch.Tensor | None]:
        """Copies: the optimizer clips them in place."""
        return [None if p.grad is None else p.grad.clone() for p in self.parameters]

    def _give_up(self, reason: str) -> None:
        self.take = self.step
        if self.told:
            reason = reason.partition("\n")[0]
            warnings.warn(f"steps are not replayed: {reason:.200}", NoReplayWarning, stacklevel=5)


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other) and one.stride() == other.stride()


class _Numbers(nn.Module):
    """What a step computes, as a module, for `functional_call` to give it other parameters."""

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
        with step.under(annealed):
            model_trace, guide_trace = Trace_ELBO._get_trace(loss, *programs, args, {})
        # As Trace_ELBO has them: the bound a sum of Python's numbers, and what it differentiates.
        bound: Any = 0.0
        surrogate: Any = 0.0
        for site in sample_sites(model_trace):
            bound = bound + site["log_prob_sum"].double()
            surrogate = surrogate + site["log_prob_sum"]
        for site in sample_sites(guide_trace):
            if not is_identically_zero(site["score_parts"].score_function):
                raise ValueError(f"site {site['name']!r} is not reparameterised")
            bound = bound - site["log_prob_sum"].double()
            surrogate = surrogate - site["score_parts"].entropy_term.sum()
        terms = row_terms(model_trace, guide_trace, plate=step.plate)
        report = torch.stack(
            [-bound / loss.num_particles, terms.log_likelihood.mean(), terms.kl.mean()]
        )
        surrogate = -surrogate / loss.num_particles
        gradients = torch.autograd.grad(surrogate, values, allow_unused=True)
        return [report, *map(_laid_out_like, gradients, values)]


def _laid_out_like(gradient: torch.Tensor | None, value: torch.Tensor) -> torch.Tensor | None:
    """A gradient of its own memory with its parameter's strides, as ``.grad`` has it."""
    return None if gradient is None else torch.empty_like(value).copy_(gradient)
