"""`revsnn-bench merge`: the shards of a sweep as one run."""

from typing import Annotated

import typer

from revsnn_bench.cli.options import RESULTS, Results, RunName, failure, find_run, typed_command
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.merging import NotMergeable, merged
from revsnn_bench.runs import Journal, RunInUse, new_run_id, write_run


def merge(
    parts: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run ids or files, finished or not.")],
    run_id: RunName = "",
    partial: Annotated[bool, typer.Option("--partial", help="Join them though planned cases are missing.")] = False,
    results: Results = RESULTS,
) -> None:
    """Join the runs of shards, made by `run --shard I/N`, into one run with the bytes and FLOPs of a run in one piece.

    Exit code 4 where the parts are of different environments, code or settings; nothing is written then.
    """
    runs = [find_run(part, results) for part in parts]
    try:
        run = merged(runs, run_id or new_run_id(), typed_command())
    except NotMergeable as error:
        raise failure(str(error), ExitCode.NOT_COMPARABLE) from None
    if not (run.complete or partial):
        example = f"; missing is, among others, {run.missing[0]}" if run.missing else ""
        raise failure(
            f"only {run.extent} are there{example}. Name the other parts, go on with those that were interrupted, or "
            "join what there is with --partial.",
            ExitCode.USAGE,
        )
    try:
        with Journal.create(results, run.header) as journal:  # takes the name
            saved = write_run(run, journal.path)
            journal.discard()
    except (RunInUse, ValueError) as error:
        raise failure(f"--run-id: {error}", ExitCode.USAGE) from None
    typer.echo(saved)
