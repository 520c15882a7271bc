"""`revsnn-bench claims`: each claim of the paper, what was measured of it here, and the verdict."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from revsnn_bench.cli.options import failure, find_run
from revsnn_bench.exit_codes import ExitCode

if TYPE_CHECKING:
    from revsnn_bench.case import Case
    from revsnn_bench.records import Run

TIMEOUT_S = 900.0


def claims(
    only: Annotated[str, typer.Option(help="Claims, separated by commas; every one by default.")] = "",
    from_run: Annotated[
        str, typer.Option("--from", metavar="RUN", help="Judge a saved run again, without measuring.")
    ] = "",
    run_id: Annotated[str, typer.Option(help="Name of the run; made of date and time by default.")] = "",
    resume: Annotated[str, typer.Option(help="Go on with an interrupted run: its id.")] = "",
    threads: Annotated[
        int | None, typer.Option(help="Threads of each worker; torch's default if not given.", show_default=False)
    ] = None,
    results: Annotated[Path, typer.Option(help="Where runs are saved.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Where reports go.")] = Path("reports"),
) -> None:
    """Put the paper's claims to the test: measure what they need, judge them, write and print the table.

    Exit code 5 where a claim could not be judged because a case failed.
    """
    from revsnn_bench.claims import CLAIMS, Plan, Verdict, judge
    from revsnn_bench.claims.judge import cases_of
    from revsnn_bench.claims.report import claims_table, write_claims

    known = [claim.key for claim in CLAIMS]
    keys = [key.strip() for key in only.split(",") if key.strip()]
    for key in keys:
        if key not in known:
            raise failure(f"no claim {key!r}. Claims are: {', '.join(known)}.", ExitCode.USAGE)
    plan = Plan()
    run, files = (
        (find_run(from_run, results), [])
        if from_run
        else _measured(cases_of(plan, keys), run_id or None, resume, results, reports, threads)
    )
    findings = judge(run, plan, keys)
    console = Console()
    console.print(claims_table(findings))
    for path in (*files, *write_claims(run, findings, reports)):
        typer.echo(path)
    if any(finding.verdict is Verdict.OPEN for finding in findings):
        raise typer.Exit(ExitCode.CASE_FAILED)


def _measured(
    cases: "list[Case]", run_id: str | None, resume: str, results: Path, reports: Path, threads: int | None
) -> "tuple[Run, list[Path]]":
    """Measures every case in a worker of its own, under a progress bar; Ctrl-C keeps what is done."""
    from rich.progress import track

    from revsnn_bench.measuring import Settings
    from revsnn_bench.runner.session import BenchSession, RunOptions
    from revsnn_bench.runs import load_run

    journal = results / f"{resume}.jsonl" if resume else None
    if journal is not None and not journal.is_file():
        raise failure(f"cannot resume {journal}: there is no such journal.", ExitCode.USAGE)
    session = BenchSession(
        RunOptions(
            settings=Settings(target_s=0.5),
            run_id=run_id,
            results_dir=results,
            reports_dir=reports,
            resume=journal,
            timeout_s=TIMEOUT_S,
            threads=threads,
            command=("revsnn-bench", *sys.argv[1:]),
        )
    )
    try:
        for case in track(cases, "claims", console=Console(stderr=True), transient=True):
            session.measure(case)
    except KeyboardInterrupt:
        saved, *_ = session.finish(complete=False)
        raise failure(f"interrupted; go on with --resume {saved.stem}", ExitCode.INTERRUPTED) from None
    saved, *files = session.finish(complete=True)
    return load_run(saved), [saved, *files]
