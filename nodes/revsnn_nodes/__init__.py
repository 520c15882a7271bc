"""Spiking neurons that differ in one thing only: what they keep from forward to backward.

    from revsnn_nodes import CarrierLIF
    node = CarrierLIF(tau=2.0)          # [T, N, *] in, [T, N, *] out, in place of a SpikingJelly LIFNode

Equations, the table of nodes and when to use which: nodes/README.md. Depends on torch alone.
"""

from revsnn_nodes import surrogate
from revsnn_nodes.anchored import AnchoredReversibleLIF
from revsnn_nodes.base import SpikingNode
from revsnn_nodes.carrier import CarrierLIF, StoredCarrierLIF
from revsnn_nodes.checkpointed import CheckpointedLIF
from revsnn_nodes.decoding import decode_spikes
from revsnn_nodes.drift import DriftError, DriftWarning, predicted_gradient_error
from revsnn_nodes.lif import StandardLIF
from revsnn_nodes.norm_carrier import NormCarrierLIF
from revsnn_nodes.registry import make_node, node_factory, node_names, register_node
from revsnn_nodes.reversible import ReversibleLIF
from revsnn_nodes.revnet import RevNetLIF
from revsnn_nodes.stored_coupled import StoredCoupledLIF
from revsnn_nodes.stored_norm_carrier import NormCarrierNode, StoredNormCarrierLIF

__all__ = [
    "AnchoredReversibleLIF",
    "CarrierLIF",
    "CheckpointedLIF",
    "DriftError",
    "DriftWarning",
    "NormCarrierLIF",
    "NormCarrierNode",
    "RevNetLIF",
    "ReversibleLIF",
    "SpikingNode",
    "StandardLIF",
    "StoredCarrierLIF",
    "StoredCoupledLIF",
    "StoredNormCarrierLIF",
    "decode_spikes",
    "make_node",
    "node_factory",
    "node_names",
    "predicted_gradient_error",
    "register_node",
    "surrogate",
]
