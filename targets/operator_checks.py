"""Checks of operators as a support table states them: which there are, with which types, attributes and inputs.

Each looks at one node and answers with the reason why it breaks the rule, or None. What cannot be known from the file,
such as an open shape or an uninferred type, passes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir

from onnxpress.ir.linear import ONNX_DOMAINS, constant_numbers
from onnxpress.targets.input_checks import show_shape
from onnxpress.targets.patterns import dequantize_of, is_stored
from onnxpress.targets.site import Check, Site, attribute_values, element_type, is_transposed

__all__ = ["OPERATOR_CHECKS"]

_INT32 = np.iinfo(np.int32)
_GROUP, _KEPT = 4, 2  # 2:4 sparsity: of four neighbours along the input channels, two may be other than zero


def _check_present(site: Site) -> str | None:
    """The operator itself is the problem."""
    return f"{site.node.op_type} is used"


def _check_domain(site: Site) -> str | None:
    """Reads `domains`: those that the runtime knows."""
    return None if site.node.domain in site.rule.domains else f"unknown domain {site.node.domain!r}"


def _check_types(site: Site) -> str | None:
    """Reads `inputs`: the element types that each input may have. Inputs of unknown type pass."""
    for index, allowed in site.rule.inputs.items():
        value = site.node.inputs[index] if index < len(site.node.inputs) else None
        kind = element_type(value)
        if kind is not None and kind not in allowed:
            return f"input {index} is {kind}, may be {', '.join(sorted(allowed))}"
    return None


def _check_known(site: Site) -> str | None:
    """Reads `known`: the operators of the default domain that the runtime has."""
    node = site.node
    if node.domain not in ONNX_DOMAINS or node.op_type in site.rule.known:
        return None
    return f"{node.op_type} is not among the operators that it has"


def _check_attributes(site: Site) -> str | None:
    """Reads `attributes`: allowed values of each, and of each entry of a list; none where it must not be set."""
    for name, allowed in site.rule.attributes.items():
        if not allowed:
            if name in site.node.attributes:
                return f"{name} is set"
            continue
        for found in attribute_values(site, name):
            if found not in allowed:
                return f"{name} is {found}, may be {', '.join(map(str, allowed))}"
    return None


def _check_flattened_axes(site: Site) -> str | None:
    """Reads `numbers`: opsets before 13 at which a Softmax may go over one axis, not over all from its axis on."""
    value = site.node.inputs[0] if site.node.inputs else None
    if site.opset not in site.rule.numbers or value is None or value.shape is None or not len(value.shape):
        return None
    axis = site.node.attributes.get_int("axis", 1) % len(value.shape)
    if all(size == 1 for size in value.shape.dims[axis + 1 :]):
        return None
    return f"it goes over the axes {', '.join(map(str, range(axis, len(value.shape))))} at once"


def _check_constant_inputs(site: Site) -> str | None:
    """Reads `positions`: inputs that must be constant where they are given."""
    for index, value in _inputs(site):
        if not is_stored(value):
            return f"input {index} {value.name!r} is computed, must be constant"
    return None


def _check_false_input(site: Site) -> str | None:
    """Reads `positions`: inputs that must be constant and zero where they are given."""
    for index, value in _inputs(site):
        stored = constant_numbers(value)
        if stored is None or stored.any():
            return f"input {index} {value.name!r} must be constant and false"
    return None


def _check_element_types(site: Site) -> str | None:
    """Reads `types`: element types that inputs and outputs may have."""
    for value in (*site.node.inputs, *site.node.outputs):
        kind = element_type(value)
        if value is not None and kind is not None and kind not in site.rule.types:
            return f"{value.name!r} is {kind}"
    return None


def _check_forbidden_types(site: Site) -> str | None:
    """Reads `types`: element types that no input or output may have."""
    for value in (*site.node.inputs, *site.node.outputs):
        kind = element_type(value)
        if value is not None and kind in site.rule.types:
            return f"{value.name!r} is {kind}"
    return None


def _check_border_types(site: Site) -> str | None:
    """Reads `types`: element types that only inputs and outputs of the whole model may have, next to a Cast."""
    for value in (*site.node.inputs, *site.node.outputs):
        if value is None or element_type(value) not in site.rule.types:
            continue
        is_border = value.is_graph_input() or value.is_graph_output()
        if not is_border or site.node.op_type != "Cast":
            where = "outside a Cast" if is_border else "inside the model"
            return f"{value.name!r} is {element_type(value)} {where}"
    return None


def _check_rank(site: Site) -> str | None:
    """Reads `numbers`: the ranks that input 0 may have."""
    value = site.node.inputs[0] if site.node.inputs else None
    if value is None or value.shape is None or len(value.shape) in site.rule.numbers:
        return None
    return f"input 0 has rank {len(value.shape)}, may be {', '.join(map(str, site.rule.numbers))}"


def _check_outputs(site: Site) -> str | None:
    """Reads `limit`: how many outputs may be used."""
    extra = site.node.outputs[site.limit :]
    used = [value for value in extra if value.name and (value.uses() or value.is_graph_output())]
    return f"its output {used[0].name!r} is used, only {site.limit} may be" if used else None


def _check_declared_outputs(site: Site) -> str | None:
    """Reads `limit`: how many outputs may be written down, read or not."""
    count = len(site.node.outputs)
    return f"it declares {count} outputs, only {site.limit} may be" if count > site.limit else None


def _check_below(site: Site) -> str | None:
    """Reads `positions` and `limit`: constant inputs there must be less than that number."""
    for index, value in _inputs(site):
        stored = constant_numbers(value)
        if stored is not None and stored.size and int(stored.max()) >= site.limit:
            return f"input {index} is {int(stored.max())}, must be less than {site.limit}"
    return None


def _check_int32_range(site: Site) -> str | None:
    """Reads `positions`: constant int64 inputs there fit in int32."""
    for _, value in _inputs(site):
        stored = constant_numbers(value) if element_type(value) == "int64" else None
        if stored is None or stored.size == 0:
            continue
        beyond = stored[(stored < _INT32.min) | (stored > _INT32.max)]
        if beyond.size:
            return f"{value.name!r} holds {beyond.flat[0]}, which int32 does not"
    return None


def _check_static_shape(site: Site) -> str | None:
    """The shape of input 0 is written in the file."""
    value = site.node.inputs[0] if site.node.inputs else None
    if value is None or value.shape is None or all(isinstance(size, int) for size in value.shape):
        return None
    return f"the shape of {value.name!r} is open: {show_shape(value.shape)}"


def _check_branches(site: Site) -> str | None:
    """The two branches of an If give outputs of the same ranks, under different names."""
    if site.node.op_type != "If":
        return None
    graphs = [site.node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for then, other in zip(*(graph.outputs for graph in graphs), strict=False):
        if then.name == other.name:
            return f"both branches name their output {then.name!r}"
        if then.shape is not None and other.shape is not None and len(then.shape) != len(other.shape):
            return f"{then.name!r} has rank {len(then.shape)} and {other.name!r} rank {len(other.shape)}"
    return None


def _check_loop(site: Site) -> str | None:
    """A Loop that collects outputs runs a constant number of times, and carries values of constant shape."""
    node = site.node
    if node.op_type != "Loop":
        return None
    body = node.attributes["body"].as_graph()
    carried = len(node.inputs) - 2
    for before, after in zip(body.inputs[2:], body.outputs[1 : 1 + carried], strict=False):
        if before.shape is not None and after.shape is not None and before.shape.dims != after.shape.dims:
            shapes = f"{show_shape(before.shape)} to {show_shape(after.shape)}"
            return f"the carried {before.name!r} changes its shape from {shapes}"
    if len(node.outputs) > carried and not is_stored(node.inputs[0]):
        return "it collects outputs, and how often it runs is computed"
    return None


def _check_directions(site: Site) -> str | None:
    """Both directions of a recurrent operator use the same activations."""
    node = site.node
    given = node.attributes.get_strings("activations", ()) or ()
    half = len(given) // 2
    if node.attributes.get_string("direction", "forward") != "bidirectional" or list(given[:half]) == list(
        given[half:]
    ):
        return None
    return f"its activations are {', '.join(given[:half])} forward and {', '.join(given[half:])} in reverse"


def _check_float32_weight(site: Site) -> str | None:
    """A product's weight is float16, or quantized."""
    node = site.node
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or element_type(weight) != "float32" or not is_stored(weight):
        return None
    if dequantize_of(weight) is not None:
        return None
    return "it computes in float32"


def _check_two_of_four(site: Site) -> str | None:
    """A weight that is half zeros has two of every four input channels, for all others alike."""
    found = _weight_by_inputs(site.node)
    if found is None or found.shape[-1] % _GROUP or found.size == 0:
        return None
    kept = np.count_nonzero(found.reshape(-1, _GROUP), axis=1)
    if kept.sum() > kept.size * _KEPT or (kept <= _KEPT).all():
        return None
    share = 1 - kept.sum() / (kept.size * _GROUP)
    return (
        f"{share:.0%} of its weights are zero, and {np.mean(kept > _KEPT):.0%} of the groups of four hold three or more"
    )


def _weight_by_inputs(node: onnx_ir.Node) -> np.ndarray | None:
    """Return the stored weight with its input channels last, decoded or as integers; None where there is none."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    source = dequantize_of(value)
    tensor = constant_numbers(value if source is None else source.inputs[0])
    if tensor is None or tensor.ndim < 2:
        return None
    if node.op_type == "Conv":
        return np.moveaxis(tensor, 1, -1)
    is_last = node.op_type == "Gemm" and is_transposed(node)
    return tensor if is_last else np.swapaxes(tensor, -1, -2)


def _inputs(site: Site) -> Iterator[tuple[int, onnx_ir.Value]]:
    """Yield the inputs at the rule's positions that are given."""
    for index in site.rule.positions:
        value = site.node.inputs[index] if index < len(site.node.inputs) else None
        if value is not None:
            yield index, value


OPERATOR_CHECKS: dict[str, Check] = {
    "attributes": Check(_check_attributes, ("attributes",)),
    "below": Check(_check_below, ("positions", "limit")),
    "border-types": Check(_check_border_types, ("types",)),
    "branches": Check(_check_branches),
    "constant-inputs": Check(_check_constant_inputs, ("positions",)),
    "declared-outputs": Check(_check_declared_outputs, ("limit",)),
    "directions": Check(_check_directions),
    "domain": Check(_check_domain, ("domains",)),
    "element-types": Check(_check_element_types, ("types",)),
    "false-input": Check(_check_false_input, ("positions",)),
    "float32-weight": Check(_check_float32_weight),
    "flattened-axes": Check(_check_flattened_axes, ("numbers",)),
    "forbidden-types": Check(_check_forbidden_types, ("types",)),
    "int32-range": Check(_check_int32_range, ("positions",)),
    "known": Check(_check_known, ("known",)),
    "loop": Check(_check_loop),
    "outputs": Check(_check_outputs, ("limit",)),
    "present": Check(_check_present, ("ops",)),
    "rank": Check(_check_rank, ("numbers",)),
    "static-shape": Check(_check_static_shape),
    "two-of-four": Check(_check_two_of_four),
    "types": Check(_check_types, ("inputs",)),
}
