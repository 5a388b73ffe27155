"""`onnxpress demo`: the main job on an embedded model."""

from __future__ import annotations

from onnxpress.tools.cli.options import DEFAULT_TARGET, Force, Json, Output, Seed, Target

__all__ = ["demo"]


def demo(
    output: Output = None, target: Target = None, json: Json = None, seed: Seed = None, force: Force = False
) -> None:
    """Compress a small model that comes with onnxpress.

    The net reads handwritten digits. It is calibrated on 256 training images and measured on images that it
    never saw. With -o the result is kept.
    """
    from onnxpress.tools.cli.run import compress_and_tell
    from onnxpress.tools.demo import assets
    from onnxpress.tools.outputs import check_outputs
    from onnxpress.tools.plan import prepare

    check_outputs({"OUT": output, "--json": json}, {}, force=force)
    plan = prepare(
        assets.model_path(),
        target=target or DEFAULT_TARGET,
        data="onnxpress.tools.demo.assets:calibration",
        eval_data="onnxpress.tools.demo.assets:evaluation",
        seed=seed or 0,
    )
    compress_and_tell(plan, output, json=json, force=force)
