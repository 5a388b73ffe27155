"""Pipeline text: what it means, that printing inverts parsing, and what each mistake is told."""

from __future__ import annotations

import doctest
import enum
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.ir.errors import UsageError
from onnxpress.passes import pipeline, registry
from onnxpress.passes.base import Context, Options, Pass, Rewrites, SiteOptions
from onnxpress.passes.pipeline import (
    PassSpec,
    build,
    format_pipeline,
    format_value,
    parse,
    read_pipeline,
    to_spec,
)


class _Mode(enum.Enum):
    FAST = "fast"
    SURE = "sure"


class _AllKinds(SiteOptions):
    ratio: float = pydantic.Field(default=0.5, ge=0, le=1)
    bits: Literal[2, 4, 8] = 8
    rounds: int = 1
    method: Literal["mse", "none"] = "mse"
    limit: float | None = 1.0
    label: str = ""
    sizes: tuple[int, ...] = ()
    tags: frozenset[str] = frozenset()
    mode: _Mode = _Mode.FAST
    path: Path | None = None
    deep: bool = False
    either: int | Literal["auto"] = "auto"
    pairs: tuple[tuple[str, float], ...] = ()


class _Tuned(Pass):
    """Take every kind of option."""

    name = "tuned"
    fidelity = "bits"
    options_type = _AllKinds

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        return Rewrites()


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = registry._Registry()
    fresh.plugins_loaded = True
    monkeypatch.setattr(registry, "_registry", fresh)
    registry.register_pass(_Tuned)


def _options(text: str) -> dict[str, Any]:
    """Return the options that `tuned{text}` gives, beyond the defaults."""
    return build(f"tuned{{{text}}}")[0].options.model_dump(exclude_defaults=True)


# What text means


def test_parse_design_example() -> None:
    text = "prune-channels{ratio=0.3}, low-rank{energy=0.95}, quantize-int8"
    specs = parse(text)
    assert specs == (
        PassSpec("prune-channels", {"ratio": 0.3}),
        PassSpec("low-rank", {"energy": 0.95}),
        PassSpec("quantize-int8"),
    )
    assert format_pipeline(specs) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("-1", -1),
        ("0.3", 0.3),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("5.", 5.0),
        ("inf", math.inf),
        ("-inf", -math.inf),
        ("true", True),
        ("false", False),
        ("007", "007"),
        ("+8", "+8"),
        ("1_000", "1_000"),
        ("٣", "٣"),
        ("none", "none"),
        ("True", "True"),
        ("/conv1/Conv", "/conv1/Conv"),
        ("type:Conv*", "type:Conv*"),
        (r"C:\data\x.npz", r"C:\data\x.npz"),
        ("a;b:0", "a;b:0"),
        ('"8"', "8"),
        ('"a, b{c}=[d]#e\'"', "a, b{c}=[d]#e'"),
        (r'"say \"hi\"\n\u00e9"', 'say "hi"\né'),
        (r"""'C:\temp, "new"'""", r'C:\temp, "new"'),
        ('"two\nlines"', "two\nlines"),
        ('""', ""),
        ("[]", []),
        ("[a]", ["a"]),
        ("[ a , 1 , true , ]", ["a", 1, True]),
        ("[[a,1],[]]", [["a", 1], []]),
    ],
)
def test_parse_value(text: str, value: object) -> None:
    parsed = parse(f"p{{k={text}}}")[0].options["k"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "  \n", "# nothing but a comment", "# a\n# b\n"])
def test_parse_nothing(text: str) -> None:
    assert parse(text) == ()


def test_parse_file_layout() -> None:
    text = """
    # first tidy up
    cleanup,            # folds constants
    fold-batchnorm {},
    quantize-int8 {     # the lossy one
        bits = 8,
        exclude = [
            '/head/Gemm',  # hurts most
            type:MatMul,
        ],
    },
    """
    assert parse(text) == (
        PassSpec("cleanup"),
        PassSpec("fold-batchnorm"),
        PassSpec("quantize-int8", {"bits": 8, "exclude": ["/head/Gemm", "type:MatMul"]}),
    )


# Printing inverts parsing

_SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.text(alphabet="aeinft0123456789.+-:*/_ ,{}=[]#'\"\\\n", max_size=8),
)
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
_SPECS = st.builds(
    PassSpec,
    st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,9}", fullmatch=True),
    st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True), _VALUES, max_size=3),
)


def _typed(value: object) -> object:
    """Tell 1, 1.0 and True apart, which compare equal."""
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return (type(value), str(value))


@given(st.lists(_SPECS, max_size=4))
def test_parse_inverts_format(specs: list[PassSpec]) -> None:
    text = format_pipeline(specs)
    parsed = parse(text)
    assert parsed == tuple(specs)
    for before, after in zip(specs, parsed, strict=True):
        assert [(k, _typed(v)) for k, v in before.options.items()] == [(k, _typed(v)) for k, v in after.options.items()]
    assert "\n" not in text and format_pipeline(parsed) == text


@given(st.text(alphabet="ab1.-=,,{}[]'\"# \n\\", max_size=24))
def test_any_text_parses_to_a_fixpoint_or_is_refused_in_one_line(text: str) -> None:
    try:
        specs = parse(text)
    except UsageError as error:
        assert "\n" not in str(error).replace(text, "") and ": expected " in str(error)
        return
    assert parse(format_pipeline(specs)) == specs


_TUNED = st.fixed_dictionaries(
    {},
    optional={
        "include": st.lists(st.text(min_size=1, max_size=5), max_size=2).map(tuple),
        "ratio": st.floats(0, 1),
        "bits": st.sampled_from([2, 4, 8]),
        "rounds": st.integers(-5, 5),
        "method": st.sampled_from(["mse", "none"]),
        "limit": st.none() | st.floats(allow_nan=False),
        "label": st.text(max_size=5),
        "sizes": st.lists(st.integers(), max_size=3).map(tuple),
        "tags": st.frozensets(st.text(max_size=3), max_size=3),
        "mode": st.sampled_from(list(_Mode)),
        "deep": st.booleans(),
        "either": st.just("auto") | st.integers(),
        "pairs": st.lists(st.tuples(st.text(max_size=3), st.floats(0, 1)), max_size=2).map(tuple),
    },
)


@given(_TUNED)
def test_built_pass_survives_its_text(options: dict[str, Any]) -> None:
    built = _Tuned(**options)
    assert build(format_pipeline([to_spec(built)]))[0].options == built.options


@pytest.mark.parametrize("word", ["8", "-0", "0.5", "1e5", "inf", "nan", "true", "false", "", "a b", "a#b", "[*", "'"])
def test_string_that_would_read_as_something_else_is_quoted(word: str) -> None:
    text = format_pipeline([PassSpec("p", {"k": word})])
    assert text == f'p{{k="{word}"}}'
    assert parse(text) == (PassSpec("p", {"k": word}),)


@pytest.mark.parametrize("word", ["none", "007", "+8", "True", "é", "/conv/Conv", "type:Conv*", r"C:\x"])
def test_plain_string_is_not_quoted(word: str) -> None:
    assert format_value(word) == word
    assert format_value(f"{word} \n") == json.dumps(f"{word} \n", ensure_ascii=False)


def test_to_spec_keeps_only_what_differs_from_the_defaults() -> None:
    built = _Tuned(ratio=0.5, rounds=3, tags=set("hgfedcba"), path=Path("x.npz"), mode="sure")
    assert to_spec(built) == PassSpec("tuned", {"rounds": 3, "tags": list("abcdefgh"), "mode": "sure", "path": "x.npz"})
    assert str(to_spec(_Tuned(limit=None, include="a b"))) == 'tuned{include=["a b"],limit=none}'


def test_to_spec_of_what_only_python_can_set() -> None:
    class Mapped(Options):
        table: dict[str, int] = {}  # noqa: RUF012

    class MappedPass(Pass):
        name = "mapped"
        fidelity = "bits"
        options_type = Mapped

        def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
            return Rewrites()

    assert to_spec(MappedPass()) == PassSpec("mapped")
    assert registry.describe(MappedPass).options[0].default == "{}"
    with pytest.raises(UsageError) as caught:
        to_spec(MappedPass(table={"a": 1}))
    assert str(caught.value) == "mapped: option 'table': a dict has no pipeline text: {'a': 1}"


def test_format_value_of_foreign_numbers() -> None:
    assert [format_value(value) for value in (np.float32(0.5), np.int64(3), None, {"b", "a"})] == [
        "0.5",
        "3",
        "none",
        "[a,b]",
    ]
    with pytest.raises(TypeError, match=r"^a dict has no pipeline text: \{'a': 1\}$"):
        format_value({"a": 1})


# The option's type decides


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("include=type:Conv", {"include": ("type:Conv",)}),
        ("exclude=12", {"exclude": ("12",)}),
        ("exclude=[12,conv]", {"exclude": ("12", "conv")}),
        ("sizes=3", {"sizes": (3,)}),
        ("ratio=0.30", {"ratio": 0.3}),
        ("ratio=1", {"ratio": 1.0}),
        ("rounds=007", {"rounds": 7}),
        ("bits=4", {"bits": 4}),
        ("limit=none", {"limit": None}),
        ("limit=2", {"limit": 2.0}),
        ("method=none", {"method": "none"}),
        ("label=none", {"label": "none"}),
        ("label=1.5", {"label": "1.5"}),
        ("deep=true", {"deep": True}),
        ("deep=yes", {"deep": True}),
        ("either=3", {"either": 3}),
        ("mode=sure", {"mode": _Mode.SURE}),
    ],
)
def test_option_type_reads_words(text: str, options: dict[str, Any]) -> None:
    assert _options(text) == options


def test_one_word_for_a_list_in_python_too() -> None:
    assert _Tuned(include="conv1").options == _Tuned(include=["conv1"]).options


_TAKEN = ", ".join(_AllKinds.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratio=2", "tuned: option ratio=2: input should be less than or equal to 1"),
        ("bits=5", "tuned: option bits=5: input should be 2, 4 or 8"),
        ("deep=7", "tuned: option deep=7: input should be a valid boolean, unable to interpret input"),
        ("include=[a,true]", "tuned: option include.1=True: input should be a valid string"),
        ("rounds=[1,2]", "tuned: option rounds=[1, 2]: input should be a valid integer"),
        (
            "either=x",
            "tuned: option either='x': input should be a valid integer, unable to parse string as an "
            "integer; or input should be 'auto'",
        ),
        (
            "ratios=1",
            "tuned: unknown option 'ratios'. Did you mean 'ratio' or 'pairs' or 'rounds'? It takes: " + _TAKEN,
        ),
        ("self=1", "tuned: unknown option 'self'. It takes: " + _TAKEN),
    ],
)
def test_refused_option(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _options(text)
    assert str(caught.value) == message


def test_refused_option_of_rules_and_requirements() -> None:
    class Strict(Options):
        energy: float
        rank: int = 0

        @pydantic.model_validator(mode="after")
        def _one(self) -> Strict:
            if self.rank and self.energy:
                raise ValueError("Give energy or rank, not both")
            return self

    class StrictPass(Pass):
        name = "strict"
        fidelity = "bits"
        options_type = Strict

        def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
            return Rewrites()

    with pytest.raises(
        UsageError, match=r"^strict: option 'energy' has no default\. Give it: strict\{energy=\.\.\.\}$"
    ):
        StrictPass()
    with pytest.raises(UsageError, match=r"^strict: give energy or rank, not both$"):
        StrictPass(energy=0.5, rank=3)


def test_build_takes_specs_as_well_as_text() -> None:
    built = build([PassSpec("tuned", {"rounds": 2}), PassSpec("tuned")])
    assert [str(to_spec(one)) for one in built] == ["tuned{rounds=2}", "tuned"]


def test_build_refuses_an_unknown_pass() -> None:
    with pytest.raises(UsageError, match=r"^unknown pass 'tunned'\. Did you mean 'tuned'\? There are: cleanup, "):
        build("tunned")


# Mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold batchnorm", "column 6: expected ',' between passes, found 'batchnorm', in: fold batchnorm"),
        ("a\nb{c=1}", "line 2, column 1: expected ',' between passes, found 'b', in: b{c=1}"),
        ("a,,b", "column 3: expected the name of a pass, found ',', in: a,,b"),
        ("8bit", "column 1: expected the name of a pass, found '8bit', in: 8bit"),
        ("a}", "column 2: expected ',' between passes, found '}', in: a}"),
        ("a{", "column 3: expected the name of an option or '}', found the end, in: a{"),
        ("a{b}", "column 4: expected '=' and a value for 'b', found '}', in: a{b}. A list is written [a,b]"),
        (
            "a{x=b,c}",
            "column 8: expected '=' and a value for 'c', found '}', in: a{x=b,c}. A list is written [a,b]",
        ),
        ("a{b=}", "column 5: expected a value, found '}', in: a{b=}"),
        ("a{b=1 c=2}", f"column 7: expected ',' or '}}', found 'c', in: a{{b=1 c=2}}. {pipeline._QUOTING}"),
        ("a{b=c[1]}", f"column 6: expected ',' or '}}', found '[', in: a{{b=c[1]}}. {pipeline._QUOTING}"),
        ("a{b=[1}", f"column 7: expected ',' or ']', found '}}', in: a{{b=[1}}. {pipeline._QUOTING}"),
        ("a{b=1,b=2}", "column 7: expected an option that was not given before, found 'b', in: a{b=1,b=2}"),
        ('a{b="x}', 'column 5: expected a string with a closing ", found \'"\', in: a{b="x}'),
        ("a{b='x}", "column 5: expected a string with a closing ', found \"'\", in: a{b='x}"),
        (
            r'a{b="C:\data"}',
            r"""column 8: expected a valid escape such as \\ or \", found '\\data', in: a{b="C:\data"}. """
            "Single quotes take text as it stands",
        ),
        (
            f"a{{b={'[' * 17}{']' * 17}}}",
            f"column 21: expected at most 16 lists inside each other, found '[', in: a{{b={'[' * 17}{']' * 17}}}",
        ),
    ],
)
def test_refused_text(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == f"pipeline: {message}"


# Files


def test_read_pipeline_tells_files_from_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("\ufefftuned{rounds=2}  # twice\n", encoding="utf-8")
    Path("cleanup").write_text("tuned", encoding="utf-8")
    twice = (PassSpec("tuned", {"rounds": 2}),)
    assert read_pipeline("mine.txt") == twice
    assert read_pipeline(tmp_path / "mine.txt") == twice
    assert read_pipeline("cleanup") == (PassSpec("cleanup"),)
    assert read_pipeline(Path("cleanup")) == (PassSpec("tuned"),)
    assert read_pipeline("cleanup, tuned{label='a/b'}")[1] == PassSpec("tuned", {"label": "a/b"})
    assert read_pipeline("") == ()
    assert [spec.name for spec in read_pipeline("tuned," * 9000)] == ["tuned"] * 9000


def test_read_pipeline_refuses_a_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_text("tuned\nrounds", encoding="utf-8")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    advice = "Give an existing text file, or the pipeline itself: --passes 'cleanup, quantize-int8'"
    for name, message in {
        "bad.txt": "bad.txt: line 2, column 1: expected ',' between passes, found 'rounds', in: rounds",
        "sub/none": f"pipeline file sub/none: cannot be read (No such file or directory). {advice}",
        "binary.txt": f"pipeline file binary.txt: cannot be read (not UTF-8 text). {advice}",
    }.items():
        with pytest.raises(UsageError) as caught:
            read_pipeline(name)
        assert str(caught.value) == message


def test_docstring_examples() -> None:
    assert doctest.testmod(pipeline).failed == 0
