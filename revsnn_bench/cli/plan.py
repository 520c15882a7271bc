"""`revsnn-bench plan`, `predict`, `largest`: what fits a budget of bytes, what a step takes, how far a node goes."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from revsnn_bench.case import Case, each, one_of, parse_shape, parse_size
from revsnn_bench.cli.options import (
    Input,
    Model,
    busy,
    case_option,
    checked,
    count,
    failure,
    given_model,
    is_typed,
    listed,
    refusing,
)
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.measuring import Settings, measure
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import MemoryRecord, Record, Status
from revsnn_bench.report import points, units
from revsnn_bench.report.terminal import Grid
from revsnn_bench.run_options import parse_limit
from revsnn_bench.runs import require_writable, write_whole

if TYPE_CHECKING:
    from revsnn_bench.plan.planning import Plan
    from revsnn_bench.runner import Runner

PLAN = Path("plan.json")

Budget = Annotated[
    str, checked(parse_limit, metavar="SIZE", help='Peak that a training step may take, such as "4 GiB".')
]
Backend = Annotated[
    str,
    checked(one_of(("auto", "torch", "fused")), metavar="NAME", help="Backend of the neurons: auto, torch or fused."),
]
Blocks = Annotated[str, typer.Option(metavar="MODULE:CLASS", help="Class of the model's blocks.", show_default=False)]
Limit = Annotated[
    str | None,
    checked(
        parse_limit, metavar="SIZE", help="Peak up to which a step is run here.", show_default="half of the free memory"
    ),
]
Threads = Annotated[int | None, count(1, "Threads of each worker; torch's default if not given.")]
Page = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Where to write a page on what fits.", show_default=False)
]

Failed = dict[tuple[str, ExitCode], list[str]]
"""What is wrong and how the command ends, PASS for what was skipped, with the nodes that it is about."""


def _nodes(default: str) -> Any:
    """The option --node of a command, with what it is where none is named."""
    text = "Nodes, or methods for --model, separated by commas."
    return checked(each(str), metavar="NAMES", help=text, show_default=default)


_METHODS = ["as-is", "as-is+remat", "lif", "lif+remat", "lif+checkpoint", "lif+bitpack"]
"""Methods for a model of one's own, where none is named."""


def plan(
    context: typer.Context,
    model: Model,
    input: Input,
    budget: Budget,
    backend: Backend = "auto",
    rounds: Annotated[int, count(1, "Timed steps of each option.")] = 3,
    blocks: Blocks = "",
    limit: Limit = None,
    threads: Threads = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where the plan goes, for `apply_plan`.")] = PLAN,
    page: Page = None,
    frontier: Annotated[bool, typer.Option("--frontier", help="Show the least time for every budget.")] = False,
) -> None:
    """Find the cheapest way to train a model of your own within a memory budget, and measure that it fits.

    Every block keeps everything, makes again what is cheap, or runs again. Gradients stay those of the model.
    Parameters and the input are allocated before the step and are not counted. Ends with 5 where nothing fits.
    """
    from revsnn_bench.runner import Runner

    fields = given_model(context, model, input)
    case = Case.model_validate({"node": "lif", "node_options": {"backend": backend}, **fields})
    _require_writable("--output", output)
    if page is not None:
        _require_writable("--page", page)
    curve, most = frontier or page is not None, None if limit is None else parse_size(limit)
    try:
        with (
            busy("Measuring what each block keeps and takes ..."),
            Runner(measure, timeout_s=1800, threads=threads) as runner,
        ):
            from revsnn_bench.plan.planning import plan_case  # which loads torch, while the runner does so too

            found = plan_case(runner.call, case, parse_size(budget), rounds, blocks, most, curve)
    except RuntimeError as error:
        raise failure(*_told(error)) from None
    _show(found, frontier)
    write_whole(found.to_json(), output)
    typer.echo(f"plan: {output}")
    if page is not None:
        from revsnn_bench.report.html.plan import plan_page

        write_whole(plan_page(found.as_dict(), f"{model}, input {input}"), page)
        typer.echo(f"page: {page}")
    if not found.fits:
        raise typer.Exit(ExitCode.CASE_FAILED)


def _require_writable(flag: str, path: Path) -> None:
    """Ends the command where a file cannot be written, before there is anything to lose; makes its folder."""
    with refusing(OSError, flag=f"{flag}: "):
        require_writable(path.parent)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder. Name a file in it.")


def _told(error: RuntimeError) -> tuple[str, ExitCode]:
    """The first line of a worker's error, and how the command ends: the options were wrong, or the model failed."""
    text = str(error).partition("\n")[0]
    wrong_value = text.startswith("ValueError: ")
    if wrong_value or text.startswith("revsnn_"):
        text = text.partition(": ")[2] or text
    usage = wrong_value or text.startswith("`--")
    return text, ExitCode.USAGE if usage else ExitCode.CASE_FAILED


def _show(found: "Plan", frontier: bool) -> None:
    console = Console()
    kept = sum(row.kept_bytes for row in found.rows) or 1
    headings = ["block", "option", "keeps", "share", "highest", "extra time"]
    table = Grid("What each block does", headings, [False, False, *[True] * 4])
    for row in found.rows:
        sizes = (units.size(row.kept_bytes), f"{row.kept_bytes / kept:.0%}", units.size(row.peak_bytes))
        table.add_row(row.block, row.option, *sizes, f"{row.extra_s * 1e3:+.1f} ms")
    console.print(table)
    typer.echo(found.legend())
    if len(found.rows) == 2:
        typer.echo(
            "The model is planned as one block. Where its parts run once in a step each, --blocks names their class."
        )
    if frontier:
        curve = [(units.size(peak), f"{seconds * 1e3:.1f} ms") for peak, seconds in found.frontier]
        console.print(Grid("Least time for every budget", ["budget", "time of a step"], [True, True], curve))
    for line in found.summary():
        typer.echo(line)


def _fields(context: typer.Context, workload: str, timesteps: int, batch: int, shape: str) -> dict[str, Any]:
    """The fields of a case, of a workload or of the user's model that is given in its place."""
    own = given_model(context, context.params["model"], context.params["input"])
    return {"workload": workload, "timesteps": timesteps, "batch": batch, "shape": parse_shape(shape), **own}


def predict(
    context: typer.Context,
    model: Model = "",
    input: Input = "",
    node: Annotated[str, _nodes("lif; of a model every method")] = "",
    workload: Annotated[str, case_option("workload")] = "layer",
    timesteps: Annotated[int, case_option("timesteps")] = 8,
    batch: Annotated[int, case_option("batch")] = 8,
    shape: Annotated[str, case_option("shape")] = "4096",
    device: Annotated[str, case_option("device")] = "cpu",
    threads: Threads = None,
) -> None:
    """Predict peak, retained bytes and operations of a training step, without allocating its tensors.

    A node that cannot be predicted is named below those that can.
    """
    fields = _fields(context, workload, timesteps, batch, shape)
    from revsnn_bench.runner import Runner, Skipped

    names = listed(node) or (_METHODS if model else ["lif"])
    cases = [Case.model_validate({"node": name, "device": device, **fields}) for name in names]
    title = f"Predicted: {cases[0].workload} {cases[0].size}"
    table, uncounted = Grid(title, ["node", "peak", "retained", "FLOPs"], [False, *[True] * 3]), ""
    failed: Failed = {}
    with busy("Loading torch ...") as show, Runner(measure, timeout_s=1800, threads=threads) as runner:
        from revsnn_bench.plan.predict import predict as predicted  # which loads torch, as in `plan`

        for case in cases:
            show(f"Predicting {case.node} ...")
            try:
                found = runner.call(predicted, case)
            except RuntimeError as error:
                text, code = _told(error)
                failed.setdefault((text, ExitCode.PASS if isinstance(error, Skipped) else code), []).append(case.node)
                continue
            flops = units.number(BY_NAME["step_flops"], found.flops)
            table.add_row(case.node, units.size(found.peak_bytes), units.size(found.retained_bytes), flops)
            uncounted = found.uncounted or uncounted
    if table.rows:
        Console().print(table)
    if uncounted:
        typer.echo(f"Operations were not counted: {uncounted}")
    if device == "cuda":
        typer.echo(
            "Blocks are rounded up to 512 B. Not included: the driver's context, workspaces of cuDNN and cuBLAS, "
            "fragmentation."
        )
    _tell(failed, bool(table.rows) and not node)


def _tell(failed: Failed, others: bool) -> None:
    """Names what has no row; ends the command unless that was skipped, nobody asked for it, and `others` have rows."""
    ends = []
    for (text, code), nodes in failed.items():
        told = f"{', '.join(nodes)}: {text}"
        if others and code is ExitCode.PASS:
            typer.echo(f"Skipped: {told}")
        else:
            ends.append(failure(told, code or ExitCode.CASE_FAILED))
    if ends:
        raise ends[0]


def largest(
    context: typer.Context,
    budget: Budget,
    axis: Annotated[
        str, checked(one_of(("timesteps", "batch")), metavar="NAME", help="What grows: timesteps or batch.")
    ] = "timesteps",
    node: Annotated[str, _nodes("every LIF and coupled node; of a model every method")] = "",
    workload: Annotated[str, case_option("workload")] = "layer",
    timesteps: Annotated[int, case_option("timesteps", help="T, where the batch grows.")] = 8,
    batch: Annotated[int, case_option("batch", help="Batch, where T grows.")] = 8,
    shape: Annotated[str, case_option("shape")] = "4096",
    limit: Annotated[int, count(1, "Largest value to try.")] = 1 << 14,
    model: Model = "",
    input: Input = "",
    of: Annotated[
        str, checked(one_of(("tensors", "process")), metavar="NAME", help="Whose peak decides: tensors, or process.")
    ] = "tensors",
    threads: Threads = None,
) -> None:
    """Find how far each node, or method for --model, goes in a memory budget.

    A prediction says where to look; steps measured in fresh processes decide, the next larger size among them.
    Parameters and the input are allocated before the step and are not counted; the neuron state is.
    """
    if is_typed(context, axis):
        raise failure(f"--{axis}: cannot be used where it is what grows, up to --limit; leave it out.", ExitCode.USAGE)
    fixed = Case.model_validate({"node": "lif", **_fields(context, workload, timesteps, batch, shape)})
    from revsnn_bench.runner import Runner

    names, failed = _known(node, model), Failed()
    title = f"Largest {axis} in {budget} of {of}: {points.fixed_part(fixed, without=axis)}"
    headings = ["node", "largest", "its peak", "of the process", "peak of the next", "measured"]
    table = Grid(title, headings, [False, *[True] * 5])
    with refusing(ValueError):
        try:
            with busy("Starting a worker ...") as show, Runner(measure, timeout_s=600, threads=threads) as runner:
                for name in names:
                    show(f"Looking for the largest {axis} of {name} ...")
                    case = fixed.model_copy(update={"node": name, axis: 1})
                    try:
                        table.add_row(name, *_cells(runner, case, axis, parse_size(budget), limit, of == "process"))
                    except NoPeak as error:
                        failed.setdefault((str(error), error.code), []).append(name)
        finally:  # after Ctrl-C too, for a row may take minutes
            if table.rows:
                Console().print(table)
    _tell(failed, bool(table.rows) and not node)


def _known(node: str, model: str) -> list[str]:
    """The nodes that are asked for, else all that `largest` looks at; ends the command where there is no such one."""
    with refusing(ValueError), busy("Loading torch ..."):
        from revsnn_nodes.registry import OTHER_NEURONS, usable_node_names

        from revsnn_bench.models.own import require_method
        from revsnn_bench.models.strategies import strategy

        names = listed(node) or (
            _METHODS if model else [name for name in usable_node_names() if name not in OTHER_NEURONS]
        )
        for name in names:
            (require_method if model else strategy)(name)
    return names


class NoPeak(Exception):
    """A case whose peak could not be measured, for another reason than memory."""

    def __init__(self, record: Record) -> None:
        reason = record.reason or "no reason recorded"
        text, self.code = _told(RuntimeError(reason))
        if record.status is Status.SKIPPED:
            self.code = ExitCode.PASS
        elif self.code is ExitCode.CASE_FAILED:
            text = f"{record.status.value}: {text}"
        super().__init__(text)


def _cells(runner: "Runner", case: Case, axis: str, budget_bytes: int, limit: int, of_process: bool) -> tuple[str, ...]:
    """What fits of a node, its peaks of tensors and process, the peak of the next, and how many were measured.

    Raises:
        NoPeak: a case fails for another reason than memory.
    """
    from revsnn_bench.plan.predict import predict

    memory: dict[Case, MemoryRecord] = {}

    def measured_peak(case: Case) -> int | None:
        if case not in memory:
            record = runner.run(case, Settings(passes=("memory",)))
            if record.status not in (Status.OK, Status.OOM):
                raise NoPeak(record)
            if record.memory is None:
                return None
            memory[case] = record.memory
        return memory[case].process_peak_bytes if of_process else memory[case].peak_bytes

    try:
        measured_peak(case)
    except NoPeak as error:
        if axis != "batch" or error.code is ExitCode.PASS:
            raise
        case = case.model_copy(update={axis: 2})  # a batch norm over features takes two samples at least
        measured_peak(case)
    guess: int | None = None
    with suppress(RuntimeError):  # of a node that cannot run without values
        foreseen = largest_that_fits(case, axis, budget_bytes, lambda one: runner.call(predict, one).peak_bytes, limit)
        guess = None if foreseen.case is None else getattr(foreseen.case, axis)
    fit = largest_that_fits(case, axis, budget_bytes, measured_peak, limit, guess)
    value = "none"
    own: tuple[int | None, ...] = None, None
    if fit.case is not None:
        value = f"{getattr(fit.case, axis)}{' or more' if fit.at_limit else ''}"
        own = memory[fit.case].peak_bytes, memory[fit.case].process_peak_bytes
    shown = ["" if peak is None else units.size(peak) for peak in (*own, fit.next_peak_bytes)]
    if shown[-1] == units.size(budget_bytes):  # beyond the budget, by less than two decimals tell
        shown[-1] = f"{fit.next_peak_bytes:,} B"
    return value, *shown, str(fit.probes)


@dataclass(frozen=True)
class Fit:
    """The largest case that fits, None where not even the smallest does, found by so many measurements.

    `next_peak_bytes` is that of the next larger case, which does not fit; None where it ran out of memory, or where the
    search ended at its limit.
    """

    case: Case | None
    next_peak_bytes: int | None
    at_limit: bool
    probes: int


def largest_that_fits(
    case: Case,
    axis: str,
    budget_bytes: int,
    peak_of: Callable[[Case], int | None],
    limit: int,
    guess: int | None = None,
) -> Fit:
    """Searches one axis of a case by bisection, and where two measured peaks predict it, on the line through them.

    Args:
        case: everything but the axis, whose smallest value is the case's own.
        budget_bytes: largest peak that fits.
        peak_of: measured peak bytes of a case; None where it ran out of memory.
        limit: largest value to try.
        guess: a value to try first, with the one after it: two measurements then decide where it is right.
    Returns:
        The largest value that was measured to fit; the next larger one was measured not to, or is beyond the limit.
        Peaks must not fall as the axis grows.
    Raises:
        ValueError: a budget below 1 byte, or a limit below the start.
    """
    start: int = getattr(case, axis)
    if budget_bytes < 1 or limit < start:
        raise ValueError(
            f"`budget_bytes` must be at least 1 and `limit` at least the start {start}; got {budget_bytes} and "
            f"{limit}. There is nothing to search. Pass a larger budget, or a case with a smaller start."
        )
    peaks: dict[int, int | None] = {}

    def fits(value: int) -> bool:
        if value not in peaks:
            peaks[value] = peak_of(case.model_copy(update={axis: value}))
        peak = peaks[value]
        return peak is not None and peak <= budget_bytes

    if not fits(start):
        return Fit(None, peaks[start], at_limit=False, probes=len(peaks))
    low, high = start, limit + 1  # low fits; high does not, or is not tried
    for value in () if guess is None else (guess, guess + 1):
        if low < value < high:
            low, high = (value, high) if fits(value) else (low, value)
    while high - low > 1:
        value = min(max(_next_value(peaks, low, high, budget_bytes), low + 1), high - 1)
        low, high = (value, high) if fits(value) else (low, value)
    best = case.model_copy(update={axis: low})
    return Fit(best, peaks.get(high), at_limit=low == limit, probes=len(peaks))


def _next_value(peaks: dict[int, int | None], low: int, high: int, budget_bytes: int) -> int:
    """Where a line through two measured peaks meets the budget.

    Between a value that fits and one that does not, every second value is the middle, so that any growth converges.
    """
    if high in peaks and (len(peaks) % 2 or peaks[high] is None):
        return (low + high) // 2
    ends = [low, high] if high in peaks else sorted(peaks)[-2:]
    y0, y1 = (peaks[value] or 0 for value in (ends[0], ends[-1]))
    if y1 <= y0:
        return 2 * low
    return ends[0] + (budget_bytes - y0) * (ends[1] - ends[0]) // (y1 - y0)
