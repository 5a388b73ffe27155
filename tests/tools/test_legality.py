"""What `check` returns: findings by rule, and whether the target runs the model, in a line."""

from __future__ import annotations

import onnx_ir
import pytest

from onnxpress.ir.errors import BudgetError
from onnxpress.tools.legality import Check, check
from tests.support import text_model


def _check(body: str) -> Check:
    model = text_model(f"""
        <ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
        net (float[2,3] x) => (float[2,3] y) {{ {body} }}
    """)
    return check(model, target="tensorrt")


def test_findings_of_one_rule_stand_together() -> None:
    found = _check("[a] a = acme.F(x) [b] b = Det(a) [c] c = acme.G(b) [d] y = BatchNormalization(c, c, c, c, c)")
    assert {rule: [one.node for one in same] for rule, same in found.by_rule.items()} == {
        "plugin-domain": ["a", "c"],
        "operator": ["b"],
    }


@pytest.mark.parametrize(
    ("body", "summary"),
    [
        ("y = Relu(x)", "net is legal on tensorrt"),
        ("y = Det(x)", "net is illegal on tensorrt: 1 place, rule operator"),
        (
            "a = Det(x) b = acme.F(a) y = Det(b)",
            "net is illegal on tensorrt: 3 places, rules operator, plugin-domain",
        ),
    ],
)
def test_the_summary_leaves_the_reasons_to_the_findings(body: str, summary: str) -> None:
    assert _check(body).summary == summary


def test_what_is_required_is_an_error_with_the_first_reason() -> None:
    _check("y = Relu(x)").require()
    with pytest.raises(BudgetError) as caught:
        _check("[a] a = Det(x) [b] y = Det(a)").require()
    assert str(caught.value).startswith("net is illegal on tensorrt: node 'a' (Det): Det is not among the operators ")
    assert str(caught.value).endswith(" And 1 more place.")


def test_findings_are_written_down_without_their_nodes() -> None:
    found = _check("y = Det(x)")
    assert isinstance(found.findings[0].at, onnx_ir.Node)
    assert found.to_json()["findings"] == [found.findings[0].to_json()]
