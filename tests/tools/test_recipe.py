"""Recipes: TOML and back, messages, and a manifest that says the same for equal runs."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from onnxpress.ir.errors import InputError, UsageError
from onnxpress.tools.recipe import Recipe, installed_versions, portable

# Everything that a file can hold: no lone surrogates, which UTF-8 has no form for.
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_RECIPES = st.builds(
    Recipe,
    model=st.none() | _TEXT,
    model_digest=st.none() | _TEXT,
    target=st.none() | _TEXT,
    pipeline=st.none() | _TEXT,
    seed=st.none() | st.integers(0, 2**40),
    data=st.none() | _TEXT,
    max_drop=st.none() | st.floats(0, 100),
    versions=st.dictionaries(_TEXT, _TEXT, max_size=3),
)


@hypothesis.given(_RECIPES)
def test_toml_gives_the_recipe_back(recipe: Recipe) -> None:
    text = recipe.to_toml()
    assert Recipe.from_toml(text) == recipe
    assert Recipe.from_toml(text).to_toml() == text


def test_toml_is_what_a_person_would_write() -> None:
    recipe = Recipe(
        model="a.onnx",
        target="host-cpu",
        pipeline='quantize-int8{exclude=["a b"]}',
        seed=1,
        max_drop=0.5,
        versions={"onnx-ir": "1.1", "onnx": "1.2"},
    )
    assert recipe.to_toml() == (
        "# Repeat with: onnxpress compress MODEL OUT --recipe THIS.toml\n"
        'model = "a.onnx"\n'
        'target = "host-cpu"\n'
        'pipeline = "quantize-int8{exclude=[\\"a b\\"]}"\n'
        "seed = 1\n"
        "max_drop = 0.5\n"
        "\n"
        "[versions]\n"
        'onnx = "1.2"\n'
        'onnx-ir = "1.1"\n'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'pipelin = "cleanup"',
            "recipe 'r.toml': unknown key 'pipelin'. Did you mean 'pipeline'? Keys: model, model_digest, "
            "target, target_digest, pipeline, seed, data, data_digest, eval_data, max_drop, versions",
        ),
        ('seed = "1"', "recipe 'r.toml': key seed = '1': input should be a valid integer"),
        ("seed = -1", "recipe 'r.toml': key seed = -1: input should be greater than or equal to 0"),
        (
            "max_drop = -0.5",
            "recipe 'r.toml': key max_drop = -0.5: input should be greater than or equal to 0",
        ),
        ("versions = 3", "recipe 'r.toml': key versions = 3: input should be a valid dictionary"),
        ("target = ", "recipe 'r.toml' is not TOML: Invalid value (at end of document)."),
    ],
)
def test_bad_recipe(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        Recipe.read("r.toml")
    assert str(caught.value) == message


def test_recipe_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^recipe 'r.toml' cannot be read: No such file or directory\.$"):
        Recipe.read("r.toml")
    Path("r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"^recipe 'r.toml' is not a text file \(UTF-8\)\.$"):
        Recipe.read("r.toml")


def test_paths_are_found_from_here_first_then_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/r.toml").write_text('data = "d.npz"\ntarget = "host-cpu"\neval_data = "module:function"\n')
    Path("sub/d.npz").write_text("beside")
    found = Recipe.read("sub/r.toml")
    assert (found.data, found.target, found.eval_data) == ("sub/d.npz", "host-cpu", "module:function")
    Path("d.npz").write_text("here")
    assert Recipe.read("sub/r.toml").data == "d.npz"


def test_existing_recipe_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    Recipe(seed=1).write(path)
    with pytest.raises(UsageError, match=r"exists\. Give another path, or --force \(overwrite=True\) to replace it\.$"):
        Recipe(seed=2).write(path)
    assert Recipe.read(path).seed == 1
    Recipe(seed=2).write(path, overwrite=True)
    assert Recipe.read(path).seed == 2


def test_manifest_holds_what_decides_the_bytes_and_nothing_else() -> None:
    recipe = Recipe(model="a.onnx", pipeline="cleanup", seed=0, target="t", data="d.npz", versions={"onnx": "1"})
    moved = recipe.model_copy(update={"model": "b.onnx", "data": "e.npz", "max_drop": 1.0, "eval_data": "f"})
    assert recipe.manifest() == moved.manifest()
    assert json.loads(recipe.manifest()) == {
        "pipeline": "cleanup", "seed": 0, "target": "t", "versions": {"onnx": "1"}
    }  # fmt: skip
    assert recipe.manifest() != recipe.model_copy(update={"seed": 1}).manifest()
    one, other = {"onnx": "1", "onnx-ir": "2"}, {"onnx-ir": "2", "onnx": "1"}
    assert Recipe(versions=one).manifest() == Recipe(versions=other).manifest()


def test_check_of_model_and_data() -> None:
    recipe = Recipe(model_digest="aa", data_digest="bb")
    recipe.check_model("aa", "m.onnx")
    recipe.check_data("bb", "d.npz")
    Recipe().check_model("cc", "m.onnx")
    with pytest.raises(InputError) as caught:
        recipe.check_data("cc", "d.npz")
    assert str(caught.value) == (
        "d.npz: not the data that the recipe was made with: expected sha256 bb, got cc. "
        "To calibrate on other data, remove its line data_digest."
    )


def test_check_of_the_target() -> None:
    recipe = Recipe(target_digest="aa")
    recipe.check_target("aa", "phone.toml")
    Recipe().check_target("cc", "phone.toml")
    with pytest.raises(InputError) as caught:
        recipe.check_target("cc", "phone.toml")
    assert str(caught.value) == (
        "phone.toml: not the profile that the recipe was made with: expected sha256 aa, got cc. "
        "To use the profile as it is now, remove the recipe's line target_digest."
    )


def test_a_runtime_is_recorded_for_its_own_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    assert "ai-edge-litert" in installed_versions("litert")
    assert "ai-edge-litert" not in installed_versions("onnxruntime-cpu")
    assert Recipe(versions=installed_versions("litert")).other_versions() == []


def test_versions_that_differ_are_told() -> None:
    here = installed_versions()
    assert Recipe(versions=here).other_versions() == []
    assert Recipe(versions={**here, "onnx": "0.1", "tvm": "2"}).other_versions() == [
        f"onnx 0.1 (here {here['onnx']})",
        "tvm 2 (here none)",
    ]


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        ("d.npz", "d.npz"),
        ("../d/e.npz", "../d/e.npz"),
        ("/data/d.npz", "d.npz"),
        ("package.data:load", "package.data:load"),
    ],
)
def test_absolute_paths_do_not_travel(spec: str, kept: str) -> None:
    assert portable(spec) == kept
