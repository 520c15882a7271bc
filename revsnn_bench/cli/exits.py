"""Exit codes, and errors that carry theirs."""

from enum import IntEnum

import typer


class Exit(IntEnum):
    """What the exit status of `revsnn-bench` means."""

    PASS = 0
    REGRESSION = 1
    USAGE = 2
    NO_BASELINE = 3
    NOT_COMPARABLE = 4
    CASE_FAILED = 5
    INTERRUPTED = 130


def failure(message: str, code: Exit) -> typer.Exit:
    """Prints one clear error on stderr; raise what it returns."""
    typer.secho(f"Error: {message}", err=True, fg=typer.colors.RED)
    return typer.Exit(code)
