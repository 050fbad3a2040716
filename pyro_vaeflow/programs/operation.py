"""Functions of tensors as operations of torch's dispatcher."""

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch


def operation(function: Callable[..., Any]) -> Any:
    """Makes `function` one operation for whatever sees torch's, as a recorded training step does.

    All layers of a flow are then one entry of the record, whose every entry costs more of Python
    than a call from the function does. Counters of operations or of memory see nothing inside it.

    Args:
        function: of a name of its own within the package; it changes no argument and returns
            tensors of their own memory.
    """
    name = f"pyro_vaeflow::{function.__name__.strip('_')}"
    known = torch.library.custom_op(name, function, mutates_args=())
    known.register_fake(function)  # for tensors without numbers, as on the device "meta"
    return update_wrapper(known, function)
