"""Runs passes one after the other, on copies, and checks and records what each of them did.

Every pass works on a clone of the model before it; tensors are shared, so a clone costs its graph and no
weights. So the input is never changed, and when a pass fails the model before it is still whole: it becomes
the reproducer that `crash_dir` asks for.

After every pass: the model is valid (`ir.verify`, the cheap form) and its interface is what it was. With
`verify_each` its outputs are compared too (`passes.verify_each`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import os
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import onnx_ir

from onnxpress.ir.errors import InputError, InternalError, OnnxpressError, UsageError
from onnxpress.passes.base import Amount, Context, Pass, Rewrites
from onnxpress.passes.instrument import ModelPrinter, Printer, Progress, Timings
from onnxpress.passes.pipeline import format_pipeline, to_spec
from onnxpress.passes.reproducer import write_reproducer
from onnxpress.passes.verify_each import Check, OutputVerifier

if TYPE_CHECKING:
    from onnxpress.ir.verify import InterfaceValue

__all__ = ["PassManager", "PassRecord"]


@dataclasses.dataclass(frozen=True)
class PassRecord:
    """What one pass of a run did.

    options: all of them, defaults included, in plain JSON types. seconds, cpu_seconds: of the pass alone,
    without the checks around it. before, after: the whole model. check: what `verify_each` measured.
    """

    name: str
    options: dict[str, Any]
    seconds: float
    rewrites: Rewrites
    before: Amount
    after: Amount
    cpu_seconds: float = 0.0
    check: Check | None = None


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a manager does around each pass; `PassManager` documents the fields."""

    verify_each: bool
    print_after_all: bool
    print_after_change: bool
    crash_dir: str | os.PathLike[str] | None
    printer: Printer
    repeat_flags: tuple[str, ...]


class PassManager:
    """A pipeline of passes, checked for order once and run on any number of models."""

    def __init__(
        self,
        passes: Iterable[Pass],
        *,
        verify_each: bool = False,
        print_after_all: bool = False,
        print_after_change: bool = False,
        crash_dir: str | os.PathLike[str] | None = None,
        printer: Printer | None = None,
        repeat_flags: Sequence[str] = (),
    ) -> None:
        """Keep the passes and what to do around each.

        print_after_all, print_after_change: print the model's text, or how it changed, through `printer`
        (default: to stderr). crash_dir: where a failing pass leaves its reproducer. repeat_flags: flags
        that the reproducer's command line needs beside model, passes, data and seed, such as
        `["--target", "board.toml"]`.

        Raises:
            UsageError: a pass stands before one that it must come after.
        """
        self._passes = tuple(passes)
        self._settings = _Settings(
            verify_each=verify_each,
            print_after_all=print_after_all,
            print_after_change=print_after_change,
            crash_dir=crash_dir,
            printer=printer or _print_to_stderr,
            repeat_flags=tuple(repeat_flags),
        )
        _check_order(self._passes)

    def run(self, model: onnx_ir.Model, context: Context) -> tuple[onnx_ir.Model, list[PassRecord]]:
        """Return a rewritten copy of `model`, and what each pass did. `model` itself stays as it is.

        Raises:
            OnnxpressError: what a pass raised on purpose, with the pass's name before the message.
            InternalError: a pass failed or left a broken model; names the reproducer, if one was asked for.
            InputError: `model` is broken before the first pass.
        """
        _check_input(model)
        run = _Run(model, context, self._settings)
        with (context.progress or Progress()).task("passes", len(self._passes)) as task:
            for index in range(len(self._passes)):
                run.apply(self._passes, index)
                task.advance()
        return (run.current if run.records else _clone(model)), run.records


class _Run:
    """One run over one model. current: the model after the passes so far, and `original` before the first."""

    def __init__(self, original: onnx_ir.Model, context: Context, settings: _Settings) -> None:
        self.current = original
        self.records: list[PassRecord] = []
        self._original = original
        self._context = context
        self._settings = settings
        self._amount = _weigh(original)
        self._verifier = OutputVerifier(context.data, seed=context.seed) if settings.verify_each else None
        self._printer = ModelPrinter(
            settings.printer, every=settings.print_after_all, changes=settings.print_after_change
        )
        self._printer.start(original)

    def apply(self, passes: Sequence[Pass], index: int) -> None:
        """Run `passes[index]` on a clone of the current model, check what it leaves, and record it."""
        one, after = passes[index], _clone(self.current)
        try:
            with Timings().measure(one.name) as timing:
                rewrites = one.run(after, self._context)
            if not isinstance(rewrites, Rewrites):
                raise InternalError(f"run returned {type(rewrites).__name__}, not Rewrites")
            _check_result(after, self.current)
            check = self._verifier.check(one, rewrites, self.current, after) if self._verifier else None
        except (Exception, SystemExit) as error:  # a pass that leaves the process has failed
            if isinstance(error, OnnxpressError) and error.exit_code != InternalError.exit_code:
                _name_pass(one.name, error)
                raise
            self._fail(passes[: index + 1], error)
        before, self._amount = self._amount, _weigh(after) if rewrites.modified else self._amount
        self.current = after
        self.records.append(
            PassRecord(
                name=one.name,
                options=one.options.model_dump(mode="json"),
                seconds=timing.seconds,
                rewrites=rewrites,
                before=before,
                after=self._amount,
                cpu_seconds=timing.cpu_seconds,
                check=check,
            )
        )
        self._printer.show(str(to_spec(one)), after)

    def _fail(self, passes: Sequence[Pass], error: BaseException) -> NoReturn:
        """Raise the InternalError that tells of `error` in the last of `passes`, and write its reproducer."""
        what = _describe_failure(passes[-1].name, error)
        crash_dir = self._settings.crash_dir
        if crash_dir is None:
            raise InternalError(f"{what}. Run again with --crash-dir DIR to get what repeats it") from error
        flags = [*self._settings.repeat_flags, *(["--verify-each"] if self._verifier else [])]
        try:
            folder = write_reproducer(
                crash_dir,
                original=self._original,
                before=self.current,
                passes=passes,
                context=self._context,
                flags=flags,
                error=error,
            )
        except Exception as second:  # telling the first cause matters more than keeping it
            where, reason = os.fspath(crash_dir), _one_line(second)
            raise InternalError(f"{what}. The reproducer could not be written to {where}: {reason}") from error
        raise InternalError(f"{what}. What repeats it is in {folder}, see repeat.txt") from error


def _check_order(passes: Sequence[Pass]) -> None:
    """Raise a UsageError that gives the corrected order, if a pass stands before one it must come after."""
    names = [one.name for one in passes]
    for index, one in enumerate(passes):
        late = [name for name in _awaited(one, names) if name not in names[:index]]
        if late:
            break
    else:
        return
    wrong = f"pipeline: {one.name!r} must come after {late[0]!r}"
    try:
        ordered = format_pipeline(to_spec(placed) for placed in _in_order(passes))
    except ValueError as error:
        raise UsageError(f"{wrong}, but {error}. Run them in two pipelines") from None
    raise UsageError(f'{wrong}. Write --passes "{ordered}"')


def _in_order(passes: Sequence[Pass]) -> Iterator[Pass]:
    """Yield the passes so that each comes after those it names, otherwise in the order given.

    Raises:
        ValueError: passes wait for each other.
    """
    waiting = list(passes)
    placed: set[str] = set()
    names = [one.name for one in passes]
    while waiting:
        ready = next((one for one in waiting if placed.issuperset(_awaited(one, names))), None)
        if ready is None:
            raise ValueError(f"{' and '.join(repr(one.name) for one in waiting)} wait for each other")
        waiting.remove(ready)
        placed.add(ready.name)
        yield ready


def _awaited(one: Pass, names: Sequence[str]) -> list[str]:
    """Return those of the passes `names` that must come before `one`; where one runs twice, its first run."""
    return [name for name in one.after if name in names and name != one.name]


def _clone(model: onnx_ir.Model) -> onnx_ir.Model:
    """Return a copy that shares tensors and nothing else that passes change.

    `Model.clone` leaves types shared (writing `value.dtype` would reach the original) and drops `meta`.
    """
    with _collection_paused():
        cloned = model.clone()
        cloned.meta.update(model.meta)
        for value in _values(cloned):
            value.type = _copy_type(value.type)
    return cloned


def _copy_type(kind: onnx_ir.TypeProtocol | None) -> onnx_ir.TypeProtocol | None:
    if type(kind) is onnx_ir.TensorType:  # nearly all, and five times faster than a deep copy
        return onnx_ir.TensorType(kind.dtype, denotation=kind.denotation)
    return copy.deepcopy(kind)


def _values(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _weigh(model: onnx_ir.Model) -> Amount:
    from onnxpress.ir.analysis.cost import cost

    with _collection_paused():
        total = cost(model)
    return Amount(params=total.params, macs=total.macs, size_bytes=total.weight_bytes)


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """Put Python's garbage collection off for a short step that makes many small objects and no garbage.

    Each collection walks all live objects: it takes half the time of cloning 20,000 nodes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_input(model: onnx_ir.Model) -> None:
    from onnxpress.ir.verify import VerifyError, verify

    try:
        verify(model, full=False)
    except VerifyError as error:
        raise InputError(
            f"pipeline: before the first pass, {_one_line(error)}. "
            "Load it with onnxpress.load, which names, types and checks"
        ) from None


def _check_result(after: onnx_ir.Model, before: onnx_ir.Model) -> None:
    """Raise an InternalError unless `after` is whole and has the interface of `before`."""
    from onnxpress.ir.verify import VerifyError, interface, verify

    try:
        verify(after, full=False)
    except VerifyError as error:
        raise InternalError(f"left a broken model: {_one_line(error)}") from error
    old, new = interface(before), interface(after)
    if not (_keeps(old.inputs, new.inputs) and _keeps(old.outputs, new.outputs)):
        raise InternalError(f"changed the model's interface from {old} to {new}")


def _keeps(old: Sequence[InterfaceValue], new: Sequence[InterfaceValue]) -> bool:
    """Whether names, order, types and dimensions are kept; a dimension that was unknown may become known."""
    if [(value.name, value.type) for value in old] != [(value.name, value.type) for value in new]:
        return False
    return all(_refines(a.dims, b.dims) for a, b in zip(old, new, strict=True))


def _refines(old: tuple[int | str | None, ...] | None, new: tuple[int | str | None, ...] | None) -> bool:
    if old is None or new is None:
        return old is None
    return len(old) == len(new) and all(a in (None, b) for a, b in zip(old, new, strict=True))


def _name_pass(name: str, error: OnnxpressError) -> None:
    """Put the pass's name before the message of `error`, unless it is there."""
    if not str(error).startswith(f"{name}: "):
        error.args = (f"{name}: {error}",)


def _describe_failure(name: str, error: BaseException) -> str:
    """Say in one line what went wrong in pass `name`: the first cause, and the node in hand, if known."""
    if isinstance(error, OnnxpressError):
        return f"{name}: {_one_line(error).removeprefix(f'{name}: ')}"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    node = _node_in_hand(cause.__traceback__)
    where = f" at node {node.name!r} ({node.op_type})" if node is not None else ""
    return f"{name}: failed{where}: {_one_line(cause)}"


def _node_in_hand(traceback: types.TracebackType | None) -> onnx_ir.Node | None:
    """Return the node in the innermost local variable that holds one: a good guess at the culprit."""
    found = None
    while traceback is not None:
        nodes = [local for local in traceback.tb_frame.f_locals.values() if isinstance(local, onnx_ir.Node)]
        found = nodes[-1] if nodes else found
        traceback = traceback.tb_next
    return found


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if isinstance(error, OnnxpressError) else f"{type(error).__name__}{f': {text}' if text else ''}"


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
