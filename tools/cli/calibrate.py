"""`onnxpress calibrate`: measure this machine into a target profile."""

from __future__ import annotations

from onnxpress.ir.errors import UsageError
from onnxpress.tools.cli.options import Force, Json, Output, Target

__all__ = ["calibrate"]


def calibrate(
    output: Output = None,
    target: Target = None,
    json: Json = None,
    force: Force = False,
) -> None:
    """Time small models on this machine, and write a target profile whose cost estimate fits it: about a minute.

    It takes over the rules of --target, by default those of this machine, and is used as any: --target PROFILE.toml.
    """
    if output is None:
        raise UsageError("-o is missing. Say where the profile goes: onnxpress calibrate -o my-machine.toml")
    from onnxpress.tools.calibration import calibrate as measure
    from onnxpress.tools.outputs import check_outputs, write_text
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.json_output import write_json
    from onnxpress.tools.report.profile_tables import show_calibration
    from onnxpress.tools.report.progress import watch_progress

    check_outputs({"-o": output, "--json": json}, {"--target": target}, force=force)
    with watch_progress() as progress:
        found = measure(output, target=target, progress=progress)
    write_text(output, found.text, overwrite=force)
    show_calibration(console(), found, output)
    write_json(json, found.to_json(), overwrite=force)
