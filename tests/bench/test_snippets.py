"""Every block of code in README, docs/, nodes/README.md and examples/ is found here, and run.

Blocks of a page run in their order, in one folder and one namespace, as they stand. Sweeps are planned: their options
are read, their cases made, and nothing is measured (`--collect-only`). What would take minutes is made small by `LESS`.
"""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from revsnn_nodes import registry
from typer.main import get_command
from typer.testing import CliRunner

from revsnn_bench.cli import app, run, training
from revsnn_bench.exit_codes import ExitCode

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = {ROOT / "docs" / "tutorial.md"}
"""Pages that another test writes from a script: test_tutorial.py."""
PAGES = sorted(
    {ROOT / "README.md", ROOT / "nodes" / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")}
    - WRITTEN
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("revsnn-bench", "pytest", "python", "python3", "pip", "git", "tox", "ray")

NETWORK = """
import torch
from torch import nn
from spikingjelly.activation_based import functional, layer, neuron

def make():
    net = nn.Sequential(
        layer.Conv2d(3, 4, 3, bias=False), layer.BatchNorm2d(4), neuron.LIFNode(),
        layer.Flatten(), layer.Linear(3600, 10),
    )
    functional.set_step_mode(net, "m")
    return net
"""
TRAINING = """
model, criterion = make(), lambda y, labels: nn.functional.cross_entropy(y.mean(0), labels)
x_seq, y = torch.rand(4, 2, 3, 32, 32), torch.tensor([1, 2])

def train_step():
    functional.reset_net(model)
    criterion(model(x_seq), y).backward()
"""
GIVEN = {
    "README.md": NETWORK + TRAINING,
    "docs/index.md": NETWORK + TRAINING,
    "docs/remat.md": NETWORK + TRAINING,
    "docs/limits.md": NETWORK + TRAINING,
    "nodes/README.md": NETWORK + "from revsnn_bench.models.blocks import TimeDistributed\n"
    "from revsnn_nodes import StandardLIF as MyLIF\n"
    "x_seq, conv, norm = torch.rand(4, 2, 3, 8, 8), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)\n"
    "def loss(y): return y.square().mean()\n",
}
"""What a page takes for granted: the reader's model and data."""

RUNS = {
    "README.md": {"A": "example-quick", "B": "example-quick", "first": "example-quick"},
    "docs/index.md": {"first": "example-quick"},
    "docs/claims.md": {"RUN": "paper"},
    "docs/gating.md": {"first": "example-quick"},
    "examples/gated_project/README.md": {"first": "example-quick"},
}
"""Saved runs that a page names and does not make, and the committed run that stands for each."""

LESS = {
    "revsnn-bench run --model net:make --input 4,8,2,8,8 --node as-is,lif+remat": "--passes memory,fidelity",
    "revsnn-bench train": "--network digits-net --shape 1x8x8 --epochs 1 --timesteps 2 --batch 256",
    "revsnn-bench largest --budget 64 MiB": '--budget "1 MiB" --workload digits-net --shape 1x8x8 --node lif',
    "revsnn-bench largest --model": '--budget "256 KiB"',
    "revsnn-bench plan": "--rounds 1",
    "revsnn-bench plan --model net:make --input 4,2000000,2,8,8": '--limit "4 MiB" --rounds 1',
    "revsnn-bench claims": "--from RUN",
    "python examples/remat_networks.py": "--batch 2 --size 8 --steps 2 --rounds 1",
    "python examples/remat_snntorch.py": "--batch 2 --steps 3 --rounds 1",
    "python examples/remat_digits.py": "--epochs 1 --batch 256 --size 8",
}
"""Options that make a command small, by how it begins; a sweep that is named here is measured. Claims are judged from
the committed run in place of measuring for twenty minutes."""

SMALLER = {
    "sew_resnet18": "digits",
    "4,8,3,64,64": "2,2,3,32,32",
    **dict.fromkeys(("spikingjelly_models:vgg11", "spikingjelly_models:sew_resnet18"), "my_net:make"),
}
"""Arguments without a name, and what stands for them."""

REFUSED = {
    "revsnn-bench train --network resnet19 --data cifar10": (ExitCode.USAGE, "DIR"),
    "revsnn-bench claims --resume RUN": (ExitCode.USAGE, "RUN"),
    "revsnn-bench tune --resume RUN": (ExitCode.USAGE, "RUN"),
}
"""How commands end that need what is not here, data or an interrupted run, and what they say; options are read."""

GATED, MERGED = "test_example_project_is_gated", "test_shards_merged_are_the_run_in_one_piece"
CLUSTERED = "test_a_killed_host_loses_no_case_and_repeats_none"
ELSEWHERE = {
    "revsnn-bench doctor": "test_env_and_doctor_speak",
    "revsnn-bench doctor --gpu": "test_the_first_hour_needs_a_gpu",
    "revsnn-bench doctor --gpu --rehearse": "test_the_first_hour_on_a_gpu_is_rehearsed_on_the_cpu",
    **dict.fromkeys(("pytest", "pytest --benchmark", "pytest --benchmark --run-id=first"), GATED),
    "def test_fits_its_budget": GATED,
    "revsnn-bench run --shard $I/5 --run-id part-$I --threads 2": MERGED,
    "revsnn-bench merge part-1 part-2 part-3 part-4 part-5 --run-id whole": MERGED,
    "revsnn-bench run --cluster 10.0.0.1:6379 --threads 4 --run-id wide": CLUSTERED,
    "revsnn-bench run --cluster local --suite gpu": "test_a_local_cluster_is_interrupted_and_goes_on",
}
"""Commands and tests of pages that another test runs: a whole project, machines with a GPU and without, several."""

NOT_RUN = {
    "pip install": "it needs an index; these tests run where this has been done",
    "python3 -m venv": "it makes the environment that these tests run in: .ci/run has the same line",
    "git add": "it changes a repository",
    "ray start": "it leaves servers behind; test_cluster.py starts hosts that it can stop",
}

SAYS = {"--page plan.html": "This plan fits", "--limit": "Verified at a batch of", "predict": "lif"}
"""What is printed by commands that have these words."""


class Block(NamedTuple):
    """A block of code of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path):
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            path.relative_to(ROOT).as_posix(),
            text.count("\n", 0, found.start()) + 1,
            found[2],
            textwrap.dedent(found[3]),
        )
        for found in FENCE.finditer(text)
    ]


BLOCKS = {path.relative_to(ROOT).as_posix(): blocks_of(path) for path in PAGES}


def commands_of(block):
    """The words of each command, without comments and redirections."""
    lines = re.findall(r"\brun: (.*)", block.text) if block.language == "yaml" else block.text.replace("\\\n", "")
    for line in lines if isinstance(lines, list) else lines.splitlines():
        words = shlex.split(line, comments=True)
        shell = [n for n, word in enumerate(words) if word in (">>", ">", "||")]
        if words:
            yield words[: min(shell, default=None)]


COMMANDS = [
    " ".join(words) for each in BLOCKS.values() for b in each if b.language != "python" for words in commands_of(b)
]


def longest(table, command):
    """The entry of a table whose key the command begins with; the longest one."""
    keys = [key for key in table if f"{command} ".startswith(f"{key} ")]
    return max(keys, key=len, default=None)


DONE: list[list[str]] = []
"""Sweeps that were planned, trainings and scripts that ran: pages share them."""


class Reader:
    """A folder and a namespace, in which somebody follows a page."""

    def __init__(self, folder, page):
        self.folder, self.names = folder, {"__name__": "__reader__"}
        (folder / "my_net.py").write_text(NETWORK)
        (folder / "results").mkdir()
        for name, saved in RUNS.get(page, {}).items():
            shutil.copy(ROOT / "results" / f"{saved}.json", folder / "results" / f"{name}.json")
        exec(GIVEN.get(page, ""), self.names)

    def follow(self, block):
        if block.language == "python":
            self.python(block)
        elif block.language == "toml":
            assert registry.ENTRY_POINT_GROUP in tomllib.loads(block.text)["project"]["entry-points"]
        else:
            for words in commands_of(block):
                self.command(words)

    def python(self, block):
        name = re.match(r"# (\w+\.py)\n", block.text)
        if re.search(r"^def test_", block.text, re.MULTILINE):
            if longest(ELSEWHERE, re.search(r"^def test_\w+", block.text, re.MULTILINE)[0]) is None:
                (self.folder / "test_page.py").write_text(block.text)
                self.measured([sys.executable, "-m", "pytest", "-q", "test_page.py"])
        elif name:
            (self.folder / name[1]).write_text(block.text)
            runpy.run_path(name[1])
        else:
            exec(compile(block.text, str(block), "exec"), self.names)

    def command(self, words):
        command = " ".join(words)
        if longest(NOT_RUN, command) or command in ELSEWHERE:
            return
        less = longest(LESS, command)
        refused = longest(REFUSED, command)
        words = [SMALLER.get(word, word) for word in words]
        words += [] if less is None or "--resume" in words else shlex.split(LESS[less])
        if words in DONE:
            return
        if words[0] in ("pytest", "python") or words[1] in ("run", "train"):
            DONE.append(words)
        if words[0] == "python":
            self.script(words[1:])
        elif words[0] == "pytest" or (words[1] == "run" and less is None):
            self.planned(words)
        elif (
            words[1] == "tune" and not refused
        ):  # planned, too: test_tune.py has studies, and so has the page in Python
            given = get_command(app).commands["tune"].make_context("tune", words[2:])
            assert training._settings(given.params).trials
        else:
            done = CliRunner().invoke(app, words[1:], env={"COLUMNS": "120"})
            code, *said = REFUSED.get(refused, (ExitCode.PASS,))
            assert done.exit_code == code, done.output
            said += [text for key, text in SAYS.items() if key in command]
            assert not [text for text in said if text not in done.output], done.output
            if "--page" in words:
                page = Path(words[words.index("--page") + 1]).read_text(encoding="utf-8")
                assert (page.count("<svg") >= 2, page.count("<table")) == (True, 2)

    def planned(self, words):
        """Reads the options and makes the cases; pytest ends with another status where there is none."""
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            if words[0] == "pytest":
                patch.chdir(ROOT)
                more = ["-qq", "--collect-only", "-p", "no:cacheprovider", f"--run-results={self.folder}"]
                assert pytest.main([*words[1:], *more]) == 0
            else:
                patch.setattr(run, "QUIET", (*run.QUIET, "--collect-only"))
                arguments = [*words[1:], "--results", str(self.folder / "planned")]
                done = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
                assert done.exit_code == ExitCode.PASS, done.output

    def script(self, words):
        path = ROOT / words[0]
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            patch.syspath_prepend(path.parent)
            patch.setattr(sys, "argv", [str(path), *words[1:]])
            runpy.run_path(str(path), run_name="__main__")

    def measured(self, words):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def told_where(block):
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the block at {block}")
        raise


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
def test_every_block_runs(page, tmp_path, monkeypatch):
    """As the page has it, from the first to the last."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda url: Path(url.removeprefix("file://")).stat())
    monkeypatch.setattr(registry, "_NODES", dict(registry._NODES))
    for name in ("my_net", "net", "loop", "task"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    torch.manual_seed(0)
    reader = Reader(tmp_path, page)
    for block in BLOCKS[page]:
        with told_where(block):
            reader.follow(block)


@pytest.mark.parametrize("page", ["README.md", "docs/remat.md", "nodes/README.md"])
def test_a_page_s_first_lines_train(page, tmp_path, monkeypatch):
    """They run a second time: a reader has them in a loop."""
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path, page)
    for _ in range(2):
        reader.python(BLOCKS[page][0])


def test_blocks_say_what_they_are():
    """Each has a language that is run, and no command is in a block that is only indented."""
    known = ("python", "console", "toml", "yaml")
    assert not [str(block) for blocks in BLOCKS.values() for block in blocks if block.language not in known]
    left = []
    for path in PAGES:
        rest = FENCE.sub("", path.read_text(encoding="utf-8"))
        left += [
            f"{path.name}: {line}" for line in rest.splitlines() if re.match(rf"    ({'|'.join(PROGRAMS)}) ", line)
        ]
    assert not left


def test_the_tables_name_what_is_there():
    """No exception outlives its command, and tests that run what is elsewhere exist."""
    text = "\n".join(block.text for blocks in BLOCKS.values() for block in blocks)
    for table in (LESS, REFUSED, ELSEWHERE, NOT_RUN):
        assert not [key for key in table if not any(longest([key], c) for c in COMMANDS) and key not in text]
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in ELSEWHERE.values() if f"def {name}(" not in tests]
    (chain,) = re.findall(r"^python3 -m venv.*", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert chain in README


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_page_makes_the_runs_that_it_names():
    """By a command before it names them; A, B and RUN are a reader's own."""
    for page, runs in RUNS.items():
        text = "\n".join(block.text for block in BLOCKS[page])
        assert not [name for name in runs if name.islower() and not re.search(rf"--run-id[= ]{name}\b", text)], page


def test_bytes_stay_integers_in_the_page_on_python(tmp_path, monkeypatch, capsys):
    """A table made of the frame has no decimal point, as the page says."""
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in BLOCKS["docs/index.md"] if "pivot_table" in block.text]
    Reader(tmp_path, block.page).python(block)
    assert not re.search(r"\d\.\d", capsys.readouterr().out)


def test_links_of_the_readme_lead_somewhere():
    """Files and headings; those of the site's pages are held by its strict build."""
    for link, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", README):
        path = ROOT / link
        assert path.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link
