"""The command line as a newcomer uses it: real runs of small cases, and what it says of wrong input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import warm_servers
from typer.testing import CliRunner

import revsnn_bench.cli
import revsnn_bench.plugin
from revsnn_bench.cli import app, main
from revsnn_bench.cli.options import busy
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.run_options import OPTIONS

SMALL = (
    "--suite=timesteps",
    "--node=lif,lif-carrier",
    "--timesteps=2,3",
    "--batch=2",
    "--shape=16",
    "--target=0.01",
    "--processes=1",
)


ITSELF = ("-P", "-m", "revsnn_bench.cli")
EXAMPLE = Path(__file__).resolve().parents[2] / "results" / "example-quick.json"
WARM = (warm_servers.__file__,)
"""The command line, and the same with servers that have started."""


def command(folder, *arguments, how=WARM):
    """Runs `revsnn-bench` in a folder; returns exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, *how, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"COLUMNS": "120"},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("encoding", "settings"),
    [
        ("ascii", {"PYTHONIOENCODING": "ascii"}),
        ("latin-1", {"PYTHONIOENCODING": "latin-1"}),
        ("ascii", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}),
    ],
)
def test_a_terminal_without_a_sign_gets_another_one(tmp_path, encoding, settings):
    """An x for × and - for –, for a question mark says that a time is not decided; files are UTF-8 all the same."""
    done = subprocess.run(
        [sys.executable, *ITSELF, "report", EXAMPLE, "--format=md", f"--reports={tmp_path}"],
        capture_output=True,
        encoding=encoding,
        timeout=120,
        env=os.environ | settings,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"wrong .* - ", done.stdout)
    assert re.search("[0-9] [x×] lif", done.stdout)
    assert "–" in (tmp_path / "example-quick.md").read_text(encoding="utf-8")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def inside(folder, *arguments):
    """As `command`, in this process; its workers are processes as ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = invoke(*arguments)
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two real runs of the same cases, `first` with every pass; the folder and what the first printed.

    The first imports a module of the working folder, which the command's own path does not have.
    """
    folder = tmp_path_factory.mktemp("runs")
    (folder / "my_nodes.py").touch()
    options = ("--run-id=first", "--preload=my_nodes", f"--results={folder / 'deep' / 'down'}")
    code, out, err = command(folder, "run", *SMALL, *options, how=ITSELF)
    assert code == 0, out + err
    code, again, err = inside(folder, "run", *SMALL, "--run-id=second", "--passes=memory,flops", "--results=deep/down")
    assert code == 0, again + err
    return folder, out


def test_a_terminal_shows_what_takes_its_time(monkeypatch):
    """In one line, no longer than the terminal is wide, and gone in the end; a pipe gets nothing."""
    terminal, ours = os.openpty()
    with open(ours, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setenv("COLUMNS", "20")
        with busy("Loading torch ...") as show:
            show("Predicting a node of a long name")
        shown = ""
        while shown.count("\r\033[2K") < 3:  # a terminal hands on what was written piece by piece
            shown += os.read(terminal, 1000).decode()
    os.close(terminal)
    assert shown.split("\r\033[2K") == ["", "Loading torch ...", "Predicting a node o", ""]


def test_run_writes_the_comparison(measured):
    """One command measures every case, prints the tables of the comparison, and writes run and reports."""
    folder, out = measured
    assert "Least peak memory, layer, T = 3" in out
    assert re.search(r"^3 +lif-carrier +ok +0 B +0 ", out, re.MULTILINE), out
    assert "whole comparison" not in out
    assert "lif-carrier" in out
    run = json.loads((folder / "deep" / "down" / "first.json").read_text())
    assert {record["status"] for record in run["records"]} == {"ok"}
    assert len(run["records"]) == 4
    written = {path.name for path in (folder / "reports").iterdir()}
    assert {"first.html", "first.md", "first.csv", "first.long.csv", "first.wide.json"} <= written


def test_a_long_run_names_the_command_that_prints_the_comparison(tmp_path, monkeypatch):
    """Of more cases than a screen shows there is a summary."""
    monkeypatch.setattr(revsnn_bench.plugin, "_MOST_ROWS", 3)
    code, out, err = inside(tmp_path, "run", *SMALL, "--passes=memory", "--run-id=long", "--format=md")
    assert code == 0, out + err
    assert "Least peak at layer" in out
    assert "the whole comparison: revsnn-bench report results/long.json" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_run_whose_cases_are_all_skipped_fails_with_the_reason(tmp_path):
    """The reason is said once, and the exit code is that of failed cases, for nothing was measured."""
    code, out, err = inside(tmp_path, "run", *SMALL, "--device=cuda", "--format=md")
    assert code == ExitCode.CASE_FAILED, out + err
    assert out.count("skipped: no CUDA device is available") == 1


def test_a_record_does_not_tell_where_things_lie(measured):
    """The command is recorded as it was typed, with files by their names alone."""
    folder, _ = measured
    text = (folder / "deep" / "down" / "first.json").read_text()
    assert json.loads(text)["header"]["command"][:2] == ["revsnn-bench", "run"]
    assert "--results=down" in json.loads(text)["header"]["command"]
    assert str(folder) not in text


def test_reports_and_comparisons_come_from_the_saved_run(measured, tmp_path):
    """`report` and `compare` read records and measure nothing; two equal runs differ in no byte and no operation."""
    results = f"--results={measured[0] / 'deep' / 'down'}"
    done = invoke("report", "first", results, "--format=md", f"--reports={tmp_path}", "--quiet")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "first.md").is_file()
    for name in "renamed", "second":  # the reports of one must not take the place of another's
        (tmp_path / f"{name}.json").write_bytes((measured[0] / "deep" / "down" / "first.json").read_bytes())
    done = invoke("report", "renamed", "second", f"--results={tmp_path}", f"--reports={tmp_path}", "--format=md", "-q")
    assert [Path(line).name for line in done.stdout.split()] == ["renamed.md", "second.md"]
    done = invoke("compare", "first", "second", results, "--markdown")
    assert done.exit_code == 0, done.output
    assert "retained_bytes" not in done.output
    assert "forward_flops" not in done.output


def test_shards_merged_are_the_run_in_one_piece(measured, tmp_path):
    """Two shards measure different cases, say that they are parts, and together have every byte and operation."""
    whole = measured[0] / "deep" / "down" / "second.json"
    for number in (1, 2):
        parts = (f"--shard={number}/2", f"--run-id=part-{number}", f"--workers={number}")
        shard = (*parts, "--passes=memory,flops", "--format=md")
        code, out, err = inside(tmp_path, "run", *SMALL, *shard)
        assert code == 0, out + err
        assert "a part: 2 of 4 planned cases measured; join the parts with revsnn-bench merge" in out
    code, out, err = inside(tmp_path, "merge", "part-1", "part-2", "--run-id=joined")
    assert code == 0, out + err
    joined, once = (json.loads(path.read_text()) for path in (tmp_path / "results" / "joined.json", whole))
    assert (joined["complete"], joined["planned"]) == (True, once["planned"])
    for one, other in zip(joined["records"], once["records"], strict=True):
        assert one["case"] == other["case"]
        assert one["flops"] == other["flops"]
        measured_bytes = [{**each["memory"], **dict.fromkeys(VARIES)} for each in (one, other)]
        assert measured_bytes[0] == measured_bytes[1]
    done = invoke("gate", "joined", f"--results={tmp_path / 'results'}", f"--baseline={whole}")
    assert done.exit_code == 0, done.output


VARIES = ("process_peak_bytes", "untracked_bytes")
"""Bytes of the process, which differ from run to run."""


def test_gate_without_a_baseline_says_how_to_make_one(measured, tmp_path):
    """A missing baseline has an exit code of its own, and the message holds the command that makes one."""
    done = invoke("gate", "first", f"--results={measured[0] / 'deep' / 'down'}", f"--baseline={tmp_path / 'b.json'}")
    assert done.exit_code == 3
    assert "--update-baseline" in done.output


SHAPE = "`shape` must be one or more sizes of at least 1, joined by x; got"
COUNTED = "must be a whole number of at least 1; got"
LARGE = "must be a whole number of at least 1, of at most 64 bits; got"
WITHOUT_TORCH = [
    (("run", "--nodes=lif"), "--node"),
    (("run", "--suite=tmesteps"), "Suites are: "),
    (("run", "--timesteps=four"), "Several values are separated by commas"),
    (("run", "--batch=0"), "'--batch': must be a whole number of at least 1; got '0'"),
    (("run", "--shape=16x"), f"'--shape': {SHAPE} '16x'"),
    (("run", "--dtype=float8"), "must be one of float64, float32"),
    (("run", "--encoding=latency"), "'--encoding': must be one of direct, poisson, pixels; got 'latency'"),
    (("run", "--passes=speed"), "'--passes': must be one of compile, memory"),
    (("run", "--format=pdf"), "'--format': must be one of md, csv"),
    (("run", "--memory-limit=1 GB"), "B, KiB, MiB"),
    (("run", "--threads=0"), "'--threads': must be a whole number of at least 1"),
    (("run", "--resume=nothing"), "--resume: cannot resume results/nothing.jsonl: there is no such journal"),
    (("run", "--run-id=first", "--results=deep/down"), "--run-id: `run_id` must be new; 'first' is a finished run."),
    (("largest", "--budget=1 MiB", "--shape=abc"), f"'--shape': {SHAPE} 'abc'"),
    (("largest", "--budget=1 MB"), "'--budget': `size` must be a number with B, KiB"),
    (("largest", "--budget=1 MiB", "--axis=depth"), "must be one of timesteps, batch"),
    (("train", "--shape=1x0x8"), f"'--shape': {SHAPE} '1x0x8'"),
    (("train", "--data=mnist"), "must be one of digits, cifar10, cifar100; got 'mnist'"),
    (("claims", "--resume=nothing"), "--resume: cannot resume results/nothing.jsonl"),
    (("report", "nothing"), "There is none yet"),
    (("run", "--batch=-1"), f"'--batch': {COUNTED} '-1'"),
    (("run", "--batch=1.5"), f"'--batch': {COUNTED} '1.5'"),
    (("run", "--batch=nan"), f"'--batch': {COUNTED} 'nan'"),
    (("run", "--batch=99999999999999999999"), f"'--batch': {LARGE} '99999999999999999999'"),
    (("run", f"--timesteps={'9' * 5000}"), f"'--timesteps': {LARGE} '{'9' * 40}...'"),
    (("run", "--timesteps=0"), f"'--timesteps': {COUNTED} '0'"),
    (("run", "--timesteps=2,,x"), f"'--timesteps': {COUNTED} 'x'"),
    (("run", "--shape=0"), f"'--shape': {SHAPE} '0'"),
    (("run", "--shape=-4"), f"'--shape': {SHAPE} '-4'"),
    (("run", "--shape=99999999999999999999"), f"'--shape': {SHAPE} '99999999999999999999'"),
    (("run", "--depth=0"), f"'--depth': {COUNTED} '0'"),
    (("run", "--seed=1e3"), "'--seed': must be a whole number; got '1e3'"),
    (("run", "--seed=99999999999999999999"), "'--seed': must be a whole number, of at most 64 bits; got"),
    (("run", "--tau=nan"), "'--tau': must be a number; got 'nan'"),
    (("run", "--tau=inf"), "'--tau': must be a number; got 'inf'"),
    (("run", "--groups=0"), f"'--groups': {COUNTED} '0'"),
    (("run", "--device=tpu"), "'--device': must be one of cpu, cuda; got 'tpu'"),
    (("run", "--backend=fast"), "'--backend': must be one of torch, fused, auto; got 'fast'"),
    (("run", "--threads=-1"), f"'--threads': {COUNTED} '-1'"),
    (("run", "--threads=two"), f"'--threads': {COUNTED} 'two'"),
    (("run", "--target=0"), "'--target': must be a number above 0; got '0'"),
    (("run", "--target=nan"), "'--target': must be a number above 0; got 'nan'"),
    (("run", "--target=inf"), "'--target': must be a number above 0; got 'inf'"),
    (("run", "--timeout=0"), "'--timeout': must be a number above 0; got '0'"),
    (("run", "--timeout=-5"), "'--timeout': must be a number above 0; got '-5'"),
    (("run", "--timeout=1e400"), "'--timeout': must be a number above 0; got '1e400'"),
    (("run", "--processes=0"), f"'--processes': {COUNTED} '0'"),
    (("run", "--epochs=-1"), "'--epochs': must be a whole number of at least 0; got '-1'"),
    (("run", "--memory-limit=0 B"), "'--memory-limit': must be a size above 0; got '0 B'"),
    (("plan", "--model=m:make", "--input=1,2,3", "--budget=0 MiB"), "'--budget': must be a size above 0; got '0 MiB'"),
    (("tune", "--budget=0.5 B"), "'--budget': must be a size above 0; got '0.5 B'"),
    (("run", "--memory-limit=1"), "'--memory-limit': `size` must be a number with B, KiB, MiB, GiB or TiB; got '1'"),
    (("largest", "--budget=640"), "'--budget': `size` must be a number with B, KiB, MiB, GiB or TiB; got '640'"),
    (("run", "--memory-limit=-1 GiB"), "'--memory-limit': `size` must be a number with B, KiB"),
    (("run", f"--memory-limit={'9' * 400} TiB"), "'--memory-limit': `size` must be less than 2^63 bytes"),
    (("run", "--shard=0/3"), "'--shard': must be I/N with 1 <= I <= N; got '0/3'"),
    (("run", "--shard=4/3"), "'--shard': must be I/N with 1 <= I <= N; got '4/3'"),
    (("run", "--shard=x"), "'--shard': must be I/N with 1 <= I <= N; got 'x'"),
    (("run", "--cluster=here"), "'--cluster': must be `local`, `auto` or HOST:PORT; got 'here'"),
    (("run", "--cluster=10.0.0.1:0"), "'--cluster': must be `local`, `auto` or HOST:PORT; got '10.0.0.1:0'"),
    (("run", "--cluster=local", "--shard=1/2"), "--cluster: cannot be used with --shard. A cluster shares all cases"),
    (("run", "--workers=2"), "--workers: must be 1 with the passes compile, time; got 2. Cases beside each other slow"),
    (("run", "--workers=2", "--passes=memory", "--cluster=local"), "--workers: cannot be used with --cluster."),
    (("run", "--format="), "'--format': must have a value; got none."),
    (("run", "--format=,"), "'--format': must be one value or more; got none."),
    (("run", "--passes="), "'--passes': must have a value; got none."),
    (("run", "--node="), "'--node': must have a value; got none."),
    (("run", "--node=,"), "'--node': must be one value or more; got none."),
    (("run", "--suite="), "no suite ''. Suites are: "),
    (("run", "--suite=all,none"), "no suite 'none'. Suites are: "),
    (("run", "--run-id=../up"), "--run-id: `run_id` must be letters, digits"),
    (("run", "--run-id=.hidden"), "--run-id: `run_id` must be letters, digits"),
    (("run", "--resume=a", "--run-id=b"), "--run-id: cannot be 'b' where a run is resumed, which keeps its name."),
    (("run", "--resume=first", "--results=deep/down"), "that run is finished; there is nothing left to do."),
    (("run", f"--resume={'x' * 5000}"), "--resume: cannot resume results/xxxx"),
    (("run", "--preload=no_such_module"), "--preload: cannot import 'no_such_module' (ModuleNotFoundError"),
    (("run", "--model=net"), "--model MODULE:CALLABLE and --input T,B,features belong together"),
    (("run", "--model=net:make", "--input=1,2"), "'--input': `--input` must be T,B,features; got '1,2'"),
    (("run", "--input=4,8,3"), "--model MODULE:CALLABLE and --input T,B,features belong together"),
    (("predict", "--input=4,8,3"), "--model MODULE:CALLABLE and --input T,B,features belong together"),
    (("run", "--model=net:make", "--input=1,2,3", "--batch=8"), "--batch: cannot be used with --model; got 8."),
    (("run", "--model=net:make", "--input=1,2,3", "--suite=all"), "--suite: cannot be used with --model; got all."),
    (("predict", "--model=net:make", "--input=1,2,3", "--timesteps=9"), "--timesteps: cannot be used with --model"),
    (("largest", "--budget=1 MiB", "--model=net:make", "--input=1,2,3", "--shape=3"), "--shape: cannot be used with"),
    (("run", "--model=net:make", "--input=1,2,3", "--tau=3"), "--tau: cannot be used with --model; got 3. What a"),
    (("run", "--nothing"), "No such option: --nothing"),
    (("run", "extra"), "Got unexpected extra argument"),
    (("report", "\x00"), "it is neither a file nor the id of a run in results"),
    (("report", "x" * 5000), "it is neither a file nor the id of a run in results"),
    (("report", "reports/first.md"), "reports/first.md, line 1, column 1: not JSON"),
    (("report", "deep"), "no run 'deep': it is neither a file"),
    (("report", "--format=pdf"), "'--format': must be one of md, csv"),
    (("compare",), "Missing argument 'BEFORE'"),
    (("compare", "a"), "Missing argument 'AFTER'"),
    (("gate", "x", "--tolerance=peak"), "`tolerance` must be METRIC=PERCENT; got 'peak'"),
    (("gate", "x", "--tolerance=peak_bytes=nan"), "must be a percentage of at least 0; got nan"),
    (("gate", "x", "--time-ratio=-1"), "must be a percentage of at least 0; got -1.0"),
    (("gate", "x", "--allow-environment=moon"), "must name a field of the environment; got 'moon'"),
    (("gate", "x", "--format=xml"), "'--format': must be one of table, markdown, junit, github,"),
    (("gate", "--results=nowhere"), "no run in nowhere yet. Make one with `revsnn-bench run`, or name its folder"),
    (("gate", "x", "--force"), "--force must come with --update-baseline"),
    (("merge",), "Missing argument"),
    (("merge", "a"), "no run 'a'"),
    (("largest",), "Missing option '--budget'"),
    (("largest", "--budget=1 MiB", "--limit=0"), "greater than or equal to 1"),
    (("largest", "--budget=1 MiB", "--batch=8", "--axis=batch"), "--batch: cannot be used where it is what grows"),
    (("predict", "--node=,"), "'--node': must be one value or more; got none"),
    (("train", "--epochs=0"), "greater than or equal to 1"),
    (("train", "--learning-rate=0"), "'--learning-rate': must be a number above 0; got '0.0'"),
    (("train", "--option=x"), "--option must be NAME=VALUE; got 'x'"),
    (("train", "--run-id=../x"), "--run-id: `run_id` must be letters, digits"),
    (("train", "--checkpoint=deep"), "--checkpoint must be a file; deep is none."),
    (("claims", "--run-id=../x"), "--run-id: `run_id` must be letters, digits"),
    (("claims", "--only=,"), "'--only': must be one value or more; got none"),
    (("claims", "--only=nothing"), "no claim 'nothing'. Claims are: "),
    (("claims", "--threads=x"), f"'--threads': {COUNTED} 'x'"),
    (("claims", "--from=paper", "--threads=2"), "--threads: nothing is measured with --from"),
    (("plan", "--model=net:make", "--input=1"), "'--input': `--input` must be T,B,features; got '1'"),
    (("nothing",), "No such command 'nothing'"),
]
LAYERS = ("run", "--suite=timesteps", "--batch=1,8", "--shape=64,128", "--node=lif", "--timesteps=4")
WITH_TORCH = [
    (("run", "--workload=nothing"), "--workload: `workload` must be a registered name; got 'nothing'"),
    (("run", "--node=lif\udcff"), "--node: `node` must be a registered name; got 'lif\\udcff'"),
    (("run", "--suite=timesteps,depth", "--shape=512"), "--suite: no sweep of depth has a case of what was asked for"),
    (("run", "--tau=0.5"), "--tau: no node can be made with it; revlif-stored: `tau` must be > 1 step; got 0.5."),
    (("run", "--node=revlif", "--alpha=2"), "--alpha: no node can be made with it; revlif: `alpha` must lie in (0, 1)"),
    (("run", "--node=lif", "--groups=2"), "--groups: must be values that some case has; got 2"),
    (
        ("run", "--suite=timesteps", "--groups=3"),
        "--groups: no node can be made with it; revlif-stored: `groups` must divide the size 4096 of dimension 1; got",
    ),
    (
        ("run", "--suite=timesteps,batch", "--node=lif", "--timesteps=2", "--batch=2", "--shape=16", "--shard=3/3"),
        "--shard: must have no more parts than there are cases; got 3 parts, and 1 case. Part 3 has none.",
    ),
    (
        (
            *("run", "--model=revsnn_bench.models.networks:example", "--input=2,2,3,8,8", "--node=as-is"),
            *("--seed=0,1", "--dtype=float32,bfloat16", "--shard=5/5"),
        ),
        "got 5 parts, and 4 cases",
    ),
    (("run", "--suite=timesteps", "--depth=7"), "--depth: must be values that some case has; got 7, and no case has 7"),
    (
        ("run", "--model=no_net:make", "--input=1,2,3"),
        "There is no module 'no_net' here or among the installed",
    ),
    (("run", "--model=own_models:lft", "--input=1,2,3"), "The module has no callable 'lft'. Name the function"),
    (("run", "--model=own_models.py:lif", "--input=1,2,3"), "Pass own_models:lif, the module's name in place of"),
    (LAYERS, "--batch: must be values that some case has; got 1,8, and no case has 8. A suite takes all values"),
    (("run", "--suite=batch", "--timesteps=4,16"), "--timesteps: must be values that some case has; got 4,16,"),
    (("run", "--suite=timesteps", "--tau=2,4"), "--tau: must be values that some case has; got 2,4, and no case"),
    (("run", "--suite=timesteps", "--depth=1,4"), "--depth: must be values that some case has; got 1,4, and no case"),
    (("run", "--suite=timesteps", "--shape=3,32,32"), "no case has 32,32. Did you mean 3x32x32? A suite takes"),
    (("run", "--node=revlfi"), "--node: `node` must be a registered name; got 'revlfi'"),
    (("largest", "--budget=1 MiB", "--node=lif+chekpoint"), "Did you mean lif+checkpoint"),
    (("train", "--node=lif", "--option=foo=1"), "got an unexpected keyword argument 'foo'. It takes tau,"),
    (("nodes", "lif-carier"), "Did you mean lif-carrier"),
    (("nodes", "xyz"), "by their short names. Pass one of lif, lif-checkpoint"),
    (("nodes", "lif+xyz"), "stands for a number. Pass one of +"),
]
REFUSE = """
import gc, json, sys
from typer.testing import CliRunner
sys.path.append(sys.argv[2])
import warm_servers
from revsnn_bench.cli import app
refused = []
with warm_servers.use():
    for arguments in json.loads(sys.argv[1]):
        gc.freeze()  # pytest collects garbage at the end of every run: beside torch that takes a fifth of a second
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "500"})
        refused.append((done.exit_code, done.output, "torch" in sys.modules))
print(json.dumps(refused), file=sys.__stdout__)
"""


@pytest.fixture(scope="module")
def refused(measured):
    """Exit code, output, and whether torch was imported by then, of every wrong command, in one fresh process."""
    arguments = json.dumps([arguments for arguments, _ in (*WITHOUT_TORCH, *WITH_TORCH)])
    words = [sys.executable, "-c", REFUSE, arguments, os.path.dirname(warm_servers.__file__)]
    done = subprocess.run(words, cwd=measured[0], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "number",
    range(len(WITHOUT_TORCH) + len(WITH_TORCH)),
    ids=[" ".join(arguments)[:60].encode("ascii", "replace") for arguments, _ in (*WITHOUT_TORCH, *WITH_TORCH)],
)
def test_wrong_input_gets_one_clear_error(refused, number):
    """The message names the option as it was typed; the exit code is 2; what needs no node is said before torch."""
    arguments, message = (*WITHOUT_TORCH, *WITH_TORCH)[number]
    code, output, torch = refused[number]
    assert code == 2, output
    assert message in " ".join(output.replace("│", " ").split()), arguments
    assert "Traceback" not in output
    assert "--run-resume" not in output
    assert torch == (number >= len(WITHOUT_TORCH))


def test_every_run_option_is_on_both_lines(pytestconfig):
    """`run` and pytest take the same table of options, and the help of `run` has each with its help and default."""
    done = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "300"})
    for option in OPTIONS.values():
        assert option.flag in done.output
        assert option.help in done.output
        assert f"[default: {option.default}]" in done.output or not option.default
        pytestconfig.getoption(option.pytest_flag)
    assert "Sweep" in done.output


@pytest.mark.parametrize("kill", [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)], ids=["ctrl-c", "sigterm"])
def test_an_interrupt_ends_cleanly_and_resume_goes_on(tmp_path, kill):
    """Ctrl-C, and SIGTERM, keep what is done, report it and say last how to go on; --resume measures the rest alone.

    It knows the options that the run began with, and refuses others.
    """
    arguments = (
        "--suite=timesteps",
        "--node=lif",
        "--timesteps=2,3,4,5,6,7",
        "--batch=2",
        "--shape=16",
        "--processes=1",
        "--passes=memory,flops",
        "--run-id=cut",
    )
    process = subprocess.Popen(
        [sys.executable, *WARM, "run", *arguments],
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
    while time.monotonic() < deadline and (not journal.exists() or journal.read_text().count("\n") < 4):
        time.sleep(0.05)
    send, sent = kill
    send(process.pid, sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    last = [line for line in (out + err).splitlines() if line.strip()][-1]
    assert last.endswith("go on with: revsnn-bench run --resume=results/cut.jsonl")
    assert "Traceback" not in out + err
    assert "KeyboardInterrupt" not in out + err
    done = journal.read_text().splitlines()
    assert 4 <= len(done) < 8
    assert f"interrupted: {len(done) - 2} of 6 planned cases measured" in out
    for wrong in ("--node=revlif", "--passes=memory", "--full"):
        code, out, err = inside(tmp_path, "run", wrong, "--resume=cut")
        assert code == ExitCode.USAGE, out + err
        assert f"{wrong.partition('=')[0]}: the run began with" in err
        assert "It began as `revsnn-bench run --suite=timesteps --node=lif" in err
    code, out, err = inside(tmp_path, "run", "--resume=cut")
    assert code == 0, out + err
    records = json.loads((tmp_path / "results" / "cut.json").read_text())["records"]
    assert len(records) == 6
    assert records[0] == json.loads(done[2])


INTERRUPTED = """
import os, signal, sys
from revsnn_bench import session
def interrupted(*arguments): os.kill(os.getpid(), signal.SIGTERM)
session.{} = interrupted
"""


@pytest.mark.parametrize(
    ("stage", "left", "how"),
    [
        ("write_reports", "late.json", "write its reports with: revsnn-bench report results/late.json"),
        ("Journal.finish", "late.jsonl", "go on with: revsnn-bench run --resume=results/late.jsonl"),
    ],
)
def test_an_interrupt_at_the_end_says_where_the_run_is(tmp_path, stage, left, how):
    """While the run is saved or its reports are written: exit code 130, what is there, and how to have the rest."""
    code = INTERRUPTED.format(stage) + f"import runpy; runpy.run_path({warm_servers.__file__!r}, run_name='__main__')"
    ended, out, err = command(tmp_path, "run", *SMALL, "--passes=memory", "--run-id=late", how=("-c", code))
    assert ended == ExitCode.INTERRUPTED, out + err
    assert "Traceback" not in out + err
    last = [line for line in out.splitlines() if line.strip()][-1]
    assert last == f"interrupted: all planned cases measured, in results/{left}; {how}"
    assert [path.name for path in (tmp_path / "results").iterdir()] == [left]


def test_options_for_the_users_tests_are_not_those_of_a_run(tmp_path, monkeypatch):
    """What the environment tells pytest drops no case, and stops no run."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-n 2 -k nothing")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "no_such_plugin")
    _, out, err = inside(tmp_path, "run", "--suite=timesteps", "--node=lif", "--depth=7")
    assert "--depth: must be values that some case has" in out + err


def test_a_closed_stream_is_not_the_next_file(tmp_path):
    """With stdin, stdout and stderr closed a journal would be what libraries print to, and pytest would break."""
    code = "import os, sys; from revsnn_bench.cli import main; sys.argv[1:] = ['--version']\n"
    code += "try: main()\nfinally: opened = open('told', 'w'); print(opened.fileno(), file=opened)"
    closed = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], cwd=tmp_path)
    assert closed.returncode == 0
    assert int((tmp_path / "told").read_text()) > 2


def test_an_interrupt_while_the_command_is_imported_shows_no_traceback(tmp_path):
    """Ctrl-C in the first second ends it by the signal, and while torch is imported with the code of interrupts."""
    code = "import os, signal, sys\nsignal.signal(2, signal.default_int_handler)\nclass Finder:\n"
    code += "    def find_spec(name, *_): name == 'typer' and os.kill(os.getpid(), 2)\n"
    code += "sys.meta_path.insert(0, Finder)\nimport revsnn_bench.cli\n"
    ended, out, err = command(tmp_path, how=("-c", code))
    assert (ended, out, err) == (-signal.SIGINT, "", "")

    code = code.replace("name == 'typer' and", "name == 'numpy' and not sys.meta_path.remove(Finder) and")
    code = code.replace("import revsnn_bench.cli\n", "sys.argv[1:] = ['doctor']\n")
    code += "from revsnn_bench.cli import main\nmain()\n"  # numpy is imported by torch, which drops the exception
    assert command(tmp_path, how=("-c", code)) == (ExitCode.INTERRUPTED, "", "")


@pytest.mark.parametrize(
    "arguments",
    [("--results=/proc/nope",), ("--reports=/proc/nope",), ("--results=/dev/full",), (f"--run-id={'x' * 300}",)],
    ids=["no results folder", "no reports folder", "a file for a folder", "a name too long"],
)
def test_nothing_is_measured_that_could_not_be_saved(tmp_path, arguments):
    """One sentence that names the place, exit code 2, and no file or folder left behind."""
    code, out, err = inside(tmp_path, "run", *SMALL, *arguments)
    assert code == ExitCode.USAGE, out + err
    assert "ERROR: cannot write the run to " in err
    assert "File exists" not in err  # of a file, where a folder is needed
    assert "Least peak" not in out
    assert "Traceback" not in out + err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_limit_under_which_no_worker_answers_is_refused(tmp_path):
    """In one sentence that names it, before anything is measured."""
    code, out, err = inside(tmp_path, "run", *SMALL, "--timeout=1e-9")
    assert code == ExitCode.USAGE, out + err
    assert "no worker can measure here: ran past the time limit of 1e-09 s. Its limits are --timeout and" in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("beyond_header", "kept", "place", "said"),
    [
        (3000, "full.jsonl", "results/full.jsonl", "go on with: revsnn-bench run --resume=results/full.jsonl"),
        (40000, "full.json", "reports", "What was measured is in results/full.json."),
    ],
    ids=["run", "reports"],
)
def test_a_full_disk_is_named_with_what_was_saved(measured, tmp_path, beyond_header, kept, place, said):
    """A file that cannot grow ends the run: it is named, what is saved is named, and no half of a report is left."""
    header = json.loads((measured[0] / "deep" / "down" / "first.json").read_text())["header"]
    limit = len(json.dumps(header)) + beyond_header
    code = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({limit}, {limit}))"
    code += f"; import runpy; runpy.run_path({warm_servers.__file__!r}, run_name='__main__')"
    arguments = ("run", *SMALL, "--passes=memory", "--run-id=full", "--format=html,md")
    code, out, err = command(tmp_path, *arguments, how=("-c", code))
    assert code == ExitCode.NO_FILE, out + err
    assert f"cannot write {place}: File too large." in out
    assert said in out
    assert [path.name for path in (tmp_path / "results").iterdir()] == [kept]
    assert not [*(tmp_path / "reports").iterdir()]


def test_a_run_leaves_its_own_folders_alone(measured):
    """No folder of pytest or of its plugins in the place where a user measures."""
    folder, _ = measured
    assert {path.name for path in folder.iterdir()} - {"my_nodes.py", "__pycache__"} == {"deep", "reports"}


def test_a_crash_or_a_lost_folder_is_no_regression(tmp_path, monkeypatch, capsys):
    """Exit code 1 means a regression alone: an error of the program, of a folder or of a pipe has a code of its own."""
    code, _, err = command(tmp_path, "claims", "--only=flops", "--results=/proc/nope")
    assert code == ExitCode.NO_FILE
    assert "Error: cannot use the file or folder '/proc/nope': No such file or directory." in err

    gone = "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); sys.path[:] = sys.argv[1:]; "
    gone += "sys.argv[1:] = ['nodes']; from revsnn_bench.cli import main; main()"
    lost = subprocess.run([sys.executable, "-c", gone, *filter(None, sys.path)], cwd=tmp_path, capture_output=True)
    assert lost.returncode == ExitCode.NO_FILE
    assert lost.stderr == b"Error: the current folder does not exist any more. Change into another one.\n"

    def leave(error, by_click=True):
        def broken():
            try:
                raise error
            except BaseException:
                if by_click:
                    sys.exit(1)
                raise

        monkeypatch.setattr(revsnn_bench.cli, "app", broken)
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code

    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    try:
        # Under `nohup` it stays ignored.
        for given, after in ((signal.SIG_IGN, signal.SIG_IGN), (signal.SIG_DFL, revsnn_bench.cli._interrupt)):
            signal.signal(signal.SIGHUP, given)
            assert leave(KeyboardInterrupt()) == ExitCode.INTERRUPTED
            assert signal.getsignal(signal.SIGHUP) is after
        assert leave(BrokenPipeError()) == ExitCode.CLOSED_PIPE
        assert leave(KeyboardInterrupt()) == ExitCode.INTERRUPTED
        assert leave(ValueError()) == ExitCode.REGRESSION  # a status that a command chose

        assert leave(ValueError("a fault"), by_click=False) == ExitCode.BROKEN
        assert "ValueError: a fault" in capsys.readouterr().err
        assert leave(KeyboardInterrupt(), by_click=False) == ExitCode.INTERRUPTED  # as while a usage error is printed
        assert capsys.readouterr().err == ""
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@pytest.mark.parametrize("name", sorted(each.name for each in app.registered_commands))
def test_help_says_what_an_option_takes(name):
    """SIZE, FILE, N: not the type that Python has for it."""
    told = invoke(name, "--help").output
    assert "--help" in told
    assert re.findall(r"--[\w-]+ .*<(?:str|path|int|float).*", told) == []


def test_version_is_the_packages():
    """The installed distribution's."""
    assert invoke("--version").output.strip() == f"revsnn-bench {version('revsnn-bench')}"


def test_the_package_runs_as_a_module():
    """As people type where a folder of scripts is not on the path."""
    command = [sys.executable, "-m", "revsnn_bench", "--version"]
    assert subprocess.check_output(command, text=True).strip() == f"revsnn-bench {version('revsnn-bench')}"


def test_nodes_are_what_run_takes():
    """The list holds nodes, strategies and peers; each can be described, with what its block keeps."""
    from revsnn_bench.models.methods import METHODS
    from revsnn_bench.models.peers import PEERS
    from revsnn_bench.models.strategies import strategy_names

    done = invoke("nodes")
    assert done.exit_code == 0, done.output
    assert "CarrierLIF" in done.output
    listed = re.findall(r"^ *(\S+) ", done.output, re.MULTILINE)
    for name in (*strategy_names(), *PEERS):
        assert name in listed
        described = invoke("nodes", name)
        assert described.exit_code == 0, described.output
        assert f"{name}: " in described.output
    assert "CheckpointBlock" in invoke("nodes", "revlif+checkpoint").output
    assert "    as-is+remat      the same, inside `remat`" in invoke("nodes", "as-is").output
    told = invoke("nodes", "lif+remat").output
    assert "\n  tau = 2.0\n" in told
    assert "\n  backend = 'auto', or 'torch', 'fused'\n" in told
    assert "\n  max_passes = 16\n" in told
    assert "NormCarrierLIF" in invoke("nodes", "norm-carrier").output
    assert {f"lif+{kind}" for kind in METHODS} <= {*listed}
    assert "delta_l[t]" in invoke("nodes", "lif+sltt").output


def test_the_first_hour_on_a_gpu_is_rehearsed_on_the_cpu(tmp_path):
    """Kernels and steps are timed and written down, then the suite runs, here a part of it; nothing else is saved."""
    a_part = "from revsnn_bench.cli import run; run.QUIET += ('-k', 'test_precisions and float64'); "
    a_part += f"import runpy; runpy.run_path({warm_servers.__file__!r}, run_name='__main__')"
    code, out, err = command(tmp_path, "doctor", "--gpu", "--rehearse", how=("-c", a_part))
    assert code == 0, out + err
    written = json.loads((tmp_path / "results" / "gpu-kernels.json").read_text())
    assert {"copy", "lif_forward", "carrier_backward", "anchored_backward", "norm_lif_backward"} <= {
        each["name"] for each in written["kernels"]
    }
    assert {"lif", "revlif", "spikingjelly"} <= {each["node"] for each in written["steps"]}
    assert all(each["time_s"] > 0 for each in (*written["kernels"], *written["steps"]))
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["gpu-kernels.json"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_the_first_hour_needs_a_gpu():
    """Without one the command says so, and how to rehearse."""
    done = invoke("doctor", "--gpu")
    assert done.exit_code == 2
    assert "doctor --gpu --rehearse" in done.output


def test_the_first_hour_begins_where_it_can_be_saved(tmp_path, monkeypatch):
    """A name that a run has, or a folder that cannot be written, is refused before minutes on a rented card."""
    (tmp_path / "gpu.json").write_bytes(EXAMPLE.read_bytes())
    monkeypatch.setattr("revsnn_bench.cli.machine._self_test", None)
    done = invoke("doctor", "--gpu", "--rehearse", "--results=/proc/nope")
    assert isinstance(done.exception, FileNotFoundError)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    done = invoke("doctor", "--gpu", f"--results={tmp_path}")
    assert done.exit_code == 2, done.output
    assert "--run-id: `run_id` must be new; 'gpu'" in done.output


def test_env_and_doctor_speak(tmp_path):
    """The environment is that of a worker, and the meters are exact; in processes of their own, whose heap is fresh."""
    code, out, err = command(tmp_path, "env", "--json")
    assert code == 0, err
    assert json.loads(out)["malloc"]["MALLOC_MMAP_THRESHOLD_"] == "1048576"
    code, out, err = command(tmp_path, "doctor")
    assert code == 0, out + err
    assert "recompute_flops" in out
    assert err == ""
