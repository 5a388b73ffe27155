"""The command line, a file per command. Nothing heavier than typer is imported until a command runs.

Exit status: 0 done; 1 the answer is no; 2 wrong use; 3 bad input file; 70 an internal error; 130 interrupted, and as
shells count for other signals.
Results that a program reads go to stdout (`--json -`); everything for people goes to stderr.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer
import typer.core

from onnxpress.ir.errors import OnnxpressError, UsageError, near_names
from onnxpress.tools.cli.calibrate import calibrate
from onnxpress.tools.cli.check import check
from onnxpress.tools.cli.compare import compare
from onnxpress.tools.cli.compress import compress
from onnxpress.tools.cli.demo import demo
from onnxpress.tools.cli.inspect import inspect
from onnxpress.tools.cli.pack import pack
from onnxpress.tools.cli.passes import passes
from onnxpress.tools.cli.profile import profile
from onnxpress.tools.cli.targets import targets
from onnxpress.tools.cli.unpack import unpack

__all__ = ["app", "main"]

_INTERNAL = 70
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_TRACEBACK_VARIABLE = "ONNXPRESS_TRACEBACK"


class _Commands(typer.core.TyperGroup):
    """Commands in the order of a user's work, and near names for one that does not exist."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # typer's own base differs
        return list(self.commands)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        command = self.commands.get(cmd_name)
        if command is None and not ctx.resilient_parsing and not cmd_name.startswith("-"):
            known = ", ".join(self.commands)
            raise UsageError(f"no such command {cmd_name!r}.{near_names(cmd_name, self.commands)} Commands: {known}")
        return command


# Plain help (no markup): pipelines hold brackets and braces, and help must come fast.
app = typer.Typer(cls=_Commands, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
for _command in (compress, inspect, profile, compare, check, calibrate, pack, unpack, passes, targets, demo):
    app.command()(_command)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Make trained ONNX models smaller and faster on a target, with the proof."""
    if version:
        import importlib.metadata

        typer.echo(f"onnxpress {importlib.metadata.version('onnxpress')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(UsageError.exit_code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (default: the process's) and return the exit status."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            with _ending_in_order():
                status = _run(arguments)
            if sys.stdout is not None:  # closed before the start
                sys.stdout.flush()
        except BrokenPipeError:
            _silence_stdout()
            return 1
    return status


class _Ended(BaseException):
    """The system asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name, self.status = signal.Signals(number).name, 128 + number


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let a request to end unwind what is under way, so that temporary folders go."""

    def end(number: int, _: object) -> None:
        raise _Ended(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # no other one may
        numbers = []
    kept = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) == signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _run(arguments: Sequence[str] | None) -> int:
    command = typer.main.get_command(app)
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = command.main(args=given, prog_name="onnxpress", standalone_mode=False)
    except OnnxpressError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except BrokenPipeError:
        raise
    except _Ended as ended:
        return _fail(f"ended by {ended.name}; no output file was left half written", ended.status)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, OSError):
            raise BrokenPipeError from leaving  # the parser leaves this way where its reader has gone
        # It reports all its other ends as a status: this one comes from a data function or a plugin.
        return _fail(
            f"code that was called for data or as a plugin left the process with sys.exit({leaving.code!r}). "
            "Nothing was written. Let it return, or raise an error that says what is wrong",
            UsageError.exit_code,
        )
    except MemoryError:
        return _fail("out of memory. Give less data, or a machine with more memory.", _INTERNAL)
    except Exception as error:
        # The parser's errors have no public base class in every supported typer, but all have this method.
        if hasattr(error, "format_message"):
            return _fail(_explain_usage(error), UsageError.exit_code)
        return _fail_unexpectedly(error)
    if status == _INTERRUPTED:
        return _fail("interrupted; no output file was left half written", _INTERRUPTED)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    """Print `message` as one line on stderr and return `status`."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _fail_unexpectedly(error: Exception) -> int:
    if os.environ.get(_TRACEBACK_VARIABLE):
        import traceback

        traceback.print_exception(error)
    return _fail(
        f"internal error: {type(error).__name__}: {error}. This is a bug in onnxpress. To report it, repeat "
        f"the command with {_TRACEBACK_VARIABLE}=1 set, and compress with --crash-dir DIR for a reproducer.",
        _INTERNAL,
    )


def _explain_usage(error: Any) -> str:
    """Write a parser's error with near names and the command whose help to read."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "onnxpress"
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and option is not None:
        problem = f"no such option {option}.{near_names(option, _options(context), limit=1)}"
    else:
        problem = error.format_message()
    full_stop = "" if problem.endswith((".", "?")) else "."
    return f"{problem}{full_stop} See: {path} --help"


def _options(context: Any) -> Iterable[str]:
    if context is None:
        return
    for parameter in context.command.params:
        yield from (name for name in parameter.opts if name.startswith("--"))
    yield "--help"


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print a warning as one line, without the file and line of the code that gave it."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _silence_stdout() -> None:
    """Keep the interpreter from complaining at exit that the reader of stdout has left."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
