"""`revsnn-bench doctor`: the measurement measures itself, and the machine is looked over."""

import typer
from rich.console import Console

from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.render.terminal import grid


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
