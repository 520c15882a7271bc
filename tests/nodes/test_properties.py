"""Properties over shapes and parameters drawn by hypothesis."""

import nodes_oracle as oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nodes_cases import LIF_FAMILY, ROWS, Problem, assert_ends_close, differentiate, make, run_node, run_oracle
from nodes_tolerances import RTOL
from revsnn_nodes import surrogate
from revsnn_nodes.kernels.layout import reciprocal_is_exact

bounded = settings(max_examples=60, deadline=None, derandomize=True, database=None)
neurons = st.fixed_dictionaries(
    {
        "tau": st.floats(1.05, 30.0),
        "decay_input": st.booleans(),
        "v_threshold": st.floats(0.1, 3.0),
        "v_reset": st.none() | st.floats(-1.0, 0.05),
        "detach_reset": st.booleans(),
        "phi": st.sampled_from(list(oracle.PHI)),
    }
)
shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)


def _check(name, problem, neuron, **options):
    options = dict(options)
    own = {key: options.pop(key) for key in ("anchor_every", "checkpoint_every", "backend") if key in options}
    expected = differentiate(run_oracle(name, **neuron, **options), problem)
    node_options = {key: value for key, value in neuron.items() if key != "phi"}
    node = make(name, surrogate_function=getattr(surrogate, neuron["phi"])(), **node_options, **options, **own)
    assert_ends_close(differentiate(run_node(node), problem), expected, 100 * RTOL[torch.float64])


@bounded
@given(
    name=st.sampled_from(LIF_FAMILY), neuron=neurons, steps=st.integers(1, 9), shape=shapes,
    carried=st.booleans(), seed=st.integers(0, 999), backend=st.sampled_from(["torch", "auto"]),
)  # fmt: skip
def test_lif_family_is_the_loop_for_any_parameters(name, neuron, steps, shape, carried, seed, backend):
    """Any neuron, surrogate, T and shape, from scalars per sample to images: outputs and gradients of the loop."""
    _check(name, Problem(steps, (2, *shape), seed, carried), neuron, backend=backend)


def _of_row(row):
    """Neurons of a row of switches: thresholds, resets and time constants of its kind are drawn, and a surrogate."""
    inexact = st.floats(1.05, 30.0).filter(lambda tau: not reciprocal_is_exact(tau))
    return st.fixed_dictionaries(
        {
            "tau": st.sampled_from([2.0, 4.0, 16.0]) if row["tau"] == 2.0 else inexact,
            "decay_input": st.just(row["decay_input"]),
            "v_threshold": st.floats(0.1, 3.0),
            "v_reset": st.none() if row["v_reset"] is None else st.floats(-1.0, 0.05),
            "detach_reset": st.just(row["detach_reset"]),
            "phi": st.sampled_from(list(oracle.PHI)),
            "reset_gate": st.just(row["reset_gate"]),
        }
    )


@bounded
@given(
    neuron=st.sampled_from(ROWS).flatmap(_of_row), steps=st.integers(1, 9), seed=st.integers(0, 999),
    carried=st.booleans(),
    groups=st.integers(2, 5), width=st.integers(1, 3), dim=st.integers(1, 3), last=st.booleans(),
    alpha=st.floats(0.01, 0.99), beta=st.sampled_from([-2.0, -0.5, 0.25, 1.0, 4.0]),
    every=st.none() | st.integers(1, 10), backend=st.sampled_from(["torch", "auto"]),
)  # fmt: skip
def test_regeneration_is_the_loop_for_any_parameters(
    neuron, steps, seed, carried, groups, width, dim, last, alpha, beta, every, backend
):
    """Any coupling, grouping, gate and distance of anchors: outputs and gradients of the loop.

    On the fused backend with one surrogate: each would be another kernel, and tests/kernels has them.
    """
    neuron = neuron | ({"phi": "Sigmoid"} if backend == "auto" else {})
    shape = [2, 2, 3, 2]
    shape[dim] = groups * width
    coupling = {"groups": groups, "group_dim": dim - 4 if last else dim, "alpha": alpha, "beta": beta}
    problem = Problem(steps, tuple(shape), seed, carried)
    _check("revlif-anchored", problem, neuron, anchor_every=every, backend=backend, **coupling)
