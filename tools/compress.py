"""Compress a model for a target, and prove the result.

    prepare (tools/plan.py)   load and check everything that is given, before any work
    run                       passes -> lowering -> legality -> one run on the runtime -> before beside after
    compress                  both

Nothing is written here: the result is a model in memory, its report, and the recipe that repeats it. The
original is never changed. Measuring is bounded: without evaluation data the two models are compared on a few
of the calibration samples, and the report says on how many.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.data import DataSource
from onnxpress.ir.errors import BudgetError, InputError, InternalError, OnnxpressError, UsageError
from onnxpress.ir.verify import verify
from onnxpress.passes.base import Context, Pass, Site, SiteOptions
from onnxpress.passes.instrument import ModelPrinter, Printer, Progress
from onnxpress.passes.manager import PassManager, PassRecord
from onnxpress.passes.pipeline import PassSpec, build, format_pipeline, to_spec
from onnxpress.passes.reproducer import write_reproducer
from onnxpress.targets.base import Target
from onnxpress.targets.legality import Illegal
from onnxpress.targets.lowering.report import LoweringReport
from onnxpress.targets.runtimes.base import Feeds, Prepared, Runtime
from onnxpress.targets.runtimes.onnxruntime_cpu import Kernels, inspect_kernels, smoke_run
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.targets.runtimes.registry import load_runtime
from onnxpress.tools.legality import first_of
from onnxpress.tools.measure import (
    Effort,
    Pair,
    Subject,
    first_feeds,
    measure_pair,
    source_bytes,
)
from onnxpress.tools.measure_runtime import measure_on, runtime_of
from onnxpress.tools.memory import peak_rss_bytes
from onnxpress.tools.metrics import Metrics
from onnxpress.tools.plan import Plan, prepare
from onnxpress.tools.recipe import MANIFEST_KEY
from onnxpress.tools.report.numbers import is_same_latency, milliseconds, three_digits
from onnxpress.tools.result import DropError, MeasuredOn, Report, Result

if TYPE_CHECKING:
    import onnx

    from onnxpress.targets.litert import Emitted

__all__ = ["Watch", "compress", "run", "with_written_size"]

_DEFAULT_RUNTIME = "onnxruntime-cpu"
_EXACT = "cleanup, fold-batchnorm"  # what any converter does to a float model, and loses nothing by
_WORST_SITES = 3  # as many as a message can name and a user can exclude by hand
_NOT_RUN = (
    "the result was loaded but not run: its input sizes are open. Give --data, or data=..., to try it on a sample"
)


@dataclasses.dataclass(frozen=True)
class Watch:
    """How a run is watched; nothing here changes its result.

    verify_each: run the model before and after each pass. print_after_all, print_after_change: hand the
    model's text, or how it changed, to `printer` after each pass. crash_dir: where a failing pass leaves a
    reproducer. latency_rounds: at most so many; time bounds them too.
    """

    verify_each: bool = False
    print_after_all: bool = False
    print_after_change: bool = False
    printer: Printer = print
    crash_dir: str | os.PathLike[str] | None = None
    progress: Progress = dataclasses.field(default_factory=Progress)
    latency_rounds: int = 30


def compress(
    model: str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model,
    *,
    target: str | os.PathLike[str] | Target = "host-cpu",
    passes: str | os.PathLike[str] | Sequence[Pass] | None = None,
    data: Any = None,
    eval_data: Any = None,
    max_drop: float | None = None,
    seed: int = 0,
    verify_each: bool = False,
    print_after_all: bool = False,
    print_after_change: bool = False,
    crash_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    printer: Printer = print,
    latency_rounds: int = 30,
) -> Result:
    """Compress `model` for `target` and measure the result beside the original, which is never changed.

    target: a name, a TOML profile or a Target. passes: pipeline text, a pipeline file or built passes; None
    takes the target's own pipeline. data: calibration samples, anything that `ir.data.open_data` takes.
    eval_data: samples to measure on. Accuracy and agreement take all of them, SQNR, of the models as they are
    written, the first 8 to 32: fewer the more a sample costs. Without eval_data the first 16 to 128 of `data`
    do, or all of them for a max_drop. max_drop: points of accuracy (without labels: of top-1 agreement) that
    may be lost. The rest only watches the run: see `Watch`.

    Raises:
        UsageError: a target, pass, option or selector that does not exist; data that a pass needs is missing.
        InputError: a model or data that cannot be used. DropError: more lost than `max_drop`.
        BudgetError: the result is illegal on the target, or its runtime refuses it.
    """
    plan = prepare(model, target=target, passes=passes, data=data, eval_data=eval_data, max_drop=max_drop, seed=seed)
    watch = Watch(
        verify_each=verify_each,
        print_after_all=print_after_all,
        print_after_change=print_after_change,
        printer=printer,
        crash_dir=crash_dir,
        progress=progress or Progress(),
        latency_rounds=latency_rounds,
    )
    return run(plan, watch)


def run(plan: Plan, watch: Watch | None = None) -> Result:
    """Carry out a plan. Errors: see `compress`."""
    watch = watch or Watch()
    started = time.perf_counter()
    manager = PassManager(
        plan.passes,
        verify_each=watch.verify_each,
        print_after_all=watch.print_after_all,
        print_after_change=watch.print_after_change,
        crash_dir=watch.crash_dir,
        printer=watch.printer,
        repeat_flags=plan.repeat_flags,
    )
    context = Context(constraints=plan.target.constraints, data=plan.data, seed=plan.seed, progress=watch.progress)
    # First of all, as what LiteRT cannot run is told before any pass takes its time.
    before = _emit_original(plan) if plan.target.profile.runtime == "litert" else None
    model, records = manager.run(plan.model, context)
    lowering = _lower(plan, model, context, watch)
    del context  # its cache holds statistics that nothing needs any more
    findings = _require_legal(plan.target, model)
    model.metadata_props[MANIFEST_KEY] = plan.recipe.manifest()
    after = None if before is None else _emit(model)
    if after is not None:
        lowering.add(after.report)
    compiled = time.perf_counter()
    if before is None or after is None:
        report = _measure(plan, model, records, watch)
    else:
        report = _measure_files(plan, model, records, watch, before, after)
    ended = time.perf_counter()
    report = dataclasses.replace(
        report,
        lowering=lowering.forms,
        notes=(*lowering.notes, *_summarize(findings), *report.notes),
        seconds=plan.seconds + ended - started,
        measuring_seconds=ended - compiled,
        peak_rss_bytes=peak_rss_bytes(),
    )
    report = dataclasses.replace(report, headlines=tuple(_headlines(report)))
    _require_drop(plan, report)
    return Result(model, report, content=None if after is None else after.content)


def _emit_original(plan: Plan) -> Emitted:
    """Return the original as a float .tflite file, as any converter makes it.

    Raises:
        UsageError: LiteRT is not installed. InputError: LiteRT cannot run the model.
    """
    folded, _ = PassManager(build(_EXACT)).run(plan.model, Context(constraints=plan.target.constraints))
    return _emit(folded)


def _emit(model: onnx_ir.Model) -> Emitted:
    from onnxpress.targets.litert import emit

    return emit(model)


def _lower(plan: Plan, model: onnx_ir.Model, context: Context, watch: Watch) -> LoweringReport:
    """Lower `model` in place for the plan's target.

    Raises:
        InternalError: the lowering failed; names the reproducer, if one was asked for.
    """
    printer = ModelPrinter(watch.printer, every=watch.print_after_all, changes=watch.print_after_change)
    printer.start(model)
    try:
        report = plan.target.lower(model)
        verify(model)
    except OnnxpressError as error:
        if error.exit_code != InternalError.exit_code:
            raise
        _fail_lowering(plan, model, context, watch, error)
    except Exception as error:
        _fail_lowering(plan, model, context, watch, error)
    printer.show(f"lowering for {plan.target.name}", model)
    return report


def _require_legal(target: Target, model: onnx_ir.Model) -> list[Illegal]:
    """Return what the target has against the result short of refusing it.

    Raises:
        BudgetError: the target refuses the result.
    """
    findings = target.check(model)
    illegal = [found for found in findings if found.severity == "illegal"]
    if not illegal:
        return findings
    raise BudgetError(f"the result is illegal on {target.name}: {first_of(illegal)} Nothing is written.")


def _fail_lowering(plan: Plan, model: onnx_ir.Model, context: Context, watch: Watch, error: Exception) -> NoReturn:
    what = f"lowering for {plan.target.name} failed: {type(error).__name__}: {error}"
    if watch.crash_dir is None:
        raise InternalError(f"{what}. Run again with --crash-dir DIR to get what repeats it") from error
    # What is half lowered repeats nothing: this note makes the reproducer start from the original.
    model.meta["onnxpress.lowering"] = "failed"
    folder = write_reproducer(
        watch.crash_dir,
        original=plan.model,
        before=model,
        passes=plan.passes,
        context=context,
        flags=plan.repeat_flags,
        error=error,
    )
    raise InternalError(f"{what}. What repeats it is in {folder}, see repeat.txt") from error


def _measure(plan: Plan, model: onnx_ir.Model, records: Sequence[PassRecord], watch: Watch) -> Report:
    """Run the result, and measure it beside the original: in the target's runtime where that is here.

    Raises:
        BudgetError: the runtime does not load or run the result.
    """
    runtime, missing = runtime_of(plan.target)
    if plan.target.profile.runtime != _DEFAULT_RUNTIME and runtime is not None:
        return _measure_there(plan, model, records, watch, runtime)
    result, original = _serialized(model), _original(plan)
    source = plan.eval_data or plan.data
    did_run = _try(result, source)
    is_own = runtime is not None
    kernels = inspect_kernels(result.runnable) if is_own else Kernels()
    effort = _effort(plan, original, watch)
    pair = measure_pair(original, result, source, effort, watch.progress, timed=is_own)
    notes = pair.notes if did_run else (_NOT_RUN, *pair.notes)
    if not is_own:
        notes += (f"run by {load_runtime(_DEFAULT_RUNTIME).title}, and not timed: {missing}",)
    return _report(plan, pair, records, kernels, notes, load_runtime(_DEFAULT_RUNTIME) if is_own else None)


def _measure_there(
    plan: Plan, model: onnx_ir.Model, records: Sequence[PassRecord], watch: Watch, runtime: Runtime
) -> Report:
    """Measure an ONNX model in a runtime of its own.

    Raises:
        BudgetError: the runtime does not load or run the result.
    """
    original, source = _original(plan), plan.eval_data or plan.data
    feeds = first_feeds(original, source)
    try:
        before, after = (runtime.prepare(each, feeds) for each in (plan.model, model))
        counted = Metrics.counted(cost(model), after.size_bytes)
        effort = _effort(plan, original, watch)
        pair = measure_on(runtime, original, before, after, counted, source, effort, watch.progress)
        kernels = _kernels(runtime, model, after, feeds)
    except RuntimeRefusalError as error:
        raise BudgetError(f"the result is refused: {error}. Nothing is written.") from error
    return _report(plan, pair, records, kernels, pair.notes, runtime)


def _kernels(runtime: Runtime, model: onnx_ir.Model, prepared: Prepared, feeds: Feeds) -> Kernels:
    if runtime.name != "openvino":
        return Kernels(prepared.layers())
    from onnxpress.targets.runtimes.openvino import inspect_kernels

    return inspect_kernels(model, feeds)


def _measure_files(
    plan: Plan,
    model: onnx_ir.Model,
    records: Sequence[PassRecord],
    watch: Watch,
    before: Emitted,
    after: Emitted,
) -> Report:
    """Run the .tflite file of the result, and measure it beside the original and its file.

    Raises:
        BudgetError: LiteRT does not load or run it.
    """
    from onnxpress.targets.runtimes.litert import LITERT, LiteRtSession

    original, source = _original(plan), plan.eval_data or plan.data
    counted = Metrics.counted(cost(model), len(after.content))
    stored = 8 * after.constant_bytes / counted.params if counted.params else None
    counted = dataclasses.replace(counted, bits_per_weight=stored)
    effort = _effort(plan, original, watch)
    try:
        first, second = (LiteRtSession(each.content) for each in (before, after))
        pair = measure_on(LITERT, original, first, second, counted, source, effort, watch.progress)
    except RuntimeRefusalError as error:
        raise BudgetError(f"the result is refused: {error}. Nothing is written.") from error
    kernels = Kernels(collections.Counter(after.operators), after.integer, (), after.real)
    return _report(plan, pair, records, kernels, pair.notes, LITERT)


def _effort(plan: Plan, original: Subject, watch: Watch) -> Effort:
    is_evaluation = plan.eval_data is not None or plan.max_drop is not None
    bounded = Effort.check(original.counted.macs, watch.latency_rounds)
    return dataclasses.replace(bounded, run=None) if is_evaluation else bounded


def _report(
    plan: Plan,
    pair: Pair,
    records: Sequence[PassRecord],
    kernels: Kernels,
    notes: tuple[str, ...],
    runtime: Runtime | None,
) -> Report:
    """Return the report. runtime: what timed the models; None where nothing did."""
    source = plan.eval_data or plan.data
    measured_on: MeasuredOn = "calibration data" if plan.eval_data is None else "evaluation data"
    report = Report(
        model=plan.name,
        target=plan.target.name,
        pipeline=plan.pipeline,
        seed=plan.seed,
        before=pair.before,
        after=pair.after,
        passes=tuple(records),
        notes=notes,
        samples=pair.samples,
        sqnr_samples=pair.sqnr_samples,
        samples_of=None if source is None else source.name,
        measured_on=None if source is None else measured_on,
        calibration_samples=None if plan.data is None else plan.data.count,
        kernels=kernels,
        recipe=plan.recipe,
        runtime=None if runtime is None else runtime.name,
        is_latency_of_target=plan.target.is_here,
    )
    notes = report.notes
    if pair.after.latency_ms is not None and not report.is_latency_of_target:
        notes += (f"latency was measured on this machine, which is not what {report.target} describes",)
    return dataclasses.replace(report, notes=notes)


def _try(result: Subject, source: DataSource | None) -> bool:
    """Load the result and run it once. Returns False where only loading could be tried, for lack of samples.

    Raises:
        BudgetError: the runtime refuses it.
    """
    try:
        return smoke_run(result.runnable, None if source is None else first_feeds(result, source))
    except RuntimeRefusalError as error:
        raise BudgetError(f"the result is refused: {error}. Nothing is written.") from error


def _serialized(model: onnx_ir.Model) -> Subject:
    """Return the result as bytes, serialized once for all sessions; as a model where it is too large."""
    try:
        content = model_io.to_proto_bytes(model)
    except InputError:
        return Subject(model, model, model_io.size_bytes(model))
    return Subject(model, content, len(content))


def _original(plan: Plan) -> Subject:
    runnable = plan.source if isinstance(plan.source, str | os.PathLike) else plan.model
    return Subject(plan.model, runnable, source_bytes(plan.source, plan.model))


def _summarize(findings: Iterable[Illegal]) -> Iterator[str]:
    """Yield one line for each rule that the result breaks without being refused, with the first place."""
    by_rule: dict[str, list[Illegal]] = {}
    for found in findings:
        by_rule.setdefault(found.rule, []).append(found)
    for same in by_rule.values():
        more = f" (and {len(same) - 1} more)" if len(same) > 1 else ""
        yield f"{same[0].severity}: {same[0]}{more}"


def with_written_size(report: Report, size_bytes: int) -> Report:
    """Return the report of a result whose file has another size than the .onnx: a packed one."""
    after = dataclasses.replace(report.after, size_bytes=size_bytes)
    changed = dataclasses.replace(report, after=after)
    return dataclasses.replace(changed, headlines=tuple(_headlines(changed)))


def _headlines(report: Report) -> Iterator[str]:
    """Yield what a user must not miss, the worst first."""
    before, after = report.before, report.after
    if before.latency_ms and after.latency_ms and after.latency_ms >= before.latency_ms:
        here = "" if report.is_latency_of_target else " here"
        change = f"{milliseconds(before.latency_ms)} before, {milliseconds(after.latency_ms)} after"
        if is_same_latency(before.latency_ms, after.latency_ms):
            yield f"NOT FASTER: latency{here} is the same, {change}"
        else:
            yield f"NOT FASTER: latency{here} {change} ({three_digits(before.latency_ms / after.latency_ms)}x)"
    if after.size_bytes >= before.size_bytes:
        weights, others = zip(*map(_parts, (before, after)), strict=True)
        where = f": weights {weights[0]:,} and {weights[1]:,}, "
        where += f"operators, names and the rest {others[0]:,} and {others[1]:,}"
        if min(others) < 0:  # a packed file is smaller than its weights
            where = ""
        yield f"NOT SMALLER: {before.size_bytes:,} bytes before, {after.size_bytes:,} bytes after{where}"
    dense = {form: count for form, count in report.lowering.items() if _is_rounded_in_vain(form)}
    if dense:
        labels = ", ".join(f"{count} of {form.split(' -> ')[0]}" for form, count in sorted(dense.items()))
        yield f"ROUNDED IN VAIN: {labels} are stored as plain floats, as {report.target} has no smaller form for them"
    if not any(record.rewrites.modified for record in report.passes):
        yield "NOTHING WAS REWRITTEN: every pass found nothing, or declined what it found (reasons below)"
    if unfused := report.kernels.unfused:
        names = ", ".join(map(repr, unfused[:_WORST_SITES]))
        more = f" and {len(unfused) - _WORST_SITES} more" if len(unfused) > _WORST_SITES else ""
        yield f"QUANTIZED BUT COMPUTED IN FLOAT by the runtime: {names}{more}"


def _is_rounded_in_vain(form: str) -> bool:
    """Whether weights lost precision and no bytes; zeros, and what was never encoded, are no such loss."""
    label, _, stored = form.partition(" -> ")
    return stored.startswith("dense") and label not in ("dense", "sparse")


def _parts(metrics: Metrics) -> tuple[int, int]:
    """Return the bytes of the weights, and those of all else in the file."""
    weights = round((metrics.bits_per_weight or 0.0) * metrics.params / 8)
    return weights, metrics.size_bytes - weights


def _require_drop(plan: Plan, report: Report) -> None:
    """Do nothing when the result is as good as the plan asks for.

    Raises:
        DropError: it is not; names the worst sites and the pipeline that leaves them alone.
        UsageError: neither accuracy nor agreement can be told from the outputs.
    """
    if plan.max_drop is None:
        return
    before, after = report.before, report.after
    if before.accuracy is not None and after.accuracy is not None:
        drop = before.accuracy - after.accuracy
        lost = f"accuracy falls by {drop:.2f} points, from {before.accuracy:.2f} to {after.accuracy:.2f} %"
    elif after.agreement is not None:
        drop = 100 - after.agreement
        lost = f"the top-1 class changes for {drop:.2f} % of the samples"
    else:
        raise UsageError(
            "--max-drop: the model's outputs are no class scores, so neither accuracy nor agreement can be "
            "told. Leave it out, and hold the result to an SQNR: onnxpress compare A B --data D --min-sqnr DB"
        )
    if drop <= plan.max_drop:
        return
    count = report.samples
    raise DropError(
        f"{lost}: {round(drop * count / 100)} of {count} samples of {report.samples_of} ({report.measured_on}; "
        f"one sample is {100 / count:.3g} points); at most {plan.max_drop:g} was asked for. "
        f"No model is written.{_suggest(plan.passes, report)}",
        report,
    )


def _suggest(passes: Sequence[Pass], report: Report) -> str:
    """Name the worst sites, and the pipeline that leaves them alone."""
    worst = report.worst_sites(_WORST_SITES)
    if not worst:
        return ""
    named = ", ".join(f"{site.name!r} ({_describe_error(site)})" for _, site in worst)
    given = [to_spec(one) for one in passes]
    spared = [_without(one, [site.name for name, site in worst if name == one.name]) for one in passes]
    text = shlex.quote(format_pipeline(spared))
    advice = f" Try to leave them alone: --passes {text}" if spared != given else ""
    return f" Worst sites: {named}.{advice}"


def _without(one: Pass, sites: Sequence[str]) -> PassSpec:
    """Return the spec of a pass that leaves `sites` alone too, where it takes selectors."""
    spec = to_spec(one)
    if not sites or not isinstance(one.options, SiteOptions):
        return spec
    return PassSpec(spec.name, {**spec.options, "exclude": [*one.options.exclude, *sites]})


def _describe_error(site: Site) -> str:
    if "sqnr_db" in site.error:
        return f"{site.error['sqnr_db']:.1f} dB"
    return ", ".join(f"{metric} {value:.3g}" for metric, value in site.error.items())
