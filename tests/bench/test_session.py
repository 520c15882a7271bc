"""A run from its first case to its files, without pytest in between."""

from dataclasses import replace

import pytest

from revsnn_bench import Case, Settings
from revsnn_bench.runs import load_run
from revsnn_bench.session import BenchSession, RunOptions

CASES = [Case(node="lif", timesteps=t, batch=2, shape=(8,)) for t in (2, 3)]


@pytest.fixture
def session(tmp_path):
    """A live run that saves and renders below a folder of its own; its workers end with the test."""
    options = RunOptions(
        settings=Settings(passes=("memory",)),
        run_id="r",
        results_dir=tmp_path / "results",
        reports_dir=tmp_path / "reports",
        formats=("html",),
        live=True,
    )
    session = BenchSession(options)
    yield session
    session.close()


def test_live_page_reloads_itself_until_the_run_is_over(session, tmp_path):
    """While cases finish the page holds those done and a refresh; the finished page has every case and none."""
    session.measure(CASES[0])
    page = tmp_path / "reports" / "r.html"
    assert 'http-equiv="refresh"' in page.read_text()
    assert page.read_text().count("T = 2") > 0
    session.measure(CASES[1])
    saved, *reports = session.finish(complete=True)
    assert page in reports
    assert 'http-equiv="refresh"' not in page.read_text()
    assert [record.case for record in load_run(saved)] == CASES


def test_a_case_is_measured_once(session):
    """Asking again gives the record that is in the journal."""
    assert session.measure(CASES[0]) is session.measure(CASES[0])
    assert len(session.run.records) == 1
    session.finish(complete=False)


def test_a_run_that_goes_on_elsewhere_makes_no_results_folder(session, tmp_path):
    """Its journal lies where it lay; `results_dir` is for new runs."""
    session.measure(CASES[0])
    journal, *_ = session.finish(complete=False)
    other = replace(session.options, results_dir=tmp_path / "other", run_id=None, resume=journal)
    again = BenchSession(other)
    again.measure(CASES[1])
    saved, *_ = again.finish(complete=True)
    assert saved.parent == journal.parent
    assert not (tmp_path / "other").exists()
