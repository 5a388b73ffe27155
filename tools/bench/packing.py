"""The container on the benchmark models: bytes beside xz, speed both ways, and how long a session takes to open.

Speed is CPU time of this thread, the best of three runs, in megabytes of the .onnx file a second: packing from the
loaded model, unpacking from file to file. Opening a session is timed the same way, for the packed file and the .onnx.
"""

from __future__ import annotations

import dataclasses
import lzma
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from onnxpress.ir import model_io
from onnxpress.ir.errors import UsageError, near_names
from onnxpress.tools.bench.assets import assets_folder
from onnxpress.tools.container import open_session, pack, unpack

__all__ = ["HEADINGS", "PackRow", "run"]

HEADINGS = {
    "size_bytes": "bytes", "xz_bytes": "xz -9e", "packed_bytes": ".onnxp", "ratio": "ratio",
    "bits_per_weight": "bits/weight", "pack_mb_s": "pack MB/s", "unpack_mb_s": "unpack MB/s",
    "open_seconds": "open s", "open_onnx_seconds": "open .onnx s",
}  # fmt: skip

_RUNS = 3


@dataclasses.dataclass(frozen=True)
class PackRow:
    """One model. ratio: packed over unpacked bytes. Speeds: 10**6 bytes of the .onnx file a second of CPU time."""

    model: str
    size_bytes: int
    xz_bytes: int
    packed_bytes: int
    ratio: float
    bits_per_weight: float | None
    pack_mb_s: float
    unpack_mb_s: float
    open_seconds: float
    open_onnx_seconds: float


def run(names: list[str], *, tell: Callable[[str], None]) -> list[PackRow]:
    """Measure the asset models whose names start with one of `names`; all where there are none.

    Raises:
        UsageError: there are no assets, or a name fits no model.
    """
    found = {path.stem: path for path in sorted((assets_folder() / "models").glob("*.onnx"))}
    for name in names:
        if not any(model.startswith(name) for model in found):
            raise UsageError(
                f"no asset model starts with {name!r}.{near_names(name, found)} There are: {', '.join(found)}"
            )
    wanted = [path for model, path in found.items() if not names or model.startswith(tuple(names))]
    with tempfile.TemporaryDirectory(prefix="onnxpress-bench-") as folder:
        return [_measure(path, Path(folder), tell) for path in wanted]


def _measure(path: Path, folder: Path, tell: Callable[[str], None]) -> PackRow:
    tell(f"{path.stem} ...")
    packed, restored = folder / "model.onnxp", folder / "model.onnx"
    model = model_io.load(path)
    report = pack(model, packed, overwrite=True)
    megabytes = report.before / 1e6
    return PackRow(
        model=path.stem,
        size_bytes=path.stat().st_size,
        xz_bytes=len(lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME)),
        packed_bytes=report.after,
        ratio=report.after / path.stat().st_size,
        bits_per_weight=report.bits_per_weight,
        pack_mb_s=megabytes / _seconds(lambda: model_io.save_packed(model, packed, overwrite=True)),
        unpack_mb_s=megabytes / _seconds(lambda: unpack(packed, restored, overwrite=True)),
        open_seconds=_seconds(lambda: open_session(packed)),
        open_onnx_seconds=_seconds(lambda: open_session(path)),
    )


def _seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of this thread: a session's own threads do other things."""
    taken = []
    for _ in range(_RUNS):
        start = time.thread_time()
        work()
        taken.append(time.thread_time() - start)
    return min(taken)
