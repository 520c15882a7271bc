"""Runs on disk: a finished one is `<run_id>.json`; one that is going on or was interrupted is a journal.

The journal is `<run_id>.jsonl`: the header on the first line, the planned cases on the second, then a record per line,
each flushed, so that a killed sweep loses at most the cases in flight; of a run on a cluster there is a line per host
as well. It appears under its name with its header in it, and disappears when the run is finished. `load_run` reads
both, and refuses what this program cannot have written.

Several runs become one, as the shards of a sweep do, where environments, code and settings agree, for a ratio has both
of its values from one environment, and so does every exact value that was measured twice.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from revsnn_bench.case import LARGEST
from revsnn_bench.metrics import METRICS
from revsnn_bench.records import SCHEMA_VERSION, Environment, Host, Plan, Record, Run, RunHeader, without_record
from revsnn_bench.system.environment import machine_differences, place_differences

_Model = TypeVar("_Model", bound=BaseModel)
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # what a run may be called
_READ_VERSIONS, _DEEPEST = (1, SCHEMA_VERSION), 40  # the second: levels of lists and objects in a file, at most
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # where a file system has none
_ENDS_OF_REPORTS = ("-claims", ".columns", ".long", ".study")  # between a run's name and `.md` or the like
_HAS_JOURNAL = (
    "`run_id` must be new; {!r} has a journal already. It is running, or was interrupted. Resume it, or choose another "
    "name."
)


class JournalError(ValueError):
    """A run cannot be read or written; the message says why and what to do."""


class DamagedFile(JournalError):
    """A line of a run file is not what this program writes."""


class UnknownSchema(JournalError):
    """A run file was written by another version of the schema."""


class RunInUse(JournalError):
    """The run exists already, or another process is writing it."""


class NotResumable(JournalError):
    """What is to be appended was not measured under the header of this run."""


class NotMergeable(JournalError):
    """The parts are not parts of one run."""


def load_run(path: Path | str) -> Run:
    """Reads a run, finished (`.json`) or not (`.jsonl`; a torn last line is left out).

    Raises:
        DamagedFile: names the file, the line or field, and what is wrong with it.
        UnknownSchema: written by a newer program.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        return _parse_journal(path)[0]
    data = _parse_json(path.read_bytes(), path)
    _migrate(data.get("header"), path)
    return _validate(Run, data, str(path))


def _parse_journal(path: Path) -> tuple[Run, int]:
    """The run in a journal, and how many bytes of the file are whole lines; errors as of `load_run`."""
    content = path.read_bytes()
    intact_bytes = content.rfind(b"\n") + 1
    lines = content[:intact_bytes].split(b"\n")[:-1]
    if not lines:
        raise DamagedFile(f"{path}, line 1: the header is missing. Nothing was measured yet; delete the file.")
    parsed = [_parse_json(line, path, number) for number, line in enumerate(lines, start=1)]
    _migrate(parsed[0], path)
    header = _validate(RunHeader, parsed[0], f"{path}, line 1")
    planned: list[str] | None = None
    hosts: dict[str, Environment] = {}
    records: list[Record] = []
    first: dict[str, int] = {}
    for number, data in enumerate(parsed[1:], start=2):
        place = f"{path}, line {number}"
        if "planned" in data:
            planned = [*(planned or ()), *_validate(Plan, data, place).planned]
        elif "environment" in data:
            host = _validate(Host, data, place)
            hosts[host.host] = host.environment
        else:
            records.append(_validate(Record, data, place))
            case = records[-1].case.id
            if first.setdefault(case, number) < number:  # the finished file would be refused, and the journal gone
                raise DamagedFile(f"{place}: the case {case[:100]!r} is on line {first[case]} too. Remove one of them.")
    return _run(header, planned, hosts, records), intact_bytes


def _run(
    header: RunHeader, planned: Sequence[str] | None, hosts: Mapping[str, Environment], records: Sequence[Record]
) -> Run:
    """A run that is complete where every planned case has a record."""
    whole = planned is not None and not without_record(planned, records)
    plan = None if planned is None else tuple(dict.fromkeys(planned))
    return Run(header=header, hosts=dict(hosts), planned=plan, complete=whole, records=tuple(records))


def in_order_of_plan(run: Run) -> Run:
    """The run with its records in the order of the plan; those of no planned case come last, as they were."""
    rank = {case: number for number, case in enumerate(run.planned or ())}
    records = sorted(run.records, key=lambda record: rank.get(record.case.id, len(rank)))
    return run.model_copy(update={"records": tuple(records)})


def require_readable(record: Record) -> None:
    """A `DamagedFile` where a record, once written, could not be read again, as one made without validation."""
    _validate(Record, _parse_json(record.model_dump_json(warnings="error").encode(), "the record"), "the record")


class _Unsound(ValueError):
    """JSON that this program does not write; the message says what it is."""


def _parse_json(content: bytes, file: Path | str, line: int = 1) -> dict[str, Any]:
    """The object in a JSON text, which begins on this line of a file."""
    try:
        text = content.decode("utf-8")
        data = json.loads(text, parse_int=_whole, parse_constant=_constant, object_pairs_hook=_object)
        _require_sound(data)
    except UnicodeDecodeError as error:
        at = line + content.count(b"\n", 0, error.start)
        raise DamagedFile(f"{file}, line {at}: not text in UTF-8. Restore the file.") from None
    except json.JSONDecodeError as error:
        place = f"{file}, line {line + error.lineno - 1}, column {error.colno}"
        raise DamagedFile(f"{place}: not JSON ({error.msg}). Restore the file or remove the line.") from None
    except RecursionError:
        raise DamagedFile(f"{file}, line {line}: nested too deeply. Restore the file.") from None
    except _Unsound as error:
        raise DamagedFile(f"{file}, line {line}: {error}. Restore the file.") from None
    if not isinstance(data, dict):
        raise DamagedFile(f"{file}, line {line}: must be a JSON object; got {type(data).__name__}. Restore the file.")
    return data


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > LARGEST:
        raise _Unsound(f"the number {text[:20]}... is too large, for numbers have at most 64 bits")
    return int(text)


def _constant(text: str) -> float:
    raise _Unsound(f"{text} is no number of JSON; what was measured as {text} is written as a string")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Unsound(f"an object has the name {twice[:40]!r} twice")
    return found


def _require_sound(data: Any) -> None:
    """Refuses half a surrogate pair, which cannot be printed or written, and nesting that no run has."""
    ahead = [(data, 0)]
    while ahead:
        value, depth = ahead.pop()
        if depth > _DEEPEST:
            raise _Unsound("nested too deeply")
        if isinstance(value, dict):
            ahead += [(each, depth + 1) for pair in value.items() for each in pair]
        elif isinstance(value, list):
            ahead += [(each, depth + 1) for each in value]
        elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value if letter > "\ud7ff"):
            raise _Unsound("a text has half a surrogate pair")


def _migrate(header: Any, path: Path) -> None:
    """Makes a header of an older version one of today; every older file is as if today's new fields had their defaults.

    Errors as of `load_run`, also for a name of the run that is no name of a file.
    """
    version = header.get("schema_version") if isinstance(header, dict) else None
    if not isinstance(version, int):
        raise DamagedFile(
            f"{path}, line 1: no header with a `schema_version`. It is no run of revsnn-bench, or damaged."
        )
    if version not in _READ_VERSIONS:
        advice = "Upgrade revsnn-bench." if version > SCHEMA_VERSION else "Measure it again."
        raise UnknownSchema(
            f"{path}: written with schema version {version}; this program reads 1 to {SCHEMA_VERSION}. {advice}"
        )
    header["schema_version"] = SCHEMA_VERSION
    run_id = header.get("run_id")
    if isinstance(run_id, str) and not RUN_ID.fullmatch(run_id):
        raise DamagedFile(f"{path}, line 1: `run_id` is wrong; {run_id[:40]!r} is no name of a file. Restore the file.")


def _validate(model: type[_Model], data: dict[str, Any], place: str) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))[:200] or model.__name__
        raise DamagedFile(f"{place}: `{field}` is wrong ({first['msg']}). Restore the file.") from None


def require_new(run_id: str, results_dir: Path) -> None:
    """A ValueError where this is no file name, `RunInUse` where a run of this name exists."""
    _require_name(run_id)
    path = results_dir / f"{run_id}.jsonl"
    with suppress(OSError):  # a folder that cannot be looked into is for who opens the journal
        _require_unfinished(path)
        if path.exists() and _holds_records(path):
            raise RunInUse(_HAS_JOURNAL.format(run_id))


def _require_name(run_id: str) -> None:
    why = "" if RUN_ID.fullmatch(run_id) else "It becomes a file name"
    if run_id == "latest":
        why = "That is the newest run, whatever its name"
    elif run_id == "index" or run_id.endswith(_ENDS_OF_REPORTS):
        why = f"{run_id}.* in the folder of reports are files of another run, or of the gallery"
    if why:
        raise ValueError(
            f"`run_id` must be letters, digits, `.`, `_` and `-`, and mean nothing else; got {run_id!r}. {why}. Leave "
            "it out to get one made of date and time."
        )


def _require_unfinished(journal: Path) -> None:
    if journal.with_suffix(".json").exists():
        raise RunInUse(f"`run_id` must be new; {journal.stem!r} is a finished run. Choose another name.")


def require_writable(*folders: Path) -> None:
    """Makes folders where they are absent, and tries each; an OSError where one cannot be written to."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=folder):
                pass
        except OSError as error:
            code = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno or 0
            raise OSError(code, os.strerror(code), str(folder)) from None


def new_run_id() -> str:
    """A new run id: UTC time, so that names sort by age, and ten random digits against clashes."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(5)}"


class Journal:
    """A run that is being written, held by this process alone until `finish`, `discard` or `close`.

    Leaving the `with` block closes the journal and keeps it, so that it can be resumed.
    """

    def __init__(self, path: Path, descriptor: int, run: Run) -> None:
        self.path = path
        self._descriptor = descriptor
        self._header = run.header
        self._planned = run.planned
        self._hosts = dict(run.hosts)
        self._records = list(run.records)

    @classmethod
    def create(cls, results_dir: Path, header: RunHeader, planned: Sequence[str] | None = None) -> Self:
        """Starts `<results_dir>/<run_id>.jsonl`, which has its header when it appears; makes the folder.

        A journal of that name that holds no record, and that nobody is writing, is replaced.

        Args:
            planned: ids of the cases that are to be measured; None where that is not known.
        Raises:
            ValueError: `header.run_id` is no file name.
            RunInUse: a run of this name exists.
        """
        _require_name(header.run_id)
        results_dir.mkdir(parents=True, exist_ok=True)
        path = results_dir / f"{header.run_id}.jsonl"
        _require_unfinished(path)
        temporary = results_dir / f".{header.run_id}.{secrets.token_hex(3)}.tmp"
        descriptor = os.open(temporary, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        journal = cls(path, descriptor, Run(header=header, records=()))
        try:
            _lock(descriptor, path)
            journal._write(header)
            journal.plan(planned)
            try:
                _link(temporary, path)
            except FileExistsError:
                _clear_away(path)
                _link(temporary, path)
            temporary.unlink(missing_ok=True)
            # A run of this name that has ended since it was looked for: its file must not be written over.
            if path.with_suffix(".json").exists():
                path.unlink()
                _require_unfinished(path)
            _sync_folder(results_dir)
        except BaseException:
            temporary.unlink(missing_ok=True)
            journal.close()
            raise
        return journal

    @classmethod
    def resume(cls, path: Path, header: RunHeader, planned: Sequence[str] | None = None) -> Self:
        """Goes on with an interrupted run, whose header would be this one now; a line torn by a kill is cut off.

        Args:
            planned: ids of the cases that are to be measured now; the journal keeps those that it has.
        Raises:
            NotResumable: environment, code or settings are not those that the run began with.
            RunInUse: another process is writing it, or it is finished.
            DamagedFile, UnknownSchema: see `load_run`.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            _lock(descriptor, path)
            if not path.exists():
                raise RunInUse(f"{path.name} was finished by another process a moment ago. Read its .json file.")
            _require_unfinished(path)
            run, intact_bytes = _parse_journal(path)
            if listed := condition_differences(run.header, header):
                advice = "What was measured belongs to one environment and its code: go back to those"
                if "`settings." in listed:
                    advice = f"It began as `{shlex.join(run.header.command)}`: go on with those options"
                raise NotResumable(f"{path.name} cannot be resumed: {listed}. {advice}, or start a new run.")
            os.ftruncate(descriptor, intact_bytes)
            journal = cls(path, descriptor, run)
            journal.plan(planned)
        except BaseException:
            os.close(descriptor)
            raise
        return journal

    @property
    def run(self) -> Run:
        """Everything written so far."""
        return _run(self._header, self._planned, self._hosts, self._records)

    def append(self, record: Record) -> None:
        """Writes one record; when this returns it is on the disk."""
        with _uninterrupted():  # else an interrupt between the two would take a measured record for none
            self._write(record)
            self._records.append(record)

    def host(self, name: str, environment: Environment) -> None:
        """Adds a host of the cluster, unless it is there with this environment."""
        if self._hosts.get(name) != environment:
            self._write(Host(host=name, environment=environment))
            self._hosts[name] = environment

    def plan(self, planned: Sequence[str] | None) -> None:
        """Adds cases, by id, to those that are to be measured."""
        known = {*(self._planned or ())}
        added = tuple(case for case in dict.fromkeys(planned or ()) if case not in known)
        if added or (planned is not None and self._planned is None):
            self._write(Plan(planned=added))
            self._planned = (*(self._planned or ()), *added)

    def finish(self) -> Path:
        """Turns the journal into `<run_id>.json`, in one step as seen by readers, and returns its path.

        The run is complete where every planned case has a record, or where no plan is known.
        """
        run = in_order_of_plan(self.run)
        target = self.path.with_suffix(".json")
        write_run(run if run.planned is not None else run.model_copy(update={"complete": True}), target)
        self.path.unlink()
        self.close()
        return target

    def discard(self) -> None:
        """Removes the journal, as where it holds nothing."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Releases the file and keeps it; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, model: BaseModel) -> None:
        if self._descriptor < 0:
            raise ValueError(f"{self.path.name} is closed. Resume it to append more.")
        line = (model.model_dump_json() + "\n").encode()
        intact_bytes = os.fstat(self._descriptor).st_size
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            # A full disk must not leave half a line for the next record to be glued to.
            os.ftruncate(self._descriptor, intact_bytes)
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        os.fsync(self._descriptor)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Has Ctrl-C, and SIGTERM and SIGHUP where Python handles them, wait until the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread only
        return
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda came, _: waiting.append(came))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for came in waiting:
            signal.raise_signal(came)


def merged(parts: Sequence[Run], run_id: str, command: Sequence[str] = ()) -> Run:
    """Joins runs, finished or not, into one, which is complete where every case that a part planned has a record.

    Raises:
        NotMergeable: there is no part; two parts have another environment, code or settings, or a case with other
            results.
    """
    if not parts:
        raise NotMergeable("`parts` must be at least one run; got none. Name the runs of the shards.")
    first = parts[0].header
    for part in parts[1:]:
        if differences := condition_differences(first, part.header):
            raise NotMergeable(
                f"{part.header.run_id!r} cannot be merged with {first.run_id!r}: {differences}. A ratio has both of "
                "its values from one environment. Measure all parts in one, or report them one by one."
            )
    hosts: dict[str, Environment] = {}
    records: dict[str, tuple[str, Record]] = {}
    for part in parts:
        for name, environment in part.hosts.items():
            if hosts.setdefault(name, environment) != environment:
                raise NotMergeable(
                    f"{part.header.run_id!r} cannot be merged: its host {name!r} is not the {name!r} of another part, "
                    "and times of both would stand under one name. Report the parts one by one."
                )
        for record in part:
            before = records.setdefault(record.case.id, (part.header.run_id, record))
            _require_agreement(*before, part.header.run_id, record)
    planned = tuple(dict.fromkeys(case for part in parts for case in part.planned or ()))
    known = all(part.planned is not None for part in parts)
    began = min(part.header.started_at for part in parts)
    update = {"run_id": run_id, "started_at": began, "command": tuple(command) or first.command}
    run = Run(
        header=first.model_copy(update=update),
        hosts=hosts,
        planned=planned,
        complete={*planned} <= {*records} if known else all(part.complete for part in parts),
        records=tuple(record for _, record in records.values()),
    )
    return in_order_of_plan(run).model_copy(update={} if known else {"planned": None})


def _require_agreement(one: str, before: Record, other: str, after: Record) -> None:
    """Stops where a case has other exact values in another part; NaN agrees with NaN."""
    names = ["status"] if before.status is not after.status else []
    for metric in METRICS:
        values = metric.read(before), metric.read(after)
        if metric.deterministic and repr(values[0]) != repr(values[1]):
            names.append(metric.name)
    if names:
        raise NotMergeable(
            f"{before.case.id} was measured in {one!r} and in {other!r}, and differs in {', '.join(names[:3])}. One of "
            "the two is not of this sweep, or the machine changed. Leave one of them out."
        )


def condition_differences(written: RunHeader, now: RunHeader) -> str:
    """In which environment, code, machine and settings two headers differ; "" where their records may be of one run."""
    old, new = written.environment, now.environment
    differences = place_differences(old, new)
    if written.cluster != now.cluster:
        differences.append(("cluster", written.cluster, now.cluster))
    elif not now.cluster:  # each record of a cluster names its host
        differences += machine_differences(old, new)
    # Through JSON, as those of a file have been: a tuple is a list there.
    before, after = (json.loads(each.model_dump_json(include={"settings"}))["settings"] for each in (written, now))
    names = sorted(before.keys() | after.keys())
    differences += [
        (f"settings.{name}", before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    ]
    return "; ".join(f"`{name}` was {_short(before)}, is {_short(after)}" for name, before, after in differences)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def write_run(run: Run, target: Path) -> None:
    """Writes a finished run, in one step as seen by readers."""
    write_whole(run.model_dump_json(indent=1) + "\n", target)
    _sync_folder(target.parent)


def write_whole(content: str | bytes, target: Path) -> None:
    """Writes a file in one step; an OSError names it, and then what it held before is there still."""
    data = content.encode() if isinstance(content, str) else content
    if target.exists() and not target.is_file():
        target.write_bytes(data)  # such as /dev/stdout
        return
    temporary = target.resolve().with_name(f"{target.name}.tmp")  # a link stays one
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target.resolve())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(target)) from None


def _link(temporary: Path, path: Path) -> None:
    """Gives a file its name, or a FileExistsError; where the file system has no links there is a moment between."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(temporary, path)


def _holds_records(path: Path) -> bool:
    """Whether a journal has a record, or anything else that this program has not written."""
    try:
        return b"\n" in path.read_bytes() and bool(_parse_journal(path)[0].records)
    except JournalError:
        return True


def _clear_away(path: Path) -> None:
    """Removes a journal that nobody is writing, without a record or anything else; else `RunInUse`."""
    in_use = RunInUse(_HAS_JOURNAL.format(path.stem))
    with suppress(FileNotFoundError):
        if not path.is_file():
            raise in_use
        descriptor = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _holds_records(path):
                raise in_use
            path.unlink()
        except BlockingIOError:
            raise in_use from None
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunInUse(
            f"{path.name} is being written by another process. Two writers would mix their records. "
            "Wait for it to end, or give this run another id."
        ) from None


def _sync_folder(folder: Path) -> None:
    """Makes a new or replaced directory entry survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
