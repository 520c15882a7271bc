import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from revsnn_bench.records import SCHEMA_VERSION, Record, Run, RunHeader
from revsnn_bench.report import markdown
from revsnn_bench.report.html.gallery import render_gallery
from revsnn_bench.runs import DamagedFile, Journal, NotResumable, RunInUse, UnknownSchema, load_run, new_run_id

MakeRecord = Callable[..., Record]
MakeRun = Callable[..., Run]


@pytest.fixture
def header(make_run: MakeRun) -> RunHeader:
    return make_run([]).header


@pytest.fixture
def records(make_record: MakeRecord) -> list[Record]:
    """Three records; the middle one failed, the last one holds nan and a tuple of options."""
    nan = make_record(node="revlif", timesteps=200)
    return [make_record(node="lif"), make_record(node="revlif", status="oom"), nan]


@pytest.fixture
def journal_file(tmp_path: Path, header: RunHeader, records: list[Record]) -> Path:
    """A journal of three records that was left unfinished."""
    with Journal.create(tmp_path, header) as journal:
        for record in records:
            journal.append(record)
    return journal.path


def _json(run: Run) -> str:
    # As text, because nan is not equal to itself.
    return run.model_dump_json()


def _part(header: RunHeader, records: list[Record]) -> Run:
    """What a journal without a plan holds."""
    return Run(header=header, complete=False, records=tuple(records))


def test_record_is_on_disk_when_append_returns(tmp_path: Path, header: RunHeader, records: list[Record]) -> None:
    """Each append adds exactly one line, at once, readable by others while the journal is open."""
    with Journal.create(tmp_path, header) as journal:
        for count, record in enumerate(records, start=1):
            journal.append(record)
            assert journal.path.read_bytes().count(b"\n") == count + 1
            assert _json(load_run(journal.path)) == _json(_part(header, records[:count]))


def test_finished_run_reads_the_same(journal_file: Path, header: RunHeader, records: list[Record]) -> None:
    """`finish` leaves one `.json` with what the journal held, nan included, and no journal."""
    before = load_run(journal_file)
    path = Journal.resume(journal_file, header).finish()
    assert path.name == "run-1.json"
    assert [file.name for file in path.parent.iterdir()] == ["run-1.json"]
    assert _json(load_run(str(path))) == _json(Run(header=header, records=tuple(records)))
    assert _json(before) == _json(_part(header, records))


@pytest.mark.parametrize("cut", [1, 2, 40, 200])
def test_torn_last_line_is_left_out_and_repaired(
    journal_file: Path, header: RunHeader, records: list[Record], cut: int
) -> None:
    """Whatever part of the last line is missing, that record alone is lost, and appending goes on cleanly."""
    os.truncate(journal_file, journal_file.stat().st_size - cut)
    assert len(load_run(journal_file).records) == 2
    with Journal.resume(journal_file, header) as journal:
        assert len(journal.run.records) == 2
        journal.append(records[2])
    assert _json(load_run(journal_file)) == _json(_part(header, records))


KILLED_SWEEP = """
import os, signal, sys
from pathlib import Path
from revsnn_bench.runs import Journal
from revsnn_bench.records import Run

run = Run.model_validate_json(sys.argv[2])
journal = Journal.create(Path(sys.argv[1]), run.header)
for record in run.records[:-1]:
    journal.append(record)
write = os.write
def torn_write(descriptor, line):
    write(descriptor, line[: len(line) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
os.write = torn_write
journal.append(run.records[-1])
"""


def test_sweep_killed_in_the_middle_of_a_line_resumes(tmp_path: Path, header: RunHeader, records: list[Record]) -> None:
    """After SIGKILL inside an append, the lock is free and all but the last record are there."""
    run = Run(header=header, records=tuple(records))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_SWEEP, str(tmp_path), _json(run)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert killed.returncode == -9
    path = tmp_path / "run-1.jsonl"
    assert not path.read_bytes().endswith(b"\n")
    with Journal.resume(path, header) as journal:
        assert len(journal.run.records) == len(records) - 1
        journal.append(records[-1])
        assert _json(load_run(journal.finish())) == _json(run)


INTERRUPTED_SWEEP = """
import os, signal, sys
from pathlib import Path
from revsnn_bench.runs import Journal
from revsnn_bench.records import Run

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a job in the background ignores the first
    signal.signal(number, signal.default_int_handler)
run = Run.model_validate_json(sys.argv[2])
journal = Journal.create(Path(sys.argv[1]), run.header)
whole = getattr(os, sys.argv[3])
def interrupted(*arguments):
    os.kill(os.getpid(), getattr(signal, sys.argv[4]))
    return whole(*arguments)
setattr(os, sys.argv[3], interrupted)
try:
    journal.append(run.records[0])
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    print(len(journal.run.records))
"""


@pytest.mark.parametrize(("call", "number"), [("write", "SIGINT"), ("fsync", "SIGTERM"), ("fsync", "SIGHUP")])
def test_interrupt_waits_until_a_record_is_written_and_known(
    tmp_path: Path, header: RunHeader, records: list[Record], call: str, number: str
) -> None:
    """An interrupt in the middle of an append is raised after it: file and journal both hold the record."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_SWEEP, str(tmp_path), _json(_part(header, records)), call, number],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout == b"1\n"
    assert _json(load_run(tmp_path / "run-1.jsonl")) == _json(_part(header, records[:1]))


def test_failed_write_leaves_whole_lines(
    tmp_path: Path, header: RunHeader, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk fills up in the middle of a line, the half line is taken back and the error is raised."""
    write = os.write
    room = [100]

    def write_until_full(descriptor: int, line: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        room[0] -= (count := write(descriptor, line[: room[0]]))
        return count

    with Journal.create(tmp_path, header) as journal:
        journal.append(records[0])
        content = journal.path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_until_full)
            with pytest.raises(OSError, match=r"No space left on device: '.*run-1\.jsonl'"):
                journal.append(records[1])
        assert room == [0]
        assert journal.path.read_bytes() == content
        journal.append(records[1])
    assert len(load_run(journal.path).records) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to be allowed to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_every_whole_record(small_disk: Path, header: RunHeader, records: list[Record]) -> None:
    """On a real disk that is full: what fitted is there, can be read, and is gone on with once there is room."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(32 << 10))
    written = 0

    def fill() -> None:
        nonlocal written
        while True:
            case = records[0].case.model_copy(update={"seed": written})
            journal.append(records[0].model_copy(update={"case": case}))
            written += 1

    def begin_others() -> None:
        for number in range(64):
            Journal.create(small_disk, header.model_copy(update={"run_id": f"late-{number}"})).close()

    with Journal.create(small_disk, header) as journal:
        with pytest.raises(OSError, match="No space left"):
            fill()
        assert journal.path.read_bytes().endswith(b"\n")
        assert len(load_run(journal.path).records) == written > 1
        with pytest.raises(OSError, match="No space left"):
            journal.finish()
        assert len(load_run(journal.path).records) == written
    with pytest.raises(OSError, match="No space left"):
        begin_others()
    assert all(load_run(path).header for path in small_disk.glob("*.jsonl"))
    assert not [*small_disk.glob("*.tmp"), *small_disk.glob(".*")]
    for path in (ballast, *small_disk.glob("late-*")):
        path.unlink()
    with Journal.resume(small_disk / "run-1.jsonl", header) as journal:
        journal.append(records[2])
    assert len(load_run(small_disk / "run-1.jsonl").records) == written + 1


def test_second_writer_is_refused(tmp_path: Path, header: RunHeader) -> None:
    """While one journal is open nobody else can write it; after it is closed, somebody can."""
    with Journal.create(tmp_path, header) as journal:
        with pytest.raises(RunInUse, match=r"run-1.jsonl is being written by another process"):
            Journal.resume(journal.path, header)
        with pytest.raises(RunInUse, match="`run_id` must be new; 'run-1' has a journal already"):
            Journal.create(tmp_path, header)
    Journal.resume(journal.path, header).finish()
    with pytest.raises(RunInUse, match="'run-1' is a finished run"):
        Journal.create(tmp_path, header)


def test_closed_journal_takes_no_record(journal_file: Path, header: RunHeader, records: list[Record]) -> None:
    """Appending after `close` is an error, not a lost record."""
    journal = Journal.resume(journal_file, header)
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match=r"run-1.jsonl is closed. Resume it"):
        journal.append(records[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch": "2.6.0"}, "`torch` was '2.13.0.cpu', is '2.6.0'"),
        ({"threads": 7}, "`threads` was 2, is 7"),
        ({"commit": "ffff"}, "`commit` was '0123abc', is 'ffff'"),
        ({"cpu_model": "Other"}, "`cpu_model` was 'Some CPU', is 'Other'"),
        ({"cores": 64}, "`cores` was 2, is 64"),
        ({"python": "3.12.1"}, "`python` was '3.11.7', is '3.12.1'"),
        ({"packages": {"numpy": "2.0", "numba": "0.61"}}, "`packages.numba` was None, is '0.61'. What was measured"),
        ({"malloc": {}}, "`malloc.MALLOC_MMAP_THRESHOLD_` was '1048576', is None"),
        ({"sources": "ab12"}, "`sources` was None, is 'ab12'"),
    ],
)
def test_resume_in_another_environment_is_refused(
    journal_file: Path, make_run: MakeRun, changes: dict[str, Any], message: str
) -> None:
    """One run has one environment: the error names the field and both values, and the file stays as it was."""
    content = journal_file.read_bytes()
    with pytest.raises(NotResumable, match=message):
        Journal.resume(journal_file, make_run([], **changes).header)
    assert journal_file.read_bytes() == content


def test_resume_with_other_settings_is_refused(journal_file: Path, header: RunHeader) -> None:
    """Settings belong to the run, too, and the command that had them is named; what JSON writes otherwise is equal."""
    with pytest.raises(NotResumable, match=r"`settings.rounds` was 12, is 5. It began as `revsnn-bench run`: go on"):
        Journal.resume(journal_file, header.model_copy(update={"settings": {"rounds": 5}}))


def test_settings_survive_json(tmp_path: Path, header: RunHeader) -> None:
    """A tuple among the settings is a list in the file, and still the same setting."""
    header = header.model_copy(update={"settings": {"passes": ("memory", "flops")}})
    Journal.create(tmp_path, header).close()
    Journal.resume(tmp_path / "run-1.jsonl", header).close()


@pytest.mark.parametrize(
    ("line", "damage", "message"),
    [
        (3, "{broken", r"run-1.jsonl, line 3, column 2: not JSON"),
        (3, "[1, 2]", r"run-1.jsonl, line 3: must be a JSON object; got list"),
        (2, '{"status": "ok"}', r"run-1.jsonl, line 2: `case` is wrong \(Field required\)"),
        (1, "{}", r"run-1.jsonl, line 1: no header with a `schema_version`"),
    ],
)
def test_damaged_line_is_named(journal_file: Path, line: int, damage: str, message: str) -> None:
    """A whole line that is wrong is never skipped: file, line and fault are in the error."""
    lines = journal_file.read_text("utf-8").splitlines()
    lines[line - 1] = damage
    journal_file.write_text("\n".join(lines) + "\n", "utf-8")
    with pytest.raises(DamagedFile, match=message):
        load_run(journal_file)


def test_damaged_finished_run_is_named(journal_file: Path, header: RunHeader) -> None:
    """In a `.json` file the error names the line of broken JSON, or the field."""
    path = Journal.resume(journal_file, header).finish()
    data = json.loads(path.read_text("utf-8"))
    path.write_text(path.read_text("utf-8")[:-20], "utf-8")
    with pytest.raises(DamagedFile, match=r"run-1.json, line \d{2,}, column \d+: not JSON"):
        load_run(path)
    data["records"][1]["status"] = "great"
    path.write_text(json.dumps(data), "utf-8")
    with pytest.raises(DamagedFile, match=r"run-1.json: `records.1.status` is wrong"):
        load_run(path)


def test_empty_journal_is_damaged(tmp_path: Path) -> None:
    """A journal killed before its header was written says so."""
    (tmp_path / "a.jsonl").write_text('{"schema_ver', "utf-8")
    with pytest.raises(DamagedFile, match=r"a.jsonl, line 1: the header is missing"):
        load_run(tmp_path / "a.jsonl")


@pytest.mark.parametrize("finished", [False, True])
def test_newer_schema_is_refused(journal_file: Path, header: RunHeader, finished: bool) -> None:
    """A file of a newer program is refused with both versions, before its unknown fields are looked at."""
    path = Journal.resume(journal_file, header).finish() if finished else journal_file
    text = path.read_text("utf-8")
    newer = text.replace('"schema_version":', f'"new_field":1,"schema_version":{SCHEMA_VERSION + 1},"was":', 1)
    path.write_text(newer, "utf-8")
    message = f"schema version {SCHEMA_VERSION + 1}; this program reads 1 to {SCHEMA_VERSION}. Upgrade"
    with pytest.raises(UnknownSchema, match=message):
        load_run(path)


@pytest.mark.parametrize("run_id", ["", "a/b", "../up", ".hidden", "a b", "latest", "index", "x-claims", "x.long"])
def test_run_id_must_be_a_file_name(tmp_path: Path, header: RunHeader, run_id: str) -> None:
    """A run id that would leave the folder or hide in it, or has reports called as another run's are, is refused."""
    with pytest.raises(ValueError, match="`run_id` must be letters, digits"):
        Journal.create(tmp_path, header.model_copy(update={"run_id": run_id}))
    assert list(tmp_path.iterdir()) == []


def test_new_run_ids_are_unique_and_sort_by_time() -> None:
    """A thousand ids made at once differ; their first part is the time, so that names sort by age."""
    ids = [new_run_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    times = [run_id.split("-")[0] for run_id in ids]
    assert times == sorted(times)
    assert all(len(time) == len("20260101T000000Z") for time in times)


def _faults(folder: Path, run: Run, how: str) -> int:
    """How often the script `journal_faults.py` did what `how` says; it fails where a promise is broken."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "measures" / "journal_faults.py"), str(folder), _json(run), how],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture
def small_run(header: RunHeader, make_record: MakeRecord) -> Run:
    """Three records without nan, so that they can be compared."""
    return Run(header=header, records=tuple(make_record(status="oom", timesteps=t, node="lif") for t in (1, 2, 3)))


@pytest.mark.parametrize(("how", "least"), [("calls", 40), ("signals", 200)])
def test_no_kill_loses_a_record_or_blocks_a_name(tmp_path: Path, small_run: Run, how: str, least: int) -> None:
    """Killed at every file-system call, and at 200 random moments: what `append` returned for is on disk.

    No journal is damaged, the same command goes on, and the finished run has every case once.
    """
    assert _faults(tmp_path, small_run, how) >= least


def test_of_many_at_once_one_gets_the_name(tmp_path: Path, small_run: Run) -> None:
    """Eight processes begin one run at the same moment, forty times: one writes it, seven are refused."""
    assert _faults(tmp_path, small_run, "race") == 40


def test_a_clock_that_is_set_back_changes_nothing(tmp_path: Path, header: RunHeader, records: list[Record]) -> None:
    """Records that begin before their run, and before each other, are kept in the order in which they ended."""
    dates = ("2026-01-01T00:00:00Z", "1999-12-31T23:59:59Z", "1970-01-01T00:00:00+00:00")
    early = [record.model_copy(update={"started_at": date}) for record, date in zip(records, dates, strict=True)]
    with Journal.create(tmp_path, header) as journal:
        journal.append(early[0])
    later = header.model_copy(update={"started_at": "1970-01-01T00:00:00Z"})
    with Journal.resume(journal.path, later) as journal:
        journal.append(early[1])
        journal.append(early[2])
        run = load_run(journal.finish())
    assert [record.started_at for record in run] == list(dates)
    assert markdown.render(run)
    assert render_gallery([run, run.model_copy(update={"header": later})])


def test_a_journal_without_a_record_gives_its_name_back(
    tmp_path: Path, header: RunHeader, records: list[Record]
) -> None:
    """Whatever a kill left before the first record is replaced; what has a record, or is something else, is not."""
    path = tmp_path / "run-1.jsonl"
    for left in ("", '{"schema_ver', header.model_dump_json() + "\n"):
        path.write_text(left)
        with Journal.create(tmp_path, header, ["a"]):
            assert load_run(path).planned == ("a",)
    for other in ("notes\n", f"{header.model_dump_json()}\n{records[0].model_dump_json()}\n"):
        path.write_text(other)
        with pytest.raises(RunInUse, match="has a journal already"):
            Journal.create(tmp_path, header)
        assert path.read_text() == other
    assert [file.name for file in tmp_path.iterdir()] == ["run-1.jsonl"]


def test_a_disk_that_is_full_from_the_start_leaves_no_journal(
    tmp_path: Path, header: RunHeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header does not fit: the error is raised, and neither a journal nor a part of one is there."""

    def full(descriptor: int, line: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            Journal.create(tmp_path, header)
    assert list(tmp_path.iterdir()) == []


def test_the_planned_cases_are_in_the_journal_and_in_the_run(
    tmp_path: Path, header: RunHeader, records: list[Record]
) -> None:
    """What is missing is known at every moment; a resume adds to the plan; the run says that it is complete."""
    ids = [record.case.id for record in records]
    with Journal.create(tmp_path, header, ids[:1]) as journal:
        assert load_run(journal.path).extent == "0 of 1 planned cases"
        journal.append(records[0])
        assert load_run(journal.path).complete
    with Journal.resume(journal.path, header, ids) as journal:
        assert load_run(journal.path).missing == tuple(ids[1:])
        journal.append(records[1])
    with Journal.resume(journal.path, header, ids[:2]) as journal:
        assert load_run(journal.path).extent == "2 of 3 planned cases"
        path = journal.finish()
    assert (load_run(path).complete, load_run(path).planned) == (False, tuple(ids))


def test_a_case_on_two_lines_is_refused_before_more_is_measured(journal_file: Path, header: RunHeader) -> None:
    """A line pasted twice would make a finished file that nothing reads, without a journal to go back to."""
    lines = journal_file.read_text("utf-8").splitlines()
    journal_file.write_text("\n".join([*lines, lines[2]]) + "\n", "utf-8")
    for read in (load_run, lambda path: Journal.resume(path, header)):
        with pytest.raises(DamagedFile, match=r"run-1.jsonl, line 5: the case 'layer/revlif/.*' is on line 3 too"):
            read(journal_file)


def test_files_of_the_first_schema_are_read(journal_file: Path, header: RunHeader) -> None:
    """A finished one is complete, an unfinished one is not, and the plan of neither is known."""
    path = Journal.resume(journal_file, header).finish()
    data = json.loads(path.read_text("utf-8"))
    data["header"]["schema_version"] = 1
    del data["planned"], data["complete"]
    path.write_text(json.dumps(data), "utf-8")
    assert (load_run(path).complete, load_run(path).planned) == (True, None)
    lines = [json.dumps(part) for part in (data["header"], *data["records"])]
    journal_file.write_text("\n".join(lines) + "\n", "utf-8")
    assert (load_run(journal_file).complete, len(load_run(journal_file).records)) == (False, 3)
    assert load_run(journal_file).extent == "3 cases of a run that was not finished"
