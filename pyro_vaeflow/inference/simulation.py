"""Rows that a model makes of latents that it draws, written where it observes rows."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace

from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.inference.traces import (
    Args,
    innermost,
    is_data,
    is_reparametrised,
    of_rows,
    sample_sites,
    take_rows,
)

Assemble = Callable[[dict[str, torch.Tensor]], torch.Tensor]


class _Simulation(poutine.messenger.Messenger):
    """Draws what a model observes, and writes it where the observed values came from.

    So sites that observe parts of an argument need no more said, and what is computed from it
    afterwards, as the next value of a series, is computed from the simulated values.
    """

    def __init__(self, args: Args) -> None:
        super().__init__()
        tensors = [arg for arg, own in zip(args, of_rows(args), strict=True) if own]
        self.storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.elsewhere: list[str] = []
        self.factors: list[str] = []

    def _pyro_sample(self, msg: Message) -> None:
        fn = innermost(msg["fn"])
        if isinstance(fn, dist.Unit) or is_reparametrised(msg) and (fn.log_density != 0).any():
            self.factors.append(msg["name"])
        if not is_data(msg):
            return
        seen, drawn = msg["value"], msg["fn"]()
        if isinstance(seen, torch.Tensor) and seen.untyped_storage().data_ptr() in self.storages:
            seen.copy_(drawn)
        else:
            self.elsewhere.append(msg["name"])
        msg["value"], msg["done"] = drawn, True


def simulated_rows(
    model: Program, args: Args, index: torch.Tensor, assemble: Assemble | None
) -> tuple[Trace, Args]:
    """A trace of simulated rows, and the programs' arguments that hold them."""
    data = take_rows(args, index)  # copies
    simulation = _Simulation(data)
    try:
        simulated = poutine.trace(simulation(model)).get_trace(*data)
    except NotImplementedError as error:
        raise ValueError(
            f"the model cannot be simulated: {str(error).partition(chr(10))[0]}"
        ) from error
    if simulation.factors:
        raise ValueError(
            f"sites {simulation.factors} of the model add a density that no draw follows, as "
            "pyro.factor does, so that rows cannot be simulated; calibrate a model without them"
        )
    values = {s["name"]: s["value"] for s in sample_sites(simulated) if is_data(s)}
    if assemble is not None:
        first = assemble(values)
        if first.shape != data[0].shape:
            raise ValueError(
                f"assemble= made rows of shape {tuple(first.shape)} where the first argument has "
                f"{tuple(data[0].shape)}"
            )
        data[0].copy_(first)  # in place: what each row has of the arguments stays known
    elif simulation.elsewhere:
        raise ValueError(
            f"sites {sorted(simulation.elsewhere)} observe values that are computed from the "
            "arguments; pass assemble=, a function that makes the first argument from the values "
            "of the observed sites by name"
        )
    again = poutine.trace(poutine.replay(model, trace=simulated)).get_trace(*data)
    for name in values:  # masks, which may tell what is missing, may differ
        sites = (trace.nodes[name] for trace in (simulated, again))
        one, other = (site["fn"].log_prob(site["value"]).double() for site in sites)
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"the model computes site {name!r} from the values that it observes there, so that "
                "they cannot be simulated at once: observe one after another, each given the "
                "values before it"
            )
    return simulated, data
