"""The gate on real measurements: two runs agree to the byte, and real regressions are found."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from revsnn_bench.case import Case
from revsnn_bench.cli.reports import gate_command
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.gate import formats, gate
from revsnn_bench.measuring import Settings
from revsnn_bench.records import Run, RunHeader

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gated_project"
RESET = "v = torch.sub(v, spike, alpha=self.v_threshold)"


def test_two_measured_runs_agree_to_the_byte(runner):
    """Measured twice in fresh processes, nothing differs; a baseline of one byte less is a regression."""
    cases = [Case(node=node, timesteps=4, batch=2, shape=(16,)) for node in ("lif", "revlif")]
    settings = Settings(passes=("memory", "flops", "fidelity"))
    first, second = ([runner.run(case, settings) for case in cases] for _ in range(2))
    header = RunHeader(
        run_id="first",
        started_at="2026-01-01T00:00:00Z",
        command=(),
        environment=runner.environment(),
        settings=settings.model_dump(),
    )
    baseline, run = Run(header=header, records=first), Run(header=header, records=second)
    verdict = gate(run, baseline)
    assert verdict.exit_code is ExitCode.PASS
    assert verdict.findings == ()
    assert verdict.values_compared >= 2 * 9

    memory = first[0].memory
    doctored = memory.model_copy(update={"retained_bytes": memory.retained_bytes - 1})
    forged = [first[0].model_copy(update={"memory": doctored}), first[1]]
    (finding,) = gate(run, Run(header=header, records=forged)).failures
    was, now = f"{memory.retained_bytes - 1:,} B", f"{memory.retained_bytes:,} B"
    assert formats.sentence(finding).startswith(f"layer/lif/T4-B2-N16/float32/cpu: retained_bytes {was} -> {now}, +1 B")


@pytest.fixture
def project(tmp_path):
    """The example project, installed as an installer does it: on the path, with its entry points beside it.

    The test that docs/gating.md shows is one of its tests.
    """
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "results"))
    page = (EXAMPLE.parents[1] / "docs" / "gating.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n( +import pytest\n.*?)```", page, re.DOTALL)
    (tmp_path / "tests" / "test_page.py").write_text(textwrap.dedent(shown))
    metadata = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    info = tmp_path / "gated_project-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {metadata['name']}\nVersion: {metadata['version']}\n")
    lines = [
        f"[{group}]\n" + "\n".join(f"{name} = {target}" for name, target in points.items())
        for group, points in metadata["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


QUICK = ("--run-target=0.01", "--run-processes=1")


def run_pytest(project, *arguments):
    path = os.pathsep.join([str(project), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "warm_plugin", "-q", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_example_project_is_gated(project, monkeypatch):
    """Its README holds: tests pass, the run becomes the baseline, and a reset that keeps more tensors fails both."""
    monkeypatch.chdir(project)
    app = typer.Typer()
    app.command()(gate_command)

    first = run_pytest(project, "--benchmark", "--run-id=first", *QUICK)
    assert first.returncode == 0, first.stdout + first.stderr
    assert CliRunner().invoke(app, ["first", "--update-baseline"]).exit_code == 0

    source = project / "gated_project" / "__init__.py"
    assert RESET in source.read_text()
    source.write_text(source.read_text().replace(RESET, "v = v * (1 - spike)"))
    second = run_pytest(project, "--benchmark", "--run-id=second", *QUICK)
    assert second.returncode == 1
    assert "over the budget of 32,768 B" in second.stdout
    verdict = CliRunner().invoke(app, ["second", "--format", "github"])
    assert verdict.exit_code == 1
    assert "layer/soft-if/T8-B4-N256/float32/cpu: retained_bytes 32,768 B -> " in verdict.stdout
    assert "/lif/" not in verdict.stdout
