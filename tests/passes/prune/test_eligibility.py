"""Which channel groups may be cut: a near miss for every clause."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.analysis.channels import couple
from onnxpress.passes.prune.eligibility import why_not_prunable
from tests.support import fill_weights, text_model

_HEAD = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 6] x, bool c) => (float[N, 4] y)'


def _model(body: str, constants: Mapping[str, tuple[int, ...]], header: str = _HEAD) -> onnx_ir.Model:
    model = text_model(f"{header} {{ {body} }}")
    fill_weights(model, {name: np.ones(shape) for name, shape in constants.items()})
    return model


def _reason(model: onnx_ir.Model, name: str) -> str | None:
    group = next(group for group in couple(model).groups if group.name == name)
    return why_not_prunable(group, model)


_DENSE = {"w1": (6, 8), "w2": (8, 4)}


def test_channels_that_a_layer_reads_may_go() -> None:
    assert _reason(_model("[a] h = MatMul(x, w1) r = Relu(h) [b] y = MatMul(r, w2)", _DENSE), "a") is None


def test_a_frozen_group_says_why() -> None:
    model = _model("[a] h = MatMul(x, w1) s = Softmax(h) [b] y = MatMul(s, w2)", _DENSE)
    reason = _reason(model, "a")
    assert reason is not None and "Softmax" in reason


def test_channels_that_no_weights_read_stay() -> None:
    """A product of two activations sums over them, and has no weights to refit."""
    model = _model("[a] h = MatMul(x, w1) t = Transpose<perm = [1, 0]>(h) y = MatMul(h, t)", {"w1": (6, 8)},
                   _HEAD.replace("float[N, 4] y", "float[N, M] y"))  # fmt: skip
    assert _reason(model, "a") == (
        "no operator with weights reads them, so that nothing could make good for their loss"
    )


@pytest.mark.parametrize(
    ("reader", "kind"),
    [
        ("[c] z = Gemm<alpha = 0.5>(r, w3, b)", "Gemm"),
        ("u = Unsqueeze(r, zero) [c] o, z = RNN<hidden_size = 4>(u, w4, w5)", "RNN"),
    ],
)
def test_one_reader_that_cannot_be_refitted_keeps_them_beside_a_good_one(reader: str, kind: str) -> None:
    body = f"zero = Constant<value_ints = [0]>() [a] h = MatMul(x, w1) r = Relu(h) {reader} [b] y = MatMul(r, w2)"
    constants = {**_DENSE, "w3": (8, 4), "b": (4,), "w4": (1, 4, 8), "w5": (1, 4, 4)}
    reason = _reason(_model(body, constants), "a")
    assert reason is not None and reason.startswith(f"node 'c' ({kind}) reads them and cannot be refitted")


def test_a_maker_that_cannot_be_refitted_is_no_reason() -> None:
    body = "[a] h = Gemm<alpha = 0.5>(x, w1, b1) r = Relu(h) [b] y = MatMul(r, w2)"
    assert _reason(_model(body, {**_DENSE, "b1": (8,)}), "a") is None


def test_a_reader_inside_control_flow_keeps_them() -> None:
    body = """
        [a] h = MatMul(x, w1) r = Relu(h)
        [choice] y = If (c) <
            then_branch = t () => (float[N, 4] p) { [b] p = MatMul(r, w2) },
            else_branch = e () => (float[N, 4] q) { [d] q = MatMul(r, w2) }
        >
    """
    reason = _reason(_model(body, _DENSE), "a")
    assert reason is not None


def test_a_shared_weight_is_not_untied() -> None:
    body = "[a] h = MatMul(x, w1) r = Relu(h) [b] p = MatMul(r, w2) [c] q = MatMul(h, w2) y = Add(p, q)"
    assert _reason(_model(body, _DENSE), "a") == "node 'b' shares its weight 'w2', which a refit would untie"
