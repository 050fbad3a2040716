"""What `train` puts around ``pyro.infer.SVI``: batches, one optimizer, means over rows, traces."""

import math
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace

from pyro_vaeflow.inference.pairs import UnseenParams, called_modules, without_names
from pyro_vaeflow.inference.parameters import Program, module_mode, seeded
from pyro_vaeflow.inference.traces import Args, plate_frame, run_once
from pyro_vaeflow.validation import check_number


class Batches:
    """Mini-batches as a function of the seed and the step: a training can resume from any step.

    Rows are drawn without replacement within a pass over the data or, by their weights, with it.

    Args:
        rows: ``(num_data, ...)``.
        batch_size: rows a step; all, if there are fewer.
        weights: ``(num_data,)``, or None.

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
        self.per_pass = self.num_data // self.batch_size
        self.weights = None if weights is None else torch.as_tensor(weights)
        self.current: tuple[int, torch.Tensor] = (-1, torch.empty(0))  # a pass and its batches
        if (given := self.weights) is not None:
            total = given.sum()
            one_a_row = given.shape == (self.num_data,)
            if not (one_a_row and (given >= 0).all() and 0 < total < math.inf):
                raise ValueError(
                    f"weights must be {self.num_data} numbers of at least 0, one a row of x, not "
                    f"all 0; got shape {tuple(given.shape)} and sum {total:.3g}"
                )

    def __call__(self, step: int) -> torch.Tensor:
        """The indices of the step's rows, ``(batch_size,)``."""
        number, place = divmod(step, self.per_pass)
        if self.current[0] != number:
            self.current = number, self._pass(number)
        return self.current[1][place].to(self.device)

    def _pass(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        count = self.per_pass * self.batch_size
        if self.weights is None:
            order = torch.randperm(self.num_data, generator=generator)[:count]
        else:
            order = self.weights.cpu().multinomial(count, replacement=True, generator=generator)
        return order.view(self.per_pass, self.batch_size)


def make_svi(model: Program, guide: Program, optim: "OneOptimizer", loss: ELBO) -> SVI:
    """An SVI object that leaves the finding of parameters to the optimizer.

    SVI looks parameters up in the global store by name. Parameters of modules are not in it here
    (see `pyro_vaeflow.inference.parameters`); `OneOptimizer` knows them all.
    """
    model, guide = (UnseenParams()(without_names(program)) for program in (model, guide))
    return SVI(model, guide, optim, loss=loss.loss, loss_and_grads=loss.loss_and_grads)


class OneOptimizer(PyroOptim):
    """One torch optimizer over all parameters, clipped by the norm of their joint gradient.

    Pyro's own makes an optimizer object a parameter: a fifth of a step's time for small networks.
    It is a ``PyroOptim`` only because SVI checks the type.

    Attributes:
        learning_rate: of the last step.
        grad_norm: of the last step's gradient, before clipping.
        not_finite: names of parameters whose gradient's norm was not finite in the last step.

    Raises:
        ValueError: there is nothing to train, or `clip_norm` is not above 0.
    """

    def __init__(
        self,
        parameters: dict[str, torch.Tensor],
        optimizer: Callable[..., torch.optim.Optimizer],
        clip_norm: float | None = None,
        divisor: int = 1,
    ) -> None:
        if not parameters:
            raise ValueError(
                "there is nothing to train: neither program is a module, or a method of one, with "
                "parameters, nor calls pyro.param or pyro.module"
            )
        if clip_norm is not None:
            check_number("clip_norm", clip_norm, above=0.0)
        self.parameters, self.clip_norm, self.divisor = parameters, clip_norm, divisor
        self.torch_optimizer = optimizer(list(parameters.values()), lr=0.0)
        self.torch_optimizer.zero_grad()  # what the caller, or an interrupted run, left there
        self.num_stored = len(pyro.get_param_store())
        self.learning_rate = self.grad_norm = 0.0
        self.not_finite: list[str] = []

    def set_learning_rate(self, value: float) -> None:
        """The learning rate of the steps from now on.

        Raises:
            ValueError: it is negative or not finite.
        """
        check_number("learning_rate", value, low=0.0)
        self.learning_rate = float(value)
        for group in self.torch_optimizer.param_groups:
            group["lr"] = value

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Takes a step along the gradients; a gradient that is not finite changes nothing."""
        store = pyro.get_param_store()
        if len(store) != self.num_stored:
            self.add_late(dict(store.named_parameters()))
        values = list(self.parameters.values())
        gradients = [p.grad for p in values if p.grad is not None]
        for gradient in gradients if self.divisor > 1 else ():
            gradient /= self.divisor
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None and not norm.isfinite():  # squares overflow before gradients
            norm = torch.nn.utils.get_total_norm([gradient.double() for gradient in gradients])
        self.grad_norm = norm.item()
        if math.isfinite(self.grad_norm):
            if self.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(values, self.clip_norm, norm)
            self.torch_optimizer.step()
        else:
            self.not_finite = [
                name
                for name, p in self.parameters.items()
                if p.grad is not None and not p.grad.norm().isfinite()
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
    """Turns sums over a mini-batch into nats per row; a shared latent counts once over all rows.

    A loss that is no sum of log probabilities, such as ``RenyiELBO``, must not see its logarithms
    scaled: its value and gradients are divided by ``divisor`` afterwards, which else is 1.

    Args:
        loss: that will be taken inside.
        unasked: latents of the model that are drawn from the prior and do not count.
    """

    def __init__(
        self, loss: ELBO, plate: str, batch_size: int, num_data: int, unasked: frozenset[str]
    ) -> None:
        super().__init__()
        is_sum = isinstance(loss, Trace_ELBO | TraceEnum_ELBO | TraceGraph_ELBO)
        self.divisor = 1 if is_sum else batch_size
        self.row, self.shared = self.divisor / batch_size, self.divisor / num_data
        self.plate, self.unasked = plate, unasked

    def _process_message(self, msg: Message) -> None:
        if msg["type"] == "sample":
            frame, scale = plate_frame(msg, self.plate), self.shared
            if frame is not None:  # the plate may scale a mini-batch itself
                scale = self.row * frame.size / (frame.full_size or frame.size)
            msg["scale"] = msg["scale"] * scale
            if msg["name"] in self.unasked:
                msg["mask"] = False


def make_parameters(
    model: Program, guide: Program, batch: Args, seed: int
) -> list[torch.nn.Module]:
    """Runs the programs on a whole batch, for start values taken from it; the modules called."""
    with module_mode(model, guide, training=False), seeded(seed), torch.no_grad():
        with called_modules() as called:
            run_once(model, guide, batch)
    return list(called)


def check_announced(called: Iterable[torch.nn.Module], parameters: dict[str, torch.Tensor]) -> None:
    """Refuses programs that compute with parameters which nothing has shown to Pyro.

    Args:
        called: the modules that the programs call.
        parameters: those that will be trained.

    Raises:
        ValueError: a module has others; Pyro would silently leave them as they are.
    """
    known = {id(value) for value in parameters.values()}
    hidden = [
        f"{type(part).__name__}.{name}"
        for part in called
        for name, value in part.named_parameters(recurse=False)
        if value.requires_grad and id(value) not in known
    ]
    if hidden:
        raise ValueError(
            f"the programs compute with parameters that nothing shows to Pyro, which would stay as "
            f"they are: {', '.join(hidden[:3])}{', ...' if len(hidden) > 3 else ''}; say "
            "pyro.module('net', net) in the program, or net.requires_grad_(False) to keep them"
        )


class LastTraces:
    """The traces that a loss has just taken, to report from at no further cost."""

    def __init__(self) -> None:
        self.model: Trace | None = None
        self.guide: Trace | None = None

    def watch(self, loss: ELBO) -> ELBO:
        """A copy of the loss whose traces are kept here."""
        watched = copy(loss)
        get_trace = watched._get_trace  # Pyro names no public place where a loss takes them

        def _get_trace(*args: Any) -> tuple[Trace, Trace]:
            self.model = self.guide = None  # frees the last graph before the next one is made
            self.model, self.guide = get_trace(*args)
            # Pyro's losses call backward only if a param site is in sight. The methods of a module
            # leave none, and their parameters would silently never learn.
            self.guide.add_node("_parameters", name="_parameters", type="param", value=None)
            return self.model, self.guide

        watched._get_trace = _get_trace
        return watched

    def bad_site(self) -> str | None:
        """The first site, guide before model, whose log probability is not finite."""
        for trace in (self.guide, self.model):
            for name, site in trace.nodes.items() if trace is not None else ():
                if site["type"] == "sample" and not site["unscaled_log_prob"].isfinite().all():
                    return name
        return None

    def largest_log_scale(self) -> tuple[str | None, float]:
        """The guide's site with the largest log-scale, its base's or its transforms', and that."""
        largest: list[tuple[str | None, float]] = [(None, -math.inf)]
        for name, site in self.guide.nodes.items() if self.guide is not None else ():
            if site["type"] == "sample":
                largest += [(name, value.max().item()) for value in _log_scales(site["fn"])]
        return max(largest, key=lambda item: math.inf if math.isnan(item[1]) else item[1])

    def explain(self, loss: float, optim: OneOptimizer) -> str:
        """Which of loss and gradient is not finite, where it began, and what may help."""
        site, (widest, log_scale) = self.bad_site(), self.largest_log_scale()
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
        where = f" at site {site!r}" if site else f" for parameters {optim.not_finite[:3]}"
        if widest is not None:
            where += f"; the guide's largest log-scale is {log_scale:.3g} at site {widest!r}"
        advice = "Try a lower learning_rate, a clip_norm, fewer flows or scaled columns"
        return f"{what}{where}. {advice}"


def _log_scales(distribution: Any) -> list[torch.Tensor]:
    transforms = getattr(distribution, "transforms", [])
    cached = [getattr(transform, "_cached_log_scale", None) for transform in transforms]
    log_scales = [value for value in cached if value is not None]
    if hasattr(distribution, "base_dist"):
        return log_scales + _log_scales(distribution.base_dist)
    scale = getattr(distribution, "scale", None)
    return log_scales + ([scale.log()] if isinstance(scale, torch.Tensor) else [])
