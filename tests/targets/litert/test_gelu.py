"""GELU from its parts: one operator, what the parts compute, and only where they are all there."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.ir.errors import InputError
from onnxpress.targets.base import load_target
from tests.support import Array
from tests.targets.litert.files import body, both, noted

_NUMBERS: dict[str, Array] = {
    "t": np.asarray(np.sqrt(2), np.float32),
    "i": np.asarray(np.sqrt(0.5), np.float32),
    "o": np.ones((1,), np.float32),
    "h": np.asarray(0.5, np.float32),
    "w": np.asarray(2.0, np.float32),
}
_FORMS = {
    "halved last": "d = Div(x, t) e = Erf(d) a = Add(e, o) m = Mul(x, a) y = Mul(m, h)",
    "data halved": "s = Mul(x, h) d = Mul(i, x) e = Erf(d) a = Add(o, e) y = Mul(s, a)",
    "data divided by two": "s = Div(x, w) d = Div(x, t) e = Erf(d) a = Add(e, o) y = Mul(a, s)",
    "the sum halved": "d = Mul(x, i) e = Erf(d) a = Add(e, o) m = Mul(h, a) y = Mul(m, x)",
}


@pytest.mark.parametrize("name", _FORMS)
def test_every_form_is_one_operator(name: str) -> None:
    from onnxpress.targets.litert import emit

    model = body(_FORMS[name], _NUMBERS)
    assert dict(emit(model).operators) == {"GELU": 1}
    assert len(list(model.graph)) >= 4  # it is not changed
    (expected,), (found,) = both(model)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert load_target("mobile-cpu-litert").check(model) == []


def test_between_layers_and_notes_it_is_one_operator_too() -> None:
    from onnxpress.targets.litert import emit

    weight = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    model = body(f"p = MatMul(x, k) {_FORMS['halved last'].replace('x', 'p')}",
                 {**_NUMBERS, "k": weight})  # fmt: skip
    assert dict(emit(model).operators) == {"FULLY_CONNECTED": 1, "GELU": 1}
    model = noted(model, {"a": (0.0, 2.0), "m": (-1.0, 4.0), "y": (-1.0, 2.0)})
    assert dict(emit(model).operators) == {"FULLY_CONNECTED": 1, "GELU": 1, "QUANTIZE": 1, "DEQUANTIZE": 1}


@pytest.mark.parametrize(
    "nodes",
    [
        "d = Div(x, w) e = Erf(d) a = Add(e, o) m = Mul(x, a) y = Mul(m, h)",
        "d = Div(t, x) e = Erf(d) a = Add(e, o) m = Mul(x, a) y = Mul(m, h)",
        "d = Div(x, t) e = Erf(d) a = Add(e, h) m = Mul(x, a) y = Mul(m, h)",
        "d = Div(x, t) e = Erf(d) a = Add(e, o) m = Mul(x, a) y = Mul(m, w)",
        "d = Div(x, t) e = Erf(d) a = Add(e, o) m = Mul(d, a) y = Mul(m, h)",
        "d = Div(x, t) e = Erf(d) a = Add(e, o) m = Mul(h, a) y = Mul(m, d)",
        "d = Div(x, t) e = Erf(d) a = Add(e, o) m = Mul(x, a) n = Mul(m, h) y = Add(n, a)",
        "d = Div(x, t) e = Erf(d) a = Add(e, o) s = Sub(x, a) y = Mul(s, h)",
        "y = Erf(x)",
    ],
)
def test_anything_else_is_refused_for_its_erf(nodes: str) -> None:
    from onnxpress.targets.litert import emit

    name = "y" if nodes.startswith("y") else "e"
    with pytest.raises(InputError) as caught:
        emit(body(nodes, _NUMBERS))
    assert str(caught.value) == (
        f"LiteRT cannot run 1 place of this model: node '{name}' (Erf): no LiteRT operator is known for it. Replace "
        "it, or choose a target that runs ONNX, such as mobile-cpu"
    )
