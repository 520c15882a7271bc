"""Every file and every command of docs/your-model.md, run in order in one folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from revsnn_bench.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "your-model.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SCRIPTS = ("train.py", "in_python.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    for name, text in FILES.items():
        (path / name).write_text(text)
    return path


@pytest.fixture
def command(folder, monkeypatch):
    """Runs a command of the page in the folder, and in this process; `run`, which is pytest, in one of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)

    def runs(line):
        program, *arguments = shlex.split(line)
        assert program == "revsnn-bench"
        if arguments[0] == "run":
            return run_python(["-m", "revsnn_bench.cli", *arguments], folder)
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
        assert done.exit_code == 0, done.output
        return done.output

    return runs


def run_python(arguments, folder):
    paths = os.pathsep.join([path for path in sys.path if path] + [os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_its_files_and_commands():
    """Nothing is left out by the patterns of this test."""
    assert set(FILES) == {"net.py", "train.py", "loop.py", "task.py", "in_python.py"}
    assert len(COMMANDS) == 7
    assert PAGE.count("```python") == len(FILES)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line, command, folder):
    """Each ends well; plans fit, a page shows figures and tables, and what is too large to run is verified."""
    printed = command(line)
    assert ("Verified at a batch of" in printed) == ("--limit" in line)
    if "--page" in line:
        assert "This plan fits" in printed
        page = (folder / "plan.html").read_text(encoding="utf-8")
        assert page.count("<svg") >= 2
        assert page.count("<table") == 2


def test_the_training_script_runs(command, folder):
    """With the plan that the command wrote."""
    if not (folder / "plan.json").exists():
        command(next(line for line in COMMANDS if " plan " in line))
    assert "loss" in run_python(["train.py"], folder)


def test_a_plan_from_python(folder):
    """The last script of the page."""
    assert "budget 1.0 MiB" in run_python(["in_python.py"], folder)
