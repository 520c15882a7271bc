"""One run: cases go to workers, records go to the journal, and the end of the run is a file and its reports."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from revsnn_bench.case import Case
from revsnn_bench.measuring import USUAL, Settings, measure
from revsnn_bench.records import Record, Run, RunHeader, Status, joined, utc_now
from revsnn_bench.report import write_reports
from revsnn_bench.runner import Runner
from revsnn_bench.runs import Journal, load_run, new_run_id
from revsnn_bench.system.process import PRELOAD

LIVE_S = 3
"""Seconds between two versions of the page of a live run."""


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out.

    Args:
        settings: which passes each case gets, and for how long.
        run_id: name of the run; made of date and time where None.
        results_dir: where the journal and the finished run go; None to save nothing.
        reports_dir: where the reports go.
        formats: formats of the reports.
        resume: journal of an interrupted run to go on with.
        timeout_s: time limit per case.
        memory_limit_bytes: memory limit per case; None for none.
        threads: threads of intra-op parallelism in the workers; None leaves it to torch.
        preload: modules that workers import first, such as one that registers nodes.
        live: whether the page among the reports is written anew as cases finish, and reloads itself.
        command: the command that asked for the run, for the record.
    """

    settings: Settings
    run_id: str | None = None
    results_dir: Path | None = Path("results")
    reports_dir: Path = Path("reports")
    formats: tuple[str, ...] = ("md", "csv", "json", "html", "svg")
    resume: Path | None = None
    timeout_s: float = 300.0
    memory_limit_bytes: int | None = None
    threads: int | None = None
    preload: tuple[str, ...] = ()
    live: bool = False
    command: tuple[str, ...] = ()


class BenchSession:
    """Measures cases in workers and keeps what they found; a case that is in the journal is not measured again."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self._runner = Runner(
            measure,
            timeout_s=options.timeout_s,
            memory_limit_bytes=options.memory_limit_bytes,
            preload=(*PRELOAD, *options.preload),
            threads=options.threads,
        )
        self._journal: Journal | None = None
        self._records: dict[Case, Record] = {}
        self._own: frozenset[str] = frozenset()
        self._opened = False
        self._page_due = 0.0

    def measure(self, case: Case, passes: Sequence[str] | None = None) -> Record:
        """The record of a case: from the journal if it is there, else measured in a process of its own.

        Args:
            case: what to measure.
            passes: of the run's passes, those that apply to this case; None for the usual ones.
        """
        self.open()
        if case not in self._records:
            settings, wanted = self.options.settings, USUAL if passes is None else passes
            settings = settings.model_copy(update={"passes": tuple(p for p in settings.passes if p in wanted)})
            record = self._timed_again(self._runner.run(case, settings), settings)
            if self._journal is not None:
                self._journal.append(record)
                self._refresh_page()
            self._records[case] = record
        return self._records[case]

    def _timed_again(self, record: Record, settings: Settings) -> Record:
        """The record with the times of further processes; without them where one of these fails."""
        if record.time is None or record.case == record.case.point:
            return record
        times, alone = [record.time], settings.model_copy(update={"passes": ("time",), "epochs": 0})
        while len(times) < settings.processes:
            again = self._runner.run(record.case, alone)
            if again.time is None:
                return record
            times.append(again.time)
        return record.model_copy(update={"time": joined(times)}) if len(times) > 1 else record

    def is_done(self, case: Case) -> bool:
        """Whether a case needs no measuring any more."""
        return case in self._records

    @property
    def run(self) -> Run | None:
        """What is in the journal so far; None where nothing is saved."""
        return None if self._journal is None else self._journal.run

    def close(self) -> None:
        """Ends the workers; `finish` does so too."""
        self._runner.close()

    def leave_out(self, case: Case, reason: str) -> None:
        """Records a planned case as skipped: the user's test ended before it measured."""
        self.open()
        if case in self._records:
            return
        record = Record(case=case, status=Status.SKIPPED, reason=reason, started_at=utc_now(), duration_s=0.0)
        if self._journal is not None:
            self._journal.append(record)
        self._records[case] = record

    def finish(self, complete: bool) -> Sequence[Path]:
        """Ends the workers; turns the journal of a complete run into its file; writes the reports.

        A journal whose planned cases are not all measured stays one, so that it can be resumed; one without any record
        is removed.

        Returns:
            The files: the run first, then its reports. Nothing where nothing was measured.
        """
        self.close()
        if self._journal is None:
            return ()
        run = self._journal.run
        if not run.records and (self._own or not complete):
            self._journal.discard()
            return ()
        if complete and not self._own & {*run.missing}:
            saved = self._journal.finish()
            run = load_run(saved)
        else:
            saved = self._journal.path
            self._journal.close()
        from revsnn_bench.claims.report import claims_section

        return saved, *write_reports(run, self.options.reports_dir, self.options.formats, claims_section(run))

    def _refresh_page(self) -> None:
        """Writes the page of a live run, at most every `LIVE_S` seconds and never for more than a tenth of the time."""
        if self._journal is None or not self.options.live or time.monotonic() < self._page_due:
            return
        from revsnn_bench.claims.report import claims_section
        from revsnn_bench.report.html import render_html

        start = time.monotonic()
        run = self._journal.run
        self.options.reports_dir.mkdir(parents=True, exist_ok=True)
        page = self.options.reports_dir / f"{run.header.run_id}.html"
        page.write_text(render_html(run, refresh_s=LIVE_S, claims=claims_section(run)), encoding="utf-8")
        self._page_due = time.monotonic() + max(LIVE_S, 10 * (time.monotonic() - start))

    def open(self, planned: Sequence[str] | None = None, own: Collection[str] | None = None) -> None:
        """Opens the journal and tries the folder of the reports, once; `measure` does so too.

        Args:
            planned: ids of all cases of the sweep; None where they are not known.
            own: those among them that this run measures; None for all.
        Raises:
            OSError: a folder or the journal cannot be written.
            JournalError: the run's name is taken, or what is to be resumed was measured otherwise.
        """
        if self._opened:
            return
        options, self._own = self.options, frozenset((planned or ()) if own is None else own)
        if options.results_dir is None:
            self._opened = True
            return
        options.reports_dir.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=options.reports_dir):  # or a whole run would end without its reports
            pass
        header = RunHeader(
            run_id=options.run_id or new_run_id(),
            started_at=utc_now(),
            command=options.command,
            environment=self._runner.environment(),
            settings=options.settings.model_dump(mode="json"),
        )
        if options.resume is None:
            self._journal = Journal.create(options.results_dir, header, planned)
        else:
            self._journal = Journal.resume(options.resume, header, planned)
        self._records = {record.case: record for record in self._journal.run}
        self._opened = True
