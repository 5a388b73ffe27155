"""Choose a width for each layer, so that all of them together fit a number of bytes at least loss.

1. fit      every layer at every width, to the original's own inputs and outputs
2. measure  what each does to the model's outputs, one layer at a time, on samples that fitted nothing (`Divergence`);
            without data, the relative error of its weight stands for it
3. allocate one width to each (`passes.allocation`), from the widest down
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.analysis.divergence import Divergence, NotMeasurableError
from onnxpress.ir.analysis.moments import Moments, collect, gram_bytes, parts_within
from onnxpress.ir.encodings import Encoded
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.ir.linear import constant_tensor
from onnxpress.passes.allocation import allocate
from onnxpress.passes.base import Context
from onnxpress.passes.instrument import Progress
from onnxpress.passes.lowbit.family import Family
from onnxpress.passes.lowbit.options import WidthOptions
from onnxpress.passes.lowbit.sites import Chosen, fitted_weight, mask_of, rows_of
from onnxpress.passes.normal_form import normal_form
from onnxpress.passes.samples import split_samples
from onnxpress.passes.weight_sites import stored_bytes

__all__ = ["choose_widths"]

_Array: TypeAlias = npt.NDArray[Any]

_GRAM_BYTES = 512 << 20  # moments held at once
_POSITIONS = 16  # of each sample, for moments that only rank widths
_SHOWN_STEPS = 1000


def choose_widths(
    model: onnx_ir.Model,
    chosen: Sequence[Chosen],
    families: Sequence[Family],
    share: float,
    options: WidthOptions,
    context: Context,
    pass_name: str,
) -> list[Chosen]:
    """Return the layers with a family of `families` (the widest first) each; exceptions keep theirs.

    share: of the bytes of the model's weights that may remain.

    Raises:
        BudgetError: more remain with all layers at their narrowest. UsageError: too little data, or outputs that no
            loss can be measured of.
    """
    if not chosen:
        return []
    whole = int(cost(model).weight_bytes)
    budget = share * whole
    free = [each for each in chosen if not each.why]
    sizes: dict[str, list[int]] = {}
    losses: dict[str, list[float]] = {}
    for each, encoded, errors in _tried(model, free, families, options, context, pass_name):
        sizes[each.name], losses[each.name] = [one.packed_bytes for one in encoded], errors
    rest = whole - sum(_weight_bytes(each) for each in chosen)
    rest += sum(_encoded_bytes(each) for each in chosen if each.why)
    if options.method == "gptq":
        rest += sum(map(_added_bias_bytes, chosen))
    levels = [sizes[each.name] for each in free]

    def remaining(at: Sequence[int]) -> float:
        return rest + sum(size[level] for size, level in zip(levels, at, strict=True))

    found, is_met = allocate(
        [_rising(losses[each.name]) for each in free],
        remaining,
        lambda at, site, level: levels[site][at[site]] - levels[site][level],
        budget,
    )
    if not is_met:
        least = np.ceil(remaining(found) / whole * _SHOWN_STEPS) / _SHOWN_STEPS
        raise BudgetError(
            f"{pass_name}: bytes={share:g} cannot be reached: with all of {len(free)} layers at their narrowest, "
            f"{least:g} remain"
        )
    width = dict(zip((each.name for each in free), found, strict=True))
    return [each if each.why else Chosen(each.layer, families[width[each.name]]) for each in chosen]


def _tried(
    model: onnx_ir.Model,
    free: Sequence[Chosen],
    families: Sequence[Family],
    options: WidthOptions,
    context: Context,
    pass_name: str,
) -> Iterator[tuple[Chosen, list[Encoded], list[float]]]:
    """Yield each layer as all the families encode it, and what each costs."""
    moments: Mapping[str, Moments] = {}
    divergence: Divergence | None = None
    trial = model.clone()
    copies = {node.name: node for node in trial.graph}
    samples = None
    if context.data is not None:
        split = split_samples(context.data, model, pass_name, samples=options.samples, held_out=options.error_samples)
        samples = split.fitted
        try:
            divergence = Divergence(model, context.data, samples=split.held_out, skip=split.fitted)
        except NotMeasurableError as error:
            raise UsageError(f"{pass_name}: {error}. Give bits instead of bytes") from error
    with (context.progress or Progress()).task("measuring widths", len(free)) as task:
        for part in parts_within(list(free), lambda each: gram_bytes(each.layer), _GRAM_BYTES):
            if options.method == "gptq":
                assert context.data is not None, "method=gptq asks for data before"
                moments = collect(
                    model, [each.layer for each in part], context.data, positions=_POSITIONS, samples=samples,
                    seed=context.seed,
                )  # fmt: skip
            for each in part:
                original, mask = each.layer.weight(), mask_of(each.layer)
                gram, target = None, rows_of(original, each.layer)
                if each.name in moments:
                    of_layer = moments[each.name].with_target(original, each.layer.bias())
                    gram, target = normal_form(each.layer, of_layer)
                encoded = [
                    fitted_weight(Chosen(each.layer, family), original, gram, target, mask) for family in families
                ]
                value = copies[each.name].inputs[each.layer.weight_index]
                assert value is not None
                yield each, encoded, _losses(trial, value, encoded, divergence)
                task.advance()


def _losses(
    trial: onnx_ir.Model, value: onnx_ir.Value, encoded: Sequence[Encoded], divergence: Divergence | None
) -> list[float]:
    """Return what each encoding of one weight costs the outputs of `trial`, which is as before afterwards."""
    before = constant_tensor(value)
    assert before is not None
    original = before.numpy()
    energy = float(np.square(original, dtype=np.float64).sum())
    found = []
    for one in encoded:
        if divergence is None:
            off = np.square(one.dense() - original, dtype=np.float64)
            found.append(float(off.sum()) / (energy or 1.0))
            continue
        value.const_value = onnx_ir.tensor(one.dense(), name=value.name)
        found.append(divergence.of(trial))
    value.const_value = before
    return found


def _rising(losses: Sequence[float]) -> list[float]:
    """Return losses from the first on, which counts as none, that never fall: noise must not pay for fewer bits."""
    risen = np.maximum.accumulate(np.asarray(losses))
    return [float(each - risen[0]) for each in risen]


def _added_bias_bytes(each: Chosen) -> int:
    """Return the bytes of the bias that a layer without one gets."""
    has_none = each.layer.bias_value is None and each.layer.node.op_type != "MatMul"
    return 4 * each.layer.out_channels if has_none else 0


def _encoded_bytes(each: Chosen) -> int:
    """Return the bytes of a layer's weight in its family, which no fit to data changes."""
    original = each.layer.weight()
    return fitted_weight(each, original, None, rows_of(original, each.layer), mask_of(each.layer)).packed_bytes


def _weight_bytes(each: Chosen) -> int:
    tensor = constant_tensor(each.layer.weight_value)
    assert tensor is not None
    return stored_bytes(tensor)
