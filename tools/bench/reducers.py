"""What makes models of fewer MACs: our own passes, baselines made of their parts, and onnxsim's where installed.

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

__all__ = ["FACTORIZERS", "PACKAGES", "PRUNERS", "REDUCERS", "bisect_sparsity", "our_passes"]

_T = TypeVar("_T")
_Run = Callable[[Path, Path, Path, str], None]
_STEPS = 6
_BATCH = 64  # images
_PRUNED_FIRST = 0.3  # of the logarithm of what is asked for, that channel removal takes before low rank


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


def our_passes(*passes: str, calibrated: bool = True) -> _Run:
    """Run `passes` behind what comes before them everywhere. calibrated: whether they are given the samples."""
    import numpy  # noqa: F401  # imported here so that the clock does not see it
    import onnxruntime  # noqa: F401

    from onnxpress.ir.model_io import save
    from onnxpress.passes.factorize import low_rank, separable  # noqa: F401
    from onnxpress.passes.lowbit import palettize, quantize_weights, ternarize  # noqa: F401
    from onnxpress.passes.prune import prune_channels  # noqa: F401
    from onnxpress.tools.compress import compress

    pipeline = ", ".join(("cleanup", "fold-batchnorm", *passes))

    def run(model: Path, calibration: Path, out: Path, input_name: str) -> None:
        data = calibration if calibrated else None
        save(compress(model, target="host-cpu", passes=pipeline, data=data).model, out, overwrite=True)

    return run


def _mix(times: float) -> _Run:
    """Remove some channels first, then let every operator take the form that suits it."""
    left = times**-_PRUNED_FIRST
    forms = "scheme=[auto,separable]"
    return our_passes(f"prune-channels{{macs={left!r}}}", f"low-rank{{{forms},macs={1 / times / left!r}}}")


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
    "onnxpress": lambda times: our_passes(f"prune-channels{{macs={1 / times!r}}}"),
    "magnitude": lambda times: our_passes(
        f"prune-channels{{macs={1 / times!r},score=l2,allocation=uniform,repair=false}}"
    ),
    "onnxsim-wanda": lambda times: _onnxsim(times, calibrated=True),
    "onnxsim-l2": lambda times: _onnxsim(times, calibrated=False),
}
FACTORIZERS: dict[str, Callable[[float], _Run]] = {
    "low-rank": lambda times: our_passes(f"low-rank{{macs={1 / times!r}}}"),
    "separable": lambda times: our_passes(f"separable{{macs={1 / times!r}}}"),
    "mix": _mix,
    "weights-channel": lambda times: our_passes(f"low-rank{{scheme=channel,macs={1 / times!r}}}", calibrated=False),
    "weights-spatial": lambda times: our_passes(
        f"low-rank{{scheme=[spatial,channel],macs={1 / times!r}}}", calibrated=False
    ),
    "weights-tucker": lambda times: our_passes(
        f"low-rank{{scheme=[tucker,channel],macs={1 / times!r}}}", calibrated=False
    ),
}
REDUCERS = PRUNERS | FACTORIZERS
PACKAGES = {"onnxsim-wanda": "onnxsim", "onnxsim-l2": "onnxsim"}  # what a reducer needs beside this project
