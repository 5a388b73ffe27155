"""Compile one model in a process of its own, so that CPU seconds and peak memory belong to that compiler alone.

    python -m onnxpress.tools.bench.child COMPILER MODEL CALIBRATION OUT INPUT [TIMES]
    python -m onnxpress.tools.bench.child PIPELINE MODEL CALIBRATION OUT

prints one JSON line: {"cpu_seconds", "peak_rss_bytes"}. With TIMES, the compiler is one of `reducers`, and that many
times fewer MACs are asked of it. Without INPUT, the first word is the text of a pipeline of ours. Imports are done
before the clock starts; memory counts them. All compilers read the same files, and none is handed more of the samples
at a time than it asks for.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxpress.ir.errors import InternalError, OnnxpressError
from onnxpress.ir.readers import open_npz
from onnxpress.tools.bench.reducers import REDUCERS, our_passes
from onnxpress.tools.memory import peak_rss_bytes

__all__ = ["COMPILERS", "Compiled", "CompilerError", "compile_in_child", "encode_in_child"]

Compiled = dict[str, float]
_Run = Callable[[Path, Path, Path, str], None]


class CompilerError(InternalError):
    """A compiler failed. reason: the last line that it wrote."""

    def __init__(self, compiler: str, model: Path, reason: str) -> None:
        super().__init__(f"bench: {compiler} on {model.name} failed: {reason}")
        self.reason = reason


def compile_in_child(
    compiler: str, model: Path, calibration: Path, out: Path, input_name: str, *, times: float | None = None
) -> Compiled:
    """Run `compiler` on `model` in a fresh process, and return what that cost.

    times: ask one of `REDUCERS` for so many times fewer MACs; None for one of `COMPILERS`.

    Raises:
        CompilerError: the compiler failed; the message ends with its last line.
    """
    return _spawn(compiler, model, calibration, out, input_name, *([] if times is None else [repr(times)]))


def encode_in_child(pipeline: str, model: Path, calibration: Path, out: Path) -> Compiled:
    """Run passes of ours on `model` in a fresh process, behind what comes before them everywhere; return what it cost.

    Raises:
        CompilerError: as for `compile_in_child`.
    """
    return _spawn(pipeline, model, calibration, out)


def _spawn(compiler: str, model: Path, calibration: Path, out: Path, *words: str) -> Compiled:
    command = [sys.executable, "-m", "onnxpress.tools.bench.child", compiler]
    command += [str(model), str(calibration), str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}, and no message"
        raise CompilerError(compiler, model, said.splitlines()[-1])
    result: Compiled = json.loads(done.stdout.splitlines()[-1])
    return result


def _onnxpress() -> _Run:
    import numpy  # noqa: F401  # imported here so that the clock does not see it
    import onnxruntime  # noqa: F401

    from onnxpress.ir.model_io import save
    from onnxpress.passes.quantize import quantize_int8  # noqa: F401
    from onnxpress.tools.compress import compress

    def run(model: Path, calibration: Path, out: Path, input_name: str) -> None:
        save(compress(model, target="host-cpu", data=calibration).model, out, overwrite=True)

    return run


class _Samples:
    """Calibration samples as onnxruntime's quantizer asks for them: one at a time, [1, ...], never all in memory."""

    def __init__(self, path: Path, input_name: str) -> None:
        # Sixty-four at a time: reading one by one would charge the rival for our reader's overhead.
        chunks = open_npz(path, str(path)).read([input_name], 64)
        self._rows = (
            {input_name: chunk[input_name][index : index + 1]}
            for chunk in chunks
            for index in range(len(chunk[input_name]))
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)


def _onnxruntime(method: str) -> _Run:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    def run(model: Path, calibration: Path, out: Path, input_name: str) -> None:
        prepared = out.with_suffix(".prepared.onnx")
        quant_pre_process(str(model), str(prepared))
        quantization.quantize_static(
            str(prepared), str(out), _Samples(calibration, input_name), per_channel=True,
            quant_format=quantization.QuantFormat.QDQ, activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=getattr(quantization.CalibrationMethod, method),
        )  # fmt: skip
        prepared.unlink()

    return run


COMPILERS: dict[str, Callable[[], _Run]] = {
    "onnxpress": _onnxpress,
    "onnxruntime-minmax": lambda: _onnxruntime("MinMax"),
    "onnxruntime-percentile": lambda: _onnxruntime("Percentile"),
}


def _compiler(name: str, input_name: str | None = None, times: str | None = None) -> _Run:
    if input_name is None:
        return our_passes(name)
    return COMPILERS[name]() if times is None else REDUCERS[name](float(times))


def _main() -> None:
    compiler, model, calibration, out, *words = sys.argv[1:]
    # Tools print as they please; the last line of standard output is ours.
    with Path(os.devnull).open("w", encoding="utf-8") as quiet, contextlib.redirect_stdout(quiet):
        run = _compiler(compiler, *words)
        start = time.process_time()
        try:
            run(Path(model), Path(calibration), Path(out), words[0] if words else "")
        except OnnxpressError as error:
            sys.exit(str(error))
        seconds = time.process_time() - start
    print(json.dumps({"cpu_seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}))


if __name__ == "__main__":
    _main()
