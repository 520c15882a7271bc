"""Errors that carry their exit code."""

import typer

from revsnn_bench.exit_codes import ExitCode


def failure(message: str, code: ExitCode) -> typer.Exit:
    """Prints one clear error on stderr; raise what it returns."""
    typer.secho(f"Error: {message}", err=True, fg=typer.colors.RED)
    return typer.Exit(code)
