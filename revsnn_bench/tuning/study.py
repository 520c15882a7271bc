"""The search: Optuna proposes, workers try, and what is known is on the disk before anything else happens.

The run's journal, with a record per trial as of any run, is all that is kept. Optuna's study lives in memory: one that
is resumed proposes every trial of the journal again, and is told how it ended. The sampler is seeded anew for every
trial, by the study's seed and the number, so that a study that was resumed proposes what it would have proposed anyway,
whenever it was killed. With another number of workers, or another Optuna, it may not: then the record's choice holds.

Workers try a batch of trials at a time, and a batch is told in its order: which worker was faster decides nothing. For
the same reason Optuna is told the predicted operations of a step where seconds are asked for; these are measured, and
the front is theirs.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsnn_bench.case import Case, parse_size
from revsnn_bench.records import Record, Run, Status
from revsnn_bench.report import study as read
from revsnn_bench.report import write_reports
from revsnn_bench.runner import Runner, Runners
from revsnn_bench.runs import load_run, require_new, require_writable
from revsnn_bench.session import SavedOptions
from revsnn_bench.tuning.space import OBJECTIVES, StudySettings
from revsnn_bench.tuning.trial import Rival, Trial, measure_trial

if TYPE_CHECKING:
    import optuna

RANDOM_TRIALS = 10
"""Trials before the sampler has enough to model."""


@dataclass(frozen=True)
class StudyOptions(SavedOptions):
    """How a study is carried out, its trials as the cases of a run; none of it changes what it finds.

    Args:
        workers: processes that try at the same time.
        on_record: called with each new record.
    """

    results_dir: Path = Path("results")
    formats: tuple[str, ...] = ("md", "csv", "json", "html")
    timeout_s: float = 600.0
    threads: int | None = 1
    workers: int = 1
    on_record: Callable[[Record], None] = lambda record: None


def settings_of(journal: Path) -> StudySettings:
    """The settings of an interrupted study; a ValueError where the run is none, or cannot be read."""
    run = load_run(journal)
    if not read.is_study(run):
        raise ValueError(f"--resume must name a run of `tune`; got {journal.stem}. Go on with it by `run --resume`.")
    return StudySettings.model_validate(run.header.settings)


class Study:
    """A study in progress; `search`, `retrain`, then `finish`. A context manager: leaving it ends the workers.

    Raises:
        JournalError: the run's name is taken, or what is to be resumed was made otherwise.
        RuntimeError: a module of `preload` cannot be imported.
    """

    def __init__(self, settings: StudySettings, options: StudyOptions) -> None:
        self.settings, self.options = settings, options
        if options.resume is None and options.run_id is not None:
            require_new(options.run_id, options.results_dir)
        require_writable(options.results_dir if options.resume is None else options.resume.parent, options.reports_dir)
        of_workers = options.of_workers("optuna", "revsnn_bench.tuning.trial")
        runners = [Runner(measure_trial, **of_workers) for _ in range(options.workers)]
        self._workers = Runners(runners)
        with contextlib.ExitStack() as opened:
            opened.callback(self._workers.close)
            for runner in runners:
                runner.start()
            journal = options.journal(runners[0].environment(), settings.model_dump(mode="json"))
            self._journal = opened.enter_context(journal)
            self._open = opened.pop_all()
        self._records = {record.case: record for record in self._journal.run}

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def run(self) -> Run:
        """What is in the journal."""
        return self._journal.run

    @property
    def journal_path(self) -> Path:
        """Where the journal is, until the study is finished."""
        return self._journal.path

    def search(self) -> None:
        """Tries what is left of the trials."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(directions=[OBJECTIVES[name] for name in self.settings.objective])
        for node in self.settings.nodes:
            study.enqueue_trial(self.settings.defaults(node))
        tried = {known.number: dict(known.params) for known in map(read.known, read.trials(self.run))}
        for start in range(0, self.settings.trials, self.options.workers):
            rivals = self._rivals(start)
            wanted, told = dict[Case, Trial](), list[tuple[optuna.Trial, Case]]()
            for number in range(start, min(start + self.options.workers, self.settings.trials)):
                seed = (self.settings.seed * 1_000_003 + number) % 2**32
                study.sampler = optuna.samplers.TPESampler(
                    seed=seed, constant_liar=True, n_startup_trials=RANDOM_TRIALS
                )
                asked = study.ask()
                params = self.settings.suggested(asked)
                if tried.get(number, params) != params:
                    study.tell(asked, state=optuna.trial.TrialState.FAIL)
                    study.enqueue_trial(tried[number])
                    asked = study.ask()
                    params = self.settings.suggested(asked)
                case = self.settings.case(params)
                wanted[case] = Trial(self.settings, number, params, rivals)
                told.append((asked, case))
            self._try(wanted)
            for asked, case in told:
                self._tell(study, asked, self._records[case])

    def _rivals(self, before: int) -> tuple[Rival, ...]:
        """Trials trained to their end among the first ones, as every worker of a batch knows them."""
        found = []
        for record in read.finished(self.run):
            known = read.known(record)
            if known.number < before and record.memory is not None and record.accuracy is not None:
                curve = record.accuracy.accuracy_by_epoch
                found.append(Rival(record.memory.peak_bytes, known.predicted_flops or 0, curve))
        return tuple(found)

    def _tell(self, study: "optuna.Study", trial: "optuna.Trial", record: Record) -> None:
        """Tells Optuna how a trial ended, and by how much it broke a constraint."""
        from optuna.trial import TrialState

        known, budget = read.known(record), self.settings.budget_bytes
        peak = known.predicted_peak_bytes if record.memory is None else record.memory.peak_bytes
        if budget is not None and peak is not None:
            trial.set_constraint("bytes", peak / budget - 1)
        if known.predicted_gradient_error is not None:
            trial.set_constraint("drift", known.predicted_gradient_error / self.settings.drift_tolerance - 1)
        if record.status is Status.SKIPPED:
            study.tell(trial, state=TrialState.PRUNED)
        elif record.accuracy is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            told = {"accuracy": record.accuracy.accuracy, "peak": peak, "time": known.predicted_flops}
            study.tell(trial, [float(told[name] or 0) for name in self.settings.objective])

    def retrain(self) -> None:
        """Trains the best, and the first node's defaults, on fresh seeds; seed by seed, so that pairs are whole."""
        best = read.to_retrain(self.run)
        wanted: dict[Case, Trial] = {}
        for seed in self.settings.fresh_seeds:
            for record in best:
                known = read.known(record)
                case = record.case.model_copy(update={"seed": seed})
                wanted[case] = Trial(self.settings, known.number, dict(known.params), again=True)
        self._try(wanted)

    def _try(self, wanted: dict[Case, Trial]) -> None:
        """Has workers try what is in no record yet; each record is on the disk before the next one is waited for."""
        for case, trial in wanted.items():
            if case not in self._records:
                self._workers.submit(case, trial)
        while not wanted.keys() <= self._records.keys():
            for record in self._workers.results():
                self._keep(record, wanted)

    def _keep(self, record: Record, trials: dict[Case, Trial]) -> None:
        if record.trial is None:  # the worker gave none: it failed, or was killed
            known = {"number": trials[record.case].number, "params": trials[record.case].params}
            record = Record.model_validate(record.model_dump() | {"trial": known})
        self._journal.append(record)
        self._records[record.case] = record
        self.options.on_record(record)

    def finish(self) -> tuple[Run, list[Path]]:
        """Turns the journal into the run's file; writes the reports, with `html` the page of the study, too."""
        saved = self._journal.finish()
        run = load_run(saved)
        return run, [saved, *write_reports(run, self.options.reports_dir, self.options.formats)]


def tune(
    space: dict[str, Any] | None = None,
    objective: Sequence[str] = ("accuracy", "peak", "time"),
    budget: str | int | None = None,
    *,
    options: StudyOptions | None = None,
    **settings: Any,
) -> Run:
    """Searches a space within a budget, trains the best again on fresh seeds, and saves the run with its page.

    Args:
        space: values or text by parameter, such as `{"tau": "1.1..8:log", "groups": (2, 4)}`.
        objective: of accuracy, peak and time.
        budget: largest peak of a training step, such as "64 MiB"; None for none.
        options, settings: see `StudyOptions` and `StudySettings`.
    Returns:
        The run; `revsnn_bench.report.study` reads it.
    Raises:
        ValueError: a setting is wrong; see `StudySettings`.
    """
    given = {"space": space or {}, "objective": tuple(objective), **settings}
    known = StudySettings.model_validate(given | {"budget_bytes": None if budget is None else parse_size(budget)})
    known.require_sound()
    with Study(known, options or StudyOptions()) as study:
        study.search()
        study.retrain()
        return study.finish()[0]
