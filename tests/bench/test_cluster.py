"""Runs on a Ray cluster: three hosts on this machine, of which one is killed; and what is refused before that."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from revsnn_bench import Case, Settings

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install ray")
CASES = ("--suite=timesteps", "--node=lif,lif-carrier", "--timesteps=2,3,4", "--batch=2", "--shape=16", "--threads=1")
QUICK = ("--passes=memory,flops", "--format=md")
VARIES = ("process_peak_bytes", "untracked_bytes")
"""Bytes of the process, which differ from run to run."""


def start(folder, *arguments, **options):
    """Starts `revsnn-bench` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "revsnn_bench.cli", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "300"},
        **options,
    )


def command(folder, *arguments):
    """Runs `revsnn-bench` in a folder; returns exit code, stdout and stderr."""
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def exact(records):
    """Bytes, operations and status by case, of records that have each once."""
    found = {
        json.dumps(each["case"]): (each["status"], {**each["memory"], **dict.fromkeys(VARIES)}, each["flops"])
        for each in records
    }
    assert len(found) == len(records)
    return found


def until(holds, process, seconds=120):
    """Waits until something holds, or the process has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None and not holds():
        time.sleep(0.05)


@pytest.fixture(scope="module")
def hosts():
    """A cluster of three hosts: its process, and its address."""
    script = Path(__file__).parent / "measures" / "ray_hosts.py"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, str(script), "3"], text=True, **pipes) as process:
        yield process, process.stdout.readline().strip()
        process.stdin.close()


@needs_ray
def test_a_killed_host_loses_no_case_and_repeats_none(hosts, runner, tmp_path):
    """Of three hosts one is killed with a case: another gets it, and bytes and operations are those of one machine."""
    cluster, address = hosts
    process = start(tmp_path, "run", *CASES, *QUICK, f"--cluster={address}", "--run-id=spread")
    journal = tmp_path / "results" / "spread.jsonl"
    until(lambda: journal.exists() and '"case"' in journal.read_text(), process)
    cluster.stdin.write("kill\n")
    cluster.stdin.flush()
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, out + err
    assert "is sent again" in err
    assert "Traceback" not in out + err
    assert "raylet" not in out + err
    run = json.loads((tmp_path / "results" / "spread.json").read_text())
    assert run["complete"]
    assert [record["case"]["timesteps"] for record in run["records"]] == [2, 2, 3, 3, 4, 4]
    assert {record["host"] for record in run["records"]} == {*run["hosts"]}
    assert len(run["hosts"]) >= 2
    assert all(each["threads"] == 1 for each in run["hosts"].values())
    settings = Settings(passes=("memory", "flops"))
    alone = [runner.run(Case.model_validate(record["case"]), settings) for record in run["records"]]
    assert exact(run["records"]) == exact([record.model_dump(mode="json") for record in alone])


@needs_ray
def test_a_local_cluster_is_interrupted_and_goes_on(tmp_path):
    """SIGTERM cancels what runs and tells how to go on; --resume measures the rest; nothing of Ray is left or seen."""
    arguments = ("run", *CASES, "--timesteps=2,3", *QUICK, "--cluster=local")
    process = start(tmp_path, *arguments, "--run-id=cut")
    journal = tmp_path / "results" / "cut.jsonl"
    until(lambda: journal.exists() and '"case"' in journal.read_text(), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "go on with: revsnn-bench run --resume=results/cut.jsonl" in out
    assert "Traceback" not in out + err
    assert err.strip() == ""
    done = [line for line in journal.read_text().splitlines() if '"case"' in line]
    assert 1 <= len(done) < 4
    code, out, err = command(tmp_path, *arguments, "--resume=cut")
    assert (code, err.strip()) == (0, ""), out + err
    run = json.loads((tmp_path / "results" / "cut.json").read_text())
    assert run["records"][: len(done)] == [json.loads(line) for line in done]
    assert len(exact(run["records"])) == 4
    assert len(run["hosts"]) == 1


@needs_ray
def test_a_cluster_that_is_not_there_is_told_in_one_sentence(tmp_path):
    """Exit code 2 at once, before anything is measured or saved."""
    code, out, err = command(tmp_path, "run", *CASES, "--cluster=127.0.0.1:1")
    assert code == 2, out + err
    assert "ERROR: cannot join the cluster '127.0.0.1:1': " in err
    assert "Traceback" not in out + err
    assert not [*tmp_path.glob("results/*")]


REFUSE = """
import sys
sys.modules["ray"] = None
sys.argv = ["revsnn-bench", *sys.argv[1:]]
from revsnn_bench.cli import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""


def test_without_ray_one_sentence_tells_how_to_install_it(tmp_path):
    """Exit code 2 before torch is imported."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSE, "run", "--cluster=local"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "--cluster: needs Ray, which is not installed. pip install ray." in done.stderr
    assert done.stdout.split() == ["False"]
