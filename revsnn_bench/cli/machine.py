"""`revsnn-bench env`: the environment as it is written into every run.

`revsnn-bench doctor`: the measurement measures itself, and the machine is looked over.

`revsnn-bench nodes`: what can be compared.
"""

import inspect
from typing import Annotated

import typer
from rich.console import Console

from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.report.terminal import grid


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the environment that a run records, as its workers see it."""
    from revsnn_bench.measuring import measure
    from revsnn_bench.runner import Runner

    with Runner(measure, timeout_s=60) as runner:
        environment = runner.environment()
    if as_json:
        typer.echo(environment.model_dump_json(indent=1))
        return
    for field, value in environment.model_dump().items():
        shown = ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{field:14} {'none' if shown in (None, '') else shown}")


def doctor() -> None:
    """Check the meters against closed forms, and this machine for what disturbs a measurement.

    Exit code 5 where a meter is wrong; advice on the machine does not change the exit code.
    """
    from revsnn_bench.system import doctor as checks

    console = Console()
    exact, machine = checks.self_test(), checks.machine()
    for title, findings in (("Meters against closed forms", exact), ("This machine", machine)):
        table = grid(title, ["", "what", "found", "advice"], [False] * 4)
        for finding in findings:
            mark = "ok" if finding.good else "LOOK"
            table.add_row(mark, finding.name, finding.found, "" if finding.good else finding.advice)
        console.print(table)
    if not all(finding.good for finding in exact):
        console.print("A meter is wrong: please report this, with the output of `revsnn-bench env`.")
        raise typer.Exit(ExitCode.CASE_FAILED)


def nodes(
    name: Annotated[str | None, typer.Argument(help="Show everything about one node.")] = None,
) -> None:
    """List the registered nodes, or describe one: what it computes, keeps and guarantees."""
    from revsnn_nodes import node_factory, node_names

    from revsnn_bench.cli.options import failure
    from revsnn_bench.exit_codes import ExitCode

    if name is not None:
        try:
            factory = node_factory(name)
        except ValueError as error:
            raise failure(str(error), ExitCode.USAGE) from None
        typer.echo(f"{name}: {getattr(factory, '__module__', '')}.{getattr(factory, '__qualname__', factory)}")
        typer.echo(f"\n{inspect.getdoc(factory) or 'No description.'}\n\nArguments: {inspect.signature(factory)}")
        return
    table = grid("Nodes", ["name", "class", "what it is"], [False] * 3)
    for each in node_names():
        factory = node_factory(each)
        summary = (inspect.getdoc(factory) or "").partition("\n")[0]
        table.add_row(each, getattr(factory, "__name__", repr(factory)), summary)
    Console().print(table)
