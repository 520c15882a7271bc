"""`revsnn-bench env`: the environment as it is written into every run."""

from typing import Annotated

import typer


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
