"""Output files: checked before the work starts, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from onnxpress.ir.errors import UsageError

__all__ = ["STDOUT", "check_outputs", "require_format", "write_bytes", "write_text"]

STDOUT = "-"
_LITERT_SUFFIX = ".tflite"


def check_outputs(
    outputs: Mapping[str, str | os.PathLike[str] | None],
    inputs: Mapping[str, str | os.PathLike[str] | None],
    *,
    force: bool = False,
) -> None:
    """Check that every output can be written, before any work is done for it.

    outputs, inputs: paths by the flag or argument that the user knows them by; None is not given, and `-` for
    --json is stdout. Inputs that are no files count for nothing. With `force` OUT may replace MODEL; no other
    output may be an input.

    Raises:
        UsageError: two outputs are one file; an output is an input, exists (without `force`), is a folder, or
            its folder is missing or cannot be written.
    """
    taken = {_resolved(path): flag for flag, path in inputs.items() if path is not None and _exists(path)}
    if force:
        taken |= _files_behind(inputs)
    for flag, path in outputs.items():
        if path is None or (flag == "--json" and path == STDOUT):
            continue
        if os.fspath(path) == STDOUT:
            raise UsageError(f"{flag} {STDOUT!r}: only --json writes to stdout. Name a file.")
        where = _resolved(path)
        other = taken.get(where)
        if other is not None and not (force and (flag, other) == ("OUT", "MODEL")):
            raise UsageError(f"{flag} {os.fspath(path)!r}: the same file as {other}. Give another path.")
        taken[where] = flag
        _check_output(flag, Path(path), force=force)


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = False) -> None:
    """Write `text` as UTF-8. Whole or not at all, and errors: see `write_bytes`."""
    write_bytes(path, text.encode(), overwrite=overwrite)


def write_bytes(path: str | os.PathLike[str], content: bytes, *, overwrite: bool = False) -> None:
    """Write `content` to a temporary file beside `path`, then rename it into place.

    Raises:
        UsageError: `path` exists and `overwrite` is not set, or it cannot be written.
    """
    target = _resolved(path)  # what a link leads to, as the link's owner means it
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{os.fspath(path)!r} exists. Give another path, or --force (overwrite=True) to replace it.")
    _require_plain(os.fspath(path), target)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".onnxpress-", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
        temporary.chmod(0o666 & ~_umask())  # temporary files are private; an output is not
        temporary.replace(target)
    except OSError as error:
        raise UsageError(f"{os.fspath(path)!r} cannot be written: {error.strerror}. Give another path.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def require_format(path: str | os.PathLike[str], target: str, *, is_tflite: bool) -> None:
    """Refuse a name that says another format than the target's runtime reads.

    Raises:
        UsageError: it ends in .tflite and the target runs ONNX, or the other way round.
    """
    named = Path(path)
    if is_tflite and named.suffix != _LITERT_SUFFIX:
        raise UsageError(
            f"OUT {os.fspath(path)!r}: {target} runs {_LITERT_SUFFIX} files. "
            f"Name it {os.fspath(named.with_suffix(_LITERT_SUFFIX))!r}, or choose another target."
        )
    if not is_tflite and named.suffix == _LITERT_SUFFIX:
        raise UsageError(
            f"OUT {os.fspath(path)!r}: {target} runs ONNX. Give --target mobile-cpu-litert, or a "
            "name that ends in .onnx."
        )


def _check_output(flag: str, path: Path, *, force: bool) -> None:
    shown = f"{flag} {os.fspath(path)!r}"
    try:
        path.lstat()
    except FileNotFoundError:
        exists = False
    except OSError as error:  # too long a name, most of all
        raise UsageError(f"{shown} cannot be written: {error.strerror}. Give another path.") from error
    else:
        exists = True
    if path.is_dir():
        raise UsageError(f"{shown} is a folder. Name the file in it.")
    _require_plain(shown, path)
    if exists and not force:
        raise UsageError(f"{shown} exists. Give another path, or --force to replace it.")
    if not path.parent.is_dir():
        raise UsageError(f"{shown}: the folder {os.fspath(path.parent)!r} does not exist. Create it first.")
    try:
        # Permission bits do not tell of read-only file systems or of root: only trying does.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"{shown} cannot be written: {error.strerror}. Give another path.") from error


def _require_plain(shown: str, path: Path) -> None:
    """Raise a UsageError where a device, a pipe or a socket lies: writing means to rename a file over it."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"{shown} is a device, a pipe or a socket, and would be replaced. Name a file.")


def _files_behind(inputs: Mapping[str, str | os.PathLike[str] | None]) -> dict[Path, str]:
    """Return the files that inputs lead to without naming them: a model's weights, and what lies in a data folder."""
    found: dict[Path, str] = {}
    for flag, path in inputs.items():
        if path is None or not _exists(path):
            continue
        if Path(path).is_dir():
            found |= {_resolved(file): f"a file of {flag}" for file in Path(path).iterdir()}
        elif Path(path).suffix == ".onnx":
            found |= {_resolved(file): f"the weights of {flag}" for file in _weight_files(Path(path))}
    return found


def _weight_files(model: Path) -> set[Path]:
    import onnx

    from onnxpress.ir.onnx_file import tensors_of

    try:
        proto = onnx.load(model, load_external_data=False)
    except Exception:  # whatever is wrong with it, loading it says so better
        return set()
    entries = (entry for tensor in tensors_of(proto) for entry in tensor.external_data)
    return {model.parent / entry.value for entry in entries if entry.key == "location"}


def _exists(path: str | os.PathLike[str]) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for a path, as pipeline text may be
        return False


def _resolved(path: str | os.PathLike[str]) -> Path:
    with contextlib.suppress(OSError):
        return Path(path).resolve()
    return Path(path).absolute()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
