"""Writes journals in forked processes and kills them: at every file-system call, and at random moments.

A script, `python journal_faults.py FOLDER RUN calls|signals|race`, with a run as JSON; it imports no torch, so that its
forks are cheap and have no threads. It prints how often it did so, as JSON, and raises where a promise is broken.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from revsnn_bench.records import Run
from revsnn_bench.runs import Journal, RunInUse, load_run

CALLS = ("open", "write", "fsync", "link", "unlink", "replace", "ftruncate", "close")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
AT_RANDOM = 200


def write_run(folder: Path, run: Run, told: int) -> None:
    """Begins or goes on with the run; tells each record that is on disk by a byte."""
    ids = [record.case.id for record in run]
    path = folder / f"{run.header.run_id}.jsonl"
    resumed = path.exists()
    journal = Journal.resume(path, run.header, ids) if resumed else Journal.create(folder, run.header, ids)
    for record in run.records[len(journal.run.records) :]:
        journal.append(record)
        _write(told, b".")
    journal.finish()


_write = os.write


def forked(act: Callable[[int], None], kill: Callable[[int], None] = lambda pid: None) -> tuple[int, int]:
    """How many records a child said were on disk, and how it ended."""
    reading, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        for number in SIGNALS[1:]:
            signal.signal(number, signal.SIG_DFL)
        try:
            act(told)
        except BaseException as error:
            _write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(told)
    kill(pid)
    _, status = os.waitpid(pid, 0)
    count = 0
    while chunk := os.read(reading, 4096):
        count += len(chunk)
    os.close(reading)
    return count, status


def die_at(call: int, after: bool) -> None:
    """Makes the file-system call of this number, counted from 0, the last thing that this process does."""
    left = [call]

    def patched(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call_or_die(*arguments: object, **named: object) -> object:
            left[0] -= 1
            if left[0] == -1 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            if left[0] == -1 and name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])  # type: ignore[index,arg-type]
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **named)
            if left[0] == -1:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call_or_die

    for name in CALLS:
        setattr(os, name, patched(name))


def require_kept(folder: Path, run: Run, told: int) -> None:
    """What was told to be on disk is readable, no file is empty or damaged, and the name can still be used."""
    path = folder / f"{run.header.run_id}.jsonl"
    found = path.with_suffix(".json") if path.with_suffix(".json").exists() else path
    records = load_run(found).records if found.exists() else ()
    assert len(records) >= told, f"{told} records were told, {len(records)} are there"
    assert [r.case.id for r in records] == [r.case.id for r in run.records[: len(records)]]


def end(folder: Path, run: Run) -> None:
    """Goes on with the run until it is finished, as `--resume` or a second start of the same command does."""
    path = folder / f"{run.header.run_id}.jsonl"
    if not path.with_suffix(".json").exists():
        _, status = forked(lambda told: write_run(folder, run, told))
        assert status == 0, f"cannot go on: {status}"
    else:
        try:
            Journal.create(folder, run.header)
            raise AssertionError("a finished run was begun again")
        except RunInUse:
            pass
    finished = load_run(path.with_suffix(".json"))
    assert finished.complete
    assert finished.records == run.records, "a record was lost, or measured twice"


def at_every_call(folder: Path, run: Run) -> int:
    """Kills at the first file-system call, before and after it, at the second, and so on until none is left."""
    kills = 0
    for after in (False, True):
        for call in range(10_000):
            place = folder / f"{call}-{after}"
            place.mkdir()

            def act(told: int, call: int = call, after: bool = after, place: Path = place) -> None:
                die_at(call, after)
                write_run(place, run, told)

            told, status = forked(act)
            require_kept(place, run, told)
            end(place, run)
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            kills += 1
    return kills


def at_random(folder: Path, run: Run) -> int:
    """Kills at random moments of a run that goes on after each; the generator's seed is fixed, the moments are not."""
    chance, kills, number = random.Random(7), 0, 0
    while kills < AT_RANDOM:
        place = folder / str(number)
        place.mkdir()
        known = 0
        while not (place / f"{run.header.run_id}.json").exists():

            def kill(pid: int) -> None:
                time.sleep(chance.uniform(0, 0.012))
                os.kill(pid, chance.choice(SIGNALS))

            told, status = forked(lambda told, place=place: write_run(place, run, told), kill)
            assert os.WIFSIGNALED(status) or status == 0, status
            kills += os.WIFSIGNALED(status)
            known += told
            require_kept(place, run, known)
        end(place, run)
        number += 1
    return kills


def race(folder: Path, run: Run) -> int:
    """Lets eight processes begin one run at the same moment, again and again, and counts the rounds."""
    rounds = 40
    for number in range(rounds):
        place = folder / str(number)
        waiting, go = os.pipe()
        children = []
        for _ in range(8):
            if (pid := os.fork()) == 0:
                os.close(go)
                os.read(waiting, 1)  # until the other end is closed, for all of them at once
                try:
                    with Journal.create(place, run.header) as journal:
                        for record in run:
                            journal.append(record)
                        journal.finish()
                except RunInUse:
                    os._exit(1)
                os._exit(0)
            children.append(pid)
        os.close(waiting)
        os.close(go)
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert sorted(ends) == [0] + [1] * 7, ends
        assert load_run(place / f"{run.header.run_id}.json").records == run.records
        assert len(list(place.iterdir())) == 1, list(place.iterdir())
    return rounds


if __name__ == "__main__":
    chosen = {"calls": at_every_call, "signals": at_random, "race": race}[sys.argv[3]]
    print(json.dumps(chosen(Path(sys.argv[1]), Run.model_validate_json(sys.argv[2]))))
