"""Every rule against onnx's own examples of its operator: the restricted operator gives the restricted output.

Here graph inputs and outputs lose indices like all else. What an operator reads there is set to zero first, so
that sums are right; what it computes besides must not depend on indices that are gone.
"""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import numpy_helper

from onnxpress.ir import model_io
from onnxpress.ir.analysis.coupling.components import kinds
from onnxpress.ir.analysis.coupling.registry import RULES
from onnxpress.ir.analysis.coupling.relation import Ints
from onnxpress.ir.analysis.coupling.removal import Loss, remove_indices
from onnxpress.ir.analysis.coupling.walk import relate
from onnxpress.ir.errors import InputError
from tests.support import Array, run_named

_RUNNABLE_OPSET, _RUNNABLE_IR = 22, 10
_EACH = 4  # examples of an operator
_MIXED = ("If", "Loop", "Where", "Add", "Sub", "Mul", "Div", "Mod", "Pow", "Max", "Min", "And", "Or", "Xor", "Equal")


@functools.cache
def _examples() -> dict[str, list[Any]]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases: list[Any] = collect_testcases(None)
    found: dict[str, list[Any]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: str(case.name)):
        if len(case.model.graph.node) == 1:
            found[case.model.graph.node[0].op_type].append(case)
    return found


def _prepare(case: Any) -> tuple[onnx_ir.Model, dict[str, Array]] | None:
    """Return the example with its steering integers as constants, and its other inputs; None if it cannot run."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    proto.ir_version = min(proto.ir_version, _RUNNABLE_IR)
    for opset in proto.opset_import:
        opset.version = min(opset.version, _RUNNABLE_OPSET)
    arrays = [np.asarray(array) for array in case.data_sets[0][0]]
    feeds = {info.name: array for info, array in zip(proto.graph.input, arrays, strict=True)}
    if any(array.dtype == object for array in arrays):
        return None
    for index, info in enumerate(list(proto.graph.input)):
        array = feeds[info.name]
        steers = array.dtype in (np.int64, np.int32, np.bool_) or array.ndim == 0 or info.name in ("scales", "roi")
        if index and steers and proto.graph.node[0].op_type not in _MIXED:
            proto.graph.initializer.append(numpy_helper.from_array(feeds.pop(info.name), info.name))
            proto.graph.input.remove(info)
    try:
        return model_io.load(proto), feeds
    except InputError:  # of another opset, or of types that onnx-ir does not know
        return None


def _losses(model: onnx_ir.Model, rng: np.random.Generator) -> list[Loss]:
    """Draw what to remove from everything that a rule leaves free."""
    relation = relate(model, interface=False)
    gone: dict[int, list[Ints]] = defaultdict(list)
    for kind in kinds(relation):
        if kind.frozen is None and kind.size > 1:
            slots = rng.choice(kind.size, rng.integers(1, kind.size), replace=False)
            for root, positions in kind.positions.items():
                gone[root].append(positions[slots].ravel())
    losses: list[Loss] = []
    for axis, owner in enumerate(relation.owners):
        parts = gone.get(relation.root(axis))
        if parts:
            indices = np.unique(np.concatenate(parts))
            losses.append((owner.place.value, owner.axis, owner.place.use, owner.groups, indices))
    return losses


@pytest.mark.parametrize("operator", sorted(RULES))
def test_rule_holds_on_examples(operator: str) -> None:
    tried = 0
    for case in _examples().get(operator, ()):
        tried += tried < _EACH and _holds(case)
    # Some examples have no axis to lose: then the graphs of the property test are what tests the rule.


def _holds(case: Any) -> bool:
    prepared = _prepare(case)
    if prepared is None:
        return False
    model, feeds = prepared
    losses = _losses(model, np.random.default_rng(0))
    gone: dict[str | None, list[tuple[int, Ints]]] = defaultdict(list)
    for value, axis, _, groups, indices in losses:
        if groups == 1:
            gone[value.name].append((axis, indices))
    if not losses or any(len(indices) >= feeds[name].shape[axis] for name in feeds for axis, indices in gone[name]):
        return False
    for name, array in feeds.items():
        feeds[name] = array = array.copy()
        for axis, indices in gone[name]:
            np.moveaxis(array, axis, 0)[indices] = 0
    try:
        expected = run_named(model, feeds)
    except Exception:  # onnxruntime has no kernel for these types
        return False
    remove_indices(model, losses)
    found = run_named(model, {name: _restricted(array, gone[name]) for name, array in feeds.items()})
    for name, array in expected.items():
        _compare(f"{case.name}: {name}", found[name], _restricted(array, gone[name]))
    return True


def _restricted(array: Array, gone: list[tuple[int, Ints]]) -> Array:
    for axis, indices in gone:
        array = np.delete(array, indices, axis=axis)
    return array


def _compare(what: str, found: Array, expected: Array) -> None:
    assert found.shape == expected.shape, what
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=what)
    else:
        assert (found == expected).all(), what
