"""Neurons of other libraries: spikes and gradients of our LIF with the options stated, or the equation that differs."""

import pytest
import torch
from revsnn_nodes import StandardLIF, surrogate

from revsnn_bench.case import Case
from revsnn_bench.measuring import Settings, measure
from revsnn_bench.models.peers import PEERS
from revsnn_bench.records import SkipCase, Status
from revsnn_bench.system.environment import PACKAGES

OPTIONS = {
    "snntorch": {"decay_input": False, "surrogate_function": surrogate.ATan(2.0)},
    "norse": {"surrogate_function": surrogate.SuperSpike(1.0)},
    "sinabs": {"surrogate_function": surrogate.PiecewiseExp(2.0)},
}
FIDELITY = Settings(passes=("fidelity",))


@pytest.mark.parametrize("workload", ["layer", "conv-blocks", "mlp@0.125"])
@pytest.mark.parametrize("name", OPTIONS)
def test_spikes_and_gradients_are_those_of_our_lif(name, workload):
    """In two calls in a row with the carried membrane: float32, against float64, by itself and in a network."""
    pytest.importorskip(name, reason="the peer is not installed")
    shape, depth = {"layer": ((512,), 1), "conv-blocks": ((4, 6, 6), 2), "mlp@0.125": ((1, 8, 8), 2)}[workload]
    record = measure(Case(node=name, workload=workload, timesteps=8, batch=4, shape=shape, depth=depth), FIDELITY)
    assert record.status is Status.OK, record.reason
    assert record.fidelity.judged_by == "reference"
    assert record.fidelity.output_error == 0
    assert record.fidelity.gradient_error < 1e-5


def test_a_detached_reset_is_matched_by_our_detached_reset():
    """sinabs' own reset passes no gradient: right against our LIF with that option, and it keeps less."""
    pytest.importorskip("sinabs", reason="the peer is not installed")
    case = Case(node="sinabs", timesteps=8, batch=4, shape=(512,), node_options={"detach_reset": True})
    detached, default = (
        measure(each, Settings(passes=("fidelity", "memory")))
        for each in (case, case.model_copy(update={"node_options": ()}))
    )
    assert detached.status is default.status is Status.OK
    assert detached.fidelity.gradient_error < 1e-5
    assert detached.memory.retained_bytes < default.memory.retained_bytes


@pytest.mark.parametrize("tau", [2.0, 4.0])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_passed_on(name, tau):
    """Time constant and threshold: the same spikes as ours, and others than at the default."""
    pytest.importorskip(name, reason="the peer is not installed")
    x_seq = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * 2
    ours = StandardLIF(tau=tau, v_threshold=0.75, step_mode="m", backend="torch", **OPTIONS[name])
    assert torch.equal(PEERS[name](tau=tau, v_threshold=0.75)(x_seq), ours(x_seq))
    assert not torch.equal(PEERS[name]()(x_seq), ours(x_seq))


def test_an_equation_that_is_none_of_ours_is_named_and_not_ranked():
    """snnTorch as it comes subtracts the threshold a step later: its spikes differ, and the row says why."""
    pytest.importorskip("snntorch", reason="the peer is not installed")
    record = measure(Case(node="snntorch-default", timesteps=4, batch=2, shape=(64,)), FIDELITY)
    assert record.status is Status.UNVERIFIED
    assert record.reason.endswith("h[t] = (1 - 1/tau) h[t-1] + x[t] - theta s[t-1], the reset a step later")
    x_seq = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * 2
    matched, default = (PEERS[name]()(x_seq) for name in ("snntorch", "snntorch-default"))
    assert not torch.equal(matched, default)
    h, s = torch.zeros(64), torch.zeros(64)
    for x, spike in zip(x_seq, default, strict=True):
        h = 0.5 * h + x - s
        s = (h > 1).float()
        assert torch.equal(spike, s)


@pytest.mark.parametrize("name", [*OPTIONS, "snntorch-default"])
def test_a_peer_that_is_not_installed_is_skipped(name, monkeypatch):
    """The reason says what to install."""
    monkeypatch.setattr("revsnn_bench.models.peers.import_module", missing)
    with pytest.raises(SkipCase, match="{0} is not installed: pip install {0}$".format(name.partition("-")[0])):
        PEERS[name]()


def missing(name):
    raise ImportError(name)


def test_versions_are_recorded():
    """A record's environment holds the version of each library that is installed."""
    assert {"spikingjelly", *OPTIONS} <= {*PACKAGES}
