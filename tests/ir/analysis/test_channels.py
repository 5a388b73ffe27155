"""What is coupled with what, what is frozen and why, and what a removal rewrites: one small graph for each rule."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper

from onnxpress.ir import model_io
from onnxpress.ir.analysis.channels import ChannelGroup, couple, remove, removed_indices
from onnxpress.ir.encodings import Affine
from onnxpress.ir.errors import InternalError
from onnxpress.ir.linear import constant_tensor
from tests.ir.analysis.channel_graphs import Builder, random_model
from tests.ir.analysis.test_channels_property import check, close, draw, zero
from tests.support import random_feeds, run, tensor_of


def _group(model: onnx_ir.Model, name: str) -> ChannelGroup:
    found = {group.name: group for group in couple(model).groups}
    assert name in found, list(found)
    return found[name]


def _node(model: onnx_ir.Model, op_type: str) -> onnx_ir.Node:
    return next(node for node in model.graph.all_nodes() if node.op_type == op_type)


def _ints(model: onnx_ir.Model, op_type: str, index: int) -> list[int]:
    tensor = constant_tensor(_node(model, op_type).inputs[index])
    assert tensor is not None
    return [int(number) for number in tensor.numpy().ravel()]


def _removed(model: onnx_ir.Model, group: str, *slots: int) -> onnx_ir.Model:
    """Remove zeroed slots of one group, and hold the outputs against those before."""
    chosen = {_group(model, group): slots}
    zero(chosen)
    feeds = random_feeds(model)
    expected = run(model, feeds)
    remove(model, chosen)
    for one, other in zip(expected, run(model, feeds), strict=True):
        close(other, one)
    return model


def _positions(group: ChannelGroup, name: str, axis: int = 1) -> list[list[int]]:
    found = [member for member in group.members if member.value.name == name and member.axis == axis]
    assert len(found) == 1, [member.value.name for member in group.members]
    positions: list[list[int]] = found[0].positions.tolist()
    return positions


@dataclasses.dataclass
class _Net:
    """A first Conv `c` with `channels` channels on [N, 3, 4, 6], then what the test adds, then a Conv to 2 channels."""

    build: Builder
    hidden: str

    @classmethod
    def start(cls, channels: int, opset: int = 17) -> _Net:
        build = Builder(0, opset=opset)
        return cls(build, build.conv(build.input("N", 3, 4, 6), 3, channels, 3))

    def end(self, value: str, channels: int) -> onnx_ir.Model:
        return self.build.model(self.build.conv(value, channels, 2), 4)


# What belongs together.


def test_a_conv_chain_has_one_group_for_each_hidden_layer() -> None:
    net = _Net.start(4)
    model = net.end(net.build.node("Relu", net.hidden), 4)
    groups = couple(model).groups
    assert [(group.size, group.frozen) for group in groups] == [
        (3, "graph input 'x0'"),
        (2, "graph output 'conv7'"),
        (4, None),
    ]
    (hidden,) = couple(model).removable
    assert hidden.name == "conv3"
    assert [op.node.name for op in hidden.producers] == ["conv3"]
    assert [op.node.name for op in hidden.consumers] == ["conv7"]
    assert [(member.value.name, member.axis) for member in hidden.constants] == [("w1", 0), ("w2", 0), ("w5", 1)]
    consumer = hidden.consumers[0]
    positions = hidden.positions(consumer.data, consumer.data_axis)
    assert positions is not None and positions.tolist() == [[0], [1], [2], [3]]
    assert hidden.positions(consumer.output, 1) is None


def test_add_ties_what_it_adds() -> None:
    net = _Net.start(4)
    model = net.end(net.build.node("Add", net.hidden, net.build.conv(net.hidden, 4, 4)), 4)
    (group,) = couple(model).removable
    assert [op.node.name for op in group.producers] == ["conv3", "conv6"]


def test_a_repeated_axis_ties_nothing() -> None:
    net = _Net.start(4)
    mask = net.build.node("Sigmoid", net.build.conv(net.hidden, 4, 1))
    model = net.end(net.build.node("Mul", net.hidden, mask), 4)
    assert _frozen(model) is None
    _removed(model, "conv3", 1)


def test_concat_joins_end_to_end() -> None:
    net = _Net.start(3)
    other = net.build.conv("x0", 3, 4)
    model = net.end(net.build.node("Concat", other, net.hidden, axis=1), 7)
    first, second = couple(model).removable
    assert _positions(first, "concat7") == [[4], [5], [6]]
    assert _positions(second, "concat7") == [[0], [1], [2], [3]]
    _removed(model, "conv6", 1)
    assert tensor_of(model, "w8").shape == [2, 6, 1, 1]


def test_flatten_gives_a_channel_all_its_pixels() -> None:
    build = Builder(0)
    flat = build.node("Flatten", build.conv(build.input("N", 3, 2, 3), 3, 4))
    model = build.model(build.node("Gemm", flat, build.weight(24, 5)), 2)
    group = _group(model, "conv3")
    (consumer,) = group.consumers
    positions = group.positions(consumer.data, consumer.data_axis)
    assert positions is not None and positions.tolist() == np.arange(24).reshape(4, 6).tolist()


def test_channels_last_flatten_takes_every_nth() -> None:
    build = Builder(0)
    last = build.node("Transpose", build.conv(build.input("N", 3, 2, 3), 3, 4), perm=[0, 2, 3, 1])
    flat = build.node("Reshape", last, build.ints(0, 24))
    model = build.model(build.node("MatMul", flat, build.weight(24, 5)), 2)
    assert _positions(_group(model, "conv3"), flat) == np.arange(24).reshape(6, 4).T.tolist()
    _removed(model, "conv3", 0, 2)
    assert _ints(model, "Reshape", 1) == [0, 12]


def test_padded_channels_are_slots_of_their_own() -> None:
    net = _Net.start(4)
    short = net.build.node("Pad", net.hidden, net.build.ints(0, 2, 0, 0, 0, 1, 0, 0))
    wide = net.build.conv(net.hidden, 4, 7)
    model = net.end(net.build.node("Add", short, wide), 7)
    narrow, padded = couple(model).removable
    assert _positions(narrow, wide) == [[2], [3], [4], [5]]
    assert _positions(padded, wide) == [[0], [1], [6]]
    _removed(model, padded.name, 0, 2)
    assert _ints(model, "Pad", 1) == [0, 1, 0, 0, 0, 0, 0, 0]


def test_depthwise_conv_ties_input_to_output() -> None:
    net = _Net.start(4)
    model = net.end(net.build.conv(net.hidden, 4, 8, 3, group=4), 8)
    (group,) = couple(model).removable
    assert [op.node.name for op in group.producers] == ["conv3", "conv6"]
    assert _positions(group, "conv6") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    _removed(model, "conv3", 1)
    assert list(model.graph)[1].attributes.get_int("group") == 3


def test_many_small_groups_go_as_groups() -> None:
    net = _Net.start(12)
    model = net.end(net.build.conv(net.hidden, 12, 18, 3, group=6), 18)
    (group,) = couple(model).removable
    assert group.size == 6
    _removed(model, "conv3", 0, 5)
    conv = list(model.graph)[1]
    assert conv.attributes.get_int("group") == 4
    assert tensor_of(model, "w4").shape == [12, 2, 3, 3]


def test_few_large_groups_lose_one_channel_each() -> None:
    net = _Net.start(8)
    model = net.end(net.build.conv(net.hidden, 8, 6, 3, group=2), 6)
    into, out_of = couple(model).removable
    assert _positions(into, "conv3") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert _positions(out_of, "conv6") == [[0, 3], [1, 4], [2, 5]]
    weight = next(member for member in into.members if member.groups == 2)
    assert (weight.value.name, weight.axis, weight.positions.tolist()) == ("w4", 1, _positions(into, "conv3"))
    check(model, 1)
    assert list(model.graph)[1].attributes.get_int("group") == 2


def test_groups_may_lose_different_channels() -> None:
    """A channel that comes twice in group 0 needs two others to go in group 1."""
    net = _Net.start(3)
    other = net.build.conv("x0", 3, 6)
    joined = net.build.node("Concat", net.hidden, net.hidden, other, axis=1)
    model = net.end(net.build.conv(joined, 12, 6, 3, group=2), 6)
    (into, *_) = couple(model).removable
    assert into.size == 3
    assert sorted(len(row) for row in _positions(into, joined)) == [4, 4, 4]
    assert all((np.asarray(row) // 6).tolist() == [0, 0, 1, 1] for row in _positions(into, joined))
    check(model, 0)


def test_shuffled_channels_meet_again() -> None:
    net = _Net.start(8)
    split = net.build.node("Reshape", net.hidden, net.build.ints(0, 2, 4, 4, 6))
    turned = net.build.node("Transpose", split, perm=[0, 2, 1, 3, 4])
    shuffled = net.build.node("Reshape", turned, net.build.ints(0, 8, 4, 6))
    model = net.end(net.build.conv(shuffled, 8, 6, 3, group=2), 6)
    group = _group(model, "conv3")
    assert _positions(group, "conv3") == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert _positions(group, shuffled) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    _removed(model, "conv3", 0)
    assert _ints(model, "Reshape", 1) == [0, 2, 2, 4, 6]


def test_attention_loses_whole_heads() -> None:
    model = random_model(["attention"], 1)
    heads = [group for group in couple(model).removable if len(group.producers) == 3]
    assert [(group.size, len(group.consumers)) for group in heads] == [(3, 1)]
    rows = [member.positions.tolist() for member in heads[0].constants if member.value.name is not None]
    assert rows[0] == np.arange(12).reshape(3, 4).tolist()


def test_fused_projection_loses_a_head_three_times() -> None:
    model = random_model(["fused_attention"], 1)
    heads = next(group for group in couple(model).removable if "matmul" in group.name)
    assert _positions(heads, heads.name, 2)[1] == [5, 6, 7, 8, 9, 15, 16, 17, 18, 19, 25, 26, 27, 28, 29]


def test_shared_weights_tie_and_shared_vectors_part() -> None:
    model = _removed(random_model(["shared"], 1), "conv3", 2)
    convs = [node for node in model.graph if node.op_type == "Conv"]
    assert convs[1].inputs[1] is convs[3].inputs[1]
    model = random_model(["shared_vector"], 1)
    bias = {node.inputs[2] for node in list(model.graph) if node.op_type == "Conv"}
    assert len(bias) == 3
    inner = next(group for group in couple(model).removable if group.name == "conv6")
    _removed(model, inner.name, 0, 1)
    sizes = [node.inputs[2].shape for node in model.graph if node.op_type == "Conv" and node.inputs[2] is not None]
    assert [shape[0] for shape in sizes if shape is not None] == [12, 6, 8, 2]


def test_weights_of_constant_nodes_become_initializers() -> None:
    model = random_model(["plain"], 0)
    for value in [*model.graph.initializers.values()]:
        tensor = value.const_value
        assert tensor is not None
        constant = onnx_ir.node("Constant", [], {"value": tensor}, name=f"made_{value.name}")
        constant.outputs[0].name = f"made_{value.name}"
        constant.outputs[0].type, constant.outputs[0].shape = value.type, value.shape
        model.graph.insert_before(next(iter(model.graph)), constant)
        value.replace_all_uses_with(constant.outputs[0])
        model.graph.initializers.pop(str(value.name))
    feeds = random_feeds(model)
    before = run(model, feeds)
    group = couple(model).removable[0]
    remove(model, {group: [0]})
    assert run(model, feeds)[0].shape == before[0].shape
    assert [value.shape for value in model.graph.initializers.values()]


# What is rewritten.


def test_slice_bounds_follow() -> None:
    net = _Net.start(8)
    low = net.build.node("Slice", net.hidden, net.build.ints(2), net.build.ints(6), net.build.ints(1))
    model = net.end(low, 4)
    assert [group.size for group in couple(model).removable] == [4, 4]
    cut, rest = couple(model).removable
    assert _positions(rest, "conv3") == [[2], [3], [4], [5]]
    remove(model, {cut: [0, 3], rest: [1]})
    assert _ints(model, "Slice", 1) == [1]
    assert _ints(model, "Slice", 2) == [4]


def test_reversed_slice_keeps_its_open_end() -> None:
    net = _Net.start(5)
    turned = net.build.node(
        "Slice", net.hidden, net.build.ints(-1), net.build.ints(-99), net.build.ints(1), net.build.ints(-1)
    )
    model = _removed(net.end(turned, 5), "conv3", 0, 3)
    assert _ints(model, "Slice", 1) == [2]


def test_split_sizes_follow() -> None:
    net = _Net.start(8, opset=18)
    left = net.build.node("Split", net.hidden, outputs=2, axis=1, num_outputs=2)
    model = net.end(net.build.node("Add", left, net.build.conv(f"{left}.1", 4, 4)), 4)
    first, second = couple(model).removable
    remove(model, {second: [0]})
    assert _ints(model, "Split", 1) == [4, 3]
    assert "num_outputs" not in _node(model, "Split").attributes
    assert first.frozen is None


def test_gather_indices_follow() -> None:
    net = _Net.start(6)
    picked = net.build.node("Gather", net.hidden, net.build.ints(4, 0, -1), axis=1)
    model = net.end(picked, 3)
    chosen = next(group for group in couple(model).removable if group.consumers)
    rest = next(group for group in couple(model).removable if not group.consumers)
    assert (_positions(chosen, "conv3"), _positions(rest, "conv3")) == ([[0], [4], [5]], [[1], [2], [3]])
    remove(model, {chosen: [2]})
    assert _ints(model, "Gather", 1) == [4, 0]
    remove(model, {group: [0, 1] for group in couple(model).removable if not group.consumers})
    assert _ints(model, "Gather", 1) == [2, 0]


def test_attributes_of_older_opsets_follow() -> None:
    net = _Net.start(6, opset=9)
    low = net.build.node("Slice", net.hidden, starts=[0], ends=[4], axes=[1])
    high = net.build.node("Pad", low, pads=[0, 0, 0, 0, 0, 2, 0, 0])
    left = net.build.node("Split", high, outputs=2, axis=1, split=[4, 2])
    model = net.end(net.build.node("Concat", left, f"{left}.1", axis=1), 6)
    check(model, 3)
    shown = [_node(model, op).attributes for op in ("Slice", "Pad", "Split")]
    assert [*shown[0].get_ints("ends")] == [1]
    assert [*shown[1].get_ints("pads")] == [0, 0, 0, 0, 0, 2, 0, 0]
    assert [*shown[2].get_ints("split")] == [1, 2]


def test_squeeze_names_its_axes() -> None:
    build = Builder(0)
    pooled = build.node("GlobalAveragePool", build.conv(build.input(2, 3, 4, 6), 3, 4))
    model = build.model(build.node("MatMul", build.node("Squeeze", pooled), build.weight(4, 5)), 2)
    _removed(model, "conv3", 1, 2, 3)
    assert _ints(model, "Squeeze", 1) == [2, 3]


def test_resize_sizes_follow() -> None:
    net = _Net.start(6)
    large = net.build.node("Resize", net.hidden, "", "", net.build.ints(2, 6, 8, 12), mode="nearest")
    model = net.end(large, 6)
    group = _group(model, "conv3")
    remove(model, {group: [0]})
    assert _ints(model, "Resize", 3) == [2, 5, 8, 12]


def test_a_computed_shape_serves_readers_that_part() -> None:
    build = Builder(0)
    x = build.input("N", 3, 4, 6)
    batch = build.node("Shape", x, end=1)
    target = build.node("Concat", batch, build.ints(7), build.ints(-1), axis=0)
    parts = [build.node("Reshape", build.conv(x, 3, 7), target) for _ in range(2)]
    outputs = [build.node("Conv", part, build.weight(2, 7, 1)) for part in parts]
    model = build.model(build.node("Add", *outputs), 3)
    first, second = couple(model).removable
    chosen = {first: [0, 1], second: [3]}
    zero(chosen)
    feeds = random_feeds(model)
    expected = run(model, feeds)
    remove(model, chosen)
    close(run(model, feeds)[0], expected[0])


def test_recurrent_units_go_from_every_gate() -> None:
    build = Builder(0)
    weights = build.weight(1, 20, 3), build.weight(1, 20, 5), build.weight(1, 40)
    made = build.node("LSTM", build.input(7, "N", 3), *weights, hidden_size=5)
    model = build.model(build.node("MatMul", made, build.weight(5, 2)), 4)
    group = _group(model, "lstm4")
    assert _positions(group, "w1") == [[unit + 5 * gate for gate in range(4)] for unit in range(5)]
    _removed(model, "lstm4", 1, 4)
    assert _node(model, "LSTM").attributes.get_int("hidden_size") == 3
    assert tensor_of(model, "w2").shape == [1, 12, 3]


def test_group_normalization_loses_groups() -> None:
    net = _Net.start(6, opset=21)
    normed = net.build.node("GroupNormalization", net.hidden, net.build.weight(6), net.build.weight(6), num_groups=3)
    net.build.annotate(normed, "N", 6, 4, 6)  # which onnx does not infer
    model = net.end(normed, 6)
    assert _positions(_group(model, "conv3"), "conv3") == [[0, 1], [2, 3], [4, 5]]
    _removed(model, "conv3", 1)
    assert _node(model, "GroupNormalization").attributes.get_int("num_groups") == 2


def test_a_loop_carries_channels() -> None:
    net = _Net.start(5)
    body = helper.make_graph(
        [helper.make_node("Relu", ["state"], ["next"], name="inner"), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("trip", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["N", 5, 4, 6]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["N", 5, 4, 6]),
        ],
    )
    trips = net.build.constant(np.asarray(2, np.int64)), net.build.constant(np.asarray(True))
    looped = net.build.node("Loop", *trips, net.hidden, body=body)
    net.build.annotate(looped, "N", 5, 4, 6)  # which onnx does not infer: a trip could change it
    model = net.end(looped, 5)
    _removed(model, "conv3", 3)
    (inner,) = [node for node in model.graph.all_nodes() if node.name == "inner"]
    assert inner.inputs[0] is not None and inner.inputs[0].shape is not None and inner.inputs[0].shape[1] == 4


# What is frozen.


def _frozen(model: onnx_ir.Model, name: str = "conv3") -> str | None:
    return _group(model, name).frozen


def _through(op_type: str, *, opset: int = 17, weights: tuple[tuple[int, ...], ...] = (), **attributes: Any) -> str:
    net = _Net.start(4, opset)
    made = net.build.node(op_type, net.hidden, *(net.build.weight(*shape) for shape in weights), **attributes)
    net.build.annotate(made, "N", 4, 4, 6)
    reason = _frozen(net.end(made, 4))
    assert reason is not None
    return reason


@pytest.mark.parametrize(
    ("op_type", "attributes", "reason"),
    [
        ("Softmax", {"axis": 1}, "normalised over by Softmax 'softmax4'"),
        ("LpNormalization", {"axis": 1}, "LpNormalization 'lpnormalization4' mixes along it"),
        ("LRN", {"size": 3}, "LRN 'lrn4' mixes along it"),
        (
            "MeanVarianceNormalization",
            {"axes": [1]},
            "MeanVarianceNormalization 'meanvariancenormalization4' mixes along it",
        ),
        ("RandomNormalLike", {}, "RandomNormalLike 'randomnormallike4': operator 'RandomNormalLike' has no rule"),
    ],
)  # fmt: skip
def test_what_mixes_along_channels_freezes_them(op_type: str, attributes: dict[str, Any], reason: str) -> None:
    assert _through(op_type, **attributes) == reason


def test_early_softmax_takes_all_axes_from_its_own_on() -> None:
    assert _through("Softmax", opset=12, axis=1) == "normalised over by Softmax 'softmax4'"


def test_layer_norm_freezes() -> None:
    net = _Net.start(4)
    last = net.build.node("Transpose", net.hidden, perm=[0, 2, 3, 1])
    normed = net.build.node("LayerNormalization", last, net.build.weight(4))
    model = net.end(net.build.node("Transpose", normed, perm=[0, 3, 1, 2]), 4)
    assert _frozen(model) == "normalised over by LayerNormalization 'layernormalization6'"


def test_reduction_over_channels_freezes() -> None:
    net = _Net.start(4)
    model = net.end(net.build.node("Mul", net.hidden, net.build.node("ReduceMean", net.hidden, axes=[1])), 4)
    assert _frozen(model) == "ReduceMean 'reducemean4' reduces it"


def test_channels_folded_with_a_free_batch_freeze() -> None:
    net = _Net.start(4)
    folded = net.build.node("Reshape", net.hidden, net.build.ints(-1, 1, 4, 6))
    model = net.end(folded, 1)
    assert _frozen(model) == "Reshape 'reshape5' folds it with an axis of no fixed size"


def test_strided_slice_of_channels_freezes() -> None:
    net = _Net.start(4)
    every = net.build.node(
        "Slice", net.hidden, net.build.ints(0), net.build.ints(4), net.build.ints(1), net.build.ints(2)
    )
    assert _frozen(net.end(every, 2)) == "Slice 'slice8' steps over it by 2"


def test_a_size_that_is_computed_with_freezes() -> None:
    """Attention divides by the root of the head size: a head of another size would be another function."""
    net = _Net.start(4)
    size = net.build.node("Shape", net.hidden, start=1, end=2)
    scale = net.build.node("Sqrt", net.build.node("Cast", size, to=TensorProto.FLOAT))
    model = net.end(net.build.node("Div", net.hidden, scale), 4)
    assert _frozen(model) == "Sqrt 'sqrt6' computes with its size"


def test_unknown_operator_freezes_what_it_touches() -> None:
    net = _Net.start(4)
    made = net.build.node("Special", net.hidden, domain="com.example")
    graph = helper.make_graph(
        net.build.nodes, "g", net.build.inputs,
        [helper.make_tensor_value_info(made, TensorProto.FLOAT, ["N", 4, 4, 6])], net.build.weights,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    model = model_io.load(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert _frozen(model) == "Special 'special4': operator 'com.example::Special' has no rule"


def test_encoded_weight_freezes() -> None:
    model = random_model(["plain"], 0)
    weight = model.graph.initializers["w1"]
    assert weight.const_value is not None
    weight.const_value = Affine.quantize(weight.const_value.numpy(), bits=8, axis=0)
    assert _frozen(model) == "'w1' is an encoded weight"


def test_weight_that_a_caller_may_replace_freezes() -> None:
    model = random_model(["plain"], 0)
    model.graph.inputs.append(model.graph.initializers["w1"])
    assert _frozen(model) == "a caller may replace 'w1'"


def test_one_slot_that_is_all_there_is_freezes() -> None:
    net = _Net.start(2)
    both = net.build.node("Concat", net.hidden, net.hidden, axis=1)
    model = net.end(net.build.conv(both, 4, 4, 3, group=2), 4)
    assert _frozen(model) == "all its channels hang together"
    build = Builder(0)
    model = build.model(build.conv(build.conv(build.input("N", 3, 4, 6), 3, 1), 1, 2), 4)
    assert _group(model, "conv3").frozen == "axis 0 of 'w1' has size 1"


# What remove refuses, and what it leaves.


def test_remove_refuses_what_is_frozen() -> None:
    model = random_model(["plain"], 0)
    frozen = next(group for group in couple(model).groups if group.frozen)
    with pytest.raises(InternalError, match=r"channels of 'x0' cannot be removed: graph input 'x0'\."):
        remove(model, {frozen: [0]})


def test_remove_refuses_unknown_slots_and_empty_axes() -> None:
    model = random_model([], 0)
    (group,) = couple(model).removable
    with pytest.raises(InternalError, match="'conv3' has 12 slots, and 12 is none of them"):
        remove(model, {group: [12]})
    with pytest.raises(InternalError, match=r"leaves nothing of axis 0 of 'w1' \[12\]"):
        remove(model, {group: range(12)})
    before = model_io.to_proto_bytes(model)
    remove(model, {group: []})
    assert model_io.to_proto_bytes(model) == before


def test_remove_refuses_a_model_that_changed() -> None:
    model = random_model([], 0)
    (group,) = couple(model).removable
    remove(model, {group: [0, 1]})
    with pytest.raises(InternalError, match="the model changed since it was coupled"):
        remove(model, {group: [11]})


def test_removed_indices_speak_of_activations() -> None:
    build = Builder(0)
    flat = build.node("Flatten", build.conv(build.input("N", 3, 2, 3), 3, 4))
    model = build.model(build.node("Gemm", flat, build.weight(24, 5)), 2)
    gone = removed_indices({_group(model, "conv3"): [3, 0]})
    assert {(value.name, axis): indices.tolist() for (value, axis), indices in gone.items()} == {
        ("conv3", 1): [0, 3],
        ("flatten4", 1): [*range(6), *range(18, 24)],
    }


def test_groups_come_in_the_same_order_each_time() -> None:
    blocks = ["residual", "concat", "grouped", "attention", "split"]
    once, again = (couple(random_model(blocks, 3)) for _ in range(2))
    assert list(map(repr, once.groups)) == list(map(repr, again.groups))
    assert len({group.name for group in once.groups}) == len(once.groups)


# Real models.


_LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.mark.parametrize("path", sorted(_LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
def test_light_models_couple_and_stay_whole(path: Path) -> None:
    model = model_io.load(path)
    coupling = couple(model)
    assert coupling.groups
    remove(model, draw(coupling.removable, np.random.default_rng(0)))


_ASSETS = (
    "lenet300_mnist", "lenet5_mnist", "mobilenetv2_imagenet", "resnet20_cifar10", "resnet56_cifar10",
    "squeezenet10_imagenet", "ultraface_rfb320", "vgg_small_cifar10",
)  # fmt: skip


@pytest.mark.assets("models")
@pytest.mark.parametrize("name", _ASSETS)
def test_assets_lose_zeroed_channels_without_a_trace(name: str, assets: Path) -> None:
    assert check(model_io.load(assets / "models" / f"{name}.onnx"), 0)


def test_time_grows_with_the_graph() -> None:
    build = Builder(0)
    value = build.conv(build.input("N", 3, 4, 4), 3, 8)
    for _ in range(800):
        inner = build.node("Relu", build.conv(value, 8, 8))
        value = build.node("Add", build.conv(build.conv(inner, 8, 8, 3, group=8), 8, 8), value)
    model = build.model(build.conv(value, 8, 2), 4)
    start = time.process_time()
    groups = couple(model).groups
    assert len(groups) == 803
    assert time.process_time() - start < 8  # 0.5 s for these 4,000 nodes; a quadratic walk takes minutes


@pytest.mark.parametrize("computed", [False, True])
def test_attention_over_any_batch_and_length_loses_heads(computed: bool) -> None:
    """As exporters write it for free batch and length: shapes put together from parts of the input's own."""
    build = Builder(0)
    x = build.input("N", "T", 8)

    def shape(*last: int) -> str:
        if not computed:
            return build.ints(0, 0, *last)
        parts = []
        for axis in range(2):
            size = build.node("Gather", build.node("Shape", x), build.constant(np.int64(axis)), axis=0)
            parts.append(build.node("Unsqueeze", size, build.ints(0)))
        return build.node("Concat", *parts, *(build.ints(number) for number in last), axis=0)

    split = shape(3, 4)
    parts = []
    for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        projected = build.node("Add", build.node("MatMul", x, build.weight(8, 12)), build.weight(12))
        parts.append(build.node("Transpose", build.node("Reshape", projected, split), perm=order))
    weights = build.node("Softmax", build.node("MatMul", parts[0], parts[1]), axis=-1)
    context = build.node("Transpose", build.node("MatMul", weights, parts[2]), perm=[0, 2, 1, 3])
    merged = build.node("Reshape", context, shape(12))
    model = build.model(build.node("MatMul", merged, build.weight(12, 5)), 3)
    (heads,) = couple(model).removable
    assert (heads.size, len(heads.producers), len(heads.consumers)) == (3, 3, 1)
    _removed(model, heads.name, 1)
