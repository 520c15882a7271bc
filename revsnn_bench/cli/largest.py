"""`revsnn-bench largest`: the largest T or batch whose training step fits in a budget of bytes, node by node."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from revsnn_bench.case import Case, one_of, parse_shape, parse_size
from revsnn_bench.cli.options import case_option, checked, failure, listed
from revsnn_bench.exit_codes import ExitCode

if TYPE_CHECKING:
    from revsnn_bench.plan.largest import Axis, Fit, Peak
    from revsnn_bench.runner import Runner

_HEADINGS = ["node", "largest", "its peak", "peak of the next", "measured"]


def largest(
    budget: Annotated[str, checked(parse_size, help='Peak memory that a training step may take, such as "256 MiB".')],
    axis: Annotated[str, checked(one_of(("timesteps", "batch")), help="What grows: timesteps or batch.")] = "timesteps",
    node: Annotated[
        str, case_option("node", help="Nodes, separated by commas; every registered node by default.")
    ] = "",
    workload: Annotated[str, case_option("workload")] = "layer",
    timesteps: Annotated[int, case_option("timesteps", help="T, where the batch grows.")] = 8,
    batch: Annotated[int, case_option("batch", help="Batch, where T grows.")] = 8,
    shape: Annotated[str, case_option("shape")] = "4096",
    limit: Annotated[int, typer.Option(min=1, help="Largest value to try.")] = 1 << 14,
) -> None:
    """Find how far each node goes in a memory budget, by measuring steps in fresh processes.

    The next larger size is measured, too. Parameters and the input are allocated before the step and are not counted;
    the neuron state is.
    """
    from revsnn_nodes import node_names

    from revsnn_bench.measuring import measure
    from revsnn_bench.models.strategies import strategy
    from revsnn_bench.plan.largest import largest_that_fits
    from revsnn_bench.report.terminal import grid
    from revsnn_bench.runner import Runner

    names = listed(node) or node_names()
    fixed = Case(node="lif", workload=workload, timesteps=timesteps, batch=batch, shape=parse_shape(shape))
    table = grid(f"Largest {axis} in {budget}: {workload}, features {shape}", _HEADINGS, [False, *[True] * 4])
    grows: Axis = "batch" if axis == "batch" else "timesteps"
    try:
        for name in names:
            strategy(name)
        with Runner(measure, timeout_s=600) as runner:
            for name in names:
                case = fixed.model_copy(update={"node": name, axis: 1})
                fit = largest_that_fits(case, grows, parse_size(budget), _peaks(runner), limit)
                table.add_row(name, *_cells(fit, axis))
    except ValueError as error:
        raise failure(str(error), ExitCode.USAGE) from None
    Console().print(table)


def _peaks(runner: "Runner") -> "Peak":
    """Measures the peak of a case; a case that fails for another reason than memory ends the command."""
    from revsnn_bench.measuring import Settings

    def peak_of(case: Case) -> int | None:
        record = runner.run(case, Settings(passes=("memory",)))
        if record.status.value not in ("ok", "oom"):
            raise failure(f"{case.id} {record.status.value}: {record.reason}", ExitCode.CASE_FAILED)
        return None if record.memory is None else record.memory.peak_bytes

    return peak_of


def _cells(fit: "Fit", axis: str) -> tuple[str, ...]:
    """What fits, its peak, the peak of the next larger one, and how many were measured."""
    from revsnn_bench.report import units

    value = "none" if fit.case is None else f"{getattr(fit.case, axis)}{' or more' if fit.at_limit else ''}"
    peaks = (fit.peak_bytes, fit.next_peak_bytes)
    shown = ("" if peak is None else units.scaled(peak, 1024, units.BINARY) for peak in peaks)
    return value, *shown, str(fit.probes)
