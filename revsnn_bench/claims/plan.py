"""The cases that each claim needs, with all sizes in `Plan`; a case that several claims share is measured once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from revsnn_bench.case import Case

TORCH: dict[str, Any] = {"backend": "torch"}
"""Cases of the paper's nodes run on the reference backend, so that algorithms are compared and not kernels."""

UNDECAYED: dict[str, Any] = {"decay_input": False}
"""In a deep network of few steps an input divided by tau leaves most neurons silent: plain LIF would not train."""

BASELINES: dict[str, dict[str, Any]] = {
    "eager": TORCH,
    "detached": TORCH | {"detach_reset": True},
    "fused": {"backend": "fused"},
}
"""The standard LIF that memory is held against: three tensors per step kept, two (another gradient), and one."""

ACROSS_CHANNELS: dict[str, Any] = {"group_dim": 1}
Nodes = Sequence[tuple[str, dict[str, Any]]]
DEEP_NODES: Nodes = (("lif", UNDECAYED), ("revlif", UNDECAYED | ACROSS_CHANNELS), ("lif-carrier", UNDECAYED))
SMALL_NETWORK = "digits-net"


def baseline_of(case: Case) -> str:
    """Which of the standard LIFs a case of `lif` is."""
    return next(name for name, options in BASELINES.items() if options == case.options)


@dataclass(frozen=True)
class Plan:
    """Sizes of every case.

    Args:
        features, batch: of the single layer.
        saving_features: of the layer whose FLOPs and time are compared: large, so that its time is not that of calls.
        timesteps: T of the single layer, over which memory and the inverse are looked at.
        double_from: T from which on float64 is looked at too.
        network: workload whose memory, FLOPs and time are measured whole.
        network_batch, network_timesteps, network_shape: of that network.
        seeds, epochs: of every training.
        deep_width, deep_shape: of the VGG-11 that is trained: channels as a share of the usual, and image.
        groups: numbers of groups that are compared; each divides the channels of every layer.
        field: network of SpikingJelly that is trained with its neurons and with ours, at `network_timesteps`.
        field_batch, field_shape: of that network.
    """

    features: int = 4096
    batch: int = 8
    saving_features: int = 32768
    timesteps: tuple[int, ...] = (4, 8, 12, 16, 21, 32, 64)
    double_from: int = 16
    network: str = "vgg11"
    network_batch: int = 2
    network_timesteps: int = 4
    network_shape: tuple[int, int, int] = (3, 32, 32)
    seeds: tuple[int, ...] = tuple(range(8))
    epochs: int = 12
    deep_width: float = 0.25
    deep_shape: tuple[int, int, int] = (1, 8, 8)
    groups: tuple[int, ...] = (2, 4, 8, 16)
    field: str = "sj-sew-resnet18"
    field_batch: int = 4
    field_shape: tuple[int, int, int] = (3, 64, 64)

    def memory(self) -> list[Case]:
        """One layer over T: the standard LIFs, the paper's node, and the node that keeps nothing; float64 too."""
        return [
            *(self._layer("lif", t, options) for t in self.timesteps for options in BASELINES.values()),
            *(self._layer(node, t) for t in self.timesteps for node in ("revlif", "lif-carrier")),
            *(
                self._layer(node, t, dtype="float64")
                for t in self.timesteps
                if t >= self.double_from
                for node in ("lif", "revlif")
            ),
        ]

    def whole_network(self) -> list[Case]:
        """The network with one node throughout, and the node by itself at the same T."""
        return [
            *(self._network("lif", options) for options in BASELINES.values()),
            *(self._network(node) for node in ("revlif", "lif-carrier", "norm-carrier")),
            *(self._layer(node, self.network_timesteps) for node in ("lif", "revlif")),
        ]

    def saving(self) -> list[Case]:
        """The inverse gradient and classic reversible backprop, in a layer and in the network, where both are right.

        In a layer of this size both are wrong at T = 8 already: a wrong gradient saves nothing.
        """
        pair = ("revlif", "revlif-revnet")
        return [
            *(self._layer(node, self.timesteps[0], features=self.saving_features) for node in pair),
            *(self._network(node) for node in pair),
        ]

    def accuracy(self) -> list[Case]:
        """Two networks trained with the standard LIF, the coupled node, and the carrier."""
        small: Nodes = [
            ("lif", {}), ("revlif", ACROSS_CHANNELS | {"groups": self.groups[0]}), ("lif-carrier", {}),
        ]  # fmt: skip
        return [
            *self._trained(SMALL_NETWORK, (1, 8, 8), small),
            *self._trained(f"vgg11@{self.deep_width}", self.deep_shape, DEEP_NODES),
        ]

    def small_beta(self) -> list[Case]:
        """The small network trained with the coupled node at a tenth of its beta, beside the standard LIF."""
        return self._trained(SMALL_NETWORK, (1, 8, 8), [("lif", {}), ("revlif", ACROSS_CHANNELS | {"beta": 0.1})])

    def group_counts(self) -> list[Case]:
        """The small network trained with the coupled node in more and more groups of channels."""
        options = [("revlif", ACROSS_CHANNELS | {"groups": groups}) for groups in self.groups]
        return self._trained(SMALL_NETWORK, (1, 8, 8), options)

    def one_swapped(self) -> list[Case]:
        """VGG-11 of standard LIF with one layer's node swapped."""
        return self._trained(f"vgg11-one@{self.deep_width}", self.deep_shape, DEEP_NODES)

    def unchanged_network(self) -> list[Case]:
        """A network of SpikingJelly: eager, by its `memopt`, with our fused LIF, and the same inside `remat`."""
        sizes = {"timesteps": self.network_timesteps, "batch": self.field_batch, "shape": self.field_shape}
        nodes = ("spikingjelly", "spikingjelly+bitpack", "lif", "lif+remat")
        return [_case(node, {}, workload=self.field, **sizes) for node in nodes]

    def _layer(
        self, node: str, timesteps: int, options: dict[str, Any] = TORCH, features: int = 0, **fields: Any
    ) -> Case:
        shape = (features or self.features,)
        return _case(node, options, timesteps=timesteps, batch=self.batch, shape=shape, **fields)

    def _network(self, node: str, options: dict[str, Any] = TORCH) -> Case:
        sizes = {"timesteps": self.network_timesteps, "batch": self.network_batch, "shape": self.network_shape}
        return _case(node, options, workload=self.network, **sizes)

    def _trained(self, workload: str, shape: tuple[int, ...], nodes: Nodes) -> list[Case]:
        sizes = {"timesteps": 4, "batch": 8, "shape": shape, "epochs": self.epochs}
        return [
            _case(node, options | TORCH, workload=workload, seed=seed, **sizes)
            for node, options in nodes
            for seed in self.seeds
        ]


def _case(node: str, options: dict[str, Any], **fields: Any) -> Case:
    return Case(node=node, node_options=tuple(options.items()), **fields)
