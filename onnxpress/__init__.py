"""onnxpress: a compiler that makes trained ONNX models smaller and faster, and proves it.

    import onnxpress

    result = onnxpress.compress("model.onnx", data="samples.npz")
    onnxpress.save(result.model, "small.onnx")
    print(result.report.speedup)

Everything is imported when it is first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxpress.ir.model_io import load, save
    from onnxpress.passes.base import Pass
    from onnxpress.passes.registry import register_pass
    from onnxpress.targets.base import Target
    from onnxpress.tools.comparison import compare
    from onnxpress.tools.compress import compress
    from onnxpress.tools.container import open_session, pack, unpack
    from onnxpress.tools.inspection import inspect
    from onnxpress.tools.legality import check
    from onnxpress.tools.profiling import profile
    from onnxpress.tools.recipe import Recipe

    __version__: str

__all__ = [
    "Pass",
    "Recipe",
    "Target",
    "__version__",
    "check",
    "compare",
    "compress",
    "inspect",
    "load",
    "open_session",
    "pack",
    "profile",
    "register_pass",
    "save",
    "unpack",
]

_HOMES = {
    "Pass": "onnxpress.passes.base",
    "Recipe": "onnxpress.tools.recipe",
    "Target": "onnxpress.targets.base",
    "check": "onnxpress.tools.legality",
    "compare": "onnxpress.tools.comparison",
    "compress": "onnxpress.tools.compress",
    "inspect": "onnxpress.tools.inspection",
    "load": "onnxpress.ir.model_io",
    "open_session": "onnxpress.tools.container",
    "pack": "onnxpress.tools.container",
    "profile": "onnxpress.tools.profiling",
    "register_pass": "onnxpress.passes.registry",
    "save": "onnxpress.ir.model_io",
    "unpack": "onnxpress.tools.container",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("onnxpress")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
