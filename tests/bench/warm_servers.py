"""Servers of runners that stay for the next runner: the start of one takes 3 s, and most tests measure for less.

A server is kept where its client closed it in good order, and is given to the next runner whose server would load the
same modules under the same variables of OpenMP, glibc and torch. Workers do not see a difference: they begin in the
folder, with the import path and the environment, that they would have had.
"""

import os
import pickle
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

from revsnn_bench import runner
from revsnn_bench.runner.server import Request
from revsnn_bench.system.process import PRELOAD

READ_AT_START = ("OMP_", "MKL_", "OPENBLAS_", "MALLOC_", "PYTORCH_", "CUDA_", "NUMBA_", "LD_", "PYTHONHASHSEED")
"""Beginnings of the names of variables that a process reads once: another value needs another server."""

Started = runner._Server


def there(folder: str, path: list[str], environment: dict[str, str], call: bytes) -> object:
    """What a call returns in a worker that stands where its client does."""
    os.chdir(folder)
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    function, arguments = pickle.loads(call)
    return function(*arguments)


class Lent:
    """A server for one runner, in place of one of its own."""

    def __init__(self, kept: "Kept", preload: Sequence[str], environment: dict[str, str]) -> None:
        self._environment = environment
        self._place = kept.place_of(preload, environment)
        self._server = self._place.pop() if self._place else Started(preload, environment)
        self._busy = False

    def ask(self, request: Request) -> object:
        self._busy = True  # also where this is interrupted
        where = (os.getcwd(), list(sys.path), self._environment)
        outcome = self._server.ask(request._replace(call=pickle.dumps((there, (*where, request.call)))))
        self._busy = False
        return outcome

    def stop(self) -> None:
        if self._busy:
            self._server.stop()
        else:
            self._place.append(self._server)

    def kill(self) -> None:
        self._busy = True
        self._server.kill()

    def last_words(self) -> str:
        return self._server.last_words()


class Kept:
    """The servers that wait."""

    def __init__(self) -> None:
        self._waiting: dict[object, list[runner._Server]] = defaultdict(list)

    def place_of(self, preload: Sequence[str], environment: dict[str, str]) -> list[runner._Server]:
        """Where servers wait that can stand for one with this start."""
        read = {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}
        own = not {*preload} <= {*PRELOAD}  # modules of a test's own folder
        return self._waiting[tuple(preload), tuple(sorted(read.items())), (os.getcwd(), *sys.path) if own else ()]

    def stop(self) -> None:
        for servers in self._waiting.values():
            for server in servers:
                server.stop()


@contextmanager
def warm_servers() -> Iterator[Callable[[], object]]:
    """Gives a context in which runners take servers that wait; they end with the outer one."""
    kept = Kept()
    try:
        yield lambda: patch.object(runner, "_Server", lambda *start: Lent(kept, *start))
    finally:
        kept.stop()
