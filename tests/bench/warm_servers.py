"""Servers of runners that begin with their modules imported: that takes 4 s, and most tests measure for less.

One process for all tests, in whatever process these run, imports the modules; each server is forked from it. There is
one for each choice of modules and of the variables that OpenMP, glibc and torch read when a process starts. A server
begins in the folder, with the import path and the environment, that it would have had; its workers see no difference.

As a script, and by the plugin `warm_plugin` of pytest, it does this for a command that a test starts.
"""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import psutil

from revsnn_bench import runner
from revsnn_bench.system.process import PRELOAD, import_frozen

FOLDER = "REVSNN_TEST_SERVERS"
"""The variable that names the folder of the sockets, which tests/conftest.py makes.

The processes behind them end when it is gone, or the process whose number its name has.
"""

READ_AT_START = ("OMP_", "MKL_", "OPENBLAS_", "MALLOC_", "PYTORCH_", "CUDA_", "NUMBA_", "LD_", "PYTHONHASHSEED")
"""Beginnings of the names of variables that a process reads once: another value needs another process."""

_BOOT = "import sys, warm_servers; warm_servers.fork_servers(sys.argv[1], sys.argv[2:])"
_STARTS_WITHIN_S = 120


def fork_servers(address: str, modules: Sequence[str]) -> None:
    """Imports modules, and forks a server for each client that connects, until the folder or its owner is gone."""
    import_frozen(modules)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a server
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen(64)
        listener.settimeout(5)
        os.rename(f"{address}.new", address)  # from here on it answers
        owner = int(Path(address).parents[1].name.split("-")[1])
        while os.path.exists(address) and psutil.pid_exists(owner):
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                _serve(client)
            client.close()


def _serve(end: socket.socket) -> None:
    """A server, in a session of its own, where its client stands."""
    from revsnn_bench.runner.server import main

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    end.setblocking(True)
    client = Connection(end.detach())
    folder, path, environment = client.recv()
    os.chdir(folder)
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    client.send(os.getpid())
    try:
        main(client)
    finally:
        os._exit(0)


class Forked(runner._Server):
    """This end of the pipe to a server that was forked."""

    def __init__(self, preload: Sequence[str], environment: dict[str, str]) -> None:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(_address([name for name in preload if name in PRELOAD], environment))
            self._pipe = Connection(end.detach())
        self._ready = False
        self._pipe.send((os.getcwd(), list(sys.path), environment))
        self._pid: int = self._pipe.recv()
        self._pipe.send(tuple(preload))

    def last_words(self) -> str:
        return "the server ended"

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)

    def stop(self) -> None:
        self._pipe.close()
        if not self._ready:
            self.kill()


def _address(modules: Sequence[str], environment: dict[str, str]) -> str:
    """Where the process answers that has these modules and variables; the first to ask starts it."""
    read = sorted(each for each in environment.items() if each[0].startswith(READ_AT_START))
    place = Path(environment[FOLDER], hashlib.sha256(repr((modules, read)).encode()).hexdigest()[:8])
    try:
        place.mkdir()
    except FileExistsError:
        pass
    else:
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        command = [sys.executable, "-P", "-c", _BOOT, str(place / "socket"), *modules]
        with (place / "errors").open("wb") as errors, Path(os.devnull).open("r+b") as nothing:
            # By a shell that ends at once: nobody waits for this process.
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", *command],
                env=environment | {"PYTHONPATH": path},
                stdin=nothing, stdout=nothing, stderr=errors, start_new_session=True, check=True,
            )  # fmt: skip
    end = time.monotonic() + _STARTS_WITHIN_S
    while not (place / "socket").exists():
        if time.monotonic() > end:
            raise RuntimeError(f"no server: {(place / 'errors').read_text()}")
        time.sleep(0.02)
    return str(place / "socket")


def use() -> AbstractContextManager[object]:
    """Inside, runners of this process have servers that were forked."""
    return patch.object(runner, "_Server", Forked)


if __name__ == "__main__":
    from revsnn_bench.cli import main

    with use():
        main()
