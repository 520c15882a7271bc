"""Retained bytes module by module: measured to the byte, and told beside what the node saves by itself."""

import pytest

from revsnn_bench import Case
from revsnn_bench.meters.memory import measure_memory
from revsnn_bench.models.workloads import build
from revsnn_bench.report.findings import by_kind, node_and_network
from revsnn_bench.report.markdown import render

MODULES = {"0.conv": 600, "0.norm": 40, "0.node": 300, "3.first.node.surrogate_function": 50, "input": 9, "7": 1}


@pytest.fixture
def network(make_record):
    """A record of a network that retains 1,000 bytes, or as many times less as asked for."""

    def make(node, times=1):
        record = make_record(node=node, workload="vgg11", timesteps=4, shape=(3, 8, 8))
        modules = {name: size // times for name, size in MODULES.items()}
        parts = {"retained_bytes": sum(modules.values()), "retained_by_module_bytes": modules}
        return record.model_copy(update={"memory": record.memory.model_copy(update=parts)})

    return make


def test_kinds_sum_to_the_total(network):
    """Every module falls into one kind, whatever block it lies in."""
    sizes = by_kind(network("lif"))
    assert sizes == {"conv": 600, "norm": 40, "node": 350, "input": 9, "rest": 1}


def test_report_sets_node_and_network_side_by_side(make_record, make_run, network):
    """12 times less by itself, 2 times in the network: one sentence per node, and a table of where the rest is."""
    run = make_run([make_record(node=node, timesteps=4) for node in ("lif", "revlif", "lif-carrier")])
    records = [*run.records, network("lif"), network("revlif", 2), network("lif-carrier", 4)]
    run = run.model_copy(update={"records": tuple(records)})
    revlif, carrier = node_and_network(run)
    said = "lif retains so many times as much: {} by itself, {} in vgg11 (T = 4)."
    assert revlif == ("revlif", said.format("12.0", "2.00"))
    assert carrier == ("lif-carrier", said.format("infinitely many (0 B)", "4.02"))
    report = render(run)
    assert "Node and network" in report
    assert "Where the retained bytes come from" in report


def test_run_without_a_network_says_nothing(sweep_run):
    """A run of single layers has no such sentence and no such table."""
    assert node_and_network(sweep_run) == []
    assert "Where the retained bytes come from" not in render(sweep_run)


def test_names_that_tell_no_kind_make_no_table(network, make_run):
    """In a network of others, such as SEW-ResNet's `layer1.0.conv1.1`, a table would say `rest` alone."""
    record = network("lif")
    modules = {"layer1.0.conv1.0": 500, "layer1.0.conv1.1": 500, "input": 9}
    memory = record.memory.model_copy(update={"retained_bytes": 1009, "retained_by_module_bytes": modules})
    report = render(make_run([record.model_copy(update={"memory": memory})]))
    assert "Where the retained bytes come from" not in report
    assert "Where the retained bytes come from" in render(make_run([record]))


@pytest.mark.parametrize("workload", ["vgg11@0.05", "resnet19@0.05"])
@pytest.mark.parametrize("node", ["lif", "lif-carrier", "norm-carrier", "lif+bitpack"])
def test_modules_sum_to_the_retained_bytes(workload, node):
    """The record's bytes by module sum to its retained bytes exactly; what no module made is a few numbers."""
    options = {"backend": "torch"}
    case = Case(node=node, workload=workload, timesteps=2, batch=1, shape=(1, 8, 8), node_options=options)
    memory = measure_memory(build(case))
    modules = memory.retained_by_module_bytes
    assert sum(modules.values()) == memory.retained_bytes
    # Autograd wraps Python numbers, 8 bytes per neuron layer and step, where no dispatch mode sees them.
    assert 0 <= modules.get("unattributed", 0) <= 8 * 2 * 20
    if node == "lif":
        assert any(".conv" in name for name in modules)


def test_modules_of_a_users_model_are_named_as_they_are(network, make_run):
    """In a model of one's own a name tells no kind: with `conv` and a neuron `sn`, nodes would be said to keep 0 B."""
    record = network("lif")
    modules = {"b1.conv": 500, "b1.sn": 1500, "b1.bn": 0, "input": 9}
    memory = record.memory.model_copy(update={"retained_bytes": 2009, "retained_by_module_bytes": modules})
    own = record.case.model_copy(update={"workload": "my_net:make", "node": "as-is"})
    report = render(make_run([record.model_copy(update={"case": own, "memory": memory})]))
    assert "| b1.sn: 1.46 KiB, b1.conv: 500 B, input: 9 B |" in report
    assert "convolution outputs" not in report
