"""From a declared sweep and the user's overrides to cases."""

import pytest

from revsnn_bench.case import Sweep, parse_size
from revsnn_bench.models.peers import takes
from revsnn_bench.models.workloads import build, stacks

NODES = ["lif", "revlif", "lif-carrier"]


def timesteps_sweep(**more):
    return Sweep(quick={"timesteps": (4, 8)}, full={"timesteps": (4, 64)}, batch=16, shape=(32,), **more)


def test_nodes_of_one_point_stand_together():
    """Cases come point by point, every node at each point."""
    cases = timesteps_sweep().cases("quick", {}, NODES)
    assert [(case.timesteps, case.node) for case in cases] == [(t, n) for t in (4, 8) for n in NODES]
    assert {(case.batch, case.shape) for case in cases} == {(16, (32,))}


def test_full_replaces_the_values_of_quick():
    """The full preset takes its own values for the axes it names."""
    assert {case.timesteps for case in timesteps_sweep().cases("full", {}, NODES)} == {4, 64}


def test_smoke_takes_one_small_point():
    """Without --benchmark every node runs once, at the first value, on a small batch and shape."""
    cases = timesteps_sweep().cases("smoke", {}, NODES)
    assert [(case.node, case.timesteps, case.batch, case.shape) for case in cases] == [(n, 4, 2, (8,)) for n in NODES]


def test_smoke_trains_nothing():
    """A sweep that asks for epochs of training gets none without --benchmark."""
    (case,) = timesteps_sweep(epochs=12).cases("smoke", {}, ["lif"])
    assert case.epochs == 0
    assert timesteps_sweep(epochs=12).cases("quick", {}, ["lif"])[0].epochs == 12


def test_values_given_replace_a_swept_axis_and_fix_another():
    """A swept axis takes all values given; an axis that the suite keeps fixed takes the first."""
    cases = timesteps_sweep().cases("quick", {"timesteps": (2, 3), "batch": (5, 6)}, ["lif"])
    assert [(case.timesteps, case.batch) for case in cases] == [(2, 5), (3, 5)]


def test_a_shape_is_given_to_the_suites_that_read_it():
    """A layer reads any; another workload as many sizes as its suite has, unless it was asked for by name."""
    images = Sweep(quick={"depth": (1, 2)}, workload="conv-blocks", shape=(16, 8, 8))
    given = {"shape": ((512,), (3, 4, 4))}
    assert [case.shape for case in images.cases("quick", given, ["lif"])] == [(3, 4, 4)] * 2
    assert images.cases("quick", {"shape": ((512,),)}, ["lif"]) == []
    assert [case.shape for case in timesteps_sweep().cases("quick", given, ["lif"])] == [(512,)] * 2
    named = images.cases("quick", {"shape": ((512,),), "workload": ("layer",)}, ["lif"])
    assert {(case.workload, case.shape) for case in named} == {("layer", (512,))}


def test_a_depth_that_a_workload_has_of_its_own_is_measured_once():
    """The user's depth is of the workloads that are made of blocks; one that a suite declares is refused."""
    blocks = Sweep(quick={"depth": (1, 2)}, workload="conv-blocks", shape=(3, 8, 8))
    given = {"workload": ("vgg11",)}
    assert [case.depth for case in blocks.cases("quick", {}, ["lif"], stacks=stacks)] == [1, 2]
    assert [case.depth for case in blocks.cases("quick", given, ["lif"], stacks=stacks)] == [1]
    assert [case.depth for case in blocks.cases("quick", given | {"depth": (4,)}, ["lif"], stacks=stacks)] == [1]
    assert [case.depth for case in blocks.cases("quick", {"depth": (4,)}, ["lif"], stacks=stacks)] == [4]
    fixed = Sweep(quick={"timesteps": (2,)}, workload="vgg11", depth=4)
    (asked,) = fixed.cases("quick", {}, ["lif"], stacks=stacks)
    with pytest.raises(ValueError, match="`depth` must be 1 in the workload 'vgg11'; got 4"):
        build(asked)


def test_other_axes_are_options_of_the_node():
    """An axis that is no field of a case becomes a constructor argument."""
    sweep = Sweep(quick={"groups": (2, 4)}, nodes=("revlif",), shape=(8,))
    assert [case.options for case in sweep.cases("quick", {}, NODES)] == [{"groups": 2}, {"groups": 4}]


@pytest.mark.parametrize("declared", [{"timesteps": (4,)}, {"backend": ("torch", "auto"), "timesteps": (4,)}])
def test_a_backend_reaches_the_nodes_that_have_it(declared):
    """Peers have none, and classic reversible backprop has no fused one: they are measured once, as they come."""
    pytest.importorskip("numba", reason="the fused CPU kernels need numba")
    nodes = ("lif", "revlif-revnet", "lif-carrier+checkpoint-conv", "norm-carrier", "spikingjelly")
    sweep = Sweep(quick=declared, nodes=nodes, shape=(8,))
    cases = sweep.cases("quick", {"backend": ("fused",), "tau": (3.0,)}, NODES, takes=takes)
    backends = {case.node: case.options.get("backend") for case in cases}
    assert backends == {node: None if node in ("revlif-revnet", "spikingjelly") else "fused" for node in nodes}
    assert len(cases) == len(nodes)
    assert {case.options["tau"] for case in cases} == {3.0}


def test_an_option_reaches_the_nodes_that_take_it():
    """The standard LIF has no groups: it is measured once, as what the coupled nodes are held against."""
    sweep = Sweep(quick={"timesteps": (4,)}, nodes=("lif", "revlif", "if", "norse"), shape=(8,))
    cases = sweep.cases("quick", {"groups": (4,), "tau": (3.0,)}, NODES, takes=takes)
    options = {case.node: case.options for case in cases}
    assert options == {"lif": {"tau": 3.0}, "revlif": {"groups": 4, "tau": 3.0}, "if": {}, "norse": {"tau": 3.0}}
    (lif, *_) = cases
    assert cases[1].point.node_options == ()
    assert lif.options["tau"] == 3.0


def test_every_node_of_ours_takes_the_reference():
    """What has no kernels takes "torch" and "auto" all the same; a peer takes neither."""
    for backend in ("torch", "auto"):
        sweep = Sweep(quick={"timesteps": (4,)}, nodes=("revlif-revnet", "spikingjelly"), shape=(8,))
        cases = sweep.cases("quick", {"backend": (backend,)}, NODES, takes=takes)
        assert [case.options.get("backend") for case in cases] == [backend, None]


def test_a_sweep_that_names_its_nodes_keeps_to_them():
    """Nodes that the user asks for are intersected with those that the sweep is about."""
    sweep = Sweep(quick={"timesteps": (4,)}, nodes=("revlif", "lif"))
    assert [case.node for case in sweep.cases("quick", {}, NODES, ["lif-carrier", "revlif"])] == ["revlif"]


@pytest.mark.parametrize(
    ("text", "size"), [("4 MiB", 4 << 20), ("1.5GiB", 3 << 29), ("512 B", 512), (512, 512), ("0 B", 0)]
)
def test_sizes_are_read_with_binary_units(text, size):
    """A size is a number with a unit of 1024; in Python, a whole number is bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["4 MB", "MiB", "-1 KiB", "1e3", "512", -1, True])
def test_ambiguous_sizes_are_refused(text):
    """A unit that is read as 1000 by some and 1024 by others is an error, and so is no number, or no unit."""
    with pytest.raises(ValueError, match="`size` must be a number with B, KiB, MiB"):
        parse_size(text)


@pytest.mark.parametrize("declared", [{"nodes": "lif", "quick": {}}, {"quick": {"dtype": "float32"}}])
def test_a_string_is_not_several_values(declared):
    """It would be swept letter by letter."""
    with pytest.raises(ValueError, match="must be a sequence of values; got the string"):
        Sweep(**declared)
