"""A run from its first case to its files, without pytest in between."""

from dataclasses import replace

import pytest

from revsnn_bench import Case, Settings
from revsnn_bench.runs import NotResumable, load_run
from revsnn_bench.session import BenchSession, OtherPasses, RunOptions, SameCase

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


def test_two_workers_find_the_numbers_of_one(session):
    """Cases that are submitted together are in the run as they were planned, with the bytes of cases one by one."""
    together = BenchSession(replace(session.options, workers=2, run_id="together"))
    together.open([case.id for case in CASES])
    for case in CASES[::-1]:
        together.submit(case)
    found, expected = ([each.measure(c).memory.peak_bytes for c in CASES[::-1]] for each in (together, session))
    assert found == expected
    saved, *_ = together.finish(complete=True)
    assert [record.case for record in load_run(saved)] == CASES


def test_a_case_is_not_taken_for_measured_in_passes_that_it_did_not_get(session):
    """A test that asks for a time after one that asked for bytes of the same case would pass with no time at all."""
    session.options = replace(session.options, settings=Settings(passes=("memory", "time")))
    record = session.measure(CASES[0], ("memory",))
    with pytest.raises(OtherPasses, match=r"got time after memory. A run has one record of each case. Ask for all"):
        session.measure(CASES[0], ("time",))
    assert session.measure(CASES[0], ()) is record
    assert session.measure(CASES[0], ("memory",)) is record


def test_a_case_that_cannot_be_told_from_another_is_refused(session):
    """Of the same id the run could not be read again, and equal to it the other would never be measured."""
    first, *others = (CASES[0].model_copy(update={"node_options": (("tau", tau),)}) for tau in (2.0, "2.0", 2))
    record = session.measure(first)
    for other in others:
        with pytest.raises(SameCase, match=r"got options \{'tau': '?2.*\} after layer/lif\[tau=2.0\].*the same type"):
            session.measure(other)
    assert session.measure(first) is record


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


def test_a_model_that_changed_is_not_mixed_with_what_was_measured_of_it(session, tmp_path, monkeypatch):
    """Not its module, none that it imports, and no node of an entry point: a run that is resumed after an edit is
    refused, else it goes on; the package of the node is recorded with its version."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "changing_net.py").write_text(
        "from changing_size import SIZE\nfrom torch import nn\nmake = nn.Identity\n"
    )
    size = tmp_path / "changing_size.py"
    size.write_text("SIZE = 8\n")
    info, node = tmp_path / "changing-1.5.dist-info", tmp_path / "changing_node.py"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: changing\nVersion: 1.5\n")
    (info / "top_level.txt").write_text("changing_node\n")
    (info / "entry_points.txt").write_text("[revsnn_bench.nodes]\nchanging = changing_node:make\n")
    node.write_text("from torch import nn\nmake = nn.Identity\n")
    ids = ["changing_net:make/as-is/T2", "layer/changing+checkpoint/T3"]
    session.open(ids)
    found, journal = session.run.header.environment.sources, session.saved
    assert session.run.header.environment.packages["changing"] == "1.5"
    session.leave_out(CASES[0], "so that there is a record")
    session.finish(complete=False)
    again = BenchSession(replace(session.options, run_id=None, resume=journal))
    again.open(ids)
    again.finish(complete=False)
    size.write_text("SIZE = 4 + 4\n")
    later = BenchSession(replace(session.options, run_id=None, resume=journal))
    refused = pytest.raises(NotResumable, match=f"`sources` was '{found}', is '.*go back to those, or start a new run")
    with refused:
        later.open(ids)
    size.write_text("SIZE = 8\n")
    node.write_text("from torch import nn\nmake = nn.Tanh\n")
    with refused:
        later.open(ids)
    later.close()
