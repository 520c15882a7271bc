"""Reading a run: a finished `.json`, or the `.jsonl` journal of one that is going on or was interrupted."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from revsnn_bench.records import SCHEMA_VERSION, Record, Run, RunHeader

_Model = TypeVar("_Model", bound=BaseModel)


class JournalError(ValueError):
    """A run cannot be read or written; the message says why and what to do."""


class DamagedFile(JournalError):
    """A line of a run file is not what this program writes."""


class UnknownSchema(JournalError):
    """A run file was written by another version of the schema."""


def load_run(path: Path) -> Run:
    """Reads a run, finished (`.json`) or not (`.jsonl`; a torn last line is left out).

    Raises:
        DamagedFile: names the file, the line or field, and what is wrong with it.
        UnknownSchema: written by a newer program; says which schema this one reads.
    """
    if path.suffix == ".jsonl":
        return parse_journal(path)[0]
    text = path.read_text(encoding="utf-8", errors="replace")
    data = _parse_json(text, path, line=1)
    _require_schema(data.get("header"), path)
    return _validate(Run, data, str(path))


def parse_journal(path: Path) -> tuple[Run, int]:
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
