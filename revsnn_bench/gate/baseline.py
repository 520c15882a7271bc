"""Baselines: finished runs kept under `results/baselines/`, replaced only when asked, and never by a bad run."""

import os
import shlex
from pathlib import Path

from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.gate.findings import Verdict
from revsnn_bench.gate.verdict import FAILED
from revsnn_bench.records import Run
from revsnn_bench.runfile import load_run

DEFAULT_BASELINE = Path("results/baselines/default.json")
"""The baseline that is taken where none is named."""


class MissingBaseline(LookupError):
    """There is no baseline; the message holds the command that makes one."""


class BaselineRefused(ValueError):
    """The run must not become the baseline; `exit_code` says what is wrong with it."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def load_baseline(path: Path, run: str = "latest") -> Run:
    """Reads a baseline.

    Args:
        path: the file.
        run: the run as the command in the message names it.
    Raises:
        MissingBaseline: no such file.
        DamagedFile, UnknownSchema: see `load_run`.
    """
    if not path.is_file():
        raise MissingBaseline(
            f"`baseline` must be the file of a run; {path} does not exist. Without one there is nothing to hold "
            f"the run against. Make it from this run, and commit it: "
            f"revsnn-bench gate {run} --baseline {shlex.quote(str(path))} --update-baseline"
        )
    return load_run(path)


def update_baseline(run: Run, path: Path, *, verdict: Verdict | None, force: bool = False) -> Path:
    """Makes a run the baseline: the only way to replace one.

    Args:
        run: the run that becomes the baseline.
        path: where the baseline is, or will be.
        verdict: of `gate` on this run and the baseline that it replaces; None where there is none yet.
        force: replaces the baseline although the run did not pass.
    Returns:
        The path, replaced in one step as seen by readers.
    Raises:
        BaselineRefused: without `force`, for a run that did not pass; for a first baseline, for a run in which
            a case failed or which has no case.
        ValueError: the verdict is about another run, or missing although there is a baseline.
    """
    _require_verdict(run, path, verdict)
    if not force:
        _require_worthy(run, path, verdict)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(run.model_dump_json(indent=1) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, path)
    return path


def _require_verdict(run: Run, path: Path, verdict: Verdict | None) -> None:
    if verdict is None and path.exists():
        raise ValueError(
            f"`verdict` must be given where there is a baseline; got None for {path}. It says whether the run "
            "may replace it. Pass what gate(run, baseline) returned."
        )
    if verdict is not None and verdict.run_id != run.header.run_id:
        raise ValueError(
            f"`verdict` must be about the run; got one on {verdict.run_id!r} for {run.header.run_id!r}. It says "
            "whether this run may replace the baseline. Pass what gate(run, baseline) returned."
        )


def _require_worthy(run: Run, path: Path, verdict: Verdict | None) -> None:
    if verdict is not None and not verdict.passed:
        raise BaselineRefused(
            f"`update_baseline` must follow a run that passed; got one that ended with {verdict.exit_code.value} "
            f"({_spelled(verdict.exit_code)}). {path} is unchanged, or the regression would be the norm from now "
            "on. Mend the run; or, if what differs is meant, add --force.",
            verdict.exit_code,
        )
    failed = [f"{record.case.id} ({record.status.value})" for record in run if record.status in FAILED]
    if verdict is None and (failed or not run.records):
        what = f"failed cases: {', '.join(failed)}" if failed else "no case at all"
        raise BaselineRefused(
            f"A first baseline must have no failed case; got {what}. They would be expected to fail from now on. "
            "Mend them; or, if that is what you expect, add --force.",
            ExitCode.CASE_FAILED,
        )


def _spelled(code: ExitCode) -> str:
    return code.name.lower().replace("_", " ")
