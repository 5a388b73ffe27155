"""Packed files: whole models come back byte for byte, and no damaged or malicious file does harm."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest

from onnxpress.ir import model_io, onnx_file
from onnxpress.ir.container import layout, packing
from onnxpress.ir.container.layout import Kind, Section
from onnxpress.ir.container.methods import Method, encode_bytes
from onnxpress.ir.errors import InputError
from tests.support import Array, tensor_of

_LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
_RNG = np.random.default_rng(0)
_DTYPES = [
    np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64,
    np.uint64, np.bool_, np.complex64, np.complex128, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fnuz, ml_dtypes.int4, ml_dtypes.uint4,
]  # fmt: skip


def _round_trip(model: onnx_ir.Model | onnx.ModelProto, folder: Path) -> list[packing.Packed]:
    """Check that a model comes back from a file, restored and loaded, and return what its sections took."""
    loaded = model_io.load(model)
    expected = model_io.to_proto_bytes(loaded)
    told = model_io.save_packed(loaded, folder / "m.onnxp")
    model_io.save_skeleton(packing.read_packed(folder / "m.onnxp"), folder / "m.onnx")
    assert (folder / "m.onnx").read_bytes() == expected
    assert model_io.to_proto_bytes(model_io.load(folder / "m.onnxp")) == expected
    return told


def _model(arrays: Iterable[Array], nodes: Iterable[onnx.NodeProto] = ()) -> onnx.ModelProto:
    initializers = [onnx.numpy_helper.from_array(array, f"w{index}") for index, array in enumerate(arrays)]
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
    given = list(nodes) or [onnx.helper.make_node("Relu", ["x"], ["y"])]
    graph = onnx.helper.make_graph(given, "g", [x], [y], initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("dtype", _DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 7), (40, 30, 3, 3)])
def test_every_type_and_shape_comes_back(dtype: type, shape: tuple[int, ...], tmp_path: Path) -> None:
    array: Array = np.asarray(_RNG.standard_normal(shape) * 3).astype(dtype)
    _round_trip(_model([array, array]), tmp_path)


def test_strings_come_back(tmp_path: Path) -> None:
    model = _model([np.array(["a", "", "ä" * 3000], dtype=object), np.zeros((0,), np.float32)])
    _round_trip(model, tmp_path)


def test_special_floats_keep_their_bits(tmp_path: Path) -> None:
    bits = np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF, 0x7F800001, 1], np.uint32)
    _round_trip(_model([bits.view(np.float32), np.tile(bits, 700).view(np.float32)]), tmp_path)


def test_constants_and_subgraphs_are_coded_as_initializers_are(tmp_path: Path) -> None:
    weight = (_RNG.standard_normal((64, 64)) * 0.1).astype(np.float32)
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["inner_w"], ["inner_y"])], "inner", [],
        [onnx.helper.make_tensor_value_info("inner_y", onnx.TensorProto.FLOAT, [64, 64])],
        [onnx.numpy_helper.from_array(weight, "inner_w")],
    )  # fmt: skip
    nodes = [
        onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(weight + 1)),
        onnx.helper.make_node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))),
        onnx.helper.make_node("If", ["yes"], ["d"], then_branch=inner, else_branch=inner),
        onnx.helper.make_node("Relu", ["x"], ["y"]),
    ]
    told = _round_trip(_model([weight], nodes), tmp_path)
    (group,) = (each for each in told if each.before == 4 * weight.nbytes)
    assert (group.name, group.tensors) == ("4 tensors, float", 4) and group.after < 0.9 * group.before


def test_external_data_is_taken_in(tmp_path: Path) -> None:
    weight = _RNG.standard_normal((300, 20)).astype(np.float32)
    model_io.save(model_io.load(_model([weight])), tmp_path / "apart.onnx", external_from_bytes=0)
    loaded = model_io.load(tmp_path / "apart.onnx")
    _round_trip(loaded, tmp_path)
    assert np.array_equal(tensor_of(model_io.load(tmp_path / "m.onnxp"), "w0").numpy(), weight)


def test_large_tensors_travel_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PIECE_BYTES", "_GROUP_BYTES", "_GROUPED_BELOW"):
        monkeypatch.setattr(packing, name, 10_000)
    arrays = [
        _RNG.standard_normal((9, 700)).astype(np.float32),
        _RNG.standard_normal((2, 5000)).astype(np.float32),  # a row is more than a piece
        _RNG.integers(-8, 8, (101, 333)).astype(ml_dtypes.int4),
        *(_RNG.standard_normal(900).astype(np.float32) for _ in range(5)),  # a pool of more than a piece
        *(_RNG.standard_normal((50, 30)).astype(np.float32) for _ in range(5)),  # and a group
    ]
    told = _round_trip(_model(arrays), tmp_path)
    assert max(each.before for each in told) <= 10_000 and len(told) > 8
    assert [each.tensors for each in told if each.name.endswith("tensors, float")] == [2, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("keep", [False, True])
def test_weights_are_decoded_when_they_are_asked_for(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that lies in a group is decoded with its neighbours, which are at hand then."""
    codes = np.clip(np.rint(_RNG.normal(0, 30, (64, 400))), -127, 127)
    arrays = [*_RNG.standard_normal((2, 90, 40)), codes * np.float32(0.01)]
    model_io.save_packed(model_io.load(_model(array.astype(np.float32) for array in arrays)), tmp_path / "m.onnxp")
    decoded: list[str] = []
    original = packing._Piece.decoded
    monkeypatch.setattr(packing._Piece, "decoded", lambda piece: decoded.append(piece.what) or original(piece))  # type: ignore[func-returns-value]
    skeleton = packing.read_packed(tmp_path / "m.onnxp", keep=keep)
    assert decoded == ["the skeleton"]
    for name in ("w1", "w0", "w2", "w2", "w1"):
        expected = arrays[int(name[1])].astype(np.float32)
        np.testing.assert_array_equal(skeleton.weights[name].numpy(), expected)
    grid = "weight 'w2' [64, 400] float"
    assert decoded == ["the skeleton", "a group of weights", grid, *([] if keep else [grid])]


@pytest.mark.parametrize("name", sorted(path.stem for path in _LIGHT.glob("*.onnx")))
def test_light_models_come_back(name: str, tmp_path: Path) -> None:
    told = _round_trip(model_io.load(_LIGHT / f"{name}.onnx"), tmp_path)
    assert (tmp_path / "m.onnxp").stat().st_size < sum(each.before for each in told) / 3


# Damage.


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A packed model of 600 bytes or so that holds every kind of section."""
    codes = np.clip(np.rint(_RNG.normal(0, 9, (64, 40))), -127, 127) * np.float32(0.01)
    path = tmp_path / "small.onnxp"
    model_io.save_packed(model_io.load(_model([np.round(codes[:, ::2]).astype(np.float32), np.arange(3.0)])), path)
    return path


def _refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        model_io.save_skeleton(packing.read_packed(path), path.with_name("out.onnx"))
    assert not path.with_name("out.onnx").exists()
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]
    return str(caught.value)


def test_every_flipped_byte_is_told(small: Path) -> None:
    content = small.read_bytes()
    for place in range(len(content)):
        broken = bytearray(content)
        broken[place] ^= 1 << place % 8
        small.write_bytes(broken)
        assert str(small) in _refused(small)


def test_every_cut_is_told(small: Path) -> None:
    content = small.read_bytes()
    for length in range(len(content)):
        small.write_bytes(content[:length])
        assert str(small) in _refused(small)
    small.write_bytes(content + b"\0")
    assert _refused(small).startswith(f"{small}: the packed model is cut off or damaged: its digest does not fit")


def test_every_flip_under_a_fitting_digest_is_told_or_harmless(small: Path) -> None:
    """Whoever means harm computes the digest anew."""
    content = small.read_bytes()
    expected = model_io.to_proto_bytes(model_io.load(small))
    for place in range(10, len(content) - 32):
        broken = bytearray(content[:-32])
        broken[place] ^= 0x55
        small.write_bytes(broken + hashlib.sha256(broken).digest())
        try:
            found = model_io.to_proto_bytes(model_io.load(small))
        except InputError as error:
            assert str(small) in str(error)
        else:
            assert found == expected  # bits after the last symbol


def _write(path: Path, sections: list[Section]) -> None:
    path.write_bytes(b"".join(layout.file_chunks(sections)))


def _section(kind: Kind, data: bytes, size: int | None = None) -> Section:
    return Section(kind, Method.STORED, len(data) if size is None else size, layout.digest_of(data), data)


def _skeleton(edit: Callable[[onnx.TensorProto], None], dims: tuple[int, ...] = (5,)) -> bytes:
    proto = _model([np.zeros(5, np.float32)])
    tensor = proto.graph.initializer[0]
    tensor.raw_data = b""
    tensor.dims[:] = dims
    edit(tensor)
    content: bytes = proto.SerializeToString()
    return content


def _nothing(tensor: onnx.TensorProto) -> None:
    """Leave the tensor as it is."""


def _twice(skeleton: bytes) -> bytes:
    proto = onnx.ModelProto.FromString(skeleton)
    proto.graph.initializer.append(proto.graph.initializer[0])
    content: bytes = proto.SerializeToString()
    return content


def _point_outside(tensor: onnx.TensorProto) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


_DATA = bytes(20)
_MALICIOUS: dict[str, tuple[list[Section], str]] = {
    "no skeleton": ([_section(Kind.DATA, _DATA)], "it has no skeleton"),
    "no sections": ([], "it has no skeleton"),
    "no model": ([_section(Kind.SKELETON, b"\xff\xff")], "its skeleton is no ONNX model"),
    "no graph": ([_section(Kind.SKELETON, onnx.ModelProto(ir_version=8).SerializeToString())], "has no graph"),
    "path": (
        [_section(Kind.SKELETON, _skeleton(_point_outside)), _section(Kind.DATA, _DATA)],
        "weight 'w0' keeps its data in a file, which no packed model does: refused.",
    ),
    "data missing": (
        [_section(Kind.SKELETON, _skeleton(_nothing))],
        "asks for a section of 20 bytes, and there is none",
    ),
    "data left": (
        [_section(Kind.SKELETON, _skeleton(_nothing)), *[_section(Kind.DATA, _DATA)] * 2],
        "it holds more data than its skeleton asks for",
    ),
    "shape": (
        [_section(Kind.SKELETON, _skeleton(_nothing, (5, -1))), _section(Kind.DATA, _DATA)],
        "weight 'w0' has shape [5, -1]",
    ),
    "bomb in the skeleton": (
        [_section(Kind.SKELETON, _skeleton(_nothing, (1 << 40,))), _section(Kind.DATA, _DATA)],
        "weight 'w0' [1099511627776] float is said to take 4398046511104 bytes, too many for it",
    ),
    "endless bomb": (
        [_section(Kind.SKELETON, _skeleton(_nothing, (1 << 62,))), _section(Kind.DATA, _DATA)],
        "is said to take 18446744073709551616 bytes, too many for it",
    ),
    "smaller bomb": (
        [_section(Kind.SKELETON, _skeleton(_nothing, (5000,))), _section(Kind.DATA, _DATA)],
        "asks for a section of 20000 bytes, and there is one of 20",
    ),
    "one name twice": (
        [_section(Kind.SKELETON, _twice(_skeleton(_nothing))), *[_section(Kind.DATA, _DATA)] * 2],
        "there are two weights 'w0'",
    ),
    "other bytes": (
        [
            _section(Kind.SKELETON, _skeleton(_nothing)),
            Section(Kind.DATA, Method.STORED, 20, layout.digest_of(b"x"), _DATA),
        ],
        "its small tensors decodes to other bytes than were packed",
    ),
}


@pytest.mark.parametrize("case", _MALICIOUS)
def test_malicious_files_are_refused(case: str, tmp_path: Path) -> None:
    sections, message = _MALICIOUS[case]
    _write(tmp_path / "bad.onnxp", sections)
    assert message in _refused(tmp_path / "bad.onnxp")


def test_a_section_cannot_claim_more_than_its_bytes_allow(tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnxp"
    head = layout.MAGIC + layout.VERSION.to_bytes(2, "little")
    claimed = bytes([Kind.SKELETON << 4 | Method.LZMA]) + b"\x80\x80\x80\x80\x10\x04" + bytes(16) + bytes(4)
    body = head + claimed + bytes([Kind.END])
    path.write_bytes(body + hashlib.sha256(body).digest())
    assert _refused(path) == (
        f"{path}: the packed model is cut off or damaged: a section of 4 bytes says that it holds 4294967296, too many "
        "for it. Copy it again, or pack the model again."
    )


def test_a_skeleton_that_is_far_shorter_than_its_content_is_padded(tmp_path: Path) -> None:
    model = _model([np.zeros(3, np.float32)])
    model.doc_string = "a" * 3_000_000
    told = _round_trip(model, tmp_path)
    assert told[0].after < 1_000 and 3_000_000 / 64 < (tmp_path / "m.onnxp").stat().st_size < 3_000_000 / 60


def test_a_skeleton_that_decodes_to_more_than_it_says_is_refused(tmp_path: Path) -> None:
    method, stream = encode_bytes(bytes(1 << 22))
    _write(tmp_path / "bad.onnxp", [Section(Kind.SKELETON, method, 20_000, layout.digest_of(b""), stream)])
    message = "the skeleton cannot be decoded (the lzma stream does not end where it should)"
    assert message in _refused(tmp_path / "bad.onnxp")


def test_what_is_very_short_is_padded_to_what_a_reader_allows(tmp_path: Path) -> None:
    told = _round_trip(_model([np.zeros((1000, 1000), np.float32)]), tmp_path)
    assert max(each.before for each in told) == 4_000_000
    assert (tmp_path / "m.onnxp").stat().st_size > 4_000_000 / layout.EXPANSION


def test_another_version_is_told(small: Path) -> None:
    content = bytearray(small.read_bytes())
    content[8] = 2
    small.write_bytes(content)
    assert _refused(small) == (
        f"{small}: has version 2 of the .onnxp format, and this onnxpress reads version 1. "
        "Install the onnxpress that wrote it, or pack the model again."
    )


def test_what_is_no_packed_model_is_told(tmp_path: Path) -> None:
    path = tmp_path / "text.onnxp"
    path.write_text("no model\n")
    assert _refused(path) == f"{path}: is not an .onnxp file, or is damaged (9 bytes). Pack the model again."
    with pytest.raises(InputError, match="there is no such packed model file"):
        packing.read_packed(tmp_path / "gone.onnxp")


# The benchmark models.

_BOUNDS = {
    "squeezenet10_imagenet": 520_000,
    "mobilenetv2_imagenet": 3_275_000,
    "resnet56_cifar10": 2_843_000,
    "resnet20_cifar10": 902_000,
    "vgg_small_cifar10": 5_645_000,
    "lenet300_mnist": 882_000,
    "lenet5_mnist": 1_425_500,
    "ultraface_rfb320": 922_000,
}


@pytest.mark.assets("models")
@pytest.mark.parametrize("name", _BOUNDS)
def test_benchmark_models_are_as_small_as_is_said(name: str, assets: Path, tmp_path: Path) -> None:
    _round_trip(model_io.load(assets / "models" / f"{name}.onnx"), tmp_path)
    assert math.ceil((tmp_path / "m.onnxp").stat().st_size) <= _BOUNDS[name]


def test_numbers_are_counted(tmp_path: Path) -> None:
    told = _round_trip(_model([np.zeros((9, 5), np.float32), np.zeros(7, ml_dtypes.int4)]), tmp_path)
    assert sum(each.tensors for each in told) == 2
    assert onnx_file.size_bytes(packing.read_packed(tmp_path / "m.onnxp")) == (tmp_path / "m.onnx").stat().st_size
