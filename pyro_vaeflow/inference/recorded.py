"""A function of tensors as the flat list of torch operations that one call of it makes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

Function = Callable[..., Sequence[torch.Tensor | None]]
INDEX = torch.ops.aten.index.Tensor


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
    leaves = [each.detach().requires_grad_(each.requires_grad) for each in inputs]
    # A table of torch's decompositions is where an operation can be refused before it is made.
    module = make_fx(lambda *each: list(function(*each)), {INDEX: _refuse_masks})(*leaves)
    for node in module.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.dynamic_output_shape in tags and node.target is not INDEX:
            _refuse(node.target)
    module.graph.eliminate_dead_code()
    return _compiled(module)


def _refuse_masks(x: torch.Tensor, indices: list[torch.Tensor | None]) -> Any:
    """Whole numbers choose as many entries as there are of them, masks as many as are true."""
    if any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices):
        _refuse(INDEX)
    return NotImplemented  # recorded as it is


def _refuse(operation: Any) -> None:
    raise RuntimeError(f"the shape of what {operation} gives depends on numbers")


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
