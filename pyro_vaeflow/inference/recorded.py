"""A function of tensors as the flat list of torch operations that one call of it makes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

Function = Callable[..., Sequence[torch.Tensor | None]]


def recorded(function: Function, *inputs: torch.Tensor) -> Callable[..., list]:
    """The operations of ``function(*inputs)``, those of a backward pass inside it among them.

    What is returned makes the same operations on other tensors of these shapes, with the same
    results, and nothing of what lies between them: no modules, distributions or graphs of autograd.
    It is called without gradients. What Python code decides is decided for good.

    Raises:
        RuntimeError: the function looks at the numbers in a tensor, as ``.item()`` does, or the
            shape of a result depends on them, as that of ``x[x > 0]`` does.

    Example:
        >>> def slope(x, w):
        ...     return torch.autograd.grad((w * x).square().sum(), w)
        >>> weight = torch.tensor(2.0, requires_grad=True)
        >>> replayed = recorded(slope, torch.ones(1), weight)
        >>> replayed(torch.tensor([3.0]), torch.tensor(1.0))
        [tensor(18.)]
    """

    def watched(*each: torch.Tensor) -> list[torch.Tensor | None]:
        with _FixedShapes():
            return list(function(*each))

    leaves = [each.detach().requires_grad_(each.requires_grad) for each in inputs]
    module = make_fx(watched)(*leaves)
    module.graph.eliminate_dead_code()
    return _compiled(module)


class _FixedShapes(TorchDispatchMode):
    """Refuses operations whose results have shapes that depend on numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.dynamic_output_shape in func.tags and not _chooses_by_place(func, args):
            raise RuntimeError(f"the shape of what {func} gives depends on numbers")
        return func(*args, **(kwargs or {}))


def _chooses_by_place(func: Any, args: Any) -> bool:
    """Whole numbers choose as many entries as there are of them; masks as many as are true."""
    masks = (torch.bool, torch.uint8)
    return func is torch.ops.aten.index.Tensor and not any(
        each is not None and each.dtype in masks for each in args[1]
    )


def _compiled(module: GraphModule) -> Callable[..., list]:
    """The module's graph as one Python function, a line an operation.

    The code of ``torch.fx`` looks each operation up anew, layer after layer of Python: a tenth of a
    training step.
    """
    names = {node: f"v{number}" for number, node in enumerate(module.graph.nodes)}
    known: dict[str, Any] = {}  # what the lines name beside their variables
    places: dict[int, str] = {}

    def named(value: Any) -> str:
        if isinstance(value, Node):
            return names[value]
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(named, value))}]"
        name = places.setdefault(id(value), f"k{len(places)}")
        known[name] = value
        return name

    parameters, lines = [], []
    for node, done in _last_uses(module.graph):
        if node.op == "placeholder":
            parameters.append(names[node])
        elif node.op == "get_attr":
            known[names[node]] = getattr(module, str(node.target))
        elif node.op == "output":
            lines.append(f"return {named(node.args[0])}")
        else:
            given = [*map(named, node.args), *(f"{k}={named(v)}" for k, v in node.kwargs.items())]
            # an OpOverload is a Python object around the function of torch's dispatcher
            function = named(getattr(node.target, "_op", node.target))
            lines.append(f"{names[node]} = {function}({', '.join(given)})")
            lines += [f"del {names[each]}" for each in done]  # memory that the next line can have
    exec(f"def replay({', '.join(parameters)}):\n " + "\n ".join(lines), known)  # noqa: S102
    return known["replay"]


def _last_uses(graph: Graph) -> list[tuple[Node, list[Node]]]:
    """Each node, and the results that nothing needs after it."""
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        last[node] = node
        last.update(dict.fromkeys(node.all_input_nodes, node))
    done: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    for node, user in last.items():
        if node.op == "call_function":
            done[user].append(node)
    return list(done.items())
