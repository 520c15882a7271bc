"""`revsnn-bench nodes`: what can be compared."""

import inspect
from typing import Annotated

import typer
from rich.console import Console

from revsnn_bench.render.terminal import grid


def nodes(
    name: Annotated[str | None, typer.Argument(help="Show everything about one node.")] = None,
) -> None:
    """List the registered nodes, or describe one: what it computes, keeps and guarantees."""
    from revsnn_nodes import node_factory, node_names

    from revsnn_bench.cli.exits import failure
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
