"""A model as text, for printing after passes and for diffing: equal models give equal text.

The form is ONNX's own (https://onnx.ai/onnx/repo-docs/Syntax.html), one node and one initializer a line.
What it has no place for stands in comments at the end of the line: the types of what a node makes, the
clipping ranges noted on it, how a weight is encoded. Weights are named by type, shape and the start of the
sha256 of their bytes, so a weight that changed is one line that changed. With `weights=True` all numbers
are spelled out, and the text parses back to the same graph (but for types whose numbers ONNX's parser does
not read: NaN, float16, 4 bits ...).

onnx's own printer is not used: it writes every number, and no types, on the lines that a reader looks at.
"""

from __future__ import annotations

import bisect
import collections
import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir

from onnxpress.ir import encodings, quantization

__all__ = ["diff", "to_text", "type_text"]

_INDENT = "   "
_SPELLED_OUT = 8  # elements; up to here a tensor is shorter than its digest, and mostly a shape or an axis
_DIGEST_CHARACTERS = 12
_CONTEXT_LINES = 2
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LISTS = (onnx_ir.AttributeType.INTS, onnx_ir.AttributeType.FLOATS, onnx_ir.AttributeType.STRINGS)


def to_text(model: onnx_ir.Model, *, weights: bool = False) -> str:
    """Return `model` as text. weights: spell out all numbers."""
    return "\n".join([*_header(model), *_graph(model.graph, weights, "", "")]) + "\n"


def diff(before: str, after: str) -> str:
    """Return the unified diff of two texts, without file names; empty when they are equal."""
    old, new = before.splitlines(), after.splitlines()
    lines: list[str] = []
    for hunk in _Matcher(old, new).get_grouped_opcodes(_CONTEXT_LINES):
        (_, old_start, _, new_start, _), (_, _, old_stop, _, new_stop) = hunk[0], hunk[-1]
        lines.append(f"@@ -{old_start + 1},{old_stop - old_start} +{new_start + 1},{new_stop - new_start} @@")
        for tag, a, b, c, d in hunk:
            if tag == "equal":
                lines += [f" {line}" for line in old[a:b]]
                continue
            lines += [f"-{line}" for line in old[a:b]]
            lines += [f"+{line}" for line in new[c:d]]
    return "".join(f"{line}\n" for line in lines)


class _Matcher(difflib.SequenceMatcher[str]):
    """Match lines that occur once in both texts first (patience diff), so that time grows with length.

    difflib alone takes time with the square of the length where changes are spread evenly, as passes spread
    them: half a minute for 20,000 nodes. Source: https://bramcohen.livejournal.com/73318.html
    """

    def __init__(self, old: Sequence[str], new: Sequence[str]) -> None:
        super().__init__(None, old, new, autojunk=False)
        self.old, self.new = old, new

    def get_matching_blocks(self) -> list[difflib.Match]:
        blocks: list[difflib.Match] = []
        for block in self._blocks():
            last = blocks[-1] if blocks else None
            if last and (last.a + last.size, last.b + last.size) == (block.a, block.b):
                blocks[-1] = difflib.Match(last.a, last.b, last.size + block.size)
            else:
                blocks.append(block)
        return [*blocks, difflib.Match(len(self.old), len(self.new), 0)]

    def _blocks(self) -> Iterator[difflib.Match]:
        """Yield the matches between two anchors, then the anchor."""
        old_at = new_at = 0
        for old_line, new_line in [*_anchors(self.old, self.new), (len(self.old), len(self.new))]:
            gap = difflib.SequenceMatcher(None, self.old[old_at:old_line], self.new[new_at:new_line], autojunk=False)
            for block in gap.get_matching_blocks()[:-1]:
                yield difflib.Match(old_at + block.a, new_at + block.b, block.size)
            if old_line < len(self.old):
                yield difflib.Match(old_line, new_line, 1)
            old_at, new_at = old_line + 1, new_line + 1


def _anchors(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Return positions of lines that are unique in both texts, the longest choice that rises in both."""
    counts = collections.Counter(old)
    places = {line: at for at, line in enumerate(new)}
    unique = {line for line, count in collections.Counter(new).items() if count == 1 == counts[line]}
    tops: list[int] = []  # of piles, by patience sorting: the lowest new position that ends a run of that length
    piles: list[tuple[int, int]] = []
    parents: dict[tuple[int, int], tuple[int, int] | None] = {}
    for at, line in enumerate(old):
        if line not in unique:
            continue
        pair = (at, places[line])
        pile = bisect.bisect_left(tops, pair[1])
        parents[pair] = piles[pile - 1] if pile else None
        tops[pile : pile + 1] = [pair[1]]
        piles[pile : pile + 1] = [pair]
    chain: list[tuple[int, int]] = []
    last = piles[-1] if piles else None
    while last is not None:
        chain.append(last)
        last = parents[last]
    return chain[::-1]


def type_text(value: onnx_ir.Value) -> str:
    """Return type and shape as ONNX writes them: `float[N,3]`, `int64` of a scalar, `float[]` without rank.

    Unknown sizes are `?`, an unknown type `undefined`.
    """
    return _type(value.type, value.shape)


def _header(model: onnx_ir.Model) -> Iterator[str]:
    opsets = [f"{_quoted(domain)}: {version}" for domain, version in sorted(model.opset_imports.items())]
    entries = [f"ir_version: {model.ir_version}", f"opset_import: [{', '.join(opsets)}]"]
    for key in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        content = getattr(model, key)
        if content:
            entries.append(f"{key}: {content if isinstance(content, int) else _quoted(content)}")
    if model.metadata_props:
        metadata = [f"{_quoted(key)}: {_quoted(text)}" for key, text in sorted(model.metadata_props.items())]
        entries.append(f"metadata_props: [{', '.join(metadata)}]")
    yield "<"
    yield from (f"{_INDENT}{entry}{',' if entry is not entries[-1] else ''}" for entry in entries)
    yield ">"


def _graph(graph: onnx_ir.Graph, weights: bool, indent: str, start: str) -> Iterator[str]:
    """Yield the lines of a graph; the first begins with `start`."""
    inputs = ", ".join(_declaration(value) for value in graph.inputs)
    outputs = ", ".join(_declaration(value) for value in graph.outputs)
    notes = "; ".join(f"{_name(value.name)} {text}" for value in graph.inputs if (text := _note(value)))
    comment = f"  # {notes}" if notes else ""
    yield f"{indent}{start}{_name(graph.name or 'graph')} ({inputs}) => ({outputs}){comment}"
    inner = indent + _INDENT
    initializers = list(graph.initializers.values())
    if initializers:
        yield f"{indent}<"
        for value in initializers:
            yield inner + _initializer(value, weights, "" if value is initializers[-1] else ",")
        yield f"{indent}>"
    yield f"{indent}{{"
    for node in graph:
        yield from _node(node, weights, inner)
    yield f"{indent}}}"


def _declaration(value: onnx_ir.Value) -> str:
    return _name(value.name) if value.type is None else f"{type_text(value)} {_name(value.name)}"


def _initializer(value: onnx_ir.Value, weights: bool, comma: str) -> str:
    tensor = value.const_value
    if tensor is None:
        return f"{type_text(value)} {_name(value.name)}{comma}  # no numbers"
    declared = f"{_type(onnx_ir.TensorType(tensor.dtype), tensor.shape)} {_name(value.name)}"
    encoded = encodings.encoding_of(value)
    comment = f"  # {_described(encoded)}" if encoded else ""
    if weights or (tensor.size <= _SPELLED_OUT and not encoded):
        return f"{declared} = {_numbers(tensor)}{comma}{comment}"
    return f"{declared}{comma}{comment or f'  # sha256 {_digest(_bytes(tensor))}'}"


def _described(encoded: encodings.Encoded) -> str:
    parameters = [encoded.parameters[name] for name in sorted(encoded.parameters)]
    content = [encoded.packed(), *(np.asarray(value).tobytes() for value in parameters if value is not None)]
    return f"{encoded.label}, {encoded.bits_per_weight:.4g} bits/weight, sha256 {_digest(b''.join(content))}"


def _bytes(tensor: onnx_ir.TensorProtocol) -> bytes:
    if tensor.dtype == onnx_ir.DataType.STRING:
        return b"\0".join(tensor.numpy().reshape(-1))
    return tensor.tobytes()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST_CHARACTERS]


def _node(node: onnx_ir.Node, weights: bool, indent: str) -> Iterator[str]:
    outputs = ", ".join(_name(value.name) for value in node.outputs)
    domain = f"{node.domain}." if node.domain else ""
    overload = f":{node.overload}" if node.overload else ""
    label = f"[{_name(node.name)}] " if node.name else ""
    start = f"{indent}{label}{outputs} = {domain}{node.op_type}{overload}"
    inputs = ", ".join('""' if value is None else _name(value.name) for value in node.inputs)
    end = f" ({inputs})  # {', '.join(_result(value) for value in node.outputs)}"
    plain = [attribute for attribute in node.attributes.values() if not _graphs_in(attribute)]
    text = ", ".join(_attribute(attribute, weights) for attribute in plain)
    nested = [attribute for attribute in node.attributes.values() if _graphs_in(attribute)]
    if not nested:
        yield f"{start} <{text}>{end}" if text else f"{start}{end}"
        return
    yield f"{start} <{text}{',' if text else ''}"
    inner = indent + _INDENT
    for attribute in nested:
        comma = "," if attribute is not nested[-1] else ""
        yield from _nested(attribute, weights, inner, comma)
    yield f"{indent}>{end}"


def _nested(attribute: onnx_ir.Attr, weights: bool, indent: str, comma: str) -> Iterator[str]:
    graphs = _graphs_in(attribute)
    if attribute.type == onnx_ir.AttributeType.GRAPH:
        *lines, last = _graph(graphs[0], weights, indent, f"{attribute.name} = ")
        yield from lines
        yield last + comma
        return
    yield f"{indent}{attribute.name} = ["
    for graph in graphs:
        *lines, last = _graph(graph, weights, indent + _INDENT, "")
        yield from lines
        yield last + ("," if graph is not graphs[-1] else "")
    yield f"{indent}]{comma}"


def _graphs_in(attribute: onnx_ir.Attr) -> list[onnx_ir.Graph]:
    if attribute.is_ref():
        return []
    if attribute.type == onnx_ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == onnx_ir.AttributeType.GRAPHS:
        return list(attribute.as_graphs())
    return []


def _result(value: onnx_ir.Value) -> str:
    return f"{type_text(value)} {_note(value)}".rstrip()


def _note(value: onnx_ir.Value) -> str:
    note = quantization.quantization_of(value)
    if note is None:
        return ""
    group = f" group {note.group}" if note.group else ""
    return f"clip [{note.low:.9g}, {note.high:.9g}] {note.bits} bits{group}"


def _attribute(attribute: onnx_ir.Attr, weights: bool) -> str:
    kind = attribute.type
    if attribute.is_ref():
        return f"{attribute.name}: {kind.name.lower()} = @{attribute.ref_attr_name}"
    if kind in _LISTS and not attribute.value:  # nothing to tell the type from
        return f"{attribute.name}: {kind.name.lower()} = []"
    return f"{attribute.name} = {_attribute_value(attribute, weights)}"


def _attribute_value(attribute: onnx_ir.Attr, weights: bool) -> str:
    kind, value = attribute.type, attribute.value
    if kind == onnx_ir.AttributeType.TENSOR:
        return _tensor(value, weights)
    if kind == onnx_ir.AttributeType.TENSORS:
        return f"[{', '.join(_tensor(tensor, weights) for tensor in value)}]"
    if kind == onnx_ir.AttributeType.TYPE_PROTO:
        return _type(value.type, value.shape)
    if kind in _LISTS:
        return f"[{', '.join(map(_scalar, value))}]"
    return _scalar(value)


def _tensor(tensor: onnx_ir.TensorProtocol, weights: bool) -> str:
    declared = _type(onnx_ir.TensorType(tensor.dtype), tensor.shape)
    if weights or tensor.size <= _SPELLED_OUT:
        return f"{declared} {_numbers(tensor)}"
    return f"{declared} sha256 {_digest(_bytes(tensor))}"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bytes):
        return _quoted(value.decode("utf-8", "backslashreplace"))
    if isinstance(value, float):
        return _float(np.float32(value))
    return str(value)


def _float(value: np.floating[Any]) -> str:
    text = str(value)
    return text if "." in text or not text.lstrip("-").isdigit() else f"{text}.0"


def _numbers(tensor: onnx_ir.TensorProtocol) -> str:
    if tensor.dtype == onnx_ir.DataType.STRING:
        elements: Iterable[str] = (_scalar(text) for text in tensor.numpy().reshape(-1))
    elif tensor.dtype == onnx_ir.DataType.BOOL:
        elements = tensor.numpy().reshape(-1).astype(np.int8).astype(str)
    else:
        elements = tensor.numpy().reshape(-1).astype(str)
    return f"{{{', '.join(elements)}}}"


def _type(kind: onnx_ir.TypeProtocol | None, shape: onnx_ir.ShapeProtocol | None) -> str:
    if kind is None:
        return "undefined"
    if isinstance(kind, onnx_ir.SequenceType):
        return f"seq({_type(kind.elem_type, shape)})"
    if isinstance(kind, onnx_ir.OptionalType):
        return f"optional({_type(kind.elem_type, shape)})"
    element = kind.dtype.name.lower()
    if shape is None:
        text = f"{element}[]"
    elif len(shape) == 0:
        text = element
    else:
        text = f"{element}[{','.join(_dimension(dim) for dim in shape)}]"
    return f"sparse_tensor({text})" if isinstance(kind, onnx_ir.SparseTensorType) else text


def _dimension(dim: int | onnx_ir.SymbolicDimProtocol) -> str:
    if isinstance(dim, int):
        return str(dim)
    return "?" if dim.value is None else _name(str(dim.value))


def _name(name: str | None) -> str:
    return name if name and _IDENTIFIER.fullmatch(name) else _quoted(name or "")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
