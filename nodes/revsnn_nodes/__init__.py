"""Spiking neurons that differ in one thing only: what they keep from forward to backward.

    from revsnn_nodes import CarrierLIF
    node = CarrierLIF(tau=2.0, step_mode="m")  # [T, N, *] in, [T, N, *] out, in place of a SpikingJelly LIFNode

Equations, the table of nodes and when to use which: nodes/README.md. Depends on torch alone.
"""

from revsnn_nodes import surrogate
from revsnn_nodes.base import SpikingNode, reset
from revsnn_nodes.carrier import CarrierLIF, ClampWarning, StoredCarrierLIF
from revsnn_nodes.coupled import (
    AnchoredReversibleLIF,
    DriftError,
    DriftWarning,
    ReversibleLIF,
    RevNetLIF,
    StoredCoupledLIF,
    predicted_gradient_error,
)
from revsnn_nodes.equations import decode_spikes
from revsnn_nodes.lif import CheckpointedLIF, StandardIF, StandardLIF, StandardParametricLIF
from revsnn_nodes.norm_carrier import NormCarrierLIF, NormCarrierNode, StoredNormCarrierLIF
from revsnn_nodes.plan import apply_plan
from revsnn_nodes.registry import make_node, node_factory, node_names, register_node
from revsnn_nodes.remat import remat

__all__ = [
    "AnchoredReversibleLIF",
    "CarrierLIF",
    "CheckpointedLIF",
    "ClampWarning",
    "DriftError",
    "DriftWarning",
    "NormCarrierLIF",
    "NormCarrierNode",
    "RevNetLIF",
    "ReversibleLIF",
    "SpikingNode",
    "StandardIF",
    "StandardLIF",
    "StandardParametricLIF",
    "StoredCarrierLIF",
    "StoredCoupledLIF",
    "StoredNormCarrierLIF",
    "apply_plan",
    "decode_spikes",
    "make_node",
    "node_factory",
    "node_names",
    "predicted_gradient_error",
    "register_node",
    "remat",
    "reset",
    "surrogate",
]
