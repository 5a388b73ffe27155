"""What `targets --schema` lists: nothing is left out, and everything says what it is for."""

from __future__ import annotations

from onnxpress.targets.input_checks import INPUT_CHECKS
from onnxpress.targets.legality import CHECKS, MODEL_CHECKS
from onnxpress.targets.profile_keys import CheckInfo, Key, describe_checks, describe_keys
from onnxpress.targets.schema import COMMON_KEYS, Profile, Rule


def test_every_key_has_a_type_and_a_meaning() -> None:
    keys = describe_keys()
    assert [key.name for key in keys if not key.description or not key.type or not key.default] == []
    assert len({key.name for key in keys}) == len(keys)
    assert set(Profile.model_fields) <= {key.name for key in keys}
    assert {f"rules.{name}" for name in Rule.model_fields} <= {key.name for key in keys}


def test_a_key_says_what_a_user_writes() -> None:
    keys = {key.name: key for key in describe_keys()}
    assert keys["opset.max"] == Key("opset.max", "int", "none", True, "highest opset version")
    assert keys["channel_multiple"].default == "1"
    assert (keys["storage"].type, keys["storage"].default) == ("table", "as said below")
    assert (keys["rules"].type, keys["rules.attributes"].type) == ("tables", "table")
    assert keys["roofline.conv"].type == "{float32, int8}" and "roofline.conv.int8" not in keys


def test_every_check_says_what_it_asks_for_and_needs_keys_that_there_are() -> None:
    checks = describe_checks()
    assert [check.name for check in checks] == sorted([*CHECKS, *INPUT_CHECKS, *MODEL_CHECKS])
    assert CheckInfo("weight-type", ("inputs.1",), CHECKS["weight-type"].ask.__doc__.rstrip(".")) in checks  # type: ignore[union-attr]
    for check in checks:
        assert check.summary, check.name
        assert {need.partition(".")[0] for need in check.needs} <= set(Rule.model_fields), check.name


def test_a_check_s_words_name_the_keys_that_it_needs() -> None:
    """Those and no others, so that neither is forgotten."""
    for check in describe_checks():
        named = {key for key in Rule.model_fields if f"`{key}`" in check.summary}
        assert named == {need.partition(".")[0] for need in check.needs} - COMMON_KEYS, check.name
