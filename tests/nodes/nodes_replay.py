"""Gradient error of a node in low precision: against float64 BPTT of the very same spike train."""

from typing import Any

import nodes_oracle as oracle
import revsnn_nodes as nodes
import torch
from nodes_cases import Problem, differentiate, make, relative_error, run_node, run_oracle


def gradient_errors(
    name: str, dtype: torch.dtype, steps: int, shape: tuple[int, ...] = (2, 96), mean: float = 0.3,
    carried: bool = False, seed: int = 0, **options: Any,
) -> tuple[float, float | None]:  # fmt: skip
    """Relative L2 errors of the gradients of input and initial state.

    Args:
        name: node.
        dtype: precision of the node's run; its input is N(mean, 1).
        options: constructor keywords of the node that the oracle has too.
    """
    problem = Problem(steps, shape, seed, carried, mean=0.0)
    problem.x = problem.x / 1.5 + mean
    problem = problem.to(dtype)
    got = differentiate(run_node(make(name, **options)), problem)
    options = {option: value for option, value in options.items() if option not in ("anchor_every", "backend")}
    spikes = _recorded_spikes(name, got.y, problem, **options)
    expected = differentiate(run_oracle(name, spike_seq=spikes, **options), problem.to(torch.float64))
    state = None if got.v_grad is None else relative_error(got.v_grad, expected.v_grad)
    return relative_error(got.x_grad, expected.x_grad), state


def _recorded_spikes(name: str, y: torch.Tensor, problem: Problem, **options: Any) -> torch.Tensor:
    if name == "lif-carrier":
        return nodes.decode_spikes(y).double()
    if name.startswith("lif"):
        return y.double()
    coupling = options.get("groups", 2), options.get("group_dim", 1), options.get("beta", 1.0)
    return oracle.spikes_in_coupled_output(y, problem.x, *coupling)
