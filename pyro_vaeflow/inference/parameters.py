"""What surrounds a run of two programs: whose parameters, random state, mode and device.

All of it is the process's: one thread at a time is inside, and others wait.

Pyro keeps parameters in one global store, by name. Two models of one class therefore share an
entry, and the second one silently never learns. Here each pair (model, guide) has a store of its
own, and the parameters of modules are found in the modules.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vaeflow.locks import ONE_THREAD
from pyro_vaeflow.validation import ConfigError, warn

Program = Callable[..., Any]
Device = str | torch.device

_STORES: WeakKeyDictionary[Any, WeakKeyDictionary[Any, dict]] = WeakKeyDictionary()
# The scopes that are open, the innermost last: the pair's state, and what the store held before.
_ENTERED: list[tuple[dict, dict]] = []
_SHOWN: dict[str, tuple[torch.Tensor, list[ref]]] = {}  # what `show` put into the store, and whose
_SWITCHED: list[dict] = []  # what each open `module_mode` has switched; the innermost alone acts


def _alone(scope: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The scope, for one thread at a time; the same thread may enter others inside."""

    @wraps(scope)
    def scope_of_one_thread(*args: Any, **options: Any) -> Iterator[Any]:
        # What is made in it has no gradients for good: parameters of lazy layers, and caches.
        is_inference = torch.is_inference_mode_enabled()
        with ONE_THREAD, torch.inference_mode(False) if is_inference else nullcontext():
            yield from scope(*args, **options)

    return scope_of_one_thread


def _owner(program: Program) -> Any:
    """The object that outlives a call: a bound method is made anew at each access."""
    return program.__self__ if inspect.ismethod(program) else program


def _unwrapped(program: Program) -> Program:
    while isinstance(program, partial):  # Pyro's handlers make some too
        program = program.func if type(program) is partial else pyro.poutine.unwrap(program)
    return program


def modules(*programs: Program) -> list[torch.nn.Module]:
    """The modules behind the programs, each once; none for plain functions."""
    owners = [_owner(_unwrapped(program)) for program in programs]
    return list({id(m): m for m in owners if isinstance(m, torch.nn.Module)}.values())


@contextmanager
@_alone
def param_scope(model: Program, guide: Program, keep: bool = True) -> Iterator[None]:
    """Makes ``pyro.param`` read and write the parameters that belong to this (model, guide).

    `train`, `score` and the diagnostics enter it by themselves; enter it to read a plain
    function's parameters after training. Global parameters come back unchanged at the end; `train`
    then adds its own to them, where no other program has the name.

    Args:
        keep: whether the parameters that are made inside are kept for the pair. If not, as in
            `score`, a pair that was never trained reads the global store, where a loop of one's own
            with ``pyro.infer.SVI`` has left them.

    Example:
        >>> import torch, pyro
        >>> def model(x): pyro.param("a", torch.tensor(1.0))
        >>> def guide(x): pass
        >>> with param_scope(model, guide):
        ...     model(None)
        >>> "a" in pyro.get_param_store()
        False
        >>> with param_scope(model, guide):
        ...     print(pyro.param("a").item())
        1.0
    """
    if not (callable(model) and callable(guide)):
        raise TypeError(
            f"model and guide must be functions or modules, got {model!r:.60} and {guide!r:.60}"
        )
    store = pyro.get_param_store()
    of_guide = _STORES.setdefault(_owner(guide), WeakKeyDictionary())
    state = of_guide.get(_owner(model))
    inside = bool(_ENTERED) and _ENTERED[-1][0] is state  # then the store is newer than `state`
    if inside and keep:
        yield
        return
    if not keep:
        if inside or not (_ENTERED or state):
            state = store.get_state()
            for name, (value, _) in () if inside else _SHOWN.items():
                if state["params"].get(name) is value:  # another pair's
                    del state["params"][name]
        elif state is None:  # the global store, not the parameters of another pair
            state = _ENTERED[0][1]
        with store.scope({**state}):
            yield
        return
    state = of_guide.setdefault(_owner(model), {"params": {}, "constraints": {}})
    outside = store.get_state()
    with store.scope(state):
        _ENTERED.append((state, outside))
        try:
            yield
        finally:  # an interrupted run keeps what it learned
            _ENTERED.pop()
            state.update(store.get_state())


def show(model: Program, guide: Program) -> None:
    """Shows what ``pyro.param`` holds for the pair in Pyro's store, to ``Predictive`` and others.

    Warns:
        UserWarning: names parameters of other programs that have the same names.
    """
    store, hidden = pyro.get_param_store(), []
    with ONE_THREAD:
        if _ENTERED:
            return
        state = _STORES[_owner(guide)][_owner(model)]
        pair = [ref(_owner(program)) for program in (model, guide)]
        for name, value in state["params"].items():
            held, (of_other, other) = store._params.get(name), _SHOWN.get(name, (None, pair))
            if isinstance(value, torch.nn.Parameter) or held is value:
                continue  # pyro.module shows the first
            alive = all(program() is not None for program in other)
            if held is not None and (held is not of_other or (alive and other != pair)):
                hidden.append(name)
            if held is None or held is of_other:
                constraint = state["constraints"][name]
                store.set_state({"params": {name: value}, "constraints": {name: constraint}})
                _SHOWN[name] = value, pair
    if hidden:
        warn(
            f"two pairs have pyro.param {sorted(hidden)}, and Pyro's store one of each: before you "
            "use one with Predictive or other tools of Pyro, enter "
            "`with pyro_vaeflow.param_scope(model, guide):`"
        )


def named_parameters(model: Program, guide: Program) -> dict[str, torch.Tensor]:
    """Every unconstrained parameter of the pair that takes a gradient, in a fixed order.

    Call it inside `param_scope`, after the programs have run once. The order makes sums over
    parameters, such as a gradient norm, the same in each run.

    Raises:
        ValueError: a PyroParam of the model and one of the guide have one name; in Pyro's store
            the second would silently replace the first.
    """
    if len(pair := modules(model, guide)) == 2:
        one, other = (dict(module.named_parameters()) for module in pair)
        for name in one.keys() & other.keys():
            if name.endswith("_unconstrained") and one[name] is not other[name]:
                raise ValueError(
                    "model and guide both have a PyroParam "
                    f"{name.removesuffix('_unconstrained')!r}; rename one of them"
                )
    found = [  # names that no parameter of the store has, even where both are of one class
        (f"{role} {name}", value)
        for role, program in (("model", model), ("guide", guide))
        for module in modules(program)
        for name, value in module.named_parameters()
    ]
    found += list(pyro.get_param_store().named_parameters())
    unique = {id(value): (name, value) for name, value in reversed(found) if value.requires_grad}
    return {name: value for name, value in reversed(unique.values())}


def own_parameters(known: set[str]) -> dict[str, torch.Tensor]:
    """What ``pyro.param`` has made in the store since it held `known`; not modules' parameters."""
    made = {n: v for n, v in pyro.get_param_store().named_parameters() if n not in known}
    return {n: v for n, v in made.items() if not isinstance(v, torch.nn.Parameter)}


@contextmanager
@_alone
def module_mode(*programs: Program, training: bool) -> Iterator[None]:
    """Puts modules in training or evaluation mode, and each part back in its own after.

    Those behind the programs at once, for methods that read ``self.training``; any other, such as
    one in a dictionary or behind a helper function, when it is called.
    """
    before: dict[torch.nn.Module, bool] = {}
    _SWITCHED.append(before)

    def switch(part: torch.nn.Module, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if "_orig_mod" in part._modules:  # compiled: no hook is called inside
            for inner in part.get_submodule("_orig_mod").modules():
                switch(inner)
        if _SWITCHED[-1] is before and part.training is not training:
            before.setdefault(part, part.training)
            part.training = training

    for module in modules(*programs):
        for part in module.modules():
            switch(part)
    try:
        with register_module_forward_pre_hook(switch):
            yield
    finally:
        _SWITCHED.pop()
        for part, mode in before.items():
            part.training = mode


@contextmanager
def evaluating(model: Program, guide: Program, seed: int) -> Iterator[None]:
    """Runs of a pair of which nothing is trained or kept; `check_contract` alone validates them."""
    with (
        param_scope(model, guide, keep=False),
        module_mode(model, guide, training=False),
        seeded(seed),
        torch.no_grad(),
        pyro.validation_enabled(False),
    ):
        yield


@contextmanager
@_alone
def seeded(seed: int) -> Iterator[None]:
    """Seeds every random state that Pyro knows, and puts the caller's states back after.

    Raises:
        ValueError: the seed is no integer that NumPy can take.
    """
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    state = random_state()
    pyro.set_rng_seed(int(seed))
    try:
        yield
    finally:
        set_random_state(state)


def random_state() -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Every random state that Pyro knows, and those of GPUs."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return get_rng_state(), on_gpus


def set_random_state(state: tuple[dict[str, Any], list[torch.Tensor]]) -> None:
    """Puts states of `random_state` back."""
    set_rng_state(state[0])
    torch.cuda.set_rng_state_all(state[1])


def check_device(device: Device) -> torch.device:
    """The device, once a number has been there and back: in double precision, as scores are.

    Raises:
        ConfigError: torch cannot do that on this machine; the message says why.

    Example:
        >>> check_device("cpu")
        device(type='cpu')
    """
    try:
        torch.zeros(1, dtype=torch.float64, device=device).cpu()
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:  # as builds differ
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"device must be one that this machine has, got {str(device)!r} ({reason:.200}); "
            "device='cpu' is always there"
        ) from error
    return torch.device(device)


def move(model: Program, guide: Program, device: torch.device) -> None:
    """Takes a pair to the device, in place: its modules, and its parameters of ``pyro.param``."""
    for module in modules(model, guide):
        module.to(device)
    with param_scope(model, guide):
        for _, value in pyro.get_param_store().named_parameters():
            value.data = value.data.to(device)  # as modules do it: the tensor stays the parameter
