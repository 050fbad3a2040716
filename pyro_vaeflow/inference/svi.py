"""One SVI step as `train` takes it: ``pyro.infer.SVI``, one torch optimizer, per-row units."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from numbers import Real
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace

from pyro_vaeflow.inference.annealing import CapacityELBO, anneal
from pyro_vaeflow.inference.contract import Args, row_terms
from pyro_vaeflow.inference.group import ALONE, Group
from pyro_vaeflow.inference.group_noise import part_of_noise
from pyro_vaeflow.inference.noise import stream
from pyro_vaeflow.inference.parameters import Program, UnseenParams, without_names

Report = tuple[float, float, float]  # of a step, nats a row: loss, log-likelihood, KL


class SVIStep:
    """A step of training: draws, the loss and its gradients, and the parameters' move.

    Args:
        optim: of all parameters of the programs.
        loss: of ``pyro.infer``; a copy of it is used.
        batch_size: rows a step, those of all processes of the group.
        num_data: rows in all.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        optim: "OneOptimizer",
        loss: ELBO,
        *,
        plate: str,
        batch_size: int,
        num_data: int,
        group: Group = ALONE,
    ) -> None:
        self.optim, self.plate, self.group = optim, plate, group
        self.batch_size = batch_size
        self.last = LastTraces()
        self.loss = self.last.watch(loss)
        self.svi = make_svi(model, guide, optim, self.loss)
        self.per_row = PerRow(plate, batch_size, num_data, group)

    def __call__(self, batch: Args, level: float) -> Report:
        """Takes the step with these rows of this process, at this beta or capacity."""
        noise = part_of_noise(self.group, self.batch_size, batch[0].device, self.plate)
        with self.at(level), noise:
            value = self.svi.step(*batch)
        with torch.no_grad():
            terms = row_terms(self.last.model, self.last.guide, plate=self.plate)
        return value, terms.log_likelihood.mean().item(), terms.kl.mean().item()

    def at(self, level: float) -> AbstractContextManager[None]:
        """Runs of the programs inside are in nats a row, and annealed."""
        annealed = self.loss.at if isinstance(self.loss, CapacityELBO) else anneal
        return self.under(annealed(level))

    @contextmanager
    def under(self, annealed: AbstractContextManager[Any]) -> Iterator[None]:
        """As `at`, with a handler of one's own for the annealing."""
        with pyro.validation_enabled(False), self.per_row, annealed:
            yield


def make_svi(model: Program, guide: Program, optim: "OneOptimizer", loss: ELBO) -> SVI:
    """An SVI object that leaves the finding of parameters to the optimizer.

    SVI looks parameters up in the global store by name. Parameters of modules are not in it here
    (see `pyro_vaeflow.inference.parameters`), hence the block; `OneOptimizer` knows them all.
    """
    model, guide = (UnseenParams()(without_names(program)) for program in (model, guide))
    return SVI(model, guide, optim, loss=loss.loss, loss_and_grads=loss.loss_and_grads)


class OneOptimizer(PyroOptim):
    """One torch optimizer over all parameters, clipped by the norm of their joint gradient.

    Pyro's own makes an optimizer object a parameter: a fifth of a step's time for small networks.
    It is a ``PyroOptim`` only because SVI checks the type.
    """

    def __init__(
        self,
        parameters: dict[str, torch.Tensor],
        optimizer: Callable[..., torch.optim.Optimizer],
        clip_norm: float | None = None,
        group: Group = ALONE,
    ) -> None:
        if not parameters:
            raise ValueError(
                "there is nothing to train: neither program is a module, or a method of one, with "
                "parameters, nor calls pyro.param or pyro.module"
            )
        if clip_norm is not None and not (isinstance(clip_norm, Real) and clip_norm > 0.0):
            raise ValueError(f"clip_norm must be above 0 or None, got {clip_norm!r}")
        self.parameters = parameters
        self.torch_optimizer = optimizer(list(parameters.values()), lr=0.0)
        self.torch_optimizer.zero_grad()  # what the caller, or an interrupted run, left there
        self.clip_norm, self.group = clip_norm, group
        self.num_stored = len(pyro.get_param_store())
        self.grad_norm = 0.0
        self.not_finite: list[str] = []
        self.before_step: Callable[[], object] = lambda: None  # it sees the gradients unclipped

    def set_learning_rate(self, value: float) -> None:
        if not (isinstance(value, Real) and 0.0 <= value < math.inf):
            raise ValueError(f"learning_rate must be finite and at least 0, got {value!r}")
        for group in self.torch_optimizer.param_groups:
            group["lr"] = value

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        store = pyro.get_param_store()
        if len(store) != self.num_stored:
            self.add_late(dict(store.named_parameters()))
        values = list(self.parameters.values())
        self.group.add_gradients(values, stream(values[0].device))
        self.before_step()
        norm = torch.nn.utils.get_total_norm([p.grad for p in values if p.grad is not None])
        self.grad_norm = norm.item()
        if math.isfinite(self.grad_norm):  # else keep the last good parameters: train stops
            if self.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(values, self.clip_norm, norm)
            self.torch_optimizer.step()
        else:
            self.not_finite = [
                name
                for name, p in self.parameters.items()
                if p.grad is not None and not p.grad.isfinite().all()
            ]
        self.torch_optimizer.zero_grad()

    def add_late(self, stored: dict[str, torch.Tensor]) -> None:
        """Takes on each ``pyro.param`` behind a branch that no step had reached before."""
        known = {id(value) for value in self.parameters.values()}
        for name, value in stored.items():
            if id(value) not in known:
                self.parameters[name] = value
                self.torch_optimizer.add_param_group({"params": [value]})
        self.num_stored = len(stored)


class PerRow(Messenger):
    """Turns sums over a mini-batch into nats a row; a shared latent counts once over all rows."""

    def __init__(self, plate: str, batch_size: int, num_data: int, group: Group = ALONE) -> None:
        super().__init__()
        self.plate, self.row = plate, 1.0 / batch_size
        self.shared = 1.0 / (num_data * group.size)  # each process has it

    def _process_message(self, msg: Message) -> None:
        if msg["type"] == "sample":
            inside = any(frame.name == self.plate for frame in msg["cond_indep_stack"])
            msg["scale"] = msg["scale"] * (self.row if inside else self.shared)


class LastTraces:
    """Keeps the traces that a loss has just taken, to report from them at no further cost."""

    def __init__(self) -> None:
        self.model: Trace | None = None
        self.guide: Trace | None = None

    def watch(self, loss: ELBO) -> ELBO:
        """A copy of the loss whose traces are kept here."""
        watched = copy(loss)
        get_trace = watched._get_trace

        def _get_trace(*args: Any) -> tuple[Trace, Trace]:
            self.model = self.guide = None  # frees the last graph before the next one is made
            self.model, self.guide = get_trace(*args)
            # Pyro's losses call backward only if a param site is in sight. The methods of a module
            # leave none, and their parameters would silently never learn.
            self.guide.add_node("_parameters", name="_parameters", type="param", value=None)
            return self.model, self.guide

        watched._get_trace = _get_trace
        return watched

    def odd_site(self) -> str | None:
        """The first site, guide before model, whose log probability is not finite."""
        for trace in (self.guide, self.model):
            for name, site in trace.nodes.items() if trace is not None else ():
                if site["type"] == "sample" and not site["unscaled_log_prob"].isfinite().all():
                    return name
        return None

    def largest_log_scale(self) -> tuple[str | None, float]:
        """The guide's site with the largest log-scale, its base's or its transforms', and that."""
        found: list[tuple[str | None, float]] = [(None, -math.inf)]
        for name, site in self.guide.nodes.items() if self.guide is not None else ():
            if site["type"] == "sample":
                found += [(name, value.max().item()) for value in _log_scales(site["fn"])]
        return max(found, key=lambda item: math.inf if math.isnan(item[1]) else item[1])


def _log_scales(distribution: Any) -> list[torch.Tensor]:
    transforms = getattr(distribution, "transforms", [])
    cached = [getattr(transform, "_cached_log_scale", None) for transform in transforms]
    found = [value for value in cached if value is not None]
    if hasattr(distribution, "base_dist"):
        return found + _log_scales(distribution.base_dist)
    scale = getattr(distribution, "scale", None)
    return found + ([scale.log()] if isinstance(scale, torch.Tensor) else [])
