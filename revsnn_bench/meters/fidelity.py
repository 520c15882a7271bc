"""Is the gradient right? Held against float64 backpropagation through time of the same forward.

The reference model runs twice. In the precision under test it must give the same output, and its spikes are
written down; in float64 these spikes are replayed, so that rounding at the threshold cannot make it another
forward, and autograd gives the gradient that the one under test is held against.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revsnn_bench.meters.oracle import measure_oracle_errors
from revsnn_bench.meters.step import TrainingStep
from revsnn_bench.records import FidelityRecord

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative gradient error that counts as right, by dtype: training tolerates noise, not a wrong direction."""

Reconstruction = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Subject:
    """What the fidelity of a step is judged by.

    Args:
        step: the step under test.
        reference: a model of the same function and parameters, by plain autograd; None where the model names none,
            which is then judged by differences of its own forward.
        spikes: the modules of a model that fire, in no particular order.
        reconstruct: from an input and its output, the input and the spikes as the backward pass recovers them, and
            the input and the spikes that were: four tensors of the input's shape. None where nothing is recovered.
        predicted_error: what the model predicts of its own gradient error; None where it predicts nothing.
        recovered_steps: from an input and its output, how many steps the inverse recovers, from the last one back. None
            where nothing is inverted.
    """

    step: TrainingStep
    reference: nn.Module | None
    spikes: Callable[[nn.Module], Sequence[nn.Module]]
    reconstruct: Callable[[Tensor, Tensor], Reconstruction] | None = None
    predicted_error: float | None = None
    recovered_steps: Callable[[Tensor, Tensor], int] | None = None


def measure_fidelity(subject: Subject) -> FidelityRecord:
    """Compares output, gradients and recovered inputs of one step with the reference; leaves the step prepared.

    Raises:
        NoOracle: the model names no reference, and differences of its forward cannot judge it.
    """
    step, dtype = subject.step, subject.step.source.dtype
    if subject.reference is None:
        found = measure_oracle_errors(step)
        return FidelityRecord(
            gradient_error=found.input,
            parameter_gradient_error=found.parameters,
            tolerance=TOLERANCE[dtype],
            neurons=step.source[0].numel(),
            judged_by="differences",
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output, gradients = _gradients(step, step.model, step.source)
    recovered = _recover(subject)
    expected_output, expected = _reference_gradients(subject)
    errors = {name: relative_error(gradients[name], expected[name]) for name in ("input", "parameters")}
    return FidelityRecord(
        gradient_error=errors["input"],
        parameter_gradient_error=errors["parameters"] if gradients["parameters"] else None,
        output_error=relative_error([output], [expected_output]),
        tolerance=TOLERANCE[dtype],
        reconstruction_error=recovered and recovered[0],
        flipped_spikes=recovered and recovered[1],
        recovered_steps=recovered and recovered[2],
        predicted_error=subject.predicted_error,
        warning="\n".join(str(each.message) for each in caught if each.category is not DeprecationWarning) or None,
        neurons=step.source[0].numel(),
    )


def is_right(fidelity: FidelityRecord) -> bool:
    """Whether output and gradients agree with the reference within the stated tolerance; NaN does not."""
    errors = (fidelity.gradient_error, fidelity.output_error or 0.0, fidelity.parameter_gradient_error or 0.0)
    return all(error <= fidelity.tolerance for error in errors)


def relative_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Relative L2 error of several tensors taken as one vector; 0 for no tensors, NaN where a value is not finite."""
    wrong = sum(((a.double() - b.double()).square().sum().item() for a, b in zip(values, expected, strict=True)), 0.0)
    scale = sum((b.double().square().sum().item() for b in expected), 0.0)
    return float((wrong / scale) ** 0.5) if scale else float(wrong > 0)


def _gradients(step: TrainingStep, model: nn.Module, source: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Output and gradients of a model in the place of the step's own, from its prepared state."""
    own_model, own_source = step.model, step.source
    step.model, step.source = model, source
    try:
        step.prepare()
        output = step.run(step.make_input())
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradient = step.output_gradient(output).to(output.dtype)
        grads = torch.autograd.grad(output, [source, *parameters], gradient)
        step.prepare()
    finally:
        step.model, step.source = own_model, own_source
    return output.detach(), {"input": list(grads[:1]), "parameters": list(grads[1:])}


def _reference_gradients(subject: Subject) -> tuple[Tensor, dict[str, list[Tensor]]]:
    step, same = subject.step, subject.reference
    assert same is not None
    double = copy.deepcopy(same).double()
    with _recorded(subject.spikes(same)) as spikes:
        output, _ = _gradients(step, same, step.source)
    with _replayed(subject.spikes(double), iter(spikes)):
        _, expected = _gradients(step, double, step.source.detach().double().requires_grad_())
    return output, expected


@contextmanager
def _recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Writes down what the modules give, in the order of the calls."""
    spikes: list[Tensor] = []
    handles = [module.register_forward_hook(lambda *call: spikes.append(call[2].detach())) for module in modules]
    try:
        yield spikes
    finally:
        _remove(handles)


@contextmanager
def _replayed(modules: Sequence[nn.Module], spikes: Iterator[Tensor]) -> Iterator[None]:
    """Makes the modules give the spikes written down, with the derivative that they have at their own input."""

    def replace(module: nn.Module, args: tuple[Any, ...], fired: Tensor) -> Tensor:
        return fired + (next(spikes).to(fired.dtype) - fired).detach()

    handles = [module.register_forward_hook(replace) for module in modules]
    try:
        yield
    finally:
        _remove(handles)


def _remove(handles: Sequence[torch.utils.hooks.RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _recover(subject: Subject) -> tuple[float, int, int | None] | None:
    """Worst error of the recovered input, spikes recovered wrongly, steps inverted; leaves the step prepared."""
    if subject.reconstruct is None:
        return None
    step = subject.step
    step.prepare()
    with torch.no_grad():
        x = step.make_input()
        y = step.run(x)
        x_recovered, spikes_recovered, x_true, spikes_true = subject.reconstruct(x, y)
        error = (x_recovered - x_true).abs().max().item()
        flipped = int((spikes_recovered != spikes_true).sum().item())
        steps = None if subject.recovered_steps is None else subject.recovered_steps(x, y)
    step.prepare()
    return error, flipped, steps
