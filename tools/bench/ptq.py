"""Post-training quantization on every asset, beside onnxruntime's own quantizer, measured in one run.

For each model: the float original, `onnxpress compress --target host-cpu`, and onnxruntime's `quantize_static` (per
channel, QDQ, uint8 activations) with its minmax and percentile calibration. Accuracy runs with the runtime's
optimizations on, as users will. Latencies are interleaved in shuffled rounds: CPU time of the calling thread
for one thread, wall time for two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.model_io import load
from onnxpress.targets.runtimes.onnxruntime_cpu import inspect_kernels, interleaved_latency
from onnxpress.targets.runtimes.timing import speedup
from onnxpress.tools.bench.assets import Asset, prepare, working_folder
from onnxpress.tools.bench.child import COMPILERS, compile_in_child
from onnxpress.tools.bench.evaluation import Evaluation

__all__ = ["Row", "run"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One model file. speed_*: how many times faster than the float original; bytes_ratio: file size over its.

    fused, unfused, left_float: how many Conv, Gemm and MatMul nodes the runtime executes in integers, are quantized on
    paper only, and were left in float on purpose. unfused_nodes, left_float_nodes: their names. cpu_seconds and
    peak_rss_bytes are what compiling cost, None for the original.
    """

    model: str
    compiler: str
    bytes: int
    bytes_ratio: float
    macs: int
    accuracy: float
    agreement: float
    speed_1_thread: float
    speed_2_threads: float
    latency_ms: float
    fused: int
    unfused: int
    left_float: int
    unfused_nodes: tuple[str, ...] = ()
    left_float_nodes: tuple[str, ...] = ()
    cpu_seconds: float | None = None
    peak_rss_bytes: float | None = None


def run(
    assets: list[Asset],
    *,
    rounds: int = 200,
    limit: int | None = None,
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Return a row for each asset and compiler. keep: where compiled models and prepared data stay; else they go."""
    rows = []
    with working_folder(keep) as folder:
        for asset in assets:
            tell(f"{asset.model} ...")
            rows.extend(_bench(asset, folder, rounds, limit))
    return rows


def _bench(asset: Asset, folder: Path, rounds: int, limit: int | None) -> list[Row]:
    original, calibration, evaluation = prepare(asset, folder, limit=limit)
    paths = {"float32": original}
    costs: dict[str, dict[str, float]] = {"float32": {}}
    for compiler in COMPILERS:
        paths[compiler] = folder / f"{asset.model}.{compiler}.onnx"
        costs[compiler] = compile_in_child(compiler, original, calibration, paths[compiler], asset.input_name)
    evaluated = Evaluation(original, evaluation)
    feeds = evaluated.images.head(1).feeds
    one = interleaved_latency(paths, feeds, rounds=rounds, threads=1)
    two = interleaved_latency(paths, feeds, rounds=rounds, threads=2)
    rows = []
    for name, path in paths.items():
        kernels, score = inspect_kernels(path), evaluated.score(path)
        rows.append(
            Row(
                model=asset.model,
                compiler=name,
                bytes=path.stat().st_size,
                bytes_ratio=path.stat().st_size / original.stat().st_size,
                macs=cost(load(path)).macs,
                accuracy=score.accuracy,
                agreement=score.agreement,
                speed_1_thread=speedup(one["float32"], one[name]),
                speed_2_threads=speedup(two["float32"], two[name]),
                latency_ms=one[name].median_ms,
                fused=len(kernels.integer),
                unfused=len(kernels.unfused),
                left_float=len(kernels.left_float),
                unfused_nodes=kernels.unfused,
                left_float_nodes=kernels.left_float,
                **costs[name],
            )
        )
    return rows
