"""The command line as a newcomer uses it: real runs of small cases, in folders of their own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

SMALL = ("--suite=timesteps", "--node=lif,lif-carrier", "--timesteps=2,3", "--batch=2", "--shape=16", "--target=0.01")


@pytest.fixture
def command(tmp_path):
    """Runs `revsnn-bench` in an empty folder; returns exit code, stdout and stderr."""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "revsnn_bench.cli", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"COLUMNS": "120"},
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_run_writes_the_comparison(command, tmp_path):
    """One command measures every case, prints the comparison, and writes run and reports."""
    code, out, err = command("run", *SMALL, "--run-id=first")
    assert code == 0, out + err
    assert "least retained" in out
    assert "lif-carrier" in out
    run = json.loads((tmp_path / "results" / "first.json").read_text())
    assert {record["status"] for record in run["records"]} == {"ok"}
    assert len(run["records"]) == 4
    written = {path.name for path in (tmp_path / "reports").iterdir()}
    assert {"first.html", "first.md", "first.csv", "first-long.csv", "first-wide.json"} <= written
    code, out, err = command("run", *SMALL, "--run-id=first")
    assert code == 2, "a name that is taken is refused before anything is measured"
    assert "--run-id: `run_id` must be new; 'first' is a finished run." in out + err


def test_reports_and_comparisons_come_from_the_saved_run(command, tmp_path):
    """`report` and `compare` read records and measure nothing; two equal runs differ in no byte and no operation."""
    for name in ("a", "b"):
        assert command("run", *SMALL, "--passes=memory,flops", f"--run-id={name}")[0] == 0
    code, out, err = command("report", "a", "--format=md", "--reports=elsewhere", "--quiet")
    assert code == 0, err
    assert (tmp_path / "elsewhere" / "a.md").is_file()
    code, out, err = command("compare", "a", "b", "--markdown")
    assert code == 0, err
    assert "retained_bytes" not in out
    assert "forward_flops" not in out


def test_gate_without_a_baseline_says_how_to_make_one(command):
    """A missing baseline has an exit code of its own, and the message holds the command that makes one."""
    assert command("run", *SMALL, "--passes=memory", "--run-id=a")[0] == 0
    code, out, err = command("gate", "a", "--baseline=b.json")
    assert code == 3
    assert "--update-baseline" in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--nodes=lif"), "--node"),
        (("run", "--node=revlfi"), "Did you mean revlif"),
        (("run", "--suite=tmesteps"), "Suites are: "),
        (("run", "--timesteps=four"), "separated by commas"),
        (("run", "--memory-limit=1 GB"), "B, KiB, MiB"),
        (("run", "--resume=nothing"), "there is no such journal"),
        (("report", "nothing"), "There is none yet"),
        (("nodes", "lif-carier"), "Did you mean lif-carrier"),
    ],
)
def test_wrong_input_gets_one_clear_error(command, arguments, message):
    """Misspelt flags, nodes and suites name their neighbours; the exit code is 2."""
    code, out, err = command(*arguments)
    assert code == 2, out + err
    assert message in " ".join((out + err).replace("│", " ").split())
    assert "Traceback" not in out + err


def test_ctrl_c_ends_cleanly_and_resume_goes_on(command, tmp_path):
    """An interrupt keeps what is done, reports it and says how to go on; --resume measures the rest alone."""
    arguments = (
        "--suite=timesteps",
        "--node=lif",
        "--timesteps=2,3,4,5,6,7",
        "--batch=2",
        "--shape=16",
        "--run-id=cut",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "revsnn_bench.cli", "run", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, the interrupt is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = tmp_path / "results" / "cut.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not journal.exists() or journal.read_text().count("\n") < 3):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "resume" in out
    assert "Traceback" not in out + err
    done = journal.read_text().splitlines()
    assert 3 <= len(done) < 7
    code, out, err = command("run", *arguments, "--resume=cut")
    assert code == 0, out + err
    records = json.loads((tmp_path / "results" / "cut.json").read_text())["records"]
    assert len(records) == 6
    assert records[0] == json.loads(done[1])


def test_nodes_env_and_doctor_speak(command):
    """The nodes are listed with what they are, the environment as it is recorded, and the meters are exact."""
    code, out, err = command("nodes")
    assert code == 0, err
    assert "CarrierLIF" in out
    code, out, err = command("env", "--json")
    assert code == 0, err
    assert json.loads(out)["malloc"]["MALLOC_MMAP_THRESHOLD_"] == "1048576"
    code, out, err = command("doctor")
    assert code == 0, out + err
    assert "recompute_flops" in out
    assert err == ""


def test_a_record_does_not_tell_where_things_lie(command, tmp_path):
    """The command is recorded as it was typed, with files by their names alone."""
    folder = tmp_path / "deep" / "down"
    code, out, err = command("run", *SMALL, "--passes=memory", "--run-id=a", f"--results={folder}")
    assert code == 0, out + err
    text = (folder / "a.json").read_text()
    assert json.loads(text)["header"]["command"][:2] == ["revsnn-bench", "run"]
    assert "--results=down" in json.loads(text)["header"]["command"]
    assert str(tmp_path) not in text
