"""Turn a function of a graphsurgeon graph into a pass, so that existing graphsurgeon scripts become plugins.

    @surgeon_pass(name="drop-identity", fidelity="bits")
    def drop_identity(graph: gs.Graph, keep: int = 0) -> None: ...

    onnxpress compress model.onnx -o out.onnx --passes "drop-identity{keep=1}"

The function edits the graph in place or returns another one. Its further parameters are the pass's options,
typed by their annotations, or else by their defaults.

What the function leaves as it is comes back as it was, encodings and notes included (see `ir/surgeon.py`).
The record compares the graphs: a site for every node and every constant that was added, removed or changed.
When there is none, the model is not touched.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import onnx_ir
import pydantic

from onnxpress.ir.errors import UsageError
from onnxpress.passes.base import Amount, Context, Fidelity, Options, Pass, Rewrites, Site
from onnxpress.passes.registry import register_pass

__all__ = ["surgeon_pass"]

SurgeonFunction = Callable[..., Any]
_NAMED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def surgeon_pass(
    *,
    name: str,
    fidelity: Fidelity,
    after: tuple[str, ...] = (),
    tolerance: tuple[float, float] = Pass.tolerance,
) -> Callable[[SurgeonFunction], type[Pass]]:
    """Return a decorator that makes a registered pass of a function whose first parameter is a `gs.Graph`.

    name, fidelity, after, tolerance: as of any `Pass`. The pass's summary is the function's docstring.

    Raises:
        UsageError: (from the decorator) the name is taken, or a parameter cannot be an option.
    """

    def decorate(function: SurgeonFunction) -> type[Pass]:
        body = {
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "__qualname__": _title(function),
            "name": name,
            "fidelity": fidelity,
            "after": after,
            "tolerance": tolerance,
            "options_type": _options_of(name, function),
            "function": staticmethod(function),
        }
        return register_pass(type(_title(function), (_SurgeonPass,), body))

    return decorate


def _title(function: SurgeonFunction) -> str:
    """Return the name that the code knows the function by; partials and callable objects have none."""
    return getattr(function, "__qualname__", type(function).__name__)


class _SurgeonPass(Pass):
    """The part that all passes made of graphsurgeon functions share."""

    function: ClassVar[SurgeonFunction]

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Hand the model over as a `gs.Graph`, take it back, and record what differs."""
        from onnxpress.ir.surgeon import from_surgeon, to_surgeon

        graph = to_surgeon(model)
        given = {key: getattr(self.options, key) for key in type(self.options).model_fields}
        returned = self.function(graph, **given)
        if returned is not None and not isinstance(returned, type(graph)):
            raise UsageError(
                f"{self.name}: {type(self).__qualname__} returned {type(returned).__name__}. "
                "Return a gs.Graph, or None after editing in place"
            )
        edited = graph if returned is None else returned
        # Scripts unhook nodes and append new ones; most leave both of these to whoever exports.
        edited.cleanup().toposort()
        rebuilt = from_surgeon(edited, source=model)
        rewrites = Rewrites([*_node_sites(model, rebuilt), *_constant_sites(model, rebuilt)])
        if rewrites.modified:
            model.graph = rebuilt.graph
        return rewrites


def _options_of(name: str, function: SurgeonFunction) -> type[Options]:
    """Return the options that the parameters after the first describe."""
    fields: dict[str, Any] = {}
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters[1:]:
        if parameter.kind not in _NAMED_KINDS:
            continue
        if parameter.name.startswith("_"):
            raise UsageError(
                f"surgeon_pass {name!r}: parameter {parameter.name!r} cannot be an option. "
                "Give it a name without a leading underscore"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (_type_of(parameter, function), default)
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise UsageError(f"surgeon_pass {name!r}: the function must take a gs.Graph as its first argument")
    try:
        made: type[Options] = pydantic.create_model(
            f"{_title(function)}_options", __base__=Options, __module__=function.__module__, **fields
        )
    except (pydantic.PydanticUserError, NameError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UsageError(
            f"surgeon_pass {name!r}: its parameters cannot be options: {reason}. "
            "Annotate them as numbers, text, true or false, or lists of these"
        ) from error
    return made


def _type_of(parameter: inspect.Parameter, function: SurgeonFunction) -> Any:
    """Return the annotated type; where there is none or it cannot be told, that of the default."""
    default = parameter.default
    fallback = Any if default in (None, parameter.empty) else type(default)
    if parameter.annotation is parameter.empty:
        return fallback
    holder = types.SimpleNamespace(__annotations__={"option": parameter.annotation})
    try:
        scope = getattr(inspect.unwrap(function), "__globals__", {})
        hints = typing.get_type_hints(holder, scope, include_extras=True)
    except (NameError, TypeError):  # a name that only type checkers import
        return fallback
    return hints["option"]


def _node_sites(before: onnx_ir.Model, after: onnx_ir.Model) -> Iterator[Site]:
    old, new = _nodes(before), _nodes(after)
    weights_before, weights_after = _amounts(before), _amounts(after)
    for name in dict.fromkeys([*old, *new]):
        detail = _describe_change(old.get(name), new.get(name))
        if detail:
            kind = (new.get(name) or old[name]).op_type
            lost, won = weights_before.get(name, Amount()), weights_after.get(name, Amount())
            yield Site(name, kind, lost, won, detail=detail)


def _describe_change(old: onnx_ir.Node | None, new: onnx_ir.Node | None) -> str:
    """Say how a node changed, or "" where it did not. None: it is not there."""
    if old is None or new is None:
        return "added" if old is None else "removed"
    if (old.domain, old.op_type) != (new.domain, new.op_type):
        return f"was {old.op_type}"
    changed = [
        ("inputs", _names(old.inputs) != _names(new.inputs)),
        ("outputs", _names(old.outputs) != _names(new.outputs)),
        ("attributes", _attributes(old) != _attributes(new)),
    ]
    kinds = [kind for kind, differs in changed if differs]
    return f"{' and '.join(kinds)} changed" if kinds else ""


def _constant_sites(before: onnx_ir.Model, after: onnx_ir.Model) -> Iterator[Site]:
    old, new = _constants(before), _constants(after)
    for name in dict.fromkeys([*old, *new]):
        was, now = old.get(name), new.get(name)
        if was is None or now is None:
            detail = "added" if was is None else "removed"
        elif _are_equal(was, now):
            continue
        else:
            detail = "changed"
        yield Site(name, "constant", _amount_of(was), _amount_of(now), detail=detail)


def _nodes(model: onnx_ir.Model) -> dict[str, onnx_ir.Node]:
    return {node.name or "": node for node in model.graph.all_nodes()}


def _amounts(model: onnx_ir.Model) -> dict[str, Amount]:
    """Return what each node weighs."""
    from onnxpress.ir.analysis.cost import cost

    return {node.name: Amount(node.params, node.macs, node.weight_bytes) for node in cost(model).nodes}


def _names(values: Iterable[onnx_ir.Value | None]) -> list[str]:
    """Return names of values, "" for one that is left out."""
    return [(value.name or "") if value is not None else "" for value in values]


def _attributes(node: onnx_ir.Node) -> dict[str, bytes | list[list[str]]]:
    """Return attributes in a form that compares; of subgraphs the outputs, as their nodes are sites too."""
    found: dict[str, bytes | list[list[str]]] = {}
    for name, attribute in node.attributes.items():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            found[name] = [_names(attribute.as_graph().outputs)]
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            found[name] = [_names(graph.outputs) for graph in attribute.as_graphs()]
        else:
            found[name] = onnx_ir.to_proto(attribute).SerializeToString(deterministic=True)
    return found


def _constants(model: onnx_ir.Model) -> dict[str, onnx_ir.TensorProtocol]:
    graphs = model.graphs()
    named = [item for graph in graphs for item in graph.initializers.items()]
    return {name: value.const_value for name, value in named if value.const_value is not None}


def _are_equal(a: onnx_ir.TensorProtocol, b: onnx_ir.TensorProtocol) -> bool:
    """Whether two tensors agree in type, shape and bits; reads them only if they are two objects."""
    if a is b:
        return True
    return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()


def _amount_of(tensor: onnx_ir.TensorProtocol | None) -> Amount:
    return Amount() if tensor is None else Amount(params=tensor.size, size_bytes=tensor.nbytes)
