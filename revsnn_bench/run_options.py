"""The options of a run, once, for `revsnn-bench run` and for the pytest plugin: names, parsers, defaults, help."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revsnn_bench.case import COUNT, FIELDS, POSITIVE, WHOLE, each, one_of, parse_size
from revsnn_bench.measuring import PASSES, UNTIMED
from revsnn_bench.runs import require_new

_FOLDER = re.compile(r"(?:(?<=^)|(?<==))/\S*/")


def recorded_command(words: Iterable[str]) -> tuple[str, ...]:
    """What the user typed, for the record: files by their names, because a record must not tell where things lie."""
    return tuple(_FOLDER.sub("", word) for word in words)


FORMATS = ("md", "csv", "json", "html", "svg")


@dataclass(frozen=True)
class RunOption:
    """One option of a run: `--NAME` on the command line, `--GROUP-NAME` in pytest.

    Args:
        metavar: stands for the value in help texts; empty for a flag.
        default: as text, as a user would type it; empty for none.
        typed: name on the command line, where it is another.
        group: "sweep" for what is measured, "run" for how.
    """

    name: str
    help: str
    metavar: str = ""
    parse: Callable[[str], Any] = str
    default: str = ""
    typed: str = ""
    group: str = "run"

    @property
    def flag(self) -> str:
        """The option of `revsnn-bench run`."""
        return f"--{self.typed or self.name}"

    @property
    def pytest_flag(self) -> str:
        """The option of pytest."""
        return f"--{self.group}-{self.name}"

    @property
    def key(self) -> str:
        """Name of the parameter of the command."""
        return self.flag.removeprefix("--").replace("-", "_")


def parse_shard(text: str) -> tuple[int, int]:
    """Number and count of a part, from `2/5`."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"must be I/N with 1 <= I <= N; got {text[:40]!r}. Pass for example 2/5.")
    return int(match[1]), int(match[2])


def parse_cluster(text: str) -> str:
    """The address of a Ray cluster: a word that Ray knows, or a host with a port."""
    address = text.strip()
    match = re.fullmatch(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})", address)
    if address in ("local", "auto") or (match is not None and 0 < int(match[1]) < 65536):
        return address
    raise ValueError(
        f"must be `local`, `auto` or HOST:PORT; got {text[:40]!r}. `ray start --head` prints the address that it has."
    )


def parse_limit(text: str) -> int:
    """Bytes of a size above 0."""
    size = parse_size(text)
    if not size:
        raise ValueError(f'must be a size above 0; got {text!r}. Nothing runs in that. Pass for example "64 MiB".')
    return size


SWEEP_OPTIONS = tuple(
    RunOption(row.name, row.help, "VALUES", each(row.parse), group="sweep") for row in FIELDS if row.swept
)

RUN_OPTIONS = (
    RunOption("id", "Name of the run; made of date and time by default.", "NAME", typed="run-id"),
    RunOption("results", "Folder of saved runs.", "DIR", Path, "results"),
    RunOption("reports", "Folder of reports.", "DIR", Path, "reports"),
    RunOption(
        "formats", "Formats of the reports.", "FORMATS", each(one_of(FORMATS)), ",".join(FORMATS), typed="format"
    ),
    RunOption("live", "Refresh the page in the reports folder as cases finish."),
    RunOption("resume", "Go on with an interrupted run: its id, or its .jsonl file.", "RUN"),
    RunOption("shard", "Measure part I of N of the cases; join the runs of all parts with merge.", "I/N", parse_shard),
    RunOption(
        "cluster",
        "Send the cases to the hosts of a Ray cluster: `local` for one of this machine, or HOST:PORT of one that runs.",
        "ADDRESS",
        parse_cluster,
    ),
    RunOption("workers", f"Cases at a time; more than 1 only with passes among {', '.join(UNTIMED)}.", "N", COUNT, "1"),
    RunOption("timeout", "Time limit per case, in seconds.", "SECONDS", POSITIVE, "300"),
    RunOption("memory-limit", 'Memory limit per case, such as "2 GiB".', "SIZE", parse_limit),
    RunOption("threads", "Threads of each worker; torch's default if not given.", "N", COUNT),
    RunOption("passes", "Passes of each case.", "PASSES", each(one_of(tuple(PASSES))), ",".join(PASSES)),
    RunOption("target", "Timed seconds to aim for per case.", "SECONDS", POSITIVE, "0.1"),
    RunOption("processes", "Processes that time each case, one after the other.", "N", COUNT, "3"),
    RunOption("keep-freed", "Keep freed memory while timing, so that there are no page faults."),
    RunOption("epochs", "Epochs of training for accuracy in digits-net.", "N", WHOLE, "3"),
    RunOption("preload", "Modules that workers import first, such as one that registers a node.", "MODULES", each(str)),
)

OPTIONS = {option.key: option for option in (*SWEEP_OPTIONS, *RUN_OPTIONS)}
"""Every option by the name of its parameter, such as `run_id`."""


def require_run_name(run_id: str | None, resume: str | None, results_dir: Path) -> None:
    """A ValueError where a run's name is taken, or no name of a file, or not that of the run that is resumed."""
    if run_id and not resume:
        require_new(run_id, results_dir)
    elif run_id and resume and run_id != Path(resume).name.removesuffix(".jsonl"):
        raise ValueError(f"cannot be {run_id!r} where a run is resumed, which keeps its name. Leave it out.")


def find_journal(run: str, results_dir: Path) -> Path:
    """The journal of an interrupted run, from its id or its path; a ValueError where there is none."""
    path = Path(run) if run.endswith(".jsonl") else results_dir / f"{run}.jsonl"
    try:
        there, finished = path.is_file(), path.with_suffix(".json").is_file()
    except OSError as error:  # such as a name that is too long
        raise ValueError(f"cannot resume {str(path)[:80]}: {error.strerror or error}.") from None
    if finished:
        raise ValueError(f"cannot resume {path}: that run is finished; there is nothing left to do.")
    if not there:
        raise ValueError(f"cannot resume {path}: there is no such journal.")
    return path
