"""What the commands share: options from the tables, saved runs by what the user typed, errors with their exit code."""

import inspect
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from revsnn_bench.case import CASE_FIELDS, Parser, parse_input
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.records import Run
from revsnn_bench.run_options import OPTIONS, RunOption, recorded_command, require_run_name
from revsnn_bench.runs import RUN_ID, JournalError, load_run

_Command = TypeVar("_Command", bound=Callable[..., Any])
_ROWS = {row.name: row for row in CASE_FIELDS}
_STARTED = re.compile(rb'"started_at": ?"([^"]*)"')
_PANELS = {"sweep": "Sweep", "run": "Run"}

_NOT_OF_A_MODEL = {
    ("suite", "workload", "timesteps", "batch", "shape"): (
        "A model of your own is measured at the steps, batch and features of --input. Leave it out, or change --input."
    ),
    ("tau", "alpha", "groups", "depth", "encoding"): (
        "What a model of your own is made of is set where it is made. Leave it out."
    ),
}
"""Options of a case that cannot stand beside --model, and why."""


def checked(parse: Parser, **options: Any) -> Any:
    """A typer option whose text is checked before the command starts; the command gets it as it was typed."""

    def check(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
        if is_typed(context, str(parameter.name)) and not str(value).strip():
            raise typer.BadParameter("must have a value; got none. Leave the option out for its default.")
        try:
            if value not in (None, ""):
                parse(str(value))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return typer.Option(callback=check, **options)


def case_option(name: str, **options: Any) -> Any:
    """The option of a command for one value of a field of `Case`."""
    row = _ROWS[name]
    return checked(row.parse, **({"help": row.meaning, "metavar": "N" if row.is_whole else "VALUE"} | options))


def run_option(key: str, **options: Any) -> Any:
    """The option of a command for one row of the table of run options."""
    option = OPTIONS[key]
    texts = {"help": option.help, "metavar": option.metavar or None, "show_default": bool(option.default)}
    return checked(option.parse, **(texts | options))


def count(least: int, text: str) -> Any:
    """The option of a command for a whole number."""
    return typer.Option(metavar="N", min=least, help=text)


def run_argument(name: str) -> Any:
    """The argument of a command that names a saved run."""
    return typer.Argument(metavar=name, help="Run id, file, or `latest`.")


Model = Annotated[str, typer.Option(metavar="MODULE:CALLABLE", help="A model of your own, as docs/your-model.md says.")]
Network = Annotated[str, case_option("workload", help="Network, such as vgg11@0.25, resnet19, digits-net, pixels.")]
Input = Annotated[str, checked(parse_input, metavar="T,B,FEATURES", help="Input of --model, such as 4,8,3,32,32.")]
RunName = Annotated[str, run_option("run_id")]
Resume = Annotated[str, run_option("resume")]
Threads = Annotated[str, run_option("threads")]
Results = Annotated[Path, run_option("results")]
Reports = Annotated[Path, run_option("reports")]
Formats = Annotated[str, run_option("format")]
RunPath = Annotated[str, run_argument("RUN")]
RESULTS, REPORTS = Path(OPTIONS["results"].default), Path(OPTIONS["reports"].default)
FORMATS = OPTIONS["format"].default


def with_options(*options: RunOption) -> Callable[[_Command], _Command]:
    """Gives a command with `**given` the options of a table, each in the panel of its group."""

    def parameter(option: RunOption) -> inspect.Parameter:
        info = run_option(option.key, rich_help_panel=_PANELS[option.group])
        kind, default = (str, option.default) if option.metavar else (bool, False)
        if not option.metavar:
            info.param_decls = (option.flag,)
        return inspect.Parameter(
            option.key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
        )

    def decorate(command: _Command) -> _Command:
        own = [each for each in inspect.signature(command).parameters.values() if each.kind is not each.VAR_KEYWORD]
        signed: Any = command
        signed.__signature__ = inspect.Signature([*own, *map(parameter, options)])
        return command

    return decorate


def given_model(context: typer.Context, model: str, input: str) -> dict[str, Any]:
    """The fields of a case that `--model` and `--input` give, none without both; ends the command where one of the two
    is missing, or where another option is given for what they say."""
    if not (model or input):
        return {}
    if not (model and input):
        raise failure(
            "--model MODULE:CALLABLE and --input T,B,features belong together, such as my_net:make and 4,8,3,32,32.",
            ExitCode.USAGE,
        )
    if ":" not in model:
        stem = model.removesuffix(".py").replace("/", ".")
        raise failure(f"--model must name the function too, such as {stem}:make; got {model!r}.", ExitCode.USAGE)
    for names, why in _NOT_OF_A_MODEL.items():
        for name in filter(partial(is_typed, context), names):
            raise failure(f"--{name}: cannot be used with --model; got {context.params[name]}. {why}", ExitCode.USAGE)
    return {"workload": model, **parse_input(input)}


def is_typed(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line, and has not its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def failure(message: str, code: ExitCode) -> typer.Exit:
    """Prints one clear error on stderr; raise what it returns."""
    typer.secho(f"Error: {message}", err=True, fg=typer.colors.RED)
    return typer.Exit(code)


@contextmanager
def busy(text: str) -> Iterator[Callable[[str], None]]:
    """Shows in a terminal what takes its time, in a line that is gone at the end; yields what changes the line.

    No thread draws it, which would take a core from what is measured, and no cursor is hidden if the process ends here.
    """
    shows = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def show(text: str) -> None:
        if shows:
            print(f"\r\033[2K{text[: shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)

    show(text)
    try:
        yield show
    finally:
        show("")


@contextmanager
def refusing(*errors: type[Exception], code: ExitCode = ExitCode.USAGE, flag: str = "") -> Iterator[None]:
    """Ends the command with the message of these errors, after the flag that is at fault."""
    try:
        yield
    except errors as error:
        raise failure(f"{flag}{error}", code) from None


def typed_command() -> tuple[str, ...]:
    """The command as it was typed, for the record."""
    return recorded_command(["revsnn-bench", *sys.argv[1:]])


def named_values(flag: str, texts: list[str] | None) -> dict[str, str]:
    """Values by name, of an option that is given as NAME=VALUE any number of times.

    Raises:
        ValueError: a name or a value is missing.
    """
    pairs = {text: text.partition("=") for text in texts or []}
    for text, (name, _, value) in pairs.items():
        if not name or not value:
            raise ValueError(f"{flag} must be NAME=VALUE; got {text!r}. Pass for example {flag} tau=2.")
    return {name.strip(): value for name, _, value in pairs.values()}


def require_name(run_id: str, results: Path, resume: str = "") -> None:
    """Ends the command where a run cannot have this name; nothing is said where the name is to be made."""
    with refusing(ValueError, flag="--run-id: "):
        require_run_name(run_id, resume, results)


def listed(text: str) -> list[str]:
    """Words separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def find_run(name: str, results_dir: Path) -> Run:
    """Loads a run from a file, the id of a saved run, or `latest`; ends the command where that fails."""
    path = _path_of(name, results_dir)
    with refusing(JournalError):
        return _named(load_run(path), path)


def _named(run: Run, path: Path) -> Run:
    """The run by the name of its file, for that is what a user calls it; two that were renamed may share another."""
    if path.stem == run.header.run_id or not RUN_ID.fullmatch(path.stem):
        return run
    return run.model_copy(update={"header": run.header.model_copy(update={"run_id": path.stem})})


def saved_runs(results_dir: Path) -> tuple[list[Run], list[str]]:
    """Every run in the results folder, finished or not, and a sentence about each file that is none."""
    runs, unread = list[Run](), list[str]()
    for path in _files(results_dir):
        try:
            runs.append(_named(load_run(path), path))
        except JournalError as error:
            unread.append(str(error))
        except OSError as error:
            unread.append(f"{path}: cannot be read: {error.strerror or error}.")
    return runs, unread


def _files(results_dir: Path) -> list[Path]:
    """Files of runs, that which measured last at the end; of a run that was killed as it finished, the finished one.

    The dates are those in the files, for a clone has all of them of one second. Of two that end with the same case,
    as a merged run and its last part do, the larger one counts.
    """
    dated = []
    for path in results_dir.glob("*.json*"):
        stale = path.suffix == ".jsonl" and path.with_suffix(".json").exists()
        if path.suffix in (".json", ".jsonl") and not stale:
            with suppress(OSError):  # removed since
                if stat.S_ISREG(path.stat().st_mode):
                    content = b""
                    with suppress(OSError):  # to read it will say why
                        content = path.read_bytes()
                    dated.append((max(_STARTED.findall(content), default=b""), len(content), path))
    return [path for *_, path in sorted(dated)]


def _path_of(name: str, results_dir: Path) -> Path:
    with suppress(OSError):  # such as a name that is too long
        if Path(name).is_file():
            return Path(name)
    runs = _files(results_dir)
    if name == "latest" and runs:
        return runs[-1]
    by_id = {path.stem: path for path in runs}
    if name in by_id:
        return by_id[name]
    if name == "latest":
        raise failure(
            f"no run in {results_dir} yet. Make one with `revsnn-bench run`, or name its folder with --results.",
            ExitCode.USAGE,
        )
    known = get_close_matches(name, by_id, 3) or [path.stem for path in runs[-3:]]
    there = f"Runs there: {', '.join(known)}." if known else "There is none yet: make one with `revsnn-bench run`."
    raise failure(
        f"no run {name!r}: it is neither a file nor the id of a run in {results_dir}. {there}", ExitCode.USAGE
    )
