"""Training on real data with a fixed budget, epoch by epoch; a run that stops after one goes on to the bit.

The recipe is the same for every node, so that only the node differs: Adam under a one-cycle schedule, the same
initial weights and the same order of samples for the same seed.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import torch
from revsnn_nodes import reset
from revsnn_nodes.carrier import CarrierNode
from revsnn_nodes.coupled import CoupledNode
from revsnn_nodes.plan import neurons_of
from torch import Tensor
from torch.nn.functional import cross_entropy

from revsnn_bench.case import Case
from revsnn_bench.meters.step import hooked
from revsnn_bench.models.data import Split, digits_of, encoded
from revsnn_bench.models.methods import Stepwise
from revsnn_bench.models.strategies import strategy
from revsnn_bench.models.workloads import network
from revsnn_bench.records import AccuracyRecord

STATEFUL = ("model", "optimizer", "schedule")
PROGRESS = ("epoch", "loss_by_epoch", "accuracy_by_epoch", "train_time_s")
"""Attributes of a trainer that a checkpoint holds: with a state_dict, and plain."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train; the learning rate is the highest of the schedule."""

    epochs: int
    batch: int = 64
    learning_rate: float = 1e-2


class Trainer:
    """A network in training, on digits without other data; `run_epoch` until `epoch` is the recipe's, then `record`."""

    def __init__(self, case: Case, recipe: Recipe, data: Split | None = None, data_name: str = "digits") -> None:
        self.case, self.recipe, self.data_name = case, recipe, data_name
        self.data = digits_of(case) if data is None else data
        self.model = network(case, classes=int(self.data.train_labels.max()) + 1)
        self.around = strategy(case.node, **case.options).around
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.learning_rate)
        self.batches = -(-len(self.data.train_labels) // recipe.batch)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, recipe.learning_rate, total_steps=max(1, recipe.epochs * self.batches), pct_start=0.2
        )
        self.order = torch.Generator().manual_seed(case.seed)
        self.epoch = 0
        self.loss_by_epoch: list[float] = []
        self.accuracy_by_epoch: list[float] = []
        self.train_time_s = 0.0

    def run_epoch(self, on_batch: Callable[[], object] = lambda: None) -> None:
        """One pass over the training data, `on_batch` called after each step, then one over the test data."""
        start, total = time.perf_counter(), 0.0
        self.model.train()
        for batch in torch.randperm(len(self.data.train_labels), generator=self.order).split(self.recipe.batch):
            self.optimizer.zero_grad()
            labels = self.data.train_labels[batch].to(self.case.device)
            # Spikes are new for every batch, drawn with the order of samples, so that a checkpoint goes on with them.
            is_drawn = self.case.encoding == "poisson"
            seed = int(torch.randint(1 << 62, (), generator=self.order)) if is_drawn else 0
            x_seq = encoded(self.case, self.data.train_images[batch], seed)
            if isinstance(self.model, Stepwise):
                loss = self._from_rest(x_seq, labels)
            else:
                loss = cross_entropy(self._from_rest(x_seq), labels)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += loss.item() * len(batch)
            on_batch()
        self.train_time_s += time.perf_counter() - start
        self.epoch += 1
        self.loss_by_epoch.append(total / len(self.data.train_labels))
        with self._carrying():
            self.accuracy_by_epoch.append(self.accuracy())

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of the test images that the network in `eval()` classifies rightly; their spikes never change."""
        self.model.eval()
        batches = self.data.test_images.split(self.recipe.batch)
        logits = (self._from_rest(encoded(self.case, images, seed)) for seed, images in enumerate(batches))
        guesses = [each.argmax(1).cpu() for each in logits]
        return (torch.cat(guesses) == self.data.test_labels).double().mean().item()

    @torch.no_grad()
    def firing_rates(self) -> dict[str, float]:
        """Share of neurons and steps that fire on the test images, by layer; carriers carry, coupled nodes couple."""
        names = {module: name for name, module in self.model.named_modules()}
        counts: dict[str, list[int]] = {}

        def count(node: Any, args: tuple[Any, ...], y: Tensor) -> None:
            spikes = node.spikes(args[0], y) if isinstance(node, CoupledNode) else y > 0.5
            of_layer = counts.setdefault(names[node], [0, 0])
            of_layer[0] += int(spikes.sum())
            of_layer[1] += spikes.numel()

        with hooked(neurons_of(self.model), count), self._carrying():
            self.accuracy()
        return {name: fired / of for name, (fired, of) in counts.items()}

    def record(self) -> AccuracyRecord:
        """What training gave so far; the last epoch's accuracy, and the stripped one where the nodes carry."""
        with self._carrying():
            accuracy = self.accuracy_by_epoch[-1] if self.accuracy_by_epoch else self.accuracy()
        return AccuracyRecord(
            accuracy=accuracy,
            stripped_accuracy=self.accuracy() if self._carriers() else None,
            data=self.data_name,
            epochs=self.epoch,
            train_samples=len(self.data.train_labels),
            test_samples=len(self.data.test_labels),
            train_time_s=self.train_time_s,
            accuracy_by_epoch=tuple(self.accuracy_by_epoch),
            loss_by_epoch=tuple(self.loss_by_epoch),
            batch=self.recipe.batch,
            learning_rate=self.recipe.learning_rate,
        )

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on; for `torch.save`, and `load_state` of a trainer made alike."""
        return {
            "made_for": self._made_for(),
            "order": self.order.get_state(),
            **{name: getattr(self, name).state_dict() for name in STATEFUL},
            **{name: copy(getattr(self, name)) for name in PROGRESS},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; raises `ValueError` for one of another case, recipe or data set."""
        if state["made_for"] != self._made_for():
            old, new = (
                {**json.loads(made["case"]), **made, "case": ""} for made in (state["made_for"], self._made_for())
            )
            differ = ", ".join(f"{name} {old.get(name)}, not {new[name]}" for name in new if old.get(name) != new[name])
            raise ValueError(
                f"`state` must be of the same training; got one of {differ}. Another network, seed or budget would not "
                "go on with it. Give the options that it began with."
            )
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        for name in PROGRESS:
            setattr(self, name, copy(state[name]))
        self.order.set_state(state["order"])

    def _made_for(self) -> dict[str, Any]:
        made_for = {"case": self.case.model_dump_json(), "data": self.data_name, "checksum of its data": self._checksum}
        return {**made_for, **asdict(self.recipe)}

    @cached_property
    def _checksum(self) -> str:
        """Of images and labels: a data set that has changed since is another one, whatever its name."""
        found = 0
        for tensor in self.data:
            found = crc32(tensor.contiguous().numpy().data, found)
        return f"{found:08x}"

    def _from_rest(self, *given: Tensor) -> Tensor:
        reset(self.model)
        with self.around():
            y: Tensor = self.model(*given)
        return y

    def _carriers(self) -> list[CarrierNode]:
        return [module for module in self.model.modules() if isinstance(module, CarrierNode)]

    @contextmanager
    def _carrying(self) -> Iterator[None]:
        """Keeps the carrier in `eval()` for a while: the network as it was trained."""
        nodes = self._carriers()
        modes = [node.neuron.carrier for node in nodes]
        for node in nodes:
            node.carrier = "always"
        try:
            yield
        finally:
            for node, mode in zip(nodes, modes, strict=True):
                node.carrier = mode


def train(case: Case, epochs: int) -> AccuracyRecord:
    """Trains the case's network on digits for some epochs and tests it; see `Trainer`."""
    trainer = Trainer(case, Recipe(epochs, learning_rate=case.learning_rate))
    while trainer.epoch < epochs:
        trainer.run_epoch()
    return trainer.record()
