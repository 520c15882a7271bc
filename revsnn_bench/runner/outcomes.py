"""How a worker ends, in words: which status an exception or an exit code means, and why."""

import signal
import sys
import traceback
from typing import NamedTuple

import torch

from revsnn_bench.records import Status

_OUT_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "std::bad_alloc",
    "_status_alloc_failed",
)
_LONGEST_TRACEBACK = 8000


class SkipCase(Exception):
    """Raised by a measure function for a case that cannot run here; the message becomes the reason."""


class Outcome(NamedTuple):
    """How a call ended: `payload` is its pickled value where `status` is ok; `reason` says why it is not."""

    status: Status
    payload: bytes = b""
    reason: str | None = None


def of_exception(error: BaseException) -> Outcome:
    """The outcome of a call that raised: skipped, oom or error.

    The reason starts with a line that can stand alone in a table; for an error, the traceback follows.
    """
    headline = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, SkipCase):
        return Outcome(Status.SKIPPED, reason=str(error))
    if is_out_of_memory(error):
        return Outcome(Status.OOM, reason=headline)
    trace = "".join(traceback.format_exception(error)).strip()[-_LONGEST_TRACEBACK:]
    return Outcome(Status.ERROR, reason=without_folders(f"{headline}\n\n{trace}"))


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what it was raised from, says that memory ran out on host or device."""
    if error is None:
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    says_so = isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
    return says_so or is_out_of_memory(error.__cause__)


def of_exit(exit_code: int | None, output: str) -> Outcome:
    """The outcome of a worker that ended without an answer.

    Args:
        exit_code: as in `subprocess`: a negative number is a signal.
        output: the end of what it printed.
    """
    if exit_code == -signal.SIGKILL:
        headline = "killed by SIGKILL: by the kernel's out-of-memory killer, or by hand"
        return Outcome(Status.OOM, reason=with_output(headline, output))
    if exit_code is not None and exit_code < 0:
        headline = f"crashed by {signal.Signals(-exit_code).name}"
    else:
        headline = f"the worker ended with exit code {exit_code} and without a result"
    return Outcome(Status.ERROR, reason=with_output(headline, output))


def with_output(reason: str, output: str) -> str:
    """A reason followed by what the worker printed, where it printed anything."""
    printed = without_folders(output).strip()
    return f"{reason}\n\nThe worker printed:\n{printed}" if printed else reason


def without_folders(text: str) -> str:
    """File names as an import sees them: a record must not depend on, or tell, where things are installed."""
    for folder in sorted({*sys.path, sys.prefix, sys.base_prefix} - {"", "/"}, key=len, reverse=True):
        text = text.replace(folder.rstrip("/") + "/", "")
    return text
