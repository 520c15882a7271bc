"""`revsnn-bench train` and `tune`: one training, or a search for the settings that are worth their bytes.

`train` takes one network, one node, one data set, and is checkpointed after every epoch. `tune` searches the settings
of nodes within a budget of bytes, and trains the best again on fresh seeds.
"""

import pickle
import shlex
import time
import warnings
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from revsnn_bench.case import POSITIVE, Case, each, one_of, parse_shape, parse_size
from revsnn_bench.cli.options import (
    REPORTS,
    RESULTS,
    Formats,
    Network,
    Reports,
    Results,
    Resume,
    RunName,
    busy,
    case_option,
    checked,
    count,
    failure,
    is_typed,
    listed,
    named_values,
    refusing,
    require_name,
    typed_command,
)
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.records import Record, SkipCase, Status, utc_now
from revsnn_bench.report import units
from revsnn_bench.run_options import find_journal, parse_limit
from revsnn_bench.runs import require_writable, write_whole
from revsnn_bench.system.environment import fingerprint, search_working_folder
from revsnn_bench.tuning.space import OBJECTIVES, StudySettings, parse_value

if TYPE_CHECKING:
    from revsnn_bench.models.training import Trainer
    from revsnn_bench.tuning.study import Study

DATA = ("digits", "cifar10", "cifar100")


def train(
    network: Network = "vgg11@0.25",
    node: Annotated[str, case_option("node", help="Node, or node+strategy.")] = "lif-carrier",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of the node, such as group_dim=1.")
    ] = None,
    data: Annotated[str, checked(one_of(DATA), metavar="NAME", help=f"Data set, among {', '.join(DATA)}.")] = "digits",
    data_dir: Annotated[Path, typer.Option(metavar="DIR", help="Folder that holds the CIFAR archive.")] = Path("data"),
    shape: Annotated[
        str, case_option("shape", help="Channels x height x width of digits; for pixels the neurons per layer.")
    ] = "1x8x8",
    encoding: Annotated[str, case_option("encoding")] = "direct",
    timesteps: Annotated[int, case_option("timesteps")] = 4,
    epochs: Annotated[int, count(1, "Passes over the training data.")] = 12,
    batch: Annotated[int, case_option("batch")] = 64,
    learning_rate: Annotated[float, case_option("learning_rate", help="Highest learning rate of the schedule.")] = 1e-2,
    seed: Annotated[int, case_option("seed", help="Seed of parameters and order of samples.")] = 0,
    device: Annotated[str, case_option("device")] = "cpu",
    dtype: Annotated[str, case_option("dtype")] = "float32",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Written after every epoch; gone on with where it exists.", show_default=False
        ),
    ] = None,
    run_id: RunName = "",
    results: Results = RESULTS,
) -> None:
    """Train a network and test it after every epoch; save accuracy, its curve and the stripped accuracy as a run.

    Ctrl-C loses the epoch in progress; the same command with the same --checkpoint goes on to the bit.
    """
    require_name(run_id, results)
    if checkpoint is not None and checkpoint.exists() and not checkpoint.is_file():
        raise failure(f"--checkpoint must be a file; {checkpoint} is none. Name another.", ExitCode.USAGE)
    with refusing(ValueError, FileNotFoundError, SkipCase), busy("Loading torch ..."):
        options = {name: parse_value(value) for name, value in named_values("--option", option).items()}
        case = Case.model_validate({
            "node": node, "workload": network, "timesteps": timesteps, "batch": batch, "dtype": dtype, "device": device,
            "shape": (3, 32, 32) if data != "digits" else parse_shape(shape), "seed": seed, "epochs": epochs,
            "learning_rate": learning_rate, "encoding": encoding, "node_options": options,
        })  # fmt: skip
        trainer = _trainer(case, data, data_dir)
        if checkpoint is not None and checkpoint.is_file():
            _go_on(trainer, checkpoint)
    require_writable(results, *(() if checkpoint is None else (checkpoint.parent,)))  # before hours of training
    _train(trainer, checkpoint)
    typer.echo(_save(case, trainer, run_id, results))


def _trainer(case: Case, data: str, data_dir: Path) -> "Trainer":
    """The training of a case on a data set; a ValueError where its node refuses the options."""
    from revsnn_bench.models.data import CIFAR10, CIFAR100, read_cifar
    from revsnn_bench.models.training import Recipe, Trainer

    split = None if data == "digits" else read_cifar(data_dir, CIFAR10 if data == "cifar10" else CIFAR100)
    try:
        return Trainer(case, Recipe(case.epochs, case.batch, case.learning_rate), split, data)
    except TypeError as error:
        if not case.node_options:
            raise
        told = str(error).removesuffix(".")
        raise ValueError(f"--option: the node {case.node!r} refuses its arguments: {told}.") from None


def _train(trainer: "Trainer", checkpoint: Path | None) -> None:
    """Runs the epochs that are left, under a progress bar, and prints a line after each."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    epochs = trainer.recipe.epochs
    with warnings.catch_warnings(), Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        warnings.simplefilter("once")
        warnings.showwarning = lambda message, *_: typer.echo(f"Warning: {message}", err=True)
        task = bar.add_task("training", total=epochs * trainer.batches, completed=trainer.epoch * trainer.batches)
        while trainer.epoch < epochs:
            bar.update(task, description=f"epoch {trainer.epoch + 1} of {epochs}")
            try:
                trainer.run_epoch(on_batch=lambda: bar.advance(task))
            except KeyboardInterrupt:
                nothing = "nothing was saved. With --checkpoint FILE the same command goes on after the last epoch"
                kept = f"the same command goes on after epoch {trainer.epoch}" if checkpoint else nothing
                raise failure(f"interrupted; {kept}.", ExitCode.INTERRUPTED) from None
            if checkpoint is not None:
                _write(trainer, checkpoint)
            loss, accuracy = trainer.loss_by_epoch[-1], trainer.accuracy_by_epoch[-1]
            typer.echo(f"epoch {trainer.epoch:3}  loss {loss:.4f}  test accuracy {100 * accuracy:.1f} %")


def _go_on(trainer: "Trainer", checkpoint: Path) -> None:
    """Goes on where a checkpoint was written; a ValueError where it is none, or one of another training."""
    import torch

    try:
        trainer.load_state(torch.load(checkpoint, weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--checkpoint must be a file that this command wrote; got {checkpoint}, which is damaged, or another file "
            f"({type(error).__name__}). Remove it, or name another."
        ) from None


def _write(trainer: "Trainer", checkpoint: Path) -> None:
    """Replaces the checkpoint as a whole, so that an interrupt leaves the old one."""
    import torch

    state = BytesIO()
    torch.save(trainer.state(), state)  # to a file it has an error of its own for a full disk
    try:
        write_whole(state.getvalue(), checkpoint)
    except OSError as error:
        kept = f"after epoch {trainer.epoch - 1}" if checkpoint.exists() else "from the start"
        error.add_note(f"The same command goes on {kept}.")
        raise


def _save(case: Case, trainer: "Trainer", run_id: str, results: Path) -> Path:
    """Writes a run of this one record, and prints the accuracy."""
    from revsnn_bench.models.methods import is_approximate
    from revsnn_bench.session import SavedOptions

    start = time.monotonic()
    accuracy = trainer.record()
    stripped = accuracy.stripped_accuracy
    typer.echo(
        f"{case.variant} in {case.workload}: {100 * accuracy.accuracy:.1f} %"
        + (f", stripped to binary spikes {100 * stripped:.1f} %" if stripped is not None else "")
        + f", {accuracy.train_time_s:.0f} s"
    )
    record = Record(
        case=case,
        status=Status.APPROXIMATE if is_approximate(case.node) else Status.OK,
        accuracy=accuracy,
        started_at=utc_now(),
        duration_s=accuracy.train_time_s + time.monotonic() - start,
    )
    saved = SavedOptions(run_id=run_id, results_dir=results, command=typed_command())
    with saved.journal(fingerprint(), {"epochs": case.epochs}) as journal:
        journal.append(record)
        return journal.finish()


_CARRIED_OUT = frozenset(
    ("workers", "threads", "timeout", "memory_limit", "preload", "run_id", "resume", "results", "reports", "format")
)
"""Options that do not change what a study finds; the others are read from the journal when it is resumed."""


_BUDGET = 'Peak that no trial\'s step may exceed, such as "64 MiB".'


def tune(
    context: typer.Context,
    budget: Annotated[str | None, checked(parse_limit, metavar="SIZE", help=_BUDGET, show_default="none")] = None,
    node: Annotated[
        str, case_option("node", help="Nodes, with strategies, separated by commas; the first one is the baseline.")
    ] = "lif,lif-carrier,revlif,revlif-anchored",
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=AXIS", help="Where to search, such as tau=1.1..8:log, groups=2,4 or beta=1. May be repeated."
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Argument of every node that takes it.")
    ] = None,
    objective: Annotated[
        str,
        checked(
            each(one_of(tuple(OBJECTIVES))), metavar="NAMES", help=f"What is asked for, among {', '.join(OBJECTIVES)}."
        ),
    ] = ",".join(OBJECTIVES),
    trials: Annotated[int, count(1, "Choices to try.")] = 40,
    network: Network = "vgg11@0.25",
    shape: Annotated[str, case_option("shape", help="Channels x height x width of the digits.")] = "1x8x8",
    encoding: Annotated[str, case_option("encoding")] = "direct",
    timesteps: Annotated[int, case_option("timesteps", help="T, unless --space searches it.")] = 4,
    batch: Annotated[int, case_option("batch")] = 64,
    epochs: Annotated[int, count(1, "Epochs of a trial that is not stopped.")] = 12,
    seed: Annotated[int, count(0, "Of the sampler, the parameters and the order of samples.")] = 0,
    device: Annotated[str, case_option("device")] = "cpu",
    dtype: Annotated[str, case_option("dtype")] = "float32",
    drift_tolerance: Annotated[
        float, typer.Option(metavar="X", help="Largest gradient error that a node may predict of itself.")
    ] = 1e-3,
    retrain: Annotated[int, count(0, "How many of the best to train again; 0 for none.")] = 3,
    seeds: Annotated[int, count(2, "On so many fresh seeds.")] = 5,
    workers: Annotated[int, count(1, "Trials at a time.")] = 1,
    threads: Annotated[int, count(1, "Threads of each worker.")] = 1,
    timeout: Annotated[float, checked(POSITIVE, metavar="SECONDS", help="Time limit per trial, in seconds.")] = 900.0,
    memory_limit: Annotated[
        str | None,
        checked(parse_limit, metavar="SIZE", help='Memory limit of a worker, such as "2 GiB".', show_default="none"),
    ] = None,
    preload: Annotated[
        str, typer.Option(metavar="MODULES", help="Modules that workers import first, such as one with a node.")
    ] = "",
    resume: Resume = "",
    run_id: RunName = "",
    results: Results = RESULTS,
    reports: Reports = REPORTS,
    format: Formats = "md,csv,json,html",
) -> None:
    """Search settings of the nodes for accuracy, peak bytes and time; what is predicted beyond the budget never runs.

    Trials are cases of a saved run. What was done survives a kill, and --resume RUN goes on, alone enough. The best are
    trained again on fresh seeds, and compared with the first node's defaults; a page shows the study.
    """
    if find_spec("optuna") is None:
        raise failure("tune needs Optuna: pip install optuna.", ExitCode.USAGE)
    try:
        with busy("Loading torch and Optuna ..."):
            opened = _opened(context)
    except (ImportError, RuntimeError, ValueError) as error:
        raise failure(_sentence(error), ExitCode.USAGE) from None
    _carry_out(opened)


def _opened(context: typer.Context) -> "Study":
    given = context.params
    preload = tuple(listed(given["preload"]))
    search_working_folder()
    for name in preload:
        import_module(name)
    journal = _journal(context) if given["resume"] else None
    from revsnn_bench.tuning.study import Study, StudyOptions, settings_of

    settings = _settings(given) if journal is None else settings_of(journal)
    options = StudyOptions(
        run_id=given["run_id"] or None,
        results_dir=given["results"],
        reports_dir=given["reports"],
        formats=tuple(listed(given["format"])),
        resume=journal,
        workers=given["workers"],
        threads=given["threads"],
        timeout_s=float(given["timeout"]),
        memory_limit_bytes=None if given["memory_limit"] is None else parse_size(given["memory_limit"]),
        preload=preload,
        command=typed_command(),
        on_record=_show,
    )
    return Study(settings, options)


def _journal(context: typer.Context) -> Path:
    changed = [name for name in context.params if name not in _CARRIED_OUT and is_typed(context, name)]
    given = [f"--{name.replace('_', '-')}" for name in changed]
    if given:
        raise ValueError(
            f"--resume must come without {', '.join(given)}: a study goes on as it began. Leave them out, or start a "
            "new study."
        )
    return find_journal(context.params["resume"], context.params["results"])


def _settings(given: dict[str, Any]) -> StudySettings:
    options = {name: parse_value(text) for name, text in named_values("--option", given["option"]).items()}
    read = {
        "workload": given["network"],
        "nodes": tuple(listed(given["node"])),
        "space": named_values("--space", given["space"]),
        "options": options,
        "shape": parse_shape(given["shape"]),
        "objective": tuple(listed(given["objective"])),
        "budget_bytes": None if given["budget"] is None else parse_size(given["budget"]),
    }
    as_given = {name: value for name, value in given.items() if name in StudySettings.model_fields}
    found = StudySettings.model_validate(as_given | read)
    found.require_sound()
    return found


def _sentence(error: Exception) -> str:
    """The first message of a failed validation, or the error's own."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    text = str(first["msg"]).removeprefix("Value error, ")
    field = ".".join(map(str, first["loc"]))
    return text if text.startswith("`") else f"`{field}`: {text[0].lower()}{text[1:]}"


def _carry_out(opened: "Study") -> None:
    typer.echo("Searching. Each trial has a line when it has ended.", err=True)
    with opened as study:
        go_on = f"go on: revsnn-bench tune --resume {shlex.quote(str(study.journal_path))}"
        try:
            study.search()
            study.retrain()
        except KeyboardInterrupt:
            raise failure(f"interrupted; {go_on}", ExitCode.INTERRUPTED) from None
        except OSError as error:
            error.add_note(f"What is done is kept; {go_on}")
            raise
        run, files = study.finish()
    from revsnn_bench.report import study as read

    for line in read.summary(run):
        typer.echo(line)
    best = read.chosen(run)
    if best is not None:
        typer.echo(f"train it with: {read.command(best)}")
    for path in files:
        typer.echo(path)
    if best is None:
        raise typer.Exit(ExitCode.CASE_FAILED)


def _show(record: Record) -> None:
    """A line for each record, as it comes."""
    known, accuracy = record.trial, record.accuracy
    number = "" if known is None else f"{known.number:3}"
    got = "" if accuracy is None else f"  {100 * accuracy.accuracy:5.1f} % at epoch {accuracy.epochs}"
    reason = (record.reason or "").partition("\n")[0]
    why = f"  {reason}" if reason else ""
    peak = units.measured("peak_bytes", record)
    setting = f"{record.case.variant}, seed {record.case.seed}"
    typer.echo(f"trial {number}  {record.status.value:8}{got}  {peak:>10}  {setting}{why}")
