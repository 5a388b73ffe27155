"""The bytes of a .onnxp file: a head, sections one after the other, and a digest of it all.

    magic       8 bytes, 0x93 "ONNXP" CR LF
    version     2 bytes, little endian
    sections    each: a tag (16 * kind + method), decoded size, coded size (varints), the first 16 bytes of the
                SHA-256 of what it decodes to, the coded bytes. Where the tag has 0x80 set, zeros follow these,
                and their number (varint) goes before
    digest      32 bytes: SHA-256 of all before it

The sections are one skeleton (a ModelProto whose tensors have no data), then the tensors' data in the order that
`packing` gives them, then a tag of 0 that ends them. Whoever reads a file checks the digest before anything
else, so that damage is told as such; decoded sizes are bounded by the coded ones, that of the
skeleton closely, so that no file of a few bytes can ask for memory without end.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from onnxpress.ir.container.methods import Method
from onnxpress.ir.errors import InputError
from onnxpress.ir.onnx_file import Buffer

__all__ = ["EXPANSION", "MAGIC", "VERSION", "Kind", "Section", "damaged", "digest_of", "file_chunks", "read_sections"]

MAGIC = b"\x93ONNXP\r\n"  # no text file, and told apart from one that was sent as text
VERSION = 1
EXPANSION = 4096  # a section decodes to at most so many times its coded size; an encoder pads what is shorter
_SKELETON_EXPANSION = 64  # of the skeleton, which takes several times its size once it is parsed; most are below 30

_DIGEST_BYTES = 16  # of each section: the file's digest tells damage, this one a decoder that goes wrong
_PADDED = 0x80  # in the tag of a section: zeros follow it
_FILE_DIGEST_BYTES = 32
_HEAD_BYTES = len(MAGIC) + 2
_VARINT_BYTES = 9


class Kind(enum.IntEnum):
    """What a section holds. The numbers are in files: they never change."""

    END = 0
    SKELETON = 1
    DATA = 2


class Section(NamedTuple):
    """A section of a file. padding: zeros after the stream, which EXPANSION asked for."""

    kind: Kind
    method: Method
    size: int
    digest: bytes
    stream: bytes | memoryview


def digest_of(data: bytes | memoryview) -> bytes:
    """Return the digest that a section keeps of its decoded bytes."""
    return hashlib.sha256(data).digest()[:_DIGEST_BYTES]


def file_chunks(sections: Iterable[Section]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file, a section in memory at a time."""
    found = hashlib.sha256()
    for chunk in _chunks(sections):
        found.update(chunk)
        yield chunk
    yield found.digest()


def _chunks(sections: Iterable[Section]) -> Iterator[bytes | memoryview]:
    yield MAGIC + VERSION.to_bytes(2, "little")
    for section in sections:
        padding = max(0, -(-section.size // _expansion(section.kind)) - len(section.stream))
        tag = bytes([section.kind << 4 | section.method | (_PADDED if padding else 0)])
        head = tag + _varint(section.size) + _varint(len(section.stream)) + section.digest
        yield head + _varint(padding) if padding else head
        yield section.stream
        yield bytes(padding)
    yield bytes([Kind.END])


def read_sections(data: Buffer, where: str) -> list[Section]:
    """Return the sections of a file; their streams are views of it.

    Raises:
        InputError: this is no .onnxp file, one of a newer version, or a damaged one. `where` names it.
    """
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise InputError(f"{where}: is not an .onnxp file, or is damaged ({len(view)} bytes). Pack the model again.")
    if len(view) < _HEAD_BYTES + 1 + _FILE_DIGEST_BYTES:
        raise InputError(damaged(where, f"it is cut off after {len(view)} bytes"))
    version = int.from_bytes(view[len(MAGIC) : _HEAD_BYTES], "little")
    if version != VERSION:
        raise InputError(
            f"{where}: has version {version} of the .onnxp format, and this onnxpress reads version {VERSION}. "
            "Install the onnxpress that wrote it, or pack the model again."
        )
    body = view[:-_FILE_DIGEST_BYTES]
    if hashlib.sha256(body).digest() != bytes(view[-_FILE_DIGEST_BYTES:]):
        raise InputError(damaged(where, "its digest does not fit its content"))
    return list(_sections(body, where))


def damaged(where: str, how: str) -> str:
    """Return the message for a file that is not as it was written."""
    return f"{where}: the packed model is cut off or damaged: {how}. Copy it again, or pack the model again."


def _sections(body: memoryview, where: str) -> Iterator[Section]:
    at = _HEAD_BYTES
    while True:
        if at >= len(body):
            raise InputError(damaged(where, "its last section is missing"))
        is_padded, kind, method = body[at] & _PADDED, body[at] >> 4 & 7, body[at] & 15
        at += 1
        if body[at - 1] == Kind.END:
            break
        if kind not in (Kind.SKELETON, Kind.DATA) or method not in list(Method):
            raise InputError(damaged(where, f"a section has kind {kind} and method {method}, which there are not"))
        size, at = _read_varint(body, at, where)
        coded, at = _read_varint(body, at, where)
        digest = bytes(body[at : at + _DIGEST_BYTES])
        padding, at = _read_varint(body, at + _DIGEST_BYTES, where) if is_padded else (0, at + _DIGEST_BYTES)
        if coded + padding > len(body) - at:
            raise InputError(damaged(where, f"a section of {coded + padding} bytes has {len(body) - at}"))
        if size > _expansion(Kind(kind)) * (coded + padding):
            raise InputError(
                damaged(where, f"a section of {coded + padding} bytes says that it holds {size}, too many for it")
            )
        yield Section(Kind(kind), Method(method), size, digest, body[at : at + coded])
        at += coded + padding
    if at != len(body):
        raise InputError(damaged(where, f"{len(body) - at} bytes follow its end"))


def _expansion(kind: Kind) -> int:
    return _SKELETON_EXPANSION if kind is Kind.SKELETON else EXPANSION


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _read_varint(body: memoryview, at: int, where: str) -> tuple[int, int]:
    """Return the number at `at`, and where the next field begins."""
    value = 0
    for index, byte in enumerate(body[at : at + _VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise InputError(damaged(where, "the size of a section is cut off"))
