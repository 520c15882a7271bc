"""Test accuracy after a fixed budget of training on real data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from revsnn_nodes.carrier import CarrierNode
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from revsnn_bench.case import Case
from revsnn_bench.data.digits import Split, digits
from revsnn_bench.data.encoding import direct_encoding
from revsnn_bench.models.digits_net import digits_net
from revsnn_bench.models.strategies import strategy
from revsnn_bench.records import AccuracyRecord
from revsnn_bench.workloads import is_neuron

BATCH = 64
LEARNING_RATE = 3e-3


def train_digits(case: Case, epochs: int) -> AccuracyRecord:
    """Trains the digits network with the case's node, T and seed, and tests it.

    Args:
        case: a case of the workload `digits-net`; its batch does not matter here, batches hold 64 samples.
        epochs: passes over the training data, with Adam.
    Returns:
        Accuracy on held-out digits. Where the node's output carries its input, `accuracy` is that of the network
        as it was trained and `stripped_accuracy` that of the same network emitting binary spikes.
    """
    data = digits()
    torch.manual_seed(case.seed)
    model = digits_net(strategy(case.node, **case.options), size=case.shape[1])
    model.to(case.device, getattr(torch, case.dtype))
    start = time.perf_counter()
    _fit(model, data, case, epochs)
    elapsed = time.perf_counter() - start
    carriers = [module for module in model.modules() if isinstance(module, CarrierNode)]
    with _carrying(carriers):
        accuracy = _accuracy(model, data, case)
    return AccuracyRecord(
        accuracy=accuracy,
        stripped_accuracy=_accuracy(model, data, case) if carriers else None,
        data="digits",
        epochs=epochs,
        train_samples=len(data.train_labels),
        test_samples=len(data.test_labels),
        train_time_s=elapsed,
    )


def _fit(model: nn.Module, data: Split, case: Case, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    order = torch.Generator().manual_seed(case.seed)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_labels), generator=order).split(BATCH):
            optimizer.zero_grad()
            logits = _run(model, data.train_images[batch], case)
            cross_entropy(logits, data.train_labels[batch].to(case.device)).backward()
            optimizer.step()


@torch.no_grad()
def _accuracy(model: nn.Module, data: Split, case: Case) -> float:
    model.eval()
    predicted = _run(model, data.test_images, case).argmax(1).cpu()
    return (predicted == data.test_labels).double().mean().item()


def _run(model: nn.Module, images: Tensor, case: Case) -> Tensor:
    for module in model.modules():
        if is_neuron(module):
            module.reset()  # type: ignore[operator]
    x_seq = direct_encoding(images.to(case.device, getattr(torch, case.dtype)), case.timesteps)
    logits: Tensor = model(x_seq)
    return logits


@contextmanager
def _carrying(nodes: list[CarrierNode]) -> Iterator[None]:
    """Keeps the carrier in `eval()` for a while."""
    modes = [node.neuron.carrier for node in nodes]
    for node in nodes:
        node.carrier = "always"
    try:
        yield
    finally:
        for node, mode in zip(nodes, modes, strict=True):
            node.carrier = mode
