"""What removes channels: our own pass, a baseline made of its parts, and onnxsim's structured pruning where installed.

Each is asked for `times` fewer MACs and reads the files that all compilers read.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from onnxpress.ir.errors import BudgetError
from onnxpress.ir.readers import open_npz

__all__ = ["PACKAGES", "PRUNERS", "bisect_sparsity"]

_T = TypeVar("_T")
_Run = Callable[[Path, Path, Path, str], None]
_STEPS = 6
_BATCH = 64  # images


def bisect_sparsity(prune: Callable[[float], _T], is_met: Callable[[_T], bool], steps: int = _STEPS) -> _T | None:
    """Return what `prune` makes of the least sparsity found in (0, 1) that `is_met`; None where none was.

    A step of sparsity that changes no width is common, so that what is met is asked of the result alone.
    """
    low, high = 0.0, 1.0
    best: _T | None = None
    for _ in range(steps):
        middle = (low + high) / 2
        pruned = prune(middle)
        if is_met(pruned):
            best, high = pruned, middle
        else:
            low = middle
    return best


def _onnxpress(times: float, **options: str) -> _Run:
    import numpy  # noqa: F401  # imported here so that the clock does not see it
    import onnxruntime  # noqa: F401

    from onnxpress.ir.model_io import save
    from onnxpress.passes.prune import prune_channels  # noqa: F401
    from onnxpress.tools.compress import compress

    settings = ", ".join(f"{name}={value}" for name, value in {"macs": repr(1 / times), **options}.items())

    def run(model: Path, calibration: Path, out: Path, input_name: str) -> None:
        passes = f"cleanup, fold-batchnorm, prune-channels{{{settings}}}"
        save(compress(model, target="host-cpu", passes=passes, data=calibration).model, out, overwrite=True)

    return run


def _onnxsim(times: float, *, calibrated: bool) -> _Run:
    """Order channels by weight and activation norms, or by weight norms alone, which reaches more of the layers."""
    import onnx

    from onnxpress.ir.analysis.cost import cost
    from onnxpress.ir.model_io import load

    onnxsim: Any = importlib.import_module("onnxsim")

    def run(model: Path, calibration: Path, out: Path, input_name: str) -> None:
        simplified, _ = onnxsim.simplify(str(model))
        if calibrated:
            batches = [dict(chunk) for chunk in open_npz(calibration, str(calibration)).read([input_name], _BATCH)]
            prune = functools.partial(onnxsim.apply_structured_wanda_pruning, simplified, batches)
        else:
            prune = functools.partial(onnxsim.apply_structured_pruning, simplified)
        allowed = cost(load(model)).macs / times
        pruned = bisect_sparsity(
            lambda sparsity: prune(sparsity=sparsity), lambda found: cost(load(found)).macs <= allowed
        )
        if pruned is None:
            raise BudgetError(f"onnxsim: no sparsity that was tried leaves {times:g} times fewer MACs")
        onnx.save(pruned, out)

    return run


PRUNERS: dict[str, Callable[[float], _Run]] = {
    "onnxpress": _onnxpress,
    "magnitude": lambda times: _onnxpress(times, score="l2", allocation="uniform", repair="false"),
    "onnxsim-wanda": lambda times: _onnxsim(times, calibrated=True),
    "onnxsim-l2": lambda times: _onnxsim(times, calibrated=False),
}
PACKAGES = {"onnxsim-wanda": "onnxsim", "onnxsim-l2": "onnxsim"}  # what a pruner needs beside this project
