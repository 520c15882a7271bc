"""`revsnn-bench largest`: the largest T or batch whose training step fits in a budget of bytes, node by node."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from revsnn_bench.case import Case, one_of, parse_shape, parse_size
from revsnn_bench.cli.options import Input, Model, case_option, checked, failure, given_model, listed
from revsnn_bench.exit_codes import ExitCode

if TYPE_CHECKING:
    from revsnn_bench.plan.largest import Axis, Fit, Peak
    from revsnn_bench.runner import Runner

_HEADINGS = ["node", "largest", "its peak", "of the process", "peak of the next", "measured"]


def largest(
    budget: Annotated[str, checked(parse_size, help='Peak memory that a training step may take, such as "256 MiB".')],
    axis: Annotated[str, checked(one_of(("timesteps", "batch")), help="What grows: timesteps or batch.")] = "timesteps",
    node: Annotated[
        str, case_option("node", help="Nodes, separated by commas; every LIF and coupled node by default.")
    ] = "",
    workload: Annotated[str, case_option("workload")] = "layer",
    timesteps: Annotated[int, case_option("timesteps", help="T, where the batch grows.")] = 8,
    batch: Annotated[int, case_option("batch", help="Batch, where T grows.")] = 8,
    shape: Annotated[str, case_option("shape")] = "4096",
    limit: Annotated[int, typer.Option(min=1, help="Largest value to try.")] = 1 << 14,
    model: Model = "",
    input: Input = "",
    of: Annotated[
        str, checked(one_of(("tensors", "process")), help="Whose peak decides: tensors, or process.")
    ] = "tensors",
) -> None:
    """Find how far each node, or method for --model, goes in a memory budget.

    A prediction says where to look; steps measured in fresh processes decide, the next larger size among them.
    Parameters and the input are allocated before the step and are not counted; the neuron state is.
    """
    from revsnn_nodes.registry import OTHER_NEURONS, usable_node_names

    from revsnn_bench.measuring import measure
    from revsnn_bench.models.strategies import strategy
    from revsnn_bench.plan.largest import largest_that_fits
    from revsnn_bench.report.terminal import grid
    from revsnn_bench.runner import Runner

    own = ["as-is", "lif", "lif+remat", "lif+checkpoint", "lif+bitpack"]
    names = listed(node) or (own if model else [name for name in usable_node_names() if name not in OTHER_NEURONS])
    fields = (
        given_model(model, input)
        if model
        else {"workload": workload, "timesteps": timesteps, "batch": batch, "shape": parse_shape(shape)}
    )
    fixed = Case(node="lif", **fields)
    title = f"Largest {axis} in {budget} of {of}: {fixed.workload}, features {fixed.features}"
    table = grid(title, _HEADINGS, [False, *[True] * 5])
    grows: Axis = "batch" if axis == "batch" else "timesteps"
    try:
        for name in () if model else names:
            strategy(name)
        with Runner(measure, timeout_s=600) as runner:
            for name in names:
                case = fixed.model_copy(update={"node": name, axis: 1})
                peaks: dict[Case, tuple[int | None, int | None]] = {}
                guess = _guess(runner, case, grows, parse_size(budget), limit)
                peak_of = _peaks(runner, peaks, of == "process")
                fit = largest_that_fits(case, grows, parse_size(budget), peak_of, limit, guess)
                table.add_row(name, *_cells(fit, axis, peaks))
    except ValueError as error:
        raise failure(str(error), ExitCode.USAGE) from None
    Console().print(table)


def _guess(runner: "Runner", case: Case, axis: "Axis", budget_bytes: int, limit: int) -> int | None:
    """What fits by prediction; None where the node cannot run without values."""
    from revsnn_bench.plan.largest import largest_that_fits
    from revsnn_bench.plan.predict import predict

    try:
        fit = largest_that_fits(case, axis, budget_bytes, lambda each: runner.call(predict, each).peak_bytes, limit)
    except RuntimeError:
        return None
    return None if fit.case is None else int(getattr(fit.case, axis))


def _peaks(runner: "Runner", found: dict[Case, tuple[int | None, int | None]], of_process: bool) -> "Peak":
    """Measures the peak of a case, and notes those of tensors and process.

    A case that fails for another reason than memory ends the command.
    """
    from revsnn_bench.measuring import Settings

    def peak_of(case: Case) -> int | None:
        record = runner.run(case, Settings(passes=("memory",)))
        if record.status.value not in ("ok", "oom"):
            reason = (record.reason or "no reason recorded").partition("\n")[0]
            raise failure(f"{case.id} {record.status.value}: {reason}", ExitCode.CASE_FAILED)
        if record.memory is None:
            return None
        found[case] = record.memory.peak_bytes, record.memory.process_peak_bytes
        return found[case][of_process]

    return peak_of


def _cells(fit: "Fit", axis: str, found: dict[Case, tuple[int | None, int | None]]) -> tuple[str, ...]:
    """What fits, its peaks of tensors and process, the peak of the next larger one, and how many were measured."""
    from revsnn_bench.report import units

    value = "none" if fit.case is None else f"{getattr(fit.case, axis)}{' or more' if fit.at_limit else ''}"
    own = (None, None) if fit.case is None else found[fit.case]
    peaks = (*own, fit.next_peak_bytes)
    shown = ("" if peak is None else units.size(peak) for peak in peaks)
    return value, *shown, str(fit.probes)
