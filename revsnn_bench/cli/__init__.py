"""The command `revsnn-bench`: one small file per subcommand, or per few that belong together."""

import codecs
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated, NoReturn


@contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """Has Ctrl-C end the process as SIGTERM does: nothing is lost yet, and the traceback of an import tells nothing."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # another thread cannot change it, and a job in the background ignores it
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


with _ended_by_interrupts():
    import typer

    from revsnn_bench.cli import claims, machine, plan, reports, run, training
    from revsnn_bench.exit_codes import ExitCode
    from revsnn_bench.system.process import address_limit

app = typer.Typer(
    name="revsnn-bench",
    help="Which way of training a spiking network fits your memory, what does it cost, and is its gradient right?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *(run.run, run.merge, reports.report, reports.compare, reports.gate_command, training.train, training.tune),
    *(plan.largest, plan.plan, plan.predict, claims.claims, machine.nodes, machine.env, machine.doctor),
):
    app.command(command.__name__.removesuffix("_command"))(command)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"revsnn-bench {version('revsnn-bench')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for signs that a terminal has not; a question mark of ours says that a time is not decided."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join({"×": "x", "–": "-"}.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def _interrupt(number: int, _: object) -> NoReturn:
    """As Python's own handler; while torch is imported, which swallows exceptions, at once: nothing is measured yet."""
    if getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False):
        os._exit(ExitCode.INTERRUPTED)
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the console script: whatever goes wrong ends with a status of `ExitCode`, never with 1."""
    # All as Ctrl-C: what is done is kept, and the hint how to go on is printed.
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # the terminal was closed; `nohup` ignores it
        signal.signal(signal.SIGHUP, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    _open_streams()
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        codecs.register_error("plain", _plain)
        sys.stdout.reconfigure(errors="plain")
    try:
        try:
            os.getcwd()
        except FileNotFoundError:  # workers could not even start
            sys.stderr.write("Error: the current folder does not exist any more. Change into another one.\n")
            sys.exit(ExitCode.NO_FILE)
        app()
    except OSError as error:
        place = f" {error.filename!r}" if error.filename else ""
        notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        sys.stderr.write(f"Error: cannot use the file or folder{place}: {error.strerror or error}.{notes}\n")
        sys.exit(ExitCode.NO_FILE)
    except SystemExit as left:
        # click leaves with 1 after these; 1 means a regression here.
        causes, cause = set[type](), left.__context__
        while cause is not None:
            causes.add(type(cause))
            cause = cause.__context__
        if BrokenPipeError in causes:
            sys.exit(ExitCode.CLOSED_PIPE)
        if left.code == ExitCode.REGRESSION and KeyboardInterrupt in causes:
            sys.exit(ExitCode.INTERRUPTED)
        raise
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception:
        traceback.print_exc()
        sys.stderr.write("This is an error of revsnn-bench; please report it with the lines above.\n")
        if limit := address_limit():
            sys.stderr.write(f"Or it is that of a limit. {limit}\n")
        sys.exit(ExitCode.BROKEN)


def _open_streams() -> None:
    """Has a closed standard stream lead nowhere; else the next file that is opened, such as a journal, takes its place
    and what any library prints."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115  (open as long as the process)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115
