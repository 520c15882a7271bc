"""Runs on disk: a finished one is `<run_id>.json`; one that is going on or was interrupted is a journal.

The journal is `<run_id>.jsonl`: the header on the first line, then a record per line, each flushed, so that a killed
sweep loses at most the case in flight. It disappears when the run is finished. `load_run` reads both.
"""

import fcntl
import json
import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from revsnn_bench.records import SCHEMA_VERSION, Record, Run, RunHeader, incomparable_fields

_Model = TypeVar("_Model", bound=BaseModel)
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SAME_RUN_FIELDS = ("package", "commit", "dirty", "cpu_model")
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


def load_run(path: Path) -> Run:
    """Reads a run, finished (`.json`) or not (`.jsonl`; a torn last line is left out).

    Raises:
        DamagedFile: names the file, the line or field, and what is wrong with it.
        UnknownSchema: written by a newer program; says which schema this one reads.
    """
    if path.suffix == ".jsonl":
        return _parse_journal(path)[0]
    text = path.read_text(encoding="utf-8", errors="replace")
    data = _parse_json(text, path, line=1)
    _require_schema(data.get("header"), path)
    return _validate(Run, data, str(path))


def _parse_journal(path: Path) -> tuple[Run, int]:
    """The run in a journal, and how many bytes of the file are whole lines.

    Raises:
        DamagedFile, UnknownSchema: see `load_run`.
    """
    content = path.read_bytes()
    intact_bytes = content.rfind(b"\n") + 1
    lines = content[:intact_bytes].decode("utf-8", errors="replace").split("\n")[:-1]
    if not lines:
        raise DamagedFile(f"{path}, line 1: the header is missing. Nothing was measured yet; delete the file.")
    parsed = [_parse_json(line, path, number) for number, line in enumerate(lines, start=1)]
    _require_schema(parsed[0], path)
    header = _validate(RunHeader, parsed[0], f"{path}, line 1")
    records = tuple(
        _validate(Record, data, f"{path}, line {number}") for number, data in enumerate(parsed[1:], start=2)
    )
    return Run(header=header, records=records), intact_bytes


def _parse_json(text: str, path: Path, line: int) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}, line {line + error.lineno - 1}, column {error.colno}"
        raise DamagedFile(f"{place}: not JSON ({error.msg}). Restore the file or remove the line.") from None
    if not isinstance(data, dict):
        raise DamagedFile(f"{path}, line {line}: must be a JSON object; got {type(data).__name__}.")
    return data


def _require_schema(header: Any, path: Path) -> None:
    version = header.get("schema_version") if isinstance(header, dict) else None
    if not isinstance(version, int):
        raise DamagedFile(f"{path}, line 1: no header with a `schema_version`. Is this a run of revsnn-bench?")
    if version != SCHEMA_VERSION:
        advice = "Upgrade revsnn-bench." if version > SCHEMA_VERSION else "Measure it again."
        raise UnknownSchema(
            f"{path}: written with schema version {version}; this program reads {SCHEMA_VERSION}. {advice}"
        )


def _validate(model: type[_Model], data: dict[str, Any], place: str) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or model.__name__
        raise DamagedFile(f"{place}: `{field}` is wrong ({first['msg']}). Restore the file.") from None


def require_new(run_id: str, results_dir: Path) -> None:
    """Stops where a run cannot take this name, before anything is measured for it.

    Raises:
        ValueError: `run_id` is no file name.
        RunInUse: a run of this name exists.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(
            f"`run_id` must be letters, digits, `.`, `_` and `-`; got {run_id!r}. It becomes a "
            "file name. Leave it out to get one made of date and time."
        )
    if (results_dir / f"{run_id}.json").exists():
        raise RunInUse(f"`run_id` must be new; {run_id!r} is a finished run. Choose another name.")
    if (results_dir / f"{run_id}.jsonl").exists():
        raise RunInUse(_HAS_JOURNAL.format(run_id))


def new_run_id() -> str:
    """A new run id: UTC time, so that names sort by age, and six random digits against clashes."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


class Journal:
    """A run that is being written, held by this process alone until `finish` or `close`.

    Use `Journal.create` for a new run and `Journal.resume` to go on with one that was interrupted. Leaving
    the `with` block closes the journal and keeps it, so that it can be resumed.
    """

    def __init__(self, path: Path, descriptor: int, run: Run) -> None:
        self._path = path
        self._descriptor = descriptor
        self._header = run.header
        self._records = list(run.records)

    @classmethod
    def create(cls, results_dir: Path, header: RunHeader) -> Self:
        """Starts `<results_dir>/<run_id>.jsonl`.

        Raises:
            ValueError: `header.run_id` is no file name.
            RunInUse: a run of this name exists.
        """
        require_new(header.run_id, results_dir)
        results_dir.mkdir(parents=True, exist_ok=True)
        path = results_dir / f"{header.run_id}.jsonl"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise RunInUse(_HAS_JOURNAL.format(header.run_id)) from None
        journal = cls(path, descriptor, Run(header=header, records=()))
        try:
            _lock(descriptor, path)
            journal._write(header)
            _sync_folder(results_dir)
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def resume(cls, path: Path, header: RunHeader) -> Self:
        """Goes on with an interrupted run; a last line torn by a kill is cut off.

        Args:
            path: the `.jsonl` file.
            header: the header that a new run would get now.
        Raises:
            NotResumable: environment, code or settings are not those that the run began with.
            RunInUse: another process is writing it.
            DamagedFile, UnknownSchema: see `load_run`.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            _lock(descriptor, path)
            if not path.exists():
                raise RunInUse(f"{path.name} was finished by another process a moment ago. Read its .json file.")
            run, intact_bytes = _parse_journal(path)
            _require_same_conditions(path, run.header, header)
            os.ftruncate(descriptor, intact_bytes)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, run)

    @property
    def run(self) -> Run:
        """Everything written so far."""
        return Run(header=self._header, records=tuple(self._records))

    @property
    def path(self) -> Path:
        """The journal's file."""
        return self._path

    def append(self, record: Record) -> None:
        """Writes one record; when this returns it is on the disk."""
        self._write(record)
        self._records.append(record)

    def finish(self) -> Path:
        """Turns the journal into `<run_id>.json`, in one step as seen by readers, and returns its path."""
        target = self._path.with_suffix(".json")
        temporary = self._path.with_suffix(".json.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(self.run.model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
        self._path.unlink()
        self.close()
        return target

    def close(self) -> None:
        """Releases the file and keeps it; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, model: BaseModel) -> None:
        if self._descriptor < 0:
            raise ValueError(f"{self._path.name} is closed. Resume it to append more.")
        line = (model.model_dump_json() + "\n").encode()
        intact_bytes = os.fstat(self._descriptor).st_size
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            # A full disk must not leave half a line for the next record to be glued to.
            os.ftruncate(self._descriptor, intact_bytes)
            raise
        os.fsync(self._descriptor)


def _require_same_conditions(path: Path, written: RunHeader, now: RunHeader) -> None:
    """One run has one header, so its records must share environment, code, machine and settings."""
    old, new = written.environment, now.environment
    differences = incomparable_fields(old, new)
    differences += [
        (name, getattr(old, name), getattr(new, name))
        for name in _SAME_RUN_FIELDS
        if getattr(old, name) != getattr(new, name)
    ]
    # Through JSON, as the written ones have been: a tuple is a list there.
    settings = json.loads(now.model_dump_json(include={"settings"}))["settings"]
    names = sorted(written.settings.keys() | settings.keys())
    differences += [
        (f"settings.{name}", written.settings.get(name), settings.get(name))
        for name in names
        if written.settings.get(name) != settings.get(name)
    ]
    if differences:
        listed = "; ".join(f"`{name}` was {before!r}, is {after!r}" for name, before, after in differences)
        raise NotResumable(f"{path.name} cannot be resumed: {listed}. One run has one environment. Start a new run.")


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
