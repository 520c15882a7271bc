"""What the exit status of `revsnn-bench` means."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ends. Where several apply to the gate the order is 2, 3, 4, 5, 1, 0.

    A failed case comes before a regression, because what failed was not compared at all.
    """

    PASS = 0
    REGRESSION = 1
    USAGE = 2
    NO_BASELINE = 3
    NOT_COMPARABLE = 4
    CASE_FAILED = 5
    BROKEN = 70
    """An error in this program; its traceback is printed."""
    NO_FILE = 74
    """A file or folder cannot be read or written."""
    INTERRUPTED = 130
    CLOSED_PIPE = 141
    """Whoever read the output stopped reading."""
