"""What a profile may say: every key of its file, and every check that its rules may name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import pydantic
from pydantic.fields import FieldInfo

from onnxpress.passes.registry import type_text
from onnxpress.targets.input_checks import INPUT_CHECKS
from onnxpress.targets.legality import CHECKS, MODEL_CHECKS, model_check
from onnxpress.targets.schema import Profile

__all__ = ["FILE_KEYS", "CheckInfo", "Key", "describe_checks", "describe_keys", "table_of"]

# What a file may say beside the keys of `Profile`, and what for.
FILE_KEYS = {
    "extends": "a target's name, or the path of another profile, which holds what this one does not",
    "without_rules": "ids of rules of that one that do not hold here",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a profile. name: with its tables, such as "opset.min". type, default: as a user writes them."""

    name: str
    type: str
    default: str
    is_required: bool
    description: str


@dataclasses.dataclass(frozen=True)
class CheckInfo:
    """A check. needs: the keys that its rule must have."""

    name: str
    needs: tuple[str, ...]
    summary: str


def describe_checks() -> list[CheckInfo]:
    """Return every check, by name."""
    nodes = [CheckInfo(name, check.needs, _summary(check.ask)) for name, check in CHECKS.items()]
    inputs = [CheckInfo(name, (), _summary(ask)) for name, ask in INPUT_CHECKS.items()]
    whole = [CheckInfo(name, (), _summary(model_check(name))) for name in MODEL_CHECKS]
    return sorted([*nodes, *inputs, *whole], key=lambda check: check.name)


def describe_keys() -> list[Key]:
    """Return every key, those of tables behind them. A table that stands for one thing, such as a rate, is one key."""
    types = {"extends": "text", "without_rules": "list of text"}
    own = [Key(name, types[name], "none", False, what) for name, what in FILE_KEYS.items()]
    return [*own, *_keys(Profile, "")]


def table_of(annotation: Any) -> Any:
    """Return the table's class inside an annotation such as `tuple[Rule, ...]` or `dict[str, Rates]`."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    inner = (table_of(argument) for argument in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found is not None), None)


def _keys(table: type[pydantic.BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in table.model_fields.items():
        inner = table_of(field.annotation)
        yield Key(
            f"{prefix}{name}",
            _table_text(field, inner) if inner is not None else _plain_text(field.annotation),
            "none" if field.is_required() else _default_text(field),
            field.is_required(),
            field.description or (_summary(inner) if inner is not None else ""),
        )
        if inner is not None and field.description is None:
            yield from _keys(inner, f"{prefix}{name}.")


def _plain_text(annotation: Any) -> str:
    """Return the type of a key as pipelines spell theirs; what maps names to values is a table in TOML."""
    return "table" if str(annotation).startswith("dict") else type_text(annotation)


def _table_text(field: FieldInfo, table: type[pydantic.BaseModel]) -> str:
    """Return "{float32, int8}" for a table of one thing, and else whether there is one table or several."""
    if field.description is not None:
        return f"{{{', '.join(table.model_fields)}}}"
    return "tables" if str(field.annotation).startswith("tuple") else "table"


def _default_text(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, pydantic.BaseModel):
        return "as said below" if field.description is None else str(default)
    return "none" if default in (None, (), {}, frozenset()) else str(default).lower()


def _summary(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0].removesuffix(".")
