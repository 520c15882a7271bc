"""The tuner: its space, what is refused before it is trained, a study that was killed, and what its records say."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import html5lib
import pytest
from revsnn_nodes import surrogate
from typer.testing import CliRunner

import revsnn_bench
from revsnn_bench import Case
from revsnn_bench.cli import app
from revsnn_bench.models.strategies import strategy
from revsnn_bench.models.training import Recipe, Trainer
from revsnn_bench.records import Status, TrialRecord
from revsnn_bench.report import study as read
from revsnn_bench.report.html.study import study_page
from revsnn_bench.report.points import interval_of_mean
from revsnn_bench.runs import load_run
from revsnn_bench.tuning.space import Choice, Range, StudySettings, parse_axis
from revsnn_bench.tuning.study import Study, StudyOptions
from revsnn_bench.tuning.trial import Rival, Trial, costs_no_more, is_lost, measure_trial, predicted_drift

SMALL = {
    "workload": "mlp", "nodes": ("revlif",), "timesteps": 2, "batch": 256, "shape": (1, 8, 8), "epochs": 1,
    "trials": 2, "retrain": 1, "seeds": 2, "firing": (0.0, 1.0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("0.1..0.9", Range(0.1, 0.9)),
        ("1..8:log", Range(1.0, 8.0, log=True)),
        ("2,4,8", Choice((2, 4, 8))),
        ("true,none,ATan,1e-3", Choice((True, None, "ATan", 0.001))),
    ],
)
def test_an_axis_is_read_as_it_is_written(text, axis):
    """Bounds, a logarithm, or values; its own text gives it back."""
    assert parse_axis(text) == axis
    assert parse_axis(str(axis)) == axis


@pytest.mark.parametrize("text", ["", "2..1", "0..1:log", "1..2:linear", "a..b", "1..inf", "..", "4:log"])
def test_a_wrong_axis_is_refused(text):
    with pytest.raises(ValueError, match="--space"):
        parse_axis(text)


def test_each_node_gets_the_parameters_that_it_has():
    """No reset strength for a LIF; nothing that an option fixes; the defaults lie where the search is."""
    settings = StudySettings(nodes=("lif", "revlif+checkpoint"), space={"tau": "3..4"}, options={"beta": 0.5})
    assert {"tau", "slope", "learning_rate"} <= set(settings.axes("lif"))
    assert not {"alpha", "beta", "groups", "epsilon"} & set(settings.axes("lif"))
    assert {"alpha", "groups"} <= set(settings.axes("revlif+checkpoint"))
    assert "beta" not in settings.axes("revlif+checkpoint")
    assert settings.defaults("lif")["tau"] == 3.0
    assert settings.case(settings.defaults("lif")).options.keys() == {"tau", "v_threshold", "slope"}
    assert settings.case(settings.defaults("revlif+checkpoint")).options["beta"] == 0.5


def test_a_case_names_its_surrogate():
    """By class and slope; a wrong name is refused."""
    node = strategy("lif", surrogate="ATan", slope=3.0)()
    assert isinstance(node.surrogate_function, surrogate.ATan)
    assert node.surrogate_function.alpha == 3.0
    assert strategy("revlif", slope=2.0)().surrogate_function.alpha == 2.0
    with pytest.raises(ValueError, match="`surrogate` must name a class"):
        strategy("lif", surrogate="Sigmoidal")


def test_firing_rates_are_those_of_the_outputs():
    """Of a LIF the mean of its binary outputs; what a coupled node carries is no spike."""
    case = Case(node="lif", workload="mlp", timesteps=2, batch=256, shape=(1, 8, 8), node_options={"backend": "torch"})
    trainer = Trainer(case, Recipe(2, batch=359))  # the test images are one batch
    seen = []
    for module in trainer.model.modules():
        if hasattr(module, "neuron"):
            module.register_forward_hook(lambda *call: seen.append(call[2].mean().item()))
    rates = trainer.firing_rates()
    assert sum(rates.values()) / len(rates) == pytest.approx(sum(seen) / len(seen))
    assert 0 < max(rates.values()) < 1
    quiet = case.model_copy(update={"node": "revlif", "node_options": (("v_threshold", 1e6),)})
    assert set(Trainer(quiet, Recipe(1)).firing_rates().values()) == {0.0}


def trial(**settings):
    return Trial(StudySettings.model_validate(SMALL | settings), 0, {})


def test_bytes_beyond_the_budget_are_never_allocated():
    """The prediction refuses; nothing was measured and nothing trained."""
    case = Case(node="lif", workload="mlp", timesteps=2, batch=256, shape=(1, 8, 8), epochs=1)
    record = measure_trial(case, trial(budget_bytes=1000))
    assert record.status is Status.SKIPPED
    assert "its predicted peak is" in record.reason
    assert record.memory is record.accuracy is None
    assert record.trial.predicted_peak_bytes > 1000


def test_drift_beyond_the_tolerance_is_never_trained():
    """The guard's own prediction, with the case's tau and alpha; anchored nodes have none."""
    options = {"tau": 2.0, "alpha": 0.5}
    case = Case(node="revlif", workload="mlp", timesteps=20, batch=4, shape=(1, 8, 8), epochs=1, node_options=options)
    error = predicted_drift(case)
    assert error > 1e-3 > predicted_drift(case.model_copy(update={"timesteps": 4}))
    assert predicted_drift(case.model_copy(update={"node": "revlif-anchored"})) is None
    record = measure_trial(case, trial())
    assert record.status is Status.SKIPPED
    assert "its gradient is predicted to be wrong" in record.reason
    assert record.accuracy is None
    assert record.trial.predicted_gradient_error == error


def test_a_trial_is_lost_against_cheaper_ones_alone():
    """The median of at least five curves decides, from the second epoch on; a rival that costs more is none."""
    rivals = [(0.3, 0.5 + 0.1 * n, 0.9) for n in range(5)]
    assert is_lost(rivals, (0.3, 0.6))
    assert not is_lost(rivals, (0.3, 0.8))
    assert not is_lost(rivals, (0.1,))
    assert not is_lost(rivals[1:], (0.3, 0.1))
    known = TrialRecord(number=9, params={}, predicted_peak_bytes=100, predicted_flops=100)
    assert costs_no_more(Rival(100, 90, ()), known)
    assert not costs_no_more(Rival(101, 90, ()), known)
    assert not costs_no_more(Rival(90, 101, ()), known)


def test_silent_networks_are_stopped_after_an_epoch():
    case = Case(
        node="lif", workload="mlp", timesteps=2, batch=256, shape=(1, 8, 8), epochs=3,
        node_options={"v_threshold": 1e6},
    )  # fmt: skip
    record = measure_trial(case, trial(firing=(0.005, 0.9)))
    assert record.status is Status.SKIPPED
    assert "the network is silent" in record.reason
    assert record.accuracy.epochs == 1
    assert record.trial.firing_rate == (0.0, 0.0, 0.0)


def found(run):
    """What must not depend on when a study was killed: cases in their order, choices, accuracies and bytes."""
    return [
        (r.case, r.status, r.trial, r.memory and r.memory.peak_bytes, r.accuracy and r.accuracy.accuracy_by_epoch)
        for r in run
    ]


def test_a_killed_study_goes_on_and_finds_the_same(tmp_path, monkeypatch):
    """SIGKILL while a trial runs; resumed, the study has the trials that an undisturbed one of its seed has."""
    monkeypatch.setattr("revsnn_bench.tuning.study.RANDOM_TRIALS", 1)
    settings = StudySettings.model_validate(SMALL)
    with Study(settings, StudyOptions(run_id="whole", results_dir=tmp_path)) as study:
        study.search()
        whole = study.run
    assert [read.known(record).number for record in whole] == [0, 1]

    program = (
        "import sys; from pathlib import Path; import revsnn_bench.tuning.study as s\n"
        "s.RANDOM_TRIALS = 1\n"
        "where = s.StudyOptions('cut', Path(sys.argv[1]), on_record=lambda record: print(1, flush=True))\n"
        "with s.Study(s.StudySettings.model_validate_json(sys.argv[2]), where) as study: study.search()"
    )
    words = [sys.executable, "-P", "-c", program, str(tmp_path), settings.model_dump_json()]
    here = str(Path(revsnn_bench.__file__).parents[1])  # a run knows its commit by where the package lies
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}) as process:
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGKILL)
    done = CliRunner().invoke(
        app, ["tune", "--resume=cut", f"--results={tmp_path}", f"--reports={tmp_path}", "--format=html"]
    )
    assert done.exit_code == 0, done.output
    assert "train it with: revsnn-bench train --network mlp" in done.output
    assert (tmp_path / "cut.study.html").is_file()
    assert "Not complete" not in (tmp_path / "cut.html").read_text()
    cut = load_run(tmp_path / "cut.json")
    assert found(cut.records[:2]) == found(whole)
    assert {record.case.seed for record in cut.records[2:]} == {1, 2}
    assert cut.records[2].fidelity is not None


def test_a_study_that_goes_on_with_other_workers_keeps_its_trials(tmp_path, monkeypatch):
    """Alone a worker would be proposed other choices: those in the journal hold, and none is tried in their place."""
    monkeypatch.setattr("revsnn_bench.tuning.study.RANDOM_TRIALS", 1)
    settings = StudySettings.model_validate(SMALL | {"trials": 4, "objective": ("accuracy",)})
    with Study(settings, StudyOptions(run_id="cut", results_dir=tmp_path, workers=2)) as study:
        study.search()
        whole = found(study.run)
    assert len(whole) == 4
    with Study(settings, StudyOptions(resume=tmp_path / "cut.jsonl", results_dir=tmp_path)) as study:
        study.search()
        assert found(study.run) == whole


def test_every_option_of_a_study_is_fixed_once_it_began(tmp_path):
    done = CliRunner().invoke(app, ["tune", "--resume=cut", "--trials=3", f"--results={tmp_path}"])
    assert done.exit_code == 2
    assert "--resume must come without --trials" in done.output


BRIEF = ["--budget=1 B", "--trials=2", "--retrain=0", "--node=lif"]


def test_a_study_that_cannot_go_on_says_how_to(tmp_path, monkeypatch):
    """Interrupted, or on a full disk; with the journal's place. Where reports cannot be written, nothing is tried."""
    results = tmp_path / "my results"
    arguments = ["tune", *BRIEF, "--run-id=cut", f"--results={results}"]
    done = CliRunner().invoke(app, [*arguments, "--reports=/proc/nope"])
    assert isinstance(done.exception, FileNotFoundError), done.output
    assert not [*results.iterdir()]

    monkeypatch.chdir(tmp_path)
    go_on = f"go on: revsnn-bench tune --resume '{results}/cut.jsonl'"
    for error, code in ((KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 1)):

        def stopped(study, error=error):
            raise error

        monkeypatch.setattr(Study, "search", stopped)
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == code
        assert go_on in done.output + "".join(getattr(done.exception, "__notes__", ()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space=tau"], "NAME="),
        (["--space=tau=3..2"], "LOW must lie"),
        (["--space=gamma=1..2"], "`space` must name parameters"),
        (["--space=node=lif,revlif"], "--node"),
        (["--node=lif", "--space=alpha=0.1..0.2"], "None of"),
        (
            [*BRIEF, "--space=timesteps=2..16"],
            "`timesteps` must be searched among values separated by commas; got 2..16.",
        ),
        ([*BRIEF, "--space=tau=0.5..4"], "`tau` must be > 1 step; got 0.5."),
        ([*BRIEF, "--space=learning_rate=-1..1"], "`learning_rate`: input should be greater than 0"),
        (
            [*BRIEF, "--space=surrogate=Sigmoid,Foo"],
            "`surrogate` must name a class of revsnn_nodes.surrogate; got 'Foo'.",
        ),
        (["--node=lif", "--option=alpha=0.1"], "None of"),
        (["--node=liff"], "liff"),
        (["--node=lif,lif"], "at most once"),
        (["--budget=64 MB"], "MiB"),
        (["--objective=speed"], "must be one of accuracy"),
        (["--resume=nothing"], "there is no such journal"),
        (["--run-id=a/b"], "run_id"),
        (["--preload=no_such_module"], "no_such_module"),
        (["--network=layer"], "network that classifies"),
    ],
)
def test_wrong_options_end_with_usage_and_say_why(arguments, message, tmp_path):
    """Exit code 2 and one sentence, before anything is tried."""
    done = CliRunner().invoke(app, ["tune", f"--results={tmp_path}", f"--reports={tmp_path}", *arguments])
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
    assert "Traceback" not in done.output


@pytest.fixture
def study_run(make_run, make_record, make_accuracy):
    """Eight trials of two nodes, of which trial 2 beats all but was lucky, and four fresh seeds of the best."""

    def record(number, node, accuracy, seed=0, timesteps=4, **changes):
        case = Case(
            node=node, workload="digits-net", timesteps=timesteps, shape=(1, 8, 8), seed=seed, epochs=2,
            node_options={"tau": 2.0 + number},
        )  # fmt: skip
        known = TrialRecord(number=number, params={"node": node, "tau": 2.0 + number}, predicted_peak_bytes=2**20)
        scored = make_accuracy(accuracy).model_copy(update={"accuracy_by_epoch": (0.5, accuracy)})
        made = make_record(case).model_copy(update={"accuracy": scored, "trial": known, "status": Status.OK})
        return made.model_copy(update=changes)

    records = [record(0, "lif", 0.90), record(1, "revlif", 0.91, timesteps=2), record(2, "revlif", 0.99)]
    records += [record(number, "lif", 0.80 + 0.01 * number, timesteps=8) for number in range(3, 8)]
    records.append(record(8, "revlif", 0.5, status=Status.SKIPPED, reason="the network is silent"))
    for seed in range(1, 5):
        luck = 0.01 * (seed % 2)
        records += [record(0, "lif", 0.90 + luck, seed), record(1, "revlif", 0.915 + luck, seed, timesteps=2)]
        records.append(record(2, "revlif", 0.921 + luck - 0.002 * seed, seed))
    settings = StudySettings(nodes=("lif", "revlif"), budget_bytes=2**26, objective=("accuracy", "peak"), seeds=4)
    run = make_run(records)
    return run.model_copy(
        update={"header": run.header.model_copy(update={"settings": settings.model_dump(mode="json")})}
    )


def test_the_front_is_what_no_other_beats(study_run):
    """Best accuracy first; a cheaper one with less accuracy stays, a costlier one does not, nor do stopped ones."""
    assert [read.known(record).number for record in read.front(study_run)] == [2, 1]
    assert [read.known(record).number for record in read.to_retrain(study_run)] == [0, 2, 1]


def test_the_best_of_a_search_comes_back_to_the_mean(study_run):
    """Its fresh mean less its accuracy in the search, with Student's interval; differences are taken seed by seed."""
    by_number = {read.known(each.first).number: each for each in read.retrained(study_run)}
    lucky, cheap, first = by_number[2], by_number[1], by_number[0]
    assert lucky.to_first.mean == pytest.approx(0.921 - 0.99)
    assert lucky.to_first.high < 0
    assert first.to_baseline is None
    assert cheap.to_baseline == pytest.approx((0.015, 0.015, 0.015))  # the same luck in each pair
    values = [0.01, -0.01, 0.02, 0.0]
    half = 3.182446 * 0.0129099 / 2
    assert interval_of_mean(values) == pytest.approx((0.005, 0.005 - half, 0.005 + half), rel=1e-4)


def test_what_cannot_be_told_from_the_best_is_chosen_by_its_bytes(study_run):
    """Trial 2 has the higher mean on fresh seeds, by less than its interval; trial 1 takes half the bytes."""
    assert read.known(read.retrained(study_run)[0].first).number == 2
    assert read.known(read.chosen(study_run)).number == 1
    text = " ".join(read.summary(study_run))
    assert "9 trials: 8 trained to their end, 1 stopped while training." in text
    assert "Trial 2 had 99.0 % in the search and has 92.1" in text
    assert "regression to the mean: -6.90 points" in text
    assert read.command(read.chosen(study_run)).startswith("revsnn-bench train --network digits-net --node revlif")


def test_effects_are_rank_correlations_with_their_interval(study_run):
    """Of six trials of `lif` accuracy falls with tau once, then rises; nodes with fewer say nothing."""
    (effect,) = read.effects(study_run)
    assert (effect.node, effect.name, effect.trials) == ("lif", "tau", 6)
    assert effect.correlation.mean == pytest.approx(1 - 6 * (25 + 5) / (6 * 35))
    assert effect.correlation.low < effect.correlation.mean < effect.correlation.high
    assert sum(read.importances(study_run).values()) == pytest.approx(1.0)


def test_the_page_shows_the_study(study_run):
    """Valid HTML with every trial, the intervals, the command and four figures; the same run gives the same bytes."""
    page = study_page(study_run)
    html5lib.HTMLParser(strict=True).parse(page)
    assert page == study_page(study_run)
    assert page.count("<svg") == 4
    assert "the network is silent" in page
    assert read.command(read.chosen(study_run)) in page
    assert read.retrained(study_run)[0].to_first.in_points() in page
    assert all(f'id="case-{number}"' in page for number in range(9))
