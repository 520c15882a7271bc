"""`revsnn-bench plan` and `revsnn-bench predict`: what fits a budget of bytes, and what a step takes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from revsnn_bench.case import Case, one_of, parse_shape, parse_size
from revsnn_bench.cli.options import Input, Model, case_option, checked, failure, given_model, listed
from revsnn_bench.exit_codes import ExitCode

if TYPE_CHECKING:
    from revsnn_bench.plan.planning import Plan


def plan(
    model: Model,
    input: Input,
    budget: Annotated[str, checked(parse_size, help='Peak that a training step may take, such as "4 GiB".')],
    backend: Annotated[str, checked(one_of(("auto", "torch", "fused")), help="Backend of the neurons.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each option.")] = 3,
    blocks: Annotated[
        str, typer.Option(metavar="MODULE:CLASS", help="Class of the model's blocks.", show_default=False)
    ] = "",
    limit: Annotated[
        str | None,
        checked(parse_size, help="Peak up to which a step is run here.", show_default="half of the free memory"),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the plan goes, for `apply_plan`.")] = Path("plan.json"),
    page: Annotated[Path | None, typer.Option(help="Where to write a page on what fits.", show_default=False)] = None,
    frontier: Annotated[bool, typer.Option("--frontier", help="Show the least time for every budget.")] = False,
) -> None:
    """Find the cheapest way to train a model of your own within a memory budget, and measure that it fits.

    Every block keeps everything, makes again what is cheap, or runs again. Gradients stay those of the model.
    Parameters and the input are allocated before the step and are not counted.
    """
    from revsnn_bench.measuring import measure
    from revsnn_bench.runner import Runner

    case = Case.model_validate({"node": "lif", "node_options": {"backend": backend}, **given_model(model, input)})
    try:
        with Runner(measure, timeout_s=1800) as runner:
            from revsnn_bench.plan.planning import plan_case  # which loads torch, while the runner does so too

            curve, most = frontier or page is not None, None if limit is None else parse_size(limit)
            found = plan_case(runner.call, case, parse_size(budget), rounds, blocks, most, curve)
    except RuntimeError as error:
        raise failure(sentence_of(error), ExitCode.CASE_FAILED) from None
    output.write_text(found.to_json(), encoding="utf-8")
    _show(found, frontier)
    typer.echo(f"plan: {output}")
    if page is not None:
        from revsnn_bench.report.html.plan import plan_page

        page.write_text(plan_page(found.as_dict(), f"{model}, input {input}"), encoding="utf-8")
        typer.echo(f"page: {page}")


def sentence_of(error: BaseException) -> str:
    """The first line of a worker's error, without the name of its class."""
    first = str(error).partition("\n")[0]
    return first.partition(": ")[2] if first.startswith("revsnn_bench.") else first


def _show(found: "Plan", frontier: bool) -> None:
    from revsnn_bench.report import units
    from revsnn_bench.report.terminal import grid

    console = Console()
    kept = sum(row.kept_bytes for row in found.rows) or 1
    table = grid(
        "What each block does",
        ["block", "option", "keeps", "share", "highest", "extra time"],
        [False, False, *[True] * 4],
    )
    for row in found.rows:
        sizes = (units.size(row.kept_bytes), f"{row.kept_bytes / kept:.0%}", units.size(row.peak_bytes))
        table.add_row(row.block, row.option, *sizes, f"{row.extra_s * 1e3:+.1f} ms")
    console.print(table)
    if frontier:
        curve = grid("Least time for every budget", ["budget", "time of a step"], [True, True])
        for peak, seconds in found.frontier:
            curve.add_row(units.size(peak), f"{seconds * 1e3:.1f} ms")
        console.print(curve)
    for line in found.summary():
        typer.echo(line)


def predict(
    model: Model = "",
    input: Input = "",
    node: Annotated[str, case_option("node", help="Nodes, or methods for --model, separated by commas.")] = "lif",
    workload: Annotated[str, case_option("workload")] = "layer",
    timesteps: Annotated[int, case_option("timesteps")] = 8,
    batch: Annotated[int, case_option("batch")] = 8,
    shape: Annotated[str, case_option("shape")] = "4096",
    device: Annotated[str, case_option("device")] = "cpu",
) -> None:
    """Predict peak, retained bytes and operations of a training step, without allocating its tensors."""
    from revsnn_bench.measuring import measure
    from revsnn_bench.metrics import BY_NAME
    from revsnn_bench.report import units
    from revsnn_bench.report.terminal import grid
    from revsnn_bench.runner import Runner

    fields: dict[str, Any] = (
        given_model(model, input)
        if model
        else {"workload": workload, "timesteps": timesteps, "batch": batch, "shape": parse_shape(shape)}
    )
    cases = [Case.model_validate({"node": name, "device": device, **fields}) for name in listed(node)]
    title = f"Predicted: {cases[0].workload} {cases[0].size}"
    table = grid(title, ["node", "peak", "retained", "FLOPs"], [False, *[True] * 3])
    try:
        with Runner(measure, timeout_s=1800) as runner:
            from revsnn_bench.plan.predict import predict as predicted  # which loads torch, as in `plan`

            for case in cases:
                found = runner.call(predicted, case)
                flops = units.number(BY_NAME["step_flops"], found.flops)
                table.add_row(case.node, units.size(found.peak_bytes), units.size(found.retained_bytes), flops)
    except RuntimeError as error:
        raise failure(sentence_of(error), ExitCode.USAGE) from None
    Console().print(table)
    if device == "cuda":
        typer.echo(
            "Blocks are rounded up to 512 B. Not included: the driver's context, workspaces of cuDNN and cuBLAS, "
            "fragmentation."
        )
