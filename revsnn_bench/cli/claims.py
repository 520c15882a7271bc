"""`revsnn-bench claims`: each claim of the paper, what was measured of it here, and the verdict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from revsnn_bench.case import Case, each
from revsnn_bench.cli.options import (
    REPORTS,
    RESULTS,
    Reports,
    Results,
    Resume,
    RunName,
    Threads,
    busy,
    checked,
    failure,
    find_run,
    listed,
    refusing,
    require_name,
    typed_command,
)
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.measuring import Settings
from revsnn_bench.records import Run
from revsnn_bench.run_options import find_journal
from revsnn_bench.runs import load_run

if TYPE_CHECKING:
    from revsnn_bench.session import BenchSession

TIMEOUT_S = 900.0


def claims(
    only: Annotated[
        str, checked(each(str), metavar="NAMES", help="Claims, separated by commas; every one by default.")
    ] = "",
    from_run: Annotated[
        str, typer.Option("--from", metavar="RUN", help="Judge a saved run again; with --only it is printed alone.")
    ] = "",
    run_id: RunName = "",
    resume: Resume = "",
    threads: Threads = "",
    results: Results = RESULTS,
    reports: Reports = REPORTS,
) -> None:
    """Put the paper's claims to the test: measure what they need, judge them, write and print the table.

    Exit code 5 where a claim could not be judged because a case failed.
    """
    from revsnn_bench.claims import CLAIMS, cases_of, claims_table, judge, passes_of, write_claims
    from revsnn_bench.claims.judges import Verdict
    from revsnn_bench.claims.plan import Plan

    known, keys = [claim.key for claim in CLAIMS], listed(only)
    for key in keys:
        if key not in known:
            raise failure(f"no claim {key!r}. Claims are: {', '.join(known)}.", ExitCode.USAGE)
    plan, files = Plan(), list[Path]()
    if from_run:
        for flag, value in {"--run-id": run_id, "--resume": resume, "--threads": threads}.items():
            if value:
                raise failure(f"{flag}: nothing is measured with --from, which judges a saved run.", ExitCode.USAGE)
        run = find_run(from_run, results)
    else:
        session = _session(run_id, resume, threads, results, reports)
        run, files = _measured(session, {case: passes_of(case, plan, keys) for case in cases_of(plan, keys)})
    findings = judge(run, plan, keys)
    Console().print(claims_table(findings))
    if not (from_run and keys):  # some claims would take the place of the table of all
        files += write_claims(run, findings, reports)
    for path in files:
        typer.echo(path)
    if any(finding.verdict is Verdict.OPEN for finding in findings):
        raise typer.Exit(ExitCode.CASE_FAILED)


def _session(run_id: str, resume: str, threads: str, results: Path, reports: Path) -> "BenchSession":
    require_name(run_id, results, resume)
    with refusing(ValueError, flag="--resume: "):
        journal = find_journal(resume, results) if resume else None
    from revsnn_bench.session import BenchSession, RunOptions

    return BenchSession(
        RunOptions(
            settings=Settings(target_s=0.5),
            run_id=run_id or None,
            results_dir=results,
            reports_dir=reports,
            resume=journal,
            timeout_s=TIMEOUT_S,
            threads=int(threads) if threads else None,
            command=typed_command(),
        )
    )


def _measured(session: "BenchSession", cases: dict[Case, tuple[str, ...]]) -> tuple[Run, list[Path]]:
    """Measures every case by its passes under a progress bar; the run with its files. Ctrl-C keeps what is done."""
    from rich.progress import track

    console = Console(stderr=True)
    seen = console.is_terminal  # and then drawn once a second: to draw it takes a core that a case may be using
    with refusing(ValueError), busy("Starting a worker ..."):
        session.open([case.id for case in cases])
    try:
        for case in track(cases, "claims", console=console, refresh_per_second=1, disable=not seen, transient=True):
            session.measure(case, cases[case])
    except KeyboardInterrupt:
        kept = session.finish(complete=False)
        hint = f"; go on with --resume {kept[0].stem}" if kept else " before anything was measured"
        raise failure(f"interrupted{hint}", ExitCode.INTERRUPTED) from None
    saved, *files = session.finish(complete=True)
    return load_run(saved), [saved, *files]
