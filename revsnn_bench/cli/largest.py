"""`revsnn-bench largest`: the largest T or batch whose training step fits in a budget of bytes, node by node."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from revsnn_bench.cli.options import failure
from revsnn_bench.exit_codes import ExitCode

if TYPE_CHECKING:
    from revsnn_bench.case import Case


def largest(
    budget: Annotated[str, typer.Option(help='Bytes that a training step may take at its peak, such as "256 MiB".')],
    axis: Annotated[str, typer.Option(help="What grows: timesteps or batch.")] = "timesteps",
    node: Annotated[str, typer.Option(help="Nodes, separated by commas; every registered node by default.")] = "",
    workload: Annotated[str, typer.Option(help="What the node is put into.")] = "layer",
    timesteps: Annotated[int, typer.Option(min=1, help="T, where the batch grows.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Batch, where T grows.")] = 8,
    shape: Annotated[str, typer.Option(help="Shape of one sample at one step, such as 4096 or 3x32x32.")] = "4096",
    limit: Annotated[int, typer.Option(min=1, help="Largest value to try.")] = 1 << 14,
) -> None:
    """Find how far each node goes in a memory budget: measured in fresh processes, and the next larger size too.

    Parameters and the input's source are alive before the step and are not counted; the neuron state is.
    """
    from revsnn_nodes import node_names

    from revsnn_bench.case import Case, parse_size
    from revsnn_bench.measuring import Settings, measure
    from revsnn_bench.plan.largest import largest_that_fits
    from revsnn_bench.report import units
    from revsnn_bench.report.terminal import grid
    from revsnn_bench.runner import Runner

    if axis not in ("timesteps", "batch"):
        raise failure(f"--axis must be timesteps or batch; got {axis!r}.", ExitCode.USAGE)
    names = [name.strip() for name in node.split(",") if name.strip()] or node_names()
    sizes = tuple(int(size) for size in shape.split("x"))
    fixed = Case(node="lif", workload=workload, timesteps=timesteps, batch=batch, shape=sizes)
    table = grid(f"Largest {axis} in {budget}: {workload}, features {shape}", _HEADINGS, [False, *[True] * 4])
    try:
        budget_bytes = parse_size(budget)
        with Runner(measure, timeout_s=600) as runner:

            def peak_of(case: "Case") -> int | None:
                record = runner.run(case, Settings(passes=("memory",)))
                if record.status.value not in ("ok", "oom"):
                    raise failure(f"{case.id} {record.status.value}: {record.reason}", ExitCode.CASE_FAILED)
                return None if record.memory is None else record.memory.peak_bytes

            for name in names:
                case = fixed.model_copy(update={"node": name, axis: 1})
                fit = largest_that_fits(case, axis, budget_bytes, peak_of, limit)  # type: ignore[arg-type]
                table.add_row(
                    name,
                    "none" if fit.case is None else f"{getattr(fit.case, axis)}{' or more' if fit.at_limit else ''}",
                    "" if fit.peak_bytes is None else units.scaled(fit.peak_bytes, 1024, units.BINARY),
                    "" if fit.next_peak_bytes is None else units.scaled(fit.next_peak_bytes, 1024, units.BINARY),
                    str(fit.probes),
                )
    except ValueError as error:
        raise failure(str(error), ExitCode.USAGE) from None
    Console().print(table)


_HEADINGS = ["node", "largest", "its peak", "peak of the next", "measured"]
