"""`onnxpress pack`: a model as a small file, from which every number comes back as it was."""

from __future__ import annotations

from onnxpress.tools.cli.options import Force, Json, Model, Output

__all__ = ["pack"]


def pack(model: Model, out: Output = None, json: Json = None, force: Force = False) -> None:
    """Pack MODEL into an entropy-coded .onnxp file, from which unpack restores every number and name as it was."""
    from onnxpress.ir.errors import UsageError
    from onnxpress.tools.container import SUFFIX
    from onnxpress.tools.container import pack as run
    from onnxpress.tools.outputs import check_outputs
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.json_output import write_json
    from onnxpress.tools.report.packing import show_packing

    if out is None:
        named = model.with_suffix(SUFFIX).name
        raise UsageError(f"-o OUT is missing. Say where the result goes: onnxpress pack {model} -o {named}")
    check_outputs({"-o": out, "--json": json}, {"MODEL": model}, force=force)
    report = run(model, out, overwrite=force)
    show_packing(console(), report, out)
    write_json(json, {"model": str(model), "written": str(out), **report.to_json()}, overwrite=force)
