r"""Pipeline text: passes in order with their options, as one line that people type and recipes keep.

    pipeline = [ pass { "," pass } [ "," ] ]
    pass     = name [ "{" [ option { "," option } [ "," ] ] "}" ]
    option   = key "=" value
    value    = word | string | "[" [ value { "," value } [ "," ] ] "]"
    string   = '"' JSON text with its escapes '"'  |  "'" text as it stands "'"

Whitespace and newlines are free, and `#` starts a comment that runs to the end of its line. A word is any
run of characters other than whitespace and `,{}=[]#"'`; it is a boolean (`true`, `false`), an integer in
canonical form (`8`, `-1`), a float (`0.3`, `1e-3`, `inf`), or else a string. Anything else that a string may
hold goes in quotes. What a value finally becomes is up to the type of the pass's option: `exclude=12` names a
node "12", `exclude=conv1` is a list of one, `level=none` is None where the option allows None.

`parse` and `format_pipeline` are inverse: `parse(format_pipeline(specs)) == specs`, and formatting parsed
text a second time changes nothing.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar

from onnxpress.ir.errors import UsageError

if TYPE_CHECKING:
    from onnxpress.passes.base import Pass

__all__ = [
    "PassSpec",
    "Scalar",
    "Value",
    "build",
    "format_pipeline",
    "format_value",
    "parse",
    "read_pipeline",
    "to_spec",
]

Scalar: TypeAlias = bool | int | float | str
Value: TypeAlias = "Scalar | list[Value]"
_Item = TypeVar("_Item")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"[^\s,{}=\[\]#\"']+")
_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
# At most the digits that Python converts. Other spellings ("007", "+8") stay strings, so that a node of that
# name is found; number options take them too.
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,4299})")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][+-]?[0-9]+)?|-?inf|nan")
_DEEPEST_LIST = 16  # far above any option, far below Python's recursion limit
_QUOTING = "Strings that hold , { } = [ ] # quotes or spaces go in quotes"


@dataclasses.dataclass(frozen=True)
class PassSpec:
    """One pass of a pipeline before it is built: its name, and the options given, in their order."""

    name: str
    options: Mapping[str, Value] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        """Return the pipeline text of this pass alone."""
        return format_pipeline([self])


def parse(text: str, *, source: str = "pipeline") -> tuple[PassSpec, ...]:
    """Return the passes that `text` names. Neither names nor options are looked up here.

    source: what error messages call the text, such as a file name.

    >>> parse("fold-batchnorm, quantize-int8{bits=8, exclude=[conv1,'a, b']}  # and a comment")[1].options
    {'bits': 8, 'exclude': ['conv1', 'a, b']}

    Raises:
        UsageError: with line and column, what was expected there and what was found.
    """
    return _Parser(text, source).pipeline()


def format_pipeline(specs: Iterable[PassSpec]) -> str:
    """Return the text of `specs` in one line: `name, name{key=value,key=value}`.

    >>> format_pipeline([PassSpec("cleanup"), PassSpec("equalize", {"exclude": ["a b"], "rounds": 2})])
    'cleanup, equalize{exclude=["a b"],rounds=2}'
    """
    return ", ".join(_format_spec(spec) for spec in specs)


def format_value(value: object) -> str:
    """Return the pipeline text of one option value, as `to_spec` would spell it.

    Raises:
        TypeError: pipeline text has no form for it, such as a mapping.
    """
    return _format_plain(_to_plain(value))


def read_pipeline(source: str | os.PathLike[str]) -> tuple[PassSpec, ...]:
    """Return the passes of a pipeline text or of a pipeline file, whichever `source` is.

    A path object is a file. A string is a file where one of that name exists and no pass has that name.

    Raises:
        UsageError: the text does not parse, or the file is missing or not UTF-8 text.
    """
    if isinstance(source, str) and not _names_a_file(source):
        return parse(source)
    path = Path(source)
    try:
        return parse(path.read_text(encoding="utf-8-sig"), source=os.fspath(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(
            f"pipeline file {os.fspath(path)}: cannot be read ({reason}). "
            "Give an existing text file, or the pipeline itself: --passes 'cleanup, quantize-int8'"
        ) from None


def build(pipeline: str | Iterable[PassSpec]) -> list[Pass]:
    """Return the passes of a pipeline text or of specs, with their options checked.

    Raises:
        UsageError: text that does not parse, an unknown pass or option, a value of the wrong kind.
    """
    from onnxpress.passes.registry import get_pass

    specs = parse(pipeline) if isinstance(pipeline, str) else pipeline
    return [get_pass(spec.name)(**spec.options) for spec in specs]


def to_spec(built: Pass) -> PassSpec:
    """Return the spec of a built pass: only options that differ from their defaults, in declared order.

    Raises:
        UsageError: an option's value, set in Python, has no pipeline text.
    """
    options: dict[str, Value] = {}
    for key, value in built.options.model_dump(exclude_defaults=True).items():
        try:
            options[key] = _to_plain(value)
        except TypeError as error:
            raise UsageError(f"{built.name}: option {key!r}: {error}") from None
    return PassSpec(built.name, options)


def _to_plain(value: object) -> Value:
    """Return `value` in the types of pipeline text; sets are sorted, so that equal options are one text."""
    if value is None:
        return "none"
    if isinstance(value, enum.Enum):
        return _to_plain(value.value)
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, set | frozenset):
        return [_to_plain(item) for item in sorted(value)]
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    raise TypeError(f"a {type(value).__name__} has no pipeline text: {value!r}")


def _format_plain(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return value if _is_plain_word(value) else json.dumps(value, ensure_ascii=False)
    return f"[{','.join(_format_plain(item) for item in value)}]"


def _names_a_file(source: str) -> bool:
    from onnxpress.passes.registry import is_known

    if is_known(source):
        return False
    try:
        exists = Path(source).is_file()
    except (OSError, ValueError):  # too long for a path, or holding a null character
        return False
    looks_like_path = _WORD.fullmatch(source) is not None and (
        "/" in source or "\\" in source or source.endswith(".txt")
    )
    return exists or looks_like_path


def _format_spec(spec: PassSpec) -> str:
    if not spec.options:
        return spec.name
    options = ",".join(f"{key}={format_value(value)}" for key, value in spec.options.items())
    return f"{spec.name}{{{options}}}"


def _is_plain_word(text: str) -> bool:
    """Whether `text`, written without quotes, is read back as this very string."""
    return _WORD.fullmatch(text) is not None and isinstance(_read_word(text), str)


def _read_word(word: str) -> Scalar:
    if word in ("true", "false"):
        return word == "true"
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _FLOAT.fullmatch(word) else word


class _Parser:
    """Recursive descent over one text; `_at` is the next character to read."""

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source
        self._at = 0

    def pipeline(self) -> tuple[PassSpec, ...]:
        specs: list[PassSpec] = []
        while self._peek():
            specs.append(self._spec())
            if not self._take(","):
                break
        if self._peek():
            self._fail("',' between passes")
        return tuple(specs)

    def _spec(self) -> PassSpec:
        name = self._match(_NAME, "the name of a pass")
        options: dict[str, Value] = {}
        if self._take("{"):
            self._items("}", lambda: self._option(options))
        return PassSpec(name, options)

    def _option(self, options: dict[str, Value]) -> None:
        self._peek()
        start = self._at
        key = self._match(_KEY, "the name of an option or '}'")
        if key in options:
            self._at = start
            self._fail("an option that was not given before")
        if not self._take("="):
            self._fail(f"'=' and a value for {key!r}", hint="A list is written [a,b]")
        options[key] = self._value()

    def _value(self, depth: int = 0) -> Value:
        following = self._peek()
        if following in ('"', "'"):
            return self._string(following)
        if following == "[":
            return self._list(depth)
        return _read_word(self._match(_WORD, "a value"))

    def _list(self, depth: int) -> list[Value]:
        if depth == _DEEPEST_LIST:
            self._fail(f"at most {_DEEPEST_LIST} lists inside each other")
        self._at += 1
        return self._items("]", lambda: self._value(depth + 1))

    def _items(self, closing: str, item: Callable[[], _Item]) -> list[_Item]:
        """Read items up to `closing`, commas between them and, if one likes, after the last."""
        items: list[_Item] = []
        while not self._take(closing):
            items.append(item())
            if not self._take(",") and self._peek() != closing:
                self._fail(f"',' or {closing!r}", hint=_QUOTING)
        return items

    def _string(self, quote: str) -> str:
        start = self._at
        if quote == "'":
            end = self._text.find("'", start + 1)
            if end < 0:
                self._fail("a string with a closing '")
            self._at = end + 1
            return self._text[start + 1 : end]
        try:
            value, self._at = _JSON.raw_decode(self._text, start)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Unterminated"):
                self._at = error.pos
                self._fail(r"a valid escape such as \\ or \"", hint="Single quotes take text as it stands")
            self._fail('a string with a closing "')
        return str(value)

    def _peek(self) -> str:
        """Skip blanks and comments, and return the next character, or "" at the end."""
        blank = _BLANK.match(self._text, self._at)
        self._at = blank.end() if blank else self._at
        return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _match(self, pattern: re.Pattern[str], expected: str) -> str:
        """Read one word and return it, if it is wholly of the form `pattern`."""
        self._peek()
        word = _WORD.match(self._text, self._at)
        if word is None or pattern.fullmatch(word.group()) is None:
            self._fail(expected)
        self._at = word.end()
        return word.group()

    def _fail(self, expected: str, *, hint: str = "") -> NoReturn:
        word = _WORD.match(self._text, self._at)
        token = word.group() if word else self._text[self._at : self._at + 1]
        found = repr(token) if token else "the end"
        line = self._text.count("\n", 0, self._at) + 1
        begin = self._text.rfind("\n", 0, self._at) + 1
        column = self._at - begin + 1
        shown = self._text[begin:].split("\n", 1)[0].strip()
        place = f"column {column}" if "\n" not in self._text.strip() else f"line {line}, column {column}"
        advice = f". {hint}" if hint else ""
        raise UsageError(f"{self._source}: {place}: expected {expected}, found {found}, in: {shown}{advice}")


# strict=False: line breaks and tabs inside double quotes stand for themselves.
_JSON = json.JSONDecoder(strict=False)
