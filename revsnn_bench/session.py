"""One run: cases go to workers, here or on a cluster, records to the journal; its end is a file and its reports."""

import re
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from revsnn_bench.case import Case, is_own
from revsnn_bench.measuring import USUAL, Settings, measure
from revsnn_bench.records import Environment, Record, Run, RunHeader, Status, utc_now
from revsnn_bench.report import write_reports, write_texts
from revsnn_bench.run_options import FORMATS
from revsnn_bench.runner import Runner, Runners, measure_in_processes
from revsnn_bench.runner.cluster import Cluster
from revsnn_bench.runs import Journal, load_run, new_run_id, require_writable
from revsnn_bench.system.process import PRELOAD

LIVE_S = 3
"""Seconds between two versions of the page of a live run."""


@dataclass(frozen=True)
class SavedOptions:
    """How a run or a study is carried out and saved.

    Args:
        run_id: name of the run; made of date and time where None.
        results_dir: where the journal and the finished run go; None to save nothing, which a study cannot.
        reports_dir: where the reports go.
        formats: formats of the reports.
        resume: journal of an interrupted run to go on with.
        timeout_s, memory_limit_bytes, threads, preload: of the workers; see `Runner`.
        command: the command that asked for the run, for the record.
    """

    run_id: str | None = None
    results_dir: Path | None = Path("results")
    reports_dir: Path = Path("reports")
    formats: tuple[str, ...] = FORMATS
    resume: Path | None = None
    timeout_s: float = 300.0
    memory_limit_bytes: int | None = None
    threads: int | None = None
    preload: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def of_workers(self, *modules: str) -> dict[str, Any]:
        """Keywords of the `Runner`, which imports these modules, too."""
        return {
            "timeout_s": self.timeout_s,
            "memory_limit_bytes": self.memory_limit_bytes,
            "preload": (*PRELOAD, *modules, *self.preload),
            "threads": self.threads,
        }

    def journal(
        self,
        environment: Environment,
        settings: dict[str, Any],
        planned: Sequence[str] | None = None,
        cluster: bool = False,
    ) -> Journal:
        """The run's journal, new or gone on with; errors as of `Journal.create` and `Journal.resume`."""
        header = RunHeader(
            run_id=self.run_id or new_run_id(),
            started_at=utc_now(),
            command=self.command,
            environment=environment,
            settings=settings,
            cluster=cluster,
        )
        if self.resume is None:
            assert self.results_dir is not None
            return Journal.create(self.results_dir, header, planned)
        return Journal.resume(self.resume, header, planned)


@dataclass(frozen=True, kw_only=True)
class RunOptions(SavedOptions):
    """How a run is carried out.

    Args:
        settings: which passes each case gets, and for how long.
        workers: how many cases are measured at once, each in a process of its own; 1 where one of the passes times.
        cluster: "local" or the address of a Ray cluster, to whose hosts the cases go; None for workers of this process.
        live: whether the page among the reports is written anew as cases finish, and reloads itself.
    """

    settings: Settings
    workers: int = 1
    cluster: str | None = None
    live: bool = False


class OtherPasses(ValueError):
    """A case is to be measured in passes that it did not get when this run first measured it."""


class SameCase(OtherPasses):
    """A case that is another than one of this run, and has its id or is equal to it: one record would be of both."""


class BenchSession:
    """Measures cases in workers and keeps what they found; a case that is in the journal is not measured again."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self._runners = [Runner(measure, **options.of_workers()) for _ in range(options.workers)]
        self._cluster = None if options.cluster is None else Cluster(options.cluster, options.of_workers())
        self._at_once = self._cluster or (Runners(self._runners) if options.workers > 1 else None)
        self._journal: Journal | None = None
        self._records: dict[Case, Record] = {}
        self._passes: dict[Case, tuple[str, ...]] = {}
        self._known: dict[str | Case, Case] = {}  # by id, and by what is equal to it
        self._own: frozenset[str] = frozenset()
        self._opened = False
        self.saved: Path | None = None
        self._page_due = 0.0

    def start(self) -> None:
        """Has the processes that start workers load what they need, and does not wait for it."""
        if self._cluster is None:
            for runner in self._runners:
                runner.start()

    def measure(self, case: Case, passes: Sequence[str] | None = None) -> Record:
        """The record of a case: from the journal if it is there, else measured in a process of its own.

        Of the run's passes it gets those that apply to it; None for the usual ones.

        Raises:
            OtherPasses: it was measured in this run without one of them.
            SameCase: the run has another case of the same id, as where an option is 2.0 and "2.0", or 2.
        """
        self.submit(case, passes)
        if self._at_once is None and case not in self._records:
            self._keep(measure_in_processes(self._runners[0], case, self._settings(passes)))
        while self._at_once is not None and case not in self._records:
            for record in self._at_once.results():
                self._keep(record)
        return self._records[case]

    def submit(self, case: Case, passes: Sequence[str] | None = None) -> None:
        """Has a case measured beside others, where that is wanted; `measure` finds its record later."""
        self.open()
        for key in (case.id, case):
            known = self._known.setdefault(key, case)
            if (known.id, known) != (case.id, case):
                raise SameCase(
                    f"{case}: must differ from every other case of a run in what it is and by its id; got options "
                    f"{dict(case.node_options)} after {known} with {dict(known.node_options)}. A run has one record of "
                    "each. Give the option the same type everywhere."
                )
        settings = self._settings(passes)
        had = self._passes.setdefault(case, settings.passes)
        if missing := [name for name in settings.passes if name not in had]:
            raise OtherPasses(
                f"{case}: `passes` must be among those with which a run first measures a case; got "
                f"{', '.join(missing)} after {', '.join(had) or 'none'}. A run has one record of each case. Ask for "
                "all of them where it is first measured, or give one of the two another seed."
            )
        if self._at_once is not None and case not in self._records:
            self._at_once.submit(case, settings)

    def _settings(self, passes: Sequence[str] | None) -> Settings:
        settings, wanted = self.options.settings, USUAL if passes is None else passes
        return settings.model_copy(update={"passes": tuple(p for p in settings.passes if p in wanted)})

    def _keep(self, record: Record) -> None:
        """Writes a record down; of a case that has one already, the first counts."""
        if record.case in self._records:
            return
        if self._journal is not None:
            if self._cluster is not None and record.host is not None:
                self._journal.host(record.host, self._cluster.environment(record.host))
            self._journal.append(record)
            self._refresh_page()
        self._records[record.case] = record

    @property
    def run(self) -> Run | None:
        """What is in the journal so far; None where nothing is saved."""
        return None if self._journal is None else self._journal.run

    def close(self) -> None:
        """Ends the workers, and what runs on a cluster; `finish` does so too."""
        for each in (self._at_once, *self._runners):
            if each is not None:
                each.close()

    def leave_out(self, case: Case, reason: str) -> None:
        """Records a planned case as skipped: the user's test ended before it measured."""
        self.open()
        self._keep(Record(case=case, status=Status.SKIPPED, reason=reason, started_at=utc_now(), duration_s=0.0))

    def finish(self, complete: bool) -> Sequence[Path]:
        """Ends the workers; turns the journal of a complete run into its file; writes the reports.

        A journal whose planned cases are not all measured stays one, so that it can be resumed; one without any record
        is removed. Returns the files: the run first, then its reports; nothing where nothing was measured.

        Raises:
            OSError: the run or its reports cannot be written; a note says where what was measured is, and so does
                `saved`.
        """
        self.close()
        if self._journal is None:
            return ()
        run = self._journal.run
        if not run.records and (self._own or not complete):
            self._journal.discard()
            return ()
        saved = self._journal.path
        try:
            if complete and not self._own & {*run.missing}:
                self.saved = saved = self._journal.finish()
                run = load_run(saved)
            return saved, *self._write_reports(run)
        except OSError as error:
            error.add_note(f"What was measured is in {self.saved}.")
            raise
        finally:
            self._journal.close()

    def _write_reports(self, run: Run) -> list[Path]:
        """Writes the reports in a folder beside them first, so that a full disk leaves no half of a page."""
        from revsnn_bench.claims import claims_section

        folder = self.options.reports_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder, prefix=".") as part:
                written = write_reports(run, Path(part), self.options.formats, claims_section(run))
                return [path.replace(folder / path.name) for path in written]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from None

    def _refresh_page(self) -> None:
        """Writes the page of a live run, at most every `LIVE_S` seconds and never for more than a tenth of the time."""
        if self._journal is None or not self.options.live or time.monotonic() < self._page_due:
            return
        from revsnn_bench.claims import claims_section
        from revsnn_bench.report.html.report import render_html

        start = time.monotonic()
        run = self._journal.run
        page = render_html(run, refresh_s=LIVE_S, claims=claims_section(run))
        write_texts(run, self.options.reports_dir, {".html": page})
        self._page_due = time.monotonic() + max(LIVE_S, 10 * (time.monotonic() - start))

    def open(
        self, planned: Sequence[str] | None = None, own: Collection[str] | None = None, cases: Iterable[Case] = ()
    ) -> None:
        """Opens the journal and tries the folder of the reports, once; `measure` does so too.

        Args:
            planned: ids of all cases of the sweep; None where they are not known.
            own: those among them that this run measures; None for all.
            cases: those known already, for which the hosts of a cluster must be fit.
        Raises:
            OSError: a folder or the journal cannot be written.
            JournalError: the run's name is taken, or what is to be resumed was measured otherwise.
            ClusterError: the cluster cannot be used.
        """
        if self._opened:
            return
        options, self._own = self.options, frozenset((planned or ()) if own is None else own)
        if options.results_dir is None:
            self._opened = True
            return
        results = options.results_dir if options.resume is None else options.resume.parent
        require_writable(results, options.reports_dir)  # or a whole run would end with nothing written
        settings = options.settings.model_dump(mode="json")
        self._journal = options.journal(
            self._environment(planned or (), cases), settings, planned, options.cluster is not None
        )
        self.saved = self._journal.path
        self._records = {record.case: record for record in self._journal.run}
        self._known = {key: case for case in self._records for key in (case.id, case)}
        if self._cluster is not None:
            self._cluster.keep_names(self._journal.run.hosts)
        self._opened = True

    def _environment(self, planned: Sequence[str], cases: Iterable[Case]) -> Environment:
        """That of the workers, here or on the hosts of the cluster, which is joined for it."""
        known = [*cases]
        ids = [*planned, *(case.id for case in known)]  # of all shards
        workloads = [case.partition("/")[0] for case in ids]
        own = (each.partition(":")[0] for each in workloads if is_own(each))
        nodes = {re.split(r"[+[]", name)[0] for _, name, *_ in (case.split("/", 2) for case in ids)}
        of_nodes = (point.module for point in entry_points(group="revsnn_bench.nodes") if point.name in nodes)
        modules = [*dict.fromkeys([*self.options.preload, *own, *of_nodes])]
        if self._cluster is None:
            return self._runners[0].environment(modules)
        return self._cluster.start(any(case.device == "cuda" for case in known), modules)
