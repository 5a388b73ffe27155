"""Prepare a model on an engine with a converter: convert it, rehearse a run elsewhere, hold its numbers to the model's.

A converter's word is not taken. Of 88 graphs of one to five operators that onnxruntime and LiteRT agree on, MNN 3.6.1
converted 3 that end its process at the first run (AveragePool with pads) and 1 that gives other numbers (SAME_LOWER);
ncnn and pnnx of October 2026, 1 (Split) and 1 (Resize). So the first run is in a process of its own, where a crash is a
refusal, and the second is compared with onnxruntime's. Preparing takes one to three seconds longer for it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.ir.errors import InputError
from onnxpress.ir.shapes import required_inputs
from onnxpress.targets.runtimes.base import Array, Feeds, Prepared, fit_feeds
from onnxpress.targets.runtimes.fixed_shapes import FixedModel, fix_shapes
from onnxpress.targets.runtimes.programs import run_program
from onnxpress.targets.runtimes.quiet import quiet
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError, one_line

__all__ = ["CONVERSION_SECONDS", "MODEL_FILE", "Converter", "prepare_converted"]

MODEL_FILE = "model.onnx"
CONVERSION_SECONDS = 1800.0  # at most, of a converter
_REHEARSAL_SECONDS = 600.0  # at most
_FEEDS_FILE = "feeds.npz"
_DONE_FILE = "rehearsed"  # is there once the run came to its end
# Half precision gives 60 dB and int8 30; another function gives 0. Decibels of output power over that of the error.
_LEAST_SQNR_DB = 20.0
_GREETINGS = ("The device supports:", "MNN use ")  # lines that tell nothing of a failure


class Converter(Protocol):
    """A runtime whose engine reads files of its own."""

    name: str
    title: str

    def convert(self, fixed: FixedModel, folder: Path) -> None:
        """Write the model to `folder`, as MODEL_FILE and as what the engine reads. `fixed.model` may be changed.

        Raises:
            RuntimeRefusalError: it has no form there.
        """
        ...

    def open(self, fixed: FixedModel, folder: Path, threads: int) -> Prepared:
        """Load what `convert` wrote, and feed nothing yet. The files go away after this.

        Raises:
            RuntimeRefusalError: the engine does not load it.
        """
        ...


def prepare_converted(runtime: Converter, model: onnx_ir.Model, feeds: Feeds, threads: int) -> Prepared:
    """Return `model`, which is not changed, prepared on the runtime and fed. Errors: see `Runtime.prepare`."""
    fixed = fix_shapes(model, feeds)
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as name:
        folder = Path(name)
        runtime.convert(fixed, folder)
        _rehearse(runtime, fixed, feeds, folder, threads)
        with quiet() as lines:
            prepared = _first_run(runtime, fixed, feeds, folder, threads)
    if isinstance(prepared, RuntimeRefusalError):
        told = one_line(" ".join(line for line in lines if not line.startswith(_GREETINGS)))
        raise RuntimeRefusalError(f"{prepared}: {told}" if told else str(prepared))
    _compare(prepared.fetch(), model, fit_feeds(feeds, fixed.inputs), runtime.title)
    return prepared


def _rehearse(runtime: Converter, fixed: FixedModel, feeds: Feeds, folder: Path, threads: int) -> None:
    """Refuse a model that ends the process, or whose run there did not come to its end.

    What is refused there will be refused here too, with the engine's words.
    """
    arrays = fit_feeds(feeds, fixed.inputs).values()
    np.savez(folder / _FEEDS_FILE, **{f"in{index}": array for index, array in enumerate(arrays)})  # type: ignore[arg-type]
    # In this process's own folder, which paths that it was started with may be relative to.
    command: list[str | Path] = [sys.executable, "-P", "-m", __name__, runtime.name, folder, str(threads)]
    ended = run_program(command, Path.cwd(), limit_seconds=_REHEARSAL_SECONDS)
    if ended.failure.startswith(("SIG", "signal")):
        raise RuntimeRefusalError(f"{runtime.title}: a run of the model ends the process ({ended.failure})")
    if ended.failure or not (folder / _DONE_FILE).is_file():
        last = one_line(ended.lines[-1]) if ended.lines else "it wrote nothing"
        raise RuntimeRefusalError(
            f"{runtime.title}: a first run of the model, in a process of its own, fails: {last} "
            f"({ended.failure or 'exit code 0'})"
        )


def _main(name: str, folder: str, threads: str) -> None:
    from onnxpress.targets.runtimes.registry import load_runtime

    runtime = cast(Converter, load_runtime(name))
    model = onnx_ir.load(Path(folder) / MODEL_FILE)
    with np.load(Path(folder) / _FEEDS_FILE) as file:
        feeds = {str(value.name): file[f"in{index}"] for index, value in enumerate(required_inputs(model))}
    with contextlib.suppress(RuntimeRefusalError, InputError):
        prepared = runtime.open(fix_shapes(model, feeds), Path(folder), int(threads))
        prepared.feed(feeds)
        prepared.compute()
    (Path(folder) / _DONE_FILE).touch()


def _first_run(
    runtime: Converter, fixed: FixedModel, feeds: Feeds, folder: Path, threads: int
) -> Prepared | RuntimeRefusalError:
    try:
        prepared = runtime.open(fixed, folder, threads)
        prepared.feed(feeds)
        prepared.compute()
        prepared.fetch()
    except RuntimeRefusalError as refusal:  # to be told with the lines that led to it
        return refusal
    return prepared


def _compare(found: dict[str, Array], model: onnx_ir.Model, feeds: Feeds, title: str) -> None:
    """Refuse outputs that are not the model's, as onnxruntime computes it."""
    from onnxpress.ir.analysis.execute import Session

    try:
        outputs = Session(model).run(feeds)
    except InputError as error:
        raise RuntimeRefusalError(f"{title}: its numbers cannot be held to the model's: {error}") from error
    for name, expected in outputs.items():
        if name not in found:
            raise RuntimeRefusalError(f"{title}: gives no output {name!r}")
        if found[name].shape != expected.shape:
            raise RuntimeRefusalError(
                f"{title}: gives output {name!r} the shape {list(found[name].shape)}, the model {list(expected.shape)}"
            )
        if expected.dtype.kind not in "fiub":
            raise RuntimeRefusalError(f"{title}: output {name!r} holds no numbers, but {expected.dtype}")
        known = np.isfinite(expected)
        wanted = expected[known].astype(np.float64)
        noise = float(((found[name][known] - wanted) ** 2).sum())
        ratio = sqnr_db(float((wanted**2).sum()), noise)
        if not ratio >= _LEAST_SQNR_DB:  # nan is no agreement either
            raise RuntimeRefusalError(
                f"{title}: computes something else: its output {name!r} is {ratio:.1f} dB from the model's, and at "
                f"least {_LEAST_SQNR_DB:.0f} dB are rounding"
            )


if __name__ == "__main__":
    _main(*sys.argv[1:])
