"""Errors that carry their exit code.

From what the user typed to a run: a file, the id of a run in the results folder, or `latest`.
"""

from difflib import get_close_matches
from pathlib import Path

import typer

from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.records import Run
from revsnn_bench.runs import JournalError, load_run


def failure(message: str, code: ExitCode) -> typer.Exit:
    """Prints one clear error on stderr; raise what it returns."""
    typer.secho(f"Error: {message}", err=True, fg=typer.colors.RED)
    return typer.Exit(code)


def find_run(name: str, results_dir: Path) -> Run:
    """Loads a run; ends the command with a clear error where there is none or its file is damaged."""
    path = _path_of(name, results_dir)
    try:
        return load_run(path)
    except JournalError as error:
        raise failure(str(error), ExitCode.USAGE) from None


def saved_runs(results_dir: Path) -> list[Run]:
    """Every run in the results folder, finished or not."""
    return [find_run(str(path), results_dir) for path in _files(results_dir)]


def _files(results_dir: Path) -> list[Path]:
    found = (path for path in results_dir.glob("*.json*") if path.suffix in (".json", ".jsonl"))
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _path_of(name: str, results_dir: Path) -> Path:
    if Path(name).is_file():
        return Path(name)
    runs = _files(results_dir)
    if name == "latest" and runs:
        return runs[-1]
    by_id = {path.stem: path for path in runs}
    if name in by_id:
        return by_id[name]
    known = get_close_matches(name, by_id, 3) or [path.stem for path in runs[-3:]]
    there = f"Runs there: {', '.join(known)}." if known else "There is none yet: make one with `revsnn-bench run`."
    raise failure(
        f"no run {name!r}: it is neither a file nor the id of a run in {results_dir}. {there}", ExitCode.USAGE
    )
