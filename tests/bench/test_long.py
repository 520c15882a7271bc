"""Long sequences: the network that must remember, nodes that run out of memory, and the largest size that fits."""

import pytest
import torch
from typer.testing import CliRunner

from revsnn_bench import Case, Settings
from revsnn_bench.cli import app
from revsnn_bench.cli.plan import largest_that_fits
from revsnn_bench.models.networks import DelayedLinear
from revsnn_bench.models.workloads import build
from revsnn_bench.records import Status
from revsnn_bench.session import BenchSession, RunOptions

MIB = 2**20
REFERENCE = {"backend": "torch"}


def test_delayed_linear_is_a_causal_convolution():
    """Equals a dilated convolution over time that is padded with zeros in the past."""
    torch.manual_seed(0)
    layer = DelayedLinear(3, 5, delay=2)
    x_seq = torch.randn(11, 4, 3)
    taps = layer.weight.flip(0).permute(1, 2, 0)
    padded = torch.nn.functional.pad(x_seq.permute(1, 2, 0), (6, 0))
    expected = torch.nn.functional.conv1d(padded, taps, layer.bias, dilation=2).permute(2, 0, 1)
    torch.testing.assert_close(layer(x_seq), expected)


@pytest.mark.parametrize("timesteps", [64, 256])
def test_last_step_sees_every_pixel(timesteps):
    """The loss has a gradient with respect to the first step as to the last: nothing is out of reach."""
    case = Case(node="lif-carrier", workload="pixels", timesteps=timesteps, batch=2, shape=(16,))
    step = build(case)
    step.backward(step.forward())
    by_step = step.source.grad.abs().sum((1, 2))
    assert by_step.shape == (timesteps,)
    assert bool((by_step > 0).all())


def test_standard_lif_runs_out_of_memory_where_the_others_train():
    """In 64 MiB, 64 steps of three layers end as `oom` with lif; carrier and anchored nodes learn beyond chance."""
    options = RunOptions(settings=Settings(passes=()), results_dir=None, memory_limit_bytes=64 * MIB, threads=1)
    session = BenchSession(options)
    ended = {}
    for node in ("lif", "revlif-anchored", "lif-carrier"):
        case = Case(node=node, workload="pixels", timesteps=64, shape=(128,), epochs=1, node_options=REFERENCE)
        ended[node] = session.measure(case)
    session.finish(complete=False)
    assert ended.pop("lif").status is Status.OOM
    for record in ended.values():
        assert record.status is Status.OK, record.reason
        assert record.accuracy.accuracy > 0.5


@pytest.mark.parametrize(
    ("peak", "budget", "expected"),
    [
        (lambda t: 100 + 7 * t, 1000, 128),
        (lambda t: t * t, 1000, 31),
        (lambda t: 50 * (t // 10) + 10, 1000, 199),
        (lambda t: 5, 4, None),
        (lambda t: 5, 6, 5000),
        (lambda t: 3 * t if t < 40 else None, 10_000, 39),
    ],
)
def test_bisection_finds_the_last_size_that_fits(peak, budget, expected):
    """For lines, squares, stairs, constants, sizes that run out of memory: the last that fits, each measured once."""
    asked = []

    def peak_of(case):
        asked.append(case.timesteps)
        return peak(case.timesteps)

    fit = largest_that_fits(Case(node="lif", timesteps=1), "timesteps", budget, peak_of, limit=5000)
    assert (fit.case and fit.case.timesteps) == expected
    assert len(asked) == len(set(asked)) == fit.probes < 30
    if expected is not None:
        assert expected in asked
        assert fit.at_limit == (expected == 5000)


def test_a_line_takes_four_probes():
    """Two probes give the line, the third fits, the fourth does not."""
    case = Case(node="lif", timesteps=1)
    assert largest_that_fits(case, "timesteps", 10**6, lambda c: 17 + 3 * c.timesteps, 1 << 20).probes == 4


def test_impossible_search_is_refused():
    """A budget of nothing, or a limit below the start, is a usage error."""
    for budget, limit in ((0, 10), (10, 1)):
        with pytest.raises(ValueError, match="must be at least 1"):
            largest_that_fits(Case(node="lif", timesteps=2), "timesteps", budget, lambda c: 1, limit)


def test_largest_command_shows_that_the_carrier_goes_further(monkeypatch):
    """The command measures real steps: in one budget the carrier fits more steps than the standard LIF.

    A row may take minutes: Ctrl-C at the third one costs none of the first two.
    """
    cells = largest_that_fits.__globals__["_cells"]

    def interrupted(runner, case, *others):
        if case.node == "revlif":
            raise KeyboardInterrupt
        return cells(runner, case, *others)

    monkeypatch.setitem(largest_that_fits.__globals__, "_cells", interrupted)
    arguments = ["largest", "--budget=128 KiB", "--node=lif,lif-carrier,revlif", "--batch=2", "--shape=256"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert done.exit_code != 0
    assert "Largest timesteps in 128 KiB of tensors: layer, B = 2, features 256, float32, cpu" in done.output
    found = {
        line.split()[0]: int(line.split()[1]) for line in done.output.splitlines() if line.strip().startswith("lif")
    }
    assert found["lif-carrier"] > found["lif"] > 4
    assert CliRunner().invoke(app, ["largest", "--budget=1 MB"]).exit_code == 2
