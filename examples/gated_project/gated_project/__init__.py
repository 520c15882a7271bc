"""A spiking neuron of one's own: integrate and fire, with a soft reset."""

import torch
from revsnn_nodes.surrogate import Sigmoid
from torch import Tensor, nn


class SoftIF(nn.Module):
    """Integrates its input, fires at the threshold and keeps what is above it.

    Args:
        v_threshold: membrane at which the neuron fires.
    Keeps for backward: one tensor per step, v - v_threshold; b N T bytes with itemsize b and N neurons.
    """

    v: Tensor | float

    def __init__(self, v_threshold: float = 1.0) -> None:
        super().__init__()
        self.v_threshold = v_threshold
        self.fire = Sigmoid()
        self.v = 0.0

    def reset(self) -> None:
        """Forgets the membrane. With `v`, this is what makes a module a neuron for the benchmark."""
        self.v = 0.0

    def forward(self, x_seq: Tensor) -> Tensor:
        """Spikes `[T, N, *]` of an input current `[T, N, *]`, from the membrane of the last call."""
        v, spikes = self.v, []
        for x in x_seq.unbind(0):
            v = v + x
            spike = self.fire(v - self.v_threshold)
            # In place of spike * v_threshold, for which autograd keeps the threshold: 8 bytes at every step.
            v = torch.sub(v, spike, alpha=self.v_threshold)
            spikes.append(spike)
        self.v = v
        return torch.stack(spikes)
