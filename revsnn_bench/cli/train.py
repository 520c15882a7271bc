"""`revsnn-bench train`: one network, one node, one data set; checkpointed after every epoch."""

import pickle
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from revsnn_bench.case import Case, one_of, parse_shape
from revsnn_bench.cli.options import (
    RESULTS,
    Network,
    Results,
    RunName,
    case_option,
    checked,
    count,
    failure,
    named_values,
    refusing,
    require_name,
    typed_command,
)
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.records import Record, Status, utc_now
from revsnn_bench.runs import require_writable
from revsnn_bench.system.environment import fingerprint
from revsnn_bench.tuning.space import parse_value

if TYPE_CHECKING:
    from revsnn_bench.models.training import Trainer

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
    with refusing(ValueError, FileNotFoundError):
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

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    part = checkpoint.with_suffix(".part")
    torch.save(trainer.state(), part)
    part.replace(checkpoint)


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
