"""`revsnn-bench env`, `doctor` and `nodes`: the environment, the checks of the meters, and what can be compared."""

import inspect
from typing import Annotated, Any

import typer
from rich.console import Console

from revsnn_bench.cli.options import failure
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
    from revsnn_bench import doctor as checks

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
    name: Annotated[str | None, typer.Argument(help="Show everything about one node or node+strategy.")] = None,
) -> None:
    """List what `run --node` takes, or describe one: what it computes, keeps and guarantees."""
    from revsnn_bench.models.methods import METHODS
    from revsnn_bench.models.peers import PEERS
    from revsnn_bench.models.strategies import strategy_names

    if name is None:
        table = grid("Nodes", ["name", "class", "what it is"], [False] * 3)
        for each in (*strategy_names(), *PEERS):
            made = _makers(each)[-1]
            summary = (inspect.getdoc(made) or "").partition("\n")[0]
            table.add_row(each, getattr(made, "__name__", repr(made)), summary)
        for kind, method in METHODS.items():
            summary = (inspect.getdoc(method.of) or "").partition("\n")[0]
            table.add_row(f"lif+{kind}", method.of.__name__, summary)
        Console().print(table)
        return
    try:
        makers = _makers(name)
    except ValueError as error:
        raise failure(str(error), ExitCode.USAGE) from None
    for made in makers:
        typer.echo(f"{name}: {getattr(made, '__module__', '')}.{getattr(made, '__qualname__', made)}")
        typer.echo(f"\n{inspect.getdoc(made) or 'No description.'}\n\nArguments: {inspect.signature(made)}\n")


def _makers(name: str) -> list[Any]:
    """Class or function behind a name that `run` accepts: of the node, and then of the strategy.

    Raises:
        ValueError: no such node or strategy.
    """
    from revsnn_nodes import NormCarrierLIF, node_factory

    from revsnn_bench.models.methods import method_of
    from revsnn_bench.models.peers import PEERS
    from revsnn_bench.models.reversible import RevChain
    from revsnn_bench.models.strategies import BLOCKS, CONTEXTS, NORM_CARRIER, REV_BLOCK, strategy

    strategy(name)
    if name == NORM_CARRIER:
        return [NormCarrierLIF]
    node, plus, kind = name.partition("+")
    made = PEERS.get(node) or node_factory(node)
    if method := method_of(kind):
        return [made, method.of]
    if kind == REV_BLOCK:
        return [made, RevChain]
    return [made, *([BLOCKS.get(kind) or CONTEXTS[kind]] if plus else [])]
