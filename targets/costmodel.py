"""Predict the time of single operators on one core from a profile's roofline.

For Conv, ConvTranspose, Gemm and MatMul, with the numbers of the profile's table `roofline`:

    time    = max(compute, memory) + weights + overhead
    compute = 2 * macs' / peak + groups * rows * M' * output_ns + groups' * rows * K * tap_ns + unaligned
    memory  = (bytes in + bytes out) / bandwidth where a core's own cache does not hold them; or bytes of weights /
              bandwidth where that takes longer, of the cache where it holds the whole model's
    weights = the same, of a Conv whose weights the cache does not hold: products read them in order, which is foreseen,
              and convolutions again and again, while there is little to compute
    macs'   = groups * rows' * K * C' * (M' + half_peak_channels + sets * set_channels)

    rows    output positions at batch 1
    rows'   those, and `half_peak_rows` of a product, and `border` more for each position at the edge of an image
    K       kernel positions, 1 for Gemm and MatMul
    C'      input channels of a group, rounded up to `input_step`; where a Conv is unaligned, to `aligned_channels`
            instead, times `unaligned_factor`
    M'      output channels of a group, rounded up to `output_step`
    sets    M' / output_set, rounded up, of a dense Conv: its kernels read their input once for each
    groups' 1 for a dense or depthwise Conv, 0 without kernel positions

A Conv is unaligned whose input channels are no multiple of `aligned_channels`, or whose output channels are no multiple
of `aligned_outputs`, or fewer than `least_outputs`: its kernel copies patches of the image first, which costs rows * K
times `unaligned_tap_ns` and, for each input channel, `unaligned_copy_ns`. So does a grouped Conv whose groups are no
multiple of `group_step` channels, in and out (`unaligned_group_ns` for each input channel of all groups), and a
depthwise one whose channels are no multiple of `depthwise_step` (`unaligned_depthwise_ns`); all where K is above 1.

An integer Conv whose input channels are padded by the lowering (`input_channel_multiple`) pays for a copy of
its data and for the padded width.

An activation other than Relu that a linear operator in float32 takes over costs it `activation_ns` per element: it goes
over the result once more.

Everything else costs `elements` nanoseconds per element of its larger side, or its memory. Operators that vanish (into
their producer, or into its output range) cost nothing, and an Add that a Conv takes over as its start `fused_add_ns`.

Extents that a model leaves open are assumed: 1 for the batch, which leads, and 64 for any other. Decisions rest on
how times compare, and float and integers are priced at the same size. Only where even the rank is unknown is the
overhead all that can be counted.

The formula depends on shapes and the profile alone. It reproduces what was seen on real runtimes: 31 channels
cost no less than 32, narrow layers do not reach the integer peak, depthwise Conv gains nothing from integers,
and layers with few rows are bound by reading their weights. Bodies of If and Loop are not added to their
nodes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import onnx_ir

from onnxpress.ir.linear import ONNX_DOMAINS, constant_tensor
from onnxpress.passes.constraints import Precision
from onnxpress.targets.schema import Peaks, Quantization, Roofline

__all__ = ["CostBreakdown", "RooflineCost"]

_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ASSUMED_EXTENT = 64  # image sides and lengths of sequences: large enough that a call's overhead does not decide
_FILLED = 0.75  # of a cache, with one thing
_BYTES: dict[Precision, int] = {"float32": 4, "int8": 1}

_Class = Literal["conv", "pointwise", "depthwise", "grouped", "gemm"]


@dataclasses.dataclass(frozen=True)
class CostBreakdown:
    """Where a node's predicted time comes from. All times in seconds, at batch 1.

    kind: class of the operator, such as "depthwise", "elements" or "absorbed"; "unknown shape" where a rank is
    unknown and only the overhead could be counted; "no kernel" where the time is infinite. memory: of moving data while
    it computes. weights: of reading those that no cache holds.
    ideal_compute: what the multiplications take at the peak.
    """

    kind: str
    seconds: float
    compute: float = 0.0
    memory: float = 0.0
    weights: float = 0.0
    overhead: float = 0.0
    macs: int = 0
    ideal_compute: float = 0.0

    @property
    def bound(self) -> str:
        """What dominates the time: computing, memory, or the cost of calling the kernel."""
        terms = {"compute": self.compute, "memory": self.memory + self.weights, "overhead": self.overhead}
        return max(terms, key=lambda name: terms[name])


@dataclasses.dataclass(frozen=True)
class _Work:
    """A linear operator at batch 1: `groups` products of [rows, kernel * inputs] and [.., outputs]."""

    kind: _Class
    groups: int
    rows: int
    kernel: int
    inputs: int
    outputs: int
    reach: float  # how many columns of the kernel lie beside its middle, over columns of the output
    read: int  # elements of the data, of the output and of the weight
    written: int
    weights: int

    @property
    def macs(self) -> int:
        return self.groups * self.rows * self.kernel * self.inputs * self.outputs


class RooflineCost:
    """The cost estimator of a profile: implements `passes.constraints.CostEstimator`."""

    def __init__(self, roofline: Roofline, quantization: Quantization, working_set_bytes: int | None = None) -> None:
        """working_set_bytes: what a whole model reads in each run; None where a node is looked at alone."""
        self._roofline = roofline
        self._working_set = working_set_bytes
        self._integer = quantization.compute | quantization.carry
        self._padded_to = quantization.input_channel_multiple
        self._into_range = quantization.fused_activations

    @property
    def call_seconds(self) -> float:
        """What running a model costs, whatever it computes."""
        return self._roofline.call_us * 1e-6

    def node_seconds(self, node: onnx_ir.Node, precision: Precision = "float32") -> float:
        """Return the predicted time of `node` at batch 1; `math.inf` where that precision has no kernel.

        Open extents are assumed as the module says. Where a rank is unknown, the overhead alone is returned.
        """
        return self.explain(node, precision).seconds

    def convert_seconds(self, value: onnx_ir.Value, to: Precision) -> float:
        """Return the predicted time to change `value` from the other precision to `to`, at batch 1.

        Images (rank 4 and up) change their layout too. An operator of `converted_tap_ns` on either side is
        counted here: the runtime moves the conversion before it, or finds the integers in the wrong layout.
        Where the rank is unknown: the overhead alone.
        """
        roofline = self._roofline
        elements = _elements(value) or 0
        shape = value.shape
        is_image = shape is not None and len(shape) >= 4
        rate = roofline.convert_ns.of(to) + (roofline.layout_ns.of(to) if is_image else 0.0)
        calls = 2 if is_image else 1
        slow = sum(map(self._slow_behind_conversion, _neighbours(value))) if to == "int8" else 0.0
        return (elements * rate + slow) * 1e-9 + calls * self._light_overhead(to)

    def _slow_behind_conversion(self, node: onnx_ir.Node) -> float:
        """Nanoseconds that `node` takes longer on integers that no integer operator made."""
        rate = self._roofline.converted_tap_ns.get(node.op_type)
        if rate is None:
            return 0.0
        taps = math.prod(node.attributes.get_ints("kernel_shape", [1]))
        return rate * taps * (_elements(node.outputs[0]) or 0)

    def layout_seconds(self, value: onnx_ir.Value) -> float:
        """Return the predicted time to change the layout of a float image, at batch 1."""
        roofline = self._roofline
        elements = _elements(value) or 0
        return elements * roofline.layout_ns.of("float32") * 1e-9 + self._light_overhead("float32")

    def _overhead(self, precision: Precision) -> float:
        return self._roofline.overhead_us.of(precision) * 1e-6

    def _light_overhead(self, precision: Precision) -> float:
        roofline = self._roofline
        return (roofline.light_overhead_us or roofline.overhead_us).of(precision) * 1e-6

    def explain(self, node: onnx_ir.Node, precision: Precision = "float32", *, fuses_add: bool = True) -> CostBreakdown:
        """Return what `node_seconds` is made of. fuses_add: whether a Conv may take over an Add of its result."""
        if self._is_absorbed(node, precision, fuses_add):
            return CostBreakdown("absorbed", 0.0)
        if precision == "int8" and (node.op_type not in self._integer or _has_left_weight(node)):
            return CostBreakdown("no kernel", math.inf)
        overhead = self._overhead(precision)
        fused = self._roofline.fused_add_ns
        if fused is not None and fuses_add and precision == "float32" and _is_fused_add(node):
            seconds = (_elements(node.outputs[0]) or 0) * fused * 1e-9
            return CostBreakdown("fused", seconds, compute=seconds)
        if not _is_linear(node):
            return self._explain_elements(node, precision)
        work = _work(node)
        if work is None:
            return CostBreakdown("unknown shape", overhead, overhead=overhead)
        if work.kind == "gemm":
            overhead = self._light_overhead(precision)
        found = self._explain_work(work, precision, overhead)
        more = self._activation_seconds(node, precision)
        return dataclasses.replace(found, seconds=found.seconds + more, compute=found.compute + more)

    def _is_absorbed(self, node: onnx_ir.Node, precision: Precision, fuses_add: bool) -> bool:
        if not _is_standard(node):
            return False
        if precision == "int8" and node.op_type in self._into_range:
            return True
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type not in self._roofline.absorbed or producer is None or len(producer.outputs[0].uses()) != 1:
            return False
        fuses_add = fuses_add and self._roofline.fused_add_ns is not None and precision == "float32"
        return _is_linear(producer) or (fuses_add and _is_fused_add(producer))

    def _activation_seconds(self, node: onnx_ir.Node, precision: Precision) -> float:
        """Seconds of an activation that a linear operator takes over, other than a Relu, which its kernel ends in."""
        readers = node.outputs[0].consumers()
        if precision == "int8" or len(readers) != 1 or readers[0].op_type in ("BatchNormalization", "Relu"):
            return 0.0
        if not self._is_absorbed(readers[0], precision, fuses_add=False):
            return 0.0
        return (_elements(node.outputs[0]) or 0) * self._roofline.activation_ns.of(precision) * 1e-9

    def _explain_elements(self, node: onnx_ir.Node, precision: Precision) -> CostBreakdown:
        rates, overhead = self._roofline.elements, self._light_overhead(precision)
        name = node.op_type if node.op_type in rates and _is_standard(node) else "default"
        rate = rates[name].kernel(precision)
        if rate is None:
            return CostBreakdown("no kernel", math.inf)
        sides = [_total(node.inputs), _total(node.outputs)]
        if all(side is None for side in sides):
            return CostBreakdown("unknown shape", overhead, overhead=overhead)
        read, written = (side or 0 for side in sides)
        compute = max(read, written) * rate * 1e-9
        memory = self._activations(read + written, precision) if rate else 0.0
        return CostBreakdown(
            "elements", max(compute, memory) + overhead, compute=compute, memory=memory, overhead=overhead
        )

    def _explain_work(self, work: _Work, precision: Precision, overhead: float) -> CostBreakdown:
        roofline = self._roofline
        peaks: Peaks = getattr(roofline, work.kind)
        if peaks.kernel(precision) is None:
            return CostBreakdown("no kernel", math.inf)
        peak = peaks.of(precision) * 1e9
        compute = self._compute(work, precision, peak)
        memory = self._activations(work.read + work.written, precision)
        weights, are_near = self._weights(work, precision)
        if are_near or work.kind == "gemm":
            memory, weights = max(memory, weights), 0.0
        return CostBreakdown(
            work.kind,
            max(compute, memory) + weights + overhead,
            compute=compute,
            memory=memory,
            weights=weights,
            overhead=overhead,
            macs=work.macs,
            ideal_compute=2 * work.macs / peak,
        )

    def _is_near(self, size: int) -> bool:
        """Whether a core's own cache holds so many bytes, and what else a run touches."""
        return self._roofline.cache_gb_per_s is not None and size <= _FILLED * self._roofline.cache_kib * 1024

    def _activations(self, elements: int, precision: Precision) -> float:
        """Seconds to move so many elements; none where a core's own cache holds them all."""
        size = elements * _BYTES[precision]
        return 0.0 if self._is_near(size) else size / (self._roofline.bandwidth_gb_per_s * 1e9)

    def _weights(self, work: _Work, precision: Precision) -> tuple[float, bool]:
        """Return the seconds to read an operator's weights, and whether a core's own cache holds the model's."""
        roofline, size = self._roofline, work.weights * _BYTES[precision]
        is_near = self._is_near(max(size, self._working_set or 0))
        rate = roofline.cache_gb_per_s if is_near else None
        return size / ((rate or roofline.bandwidth_gb_per_s) * 1e9), is_near

    def _compute(self, work: _Work, precision: Precision, peak: float) -> float:
        """Seconds of computing: multiplications, then what is paid by element."""
        roofline = self._roofline
        outputs = self._output_channels(work, precision)
        by_element = work.groups * work.rows * outputs * roofline.output_ns.of(precision)
        if precision == "int8" and work.kind == "conv" and work.inputs % self._padded_to:
            padded = _round_up(work.inputs, self._padded_to)
            by_element += work.read // work.inputs * padded * roofline.layout_ns.of(precision)
            work = dataclasses.replace(work, inputs=padded)
        if work.kernel > 1:
            by_element += work.rows * work.kernel * self._patch_ns(work, precision)
        if work.kind in ("conv", "pointwise"):
            outputs += math.ceil(outputs / roofline.output_set) * roofline.set_channels.of(precision)
        if work.kind != "depthwise":
            outputs += roofline.half_peak_channels.of(precision)
        rows = work.rows * (1 + roofline.border.of(precision) * work.reach)
        if work.kind == "gemm":
            rows += roofline.half_peak_rows.of(precision)
        channels = self._input_channels(work, precision) * outputs
        return 2 * work.groups * rows * work.kernel * channels / peak + by_element * 1e-9

    def _patch_ns(self, work: _Work, precision: Precision) -> float:
        """Nanoseconds to get at the input under one kernel position, for one output position."""
        roofline, step = self._roofline, self._roofline.group_step
        if work.kind == "grouped":
            is_copied = bool(work.inputs % step or work.outputs % step)
            return work.groups * work.inputs * roofline.unaligned_group_ns.of(precision) if is_copied else 0.0
        found = roofline.tap_ns.of(precision)
        if work.kind == "depthwise":
            ragged = work.groups * work.outputs % roofline.depthwise_step.of(precision)
            return found + (work.groups * roofline.unaligned_depthwise_ns.of(precision) if ragged else 0.0)
        if self._is_unaligned(work, precision):
            found += roofline.unaligned_tap_ns.of(precision) + work.inputs * roofline.unaligned_copy_ns.of(precision)
        return found

    def _is_unaligned(self, work: _Work, precision: Precision) -> bool:
        roofline = self._roofline
        if work.kind in ("gemm", "depthwise"):
            return False
        if work.inputs % roofline.aligned_channels or work.outputs % roofline.aligned_outputs.of(precision):
            return True
        return work.outputs < roofline.least_outputs.of(precision)

    def _input_channels(self, work: _Work, precision: Precision) -> float:
        """Channels paid for. Below one step, kernels for narrow inputs (images) take them as they are."""
        roofline = self._roofline
        step = roofline.input_step.of(precision)
        if work.kind in ("gemm", "depthwise") or work.inputs < step:
            return work.inputs
        if self._is_unaligned(work, precision):
            aligned = _round_up(work.inputs, roofline.aligned_channels)
            return aligned * roofline.unaligned_factor.of(precision)
        return _round_up(work.inputs, step)

    def _output_channels(self, work: _Work, precision: Precision) -> float:
        """Channels of a group that are computed. Depthwise kernels take groups for channels."""
        step = self._roofline.output_step.of(precision)
        if work.kind == "depthwise":
            return work.outputs * _round_up(work.groups, step) / work.groups
        return _round_up(work.outputs, step)


def _is_fused_add(node: onnx_ir.Node) -> bool:
    """Whether an Add of two activations has a Conv right before it that nothing else reads."""
    values = [value for value in node.inputs if value is not None]
    if node.op_type != "Add" or not _is_standard(node) or any(constant_tensor(value) is not None for value in values):
        return False
    producers = [value.producer() for value in values if len(value.uses()) == 1]
    return any(each is not None and each.op_type == "Conv" and _is_standard(each) for each in producers)


def _neighbours(value: onnx_ir.Value) -> list[onnx_ir.Node]:
    """Return the nodes that make and read `value`."""
    producer = value.producer()
    return [*([] if producer is None else [producer]), *value.consumers()]


def _is_standard(node: onnx_ir.Node) -> bool:
    return node.domain in ONNX_DOMAINS


def _is_linear(node: onnx_ir.Node) -> bool:
    return node.op_type in _LINEAR and _is_standard(node)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _has_left_weight(node: onnx_ir.Node) -> bool:
    """Whether a product's constant stands on the left, where no runtime takes it as signed integers."""
    left = node.inputs[0] if node.op_type in ("Gemm", "MatMul") and node.inputs else None
    return left is not None and constant_tensor(left) is not None


def _shape(value: onnx_ir.Value) -> tuple[int, ...] | None:
    """Return the shape at batch 1, with `_ASSUMED_EXTENT` for what else is open; None where the rank is unknown."""
    if value.shape is None:
        return None
    leading = (1, *[_ASSUMED_EXTENT] * (len(value.shape) - 1))
    return tuple(dim if isinstance(dim, int) else assumed for dim, assumed in zip(value.shape, leading, strict=False))


def _elements(value: onnx_ir.Value) -> int | None:
    shape = _shape(value)
    return None if shape is None else math.prod(shape)


def _total(values: Sequence[onnx_ir.Value | None]) -> int | None:
    """Return the elements of all computed values, None where a rank is unknown. Constants cost nothing."""
    counts = [_elements(value) for value in values if value is not None and not value.is_initializer()]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _work(node: onnx_ir.Node) -> _Work | None:
    """Return a linear operator in numbers, or None where a rank is unknown or shapes make no sense."""
    if len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    left, right, out = _shape(node.inputs[0]), _shape(node.inputs[1]), _shape(node.outputs[0])
    if left is None or right is None or out is None:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        return _conv_work(node, left, right, out)
    return _product_work(node, left, right, out)


def _conv_work(
    node: onnx_ir.Node, data: tuple[int, ...], weight: tuple[int, ...], out: tuple[int, ...]
) -> _Work | None:
    if len(data) < 3 or len(weight) != len(data) or len(out) != len(data):
        return None
    groups = max(1, node.attributes.get_int("group", 1))
    kernel = math.prod(weight[2:])
    transposed = node.op_type == "ConvTranspose"
    # The weight knows its channels even where the data's are open.
    inputs, outputs = (weight[0] // groups, weight[1]) if transposed else (weight[1], weight[0] // groups)
    # Every input position of a ConvTranspose meets the whole kernel, as every output position of a Conv does.
    positions = data[2:] if transposed else out[2:]
    kind: _Class = "conv"
    if groups > 1:
        kind = "depthwise" if inputs == 1 and len(data) > 3 else "grouped"  # over time it has no kernel of its own
    elif kernel == 1 and not transposed:
        kind = "pointwise"
    return _Work(
        kind,
        groups=groups,
        rows=out[0] * math.prod(positions),
        kernel=kernel,
        reach=(weight[-1] - 1) / max(1, positions[-1]),
        inputs=inputs,
        outputs=outputs,
        read=math.prod(data),
        written=math.prod(out),
        weights=math.prod(weight),
    )


def _product_work(
    node: onnx_ir.Node, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]
) -> _Work | None:
    if not left or not right or not out:
        return None
    is_transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0
    depth = left[0] if is_transposed else left[-1]
    outputs = out[-1] if len(right) > 1 else 1
    stored, moving = (left, right) if _has_left_weight(node) else (right, left)
    return _Work(
        "gemm",
        groups=1,
        rows=math.prod(out) // max(1, outputs),
        kernel=1,
        reach=0.0,
        inputs=depth,
        outputs=outputs,
        read=math.prod(moving),
        written=math.prod(out),
        weights=math.prod(stored),
    )
