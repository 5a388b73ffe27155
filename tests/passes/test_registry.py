"""The registry: built-in passes, registered ones, plugins from real distributions, and their descriptions."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import onnx_ir
import pydantic
import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.passes import registry
from onnxpress.passes.base import Context, Options, Pass, Rewrites, SiteOptions
from onnxpress.passes.registry import (
    OptionInfo,
    describe,
    get_pass,
    is_known,
    pass_names,
    register_pass,
)

_BUILT_IN = [
    "cleanup",
    "fold-batchnorm",
    "prune-channels",
    "prune-blocks",
    "low-rank",
    "separable",
    "prune-weights",
    "prune-nm",
    "equalize",
    "quantize-weights",
    "ternarize",
    "binarize",
    "palettize",
    "power-of-two",
    "quantize-int8",
    "float16",
    "pack",
]
InstallPlugin = Callable[..., None]


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", registry._Registry())


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InstallPlugin:
    """Return a function that puts a distribution with entry points on the path, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(distribution: str, entry_points: dict[str, str], **modules: str) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[onnxpress.passes]", *lines, ""]))
        for module, source in modules.items():
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
            monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()

    return install


def _pass(name: str, **body: Any) -> type[Pass]:
    def run(self: Pass, model: onnx_ir.Model, context: Context) -> Rewrites:
        return Rewrites()

    made = {"__module__": __name__, "name": name, "fidelity": "bits", "run": run}
    return type("Made", (Pass,), made | body)


_PLUGIN = """
    from onnxpress.passes.base import Pass, Rewrites

    class Shiny(Pass):
        \"\"\"Make it shine.

        At length.
        \"\"\"
        name = "shiny"
        fidelity = "bits"

        def run(self, model, context):
            return Rewrites()
"""


# Built in and registered


def test_built_in_passes_come_first_and_are_imported_only_when_asked_for() -> None:
    assert pass_names()[: len(_BUILT_IN)] == _BUILT_IN
    assert all(is_known(name) for name in _BUILT_IN)


@pytest.mark.parametrize("name", _BUILT_IN)
def test_built_in_pass_is_what_the_table_says(name: str) -> None:
    cls = get_pass(name)
    assert cls.name == name
    info = describe(cls)
    assert info.source == "built-in"
    assert info.summary.endswith(".") and "\n" not in info.summary
    assert all(option.description for option in info.options)


def test_register_pass_is_a_decorator_that_makes_a_name_known() -> None:
    cls = _pass("mine")
    assert register_pass(cls) is cls
    assert get_pass("mine") is cls
    assert is_known("mine")
    assert pass_names() == [*_BUILT_IN, "mine"]


def test_the_same_class_again_replaces_its_elder() -> None:
    elder, younger = _pass("mine"), _pass("mine")  # as when a notebook cell runs twice
    register_pass(elder)
    register_pass(younger)
    assert get_pass("mine") is younger


def test_a_taken_name_is_refused() -> None:
    register_pass(_pass("mine"))
    with pytest.raises(UsageError) as caught:
        register_pass(_pass("mine", __qualname__="Other"))
    module = __name__
    assert str(caught.value) == (
        f"pass name 'mine' is taken: {module}:Other asks for it and {module}:Made has it. "
        "Give the new pass another name"
    )
    with pytest.raises(UsageError) as caught:
        register_pass(_pass("cleanup"))
    assert str(caught.value) == (
        f"pass name 'cleanup' is taken: {module}:Made asks for it and "
        "onnxpress.passes.cleanup.cleanup:Cleanup has it. Give the new pass another name"
    )


@pytest.mark.parametrize("name", ["two words", "a,b", "8bit", "", "a{}", None])
def test_a_name_that_pipelines_cannot_spell_is_refused(name: Any) -> None:
    with pytest.raises(UsageError) as caught:
        register_pass(_pass(name))
    assert str(caught.value) == (
        f"{__name__}:Made: the pass name {name!r} cannot stand in pipeline text. "
        "Use letters, digits, '-', '_' and '.', with a letter first"
    )


def test_a_pass_without_fidelity_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        register_pass(_pass("mine", fidelity="exact"))
    assert str(caught.value) == (
        f"{__name__}:Made: the pass 'mine' lacks a fidelity. Set it to 'bits', 'rounding' or 'lossy'"
    )
    with pytest.raises(TypeError, match=r"^register_pass takes a Pass class, got 3$"):
        register_pass(3)  # type: ignore[type-var]


def test_unknown_pass_says_near_names() -> None:
    with pytest.raises(UsageError) as caught:
        get_pass("quantise-int8")
    assert str(caught.value) == (
        "unknown pass 'quantise-int8'. Did you mean 'quantize-int8' or 'quantize-weights'? There are: "
        + ", ".join(_BUILT_IN)
    )


# Plugins


def test_plugin_that_names_a_class(install_plugin: InstallPlugin) -> None:
    install_plugin("shiny-tools", {"shiny": "shiny_tools:Shiny"}, shiny_tools=_PLUGIN)
    assert not is_known("shiny")
    assert get_pass("shiny").__module__ == "shiny_tools"
    assert pass_names() == [*_BUILT_IN, "shiny"]
    info = describe(get_pass("shiny"))
    assert (info.source, info.summary) == ("plugin shiny-tools", "Make it shine.")


def test_plugin_that_names_a_module(install_plugin: InstallPlugin) -> None:
    source = textwrap.dedent(_PLUGIN) + ("from onnxpress.passes.registry import register_pass\nregister_pass(Shiny)\n")
    install_plugin("shiny-tools", {"all": "shiny_module"}, shiny_module=source)
    assert pass_names() == [*_BUILT_IN, "shiny"]
    assert describe(get_pass("shiny")).source == "plugin shiny-tools"


def test_built_in_passes_do_not_wait_for_plugins(install_plugin: InstallPlugin) -> None:
    install_plugin("loud", {"loud": "loud_plugin:Loud"}, loud_plugin="raise RuntimeError('imported')")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_known("cleanup")
        register_pass(_pass("mine"))
        assert get_pass("mine").name == "mine"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("raise SystemExit('tired')", "SystemExit: tired"),
        ("x = 1", "AttributeError: module 'broken_plugin' has no attribute 'Broken'"),
        ("Broken = 3", "TypeError: it names a int, not a Pass class or a module"),
        (
            _PLUGIN.replace('"shiny"', '"equalize"').replace("Shiny", "Broken"),
            "pass name 'equalize' is taken: broken_plugin:Broken asks for it and "
            "onnxpress.passes.quantize.equalize:Equalize has it. Give the new pass another name",
        ),
    ],
)
def test_broken_plugin_is_a_warning_and_the_reason_of_its_missing_pass(
    install_plugin: InstallPlugin, source: str, cause: str
) -> None:
    install_plugin("brk", {"broken": "broken_plugin:Broken"}, broken_plugin=source)
    install_plugin("shiny-tools", {"shiny": "shiny_tools:Shiny"}, shiny_tools=_PLUGIN)
    reason = f"plugin 'brk' (entry point 'broken' = 'broken_plugin:Broken') cannot be used: {cause}"
    advice = "Its passes are missing; update or uninstall it"
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(f'{reason}. {advice}')}$") as caught:
        assert pass_names() == [*_BUILT_IN, "shiny"]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # warned once, not with every question
        with pytest.raises(UsageError) as refused:
            get_pass("broken")
    assert str(refused.value) == f"unknown pass 'broken': {reason}"


# Descriptions


class _Described(SiteOptions):
    ratio: float = pydantic.Field(default=0.5, gt=0, le=1, description="share removed")
    method: Literal["mse", "minmax"] = "mse"
    limit: float | None = None
    sizes: tuple[Annotated[int, "odd"], ...] = (1, 3)
    either: Literal["auto"] | int = "auto"
    deep: bool = False
    path: Path | None = None
    needed: str


def test_describe_tells_all_that_a_user_may_write() -> None:
    info = describe(_pass("mine", options_type=_Described, after=("cleanup",), __doc__="\n  Do it well.\n\n  More."))
    assert dataclasses.replace(info, options=()) == registry.PassInfo(
        "mine", "bits", "Do it well.", f"registered by {__name__}", ("cleanup",), ()
    )
    assert info.options[0] == OptionInfo(
        "include", "list of text", "[]", "only these nodes: exact names, globs, or type:Conv"
    )
    assert [(option.name, option.type, option.default) for option in info.options[2:]] == [
        ("ratio", "float, > 0, <= 1", "0.5"),
        ("method", "mse | minmax", "mse"),
        ("limit", "float | none", "none"),
        ("sizes", "list of int", "[1,3]"),
        ("either", "auto | int", "auto"),
        ("deep", "true | false", "false"),
        ("path", "Path | none", "none"),
        ("needed", "text", None),
    ]
    assert json.loads(json.dumps(dataclasses.asdict(info)))["options"][2]["description"] == "share removed"


def test_describe_takes_the_summary_of_the_module_where_the_class_has_none() -> None:
    assert describe(_pass("mine")).summary == (__doc__ or "").splitlines()[0]
    assert describe(_pass("mine", __module__="nowhere")).summary == ""


def test_describe_a_pass_without_options() -> None:
    assert describe(_pass("mine", options_type=Options)).options == ()
