"""Is the gradient right? Held against float64 backpropagation through time of the same forward.

The reference model runs twice. In the precision under test it must give the same output, and what it decides is
recorded: spikes, the maxima of a pooling, signs. In float64 the same is decided again, so that rounding at a threshold
cannot make it another forward, and autograd gives the gradient that the one under test is held against.

Two calls in a row are judged, the second from the membranes that the first one left, whose gradient is judged as well;
an error is the worst of both. Where the step is too large for a float64 reference, a part of it is judged so, and the
whole against the reference in its own precision, block by block.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from revsnn_bench.meters.decisions import Decisions
from revsnn_bench.meters.oracle import (
    CALLS,
    NO_GRADIENT,
    TOLERANCE,
    cut_states,
    errors_of_functions,
    in_float64,
    measure_oracle_errors,
    surrogates_of,
    tolerance_of,
)
from revsnn_bench.meters.step import (
    TrainingStep,
    backward_gradients,
    copied,
    in_place_of,
    in_precision,
    in_reals,
    learned,
    parts_of,
    relative_error,
    same_bits,
    same_draws,
)
from revsnn_bench.records import ONE_PARAMETER, FidelityRecord, GradientBias, NoOracle

REPEATED = 0.01
"""Share of the tolerance by which a function may differ from itself: some kernels add in another order every time."""

NOTHING = 1e-12
"""Share of the largest gradient of a call below which another one is nothing; alone, a gradient of nothing at all.

A surrogate far from the threshold is 0 in one kernel and 1e-22 in another, which cuts its exponents."""

Call = dict[str, list[Tensor]]
"""What one call gives: `output`, and the gradients of `input`, `parameters` and carried `states`."""


@dataclass(frozen=True)
class Subject:
    """What the fidelity of a step is judged by.

    Args:
        reference: a model of the same function and parameters, by plain autograd; None where the model names none,
            which is then judged by differences of its own forward.
        recover: from an input and its output, fields of the record on what the backward pass recovers, if anything.
        predicted_error: what the model predicts of its own gradient error, if anything.
        whole: the step at full size, where `step` is a part of its samples.
        plain: the step of the same network without its strategy, whose bits it should have.
        bare: the step without what a method puts around its forward, in which the reference runs.
        itself: the model without its method, the reference where there is no other and no difference can judge:
            it tells of the method, not of the model.
        approximate: whether the step's gradient is not meant to be that of backpropagation: its bias is measured.
        own: whether it is a user's model, in which a value that is cut from its graph is meant to be.
    """

    step: TrainingStep
    reference: nn.Module | None
    recover: Callable[[Tensor, Tensor], dict[str, Any]] | None = None
    predicted_error: float | None = None
    whole: TrainingStep | None = None
    plain: TrainingStep | None = None
    bare: TrainingStep | None = None
    itself: nn.Module | None = None
    approximate: bool = False
    own: bool = False


def measure_fidelity(subject: Subject) -> FidelityRecord:
    """Compares output, gradients and recovered inputs of one step with the reference; leaves the step prepared.

    Raises:
        NoOracle: the model names no reference, and differences of its forward cannot judge it; it has a scripted
            part; it does not run in float64, or is another function there; its output is another every time; or its
            loss reads the model's parameters, where no reference could take its place.
    """
    found = _judged(subject)
    unlike = errors_of_functions(subject.bare or subject.step) if subject.own else {}
    if not unlike:
        return found
    told = [*([found.warning] if found.warning else []), *(_UNLIKE.format(*each) for each in unlike.items())]
    return found.model_copy(update={"warning": "\n".join(told)})


_UNLIKE = (
    "the backward of {} is not the derivative of its forward: they differ by {:.2g}. That is meant in a surrogate or a "
    "straight-through estimator; else the gradient of this model is wrong, in every case alike."
)


def _judged(subject: Subject) -> FidelityRecord:
    """The fidelity of a step, held against its reference, or else against differences."""
    if subject.reference is not None:
        return _by_reference(subject, subject.reference)
    try:
        return _by_differences(subject.step, subject.bare or subject.step, subject.own)
    except NoOracle:
        if subject.itself is None:
            raise
        _restore_buffers(subject.step.model, subject.itself)
        return _by_reference(subject, subject.itself)


def _by_reference(subject: Subject, reference: nn.Module) -> FidelityRecord:
    """The fidelity of a step, held against a reference."""
    step = subject.step
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tested = _calls(step, step.model, step.source)
    bit_equal = None if subject.plain is None else _count_equal(step, tested, subject.plain)
    recovered = _recovered(subject)
    bare = subject.bare or step
    fresh, same, exact, dtypes = _reference_calls(bare, reference)
    tolerance = tolerance_of(dtypes)
    errors = _errors(tested, same, exact, tolerance)
    neurons = step.source[0].numel()
    if subject.whole is not None:
        whole = _errors_of_blocks(subject.whole, reference, step.source.shape[1])
        errors = {name: _worst((error, whole.get(name))) for name, error in errors.items()}
        neurons = subject.whole.source[0].numel()
    if errors["input"] is None:
        raise NoOracle("neither its input nor a parameter of it gets a gradient")
    if subject.approximate:
        errors["states"] = None
    found = FidelityRecord(
        **_recorded(errors),
        tolerance=tolerance,
        **recovered,
        predicted_error=subject.predicted_error,
        bit_equal=bit_equal,
        warning="\n".join(dict.fromkeys(str(w.message) for w in caught if w.category is not DeprecationWarning))
        or None,
        neurons=neurons,
        gradient_bias=_bias(step.model, tested[0], exact[0]) if subject.approximate else None,
    )
    most, of_tested = (max(_norm(values) for call in calls for values in _gradients(call)) for calls in (exact, tested))
    if most == 0 and of_tested < NOTHING:  # which any method would have
        raise NoOracle(NO_GRADIENT)
    if found.beyond_tolerance():
        _require_finite(same)
        _require_repeatable(bare, same, fresh, tolerance)
        if _all_within(tested, same, tolerance):
            if of_tested < NOTHING:  # in this precision alone: a sigmoid ends in 1 sooner than in float64
                raise NoOracle(NO_GRADIENT)
            if reference is subject.itself and bit_equal and bit_equal[0] == bit_equal[1]:
                # The rounding is the model's own, as of a softmax that is nearly 1: its method added none.
                return found.model_copy(update=_recorded(_errors(tested, same, same, tolerance)))
            outputs = zip((call["output"] for call in same), (call["output"] for call in exact), strict=True)
            _require_same_function(_worst(relative_error(*each) for each in outputs) or 0.0, tolerance)
    return found


def _recorded(errors: dict[str, float | None]) -> dict[str, Any]:
    """What `_errors` gives, by the names of a record."""
    names = {"output": "output_error", "input": "gradient_error", "parameters": "parameter_gradient_error"}
    names |= {"largest": "largest_parameter_error", "states": "state_gradient_error"}
    return {names[name]: error for name, error in errors.items()}


def _norm(tensors: Iterable[Tensor]) -> float:
    """The length of several tensors taken as one vector; 0 for no tensors."""
    return float(sum(in_reals(each).square().sum().item() for each in tensors) ** 0.5)


def _gradients(call: Call) -> list[list[Tensor]]:
    """The gradients of a call, of its input, parameters and states."""
    return [values for name, values in call.items() if name != "output"]


def _require_finite(calls: Sequence[Call]) -> None:
    """Raises `NoOracle` where the reference itself has numbers that are not finite in the precision under test."""
    held = [(name, part) for call in calls for name, values in call.items() for x in values for part in parts_of(x)]
    if names := [name for name, part in held if not part.isfinite().all()]:
        what = "its output" if "output" in names else "its gradient"
        raise NoOracle(f"{what} has numbers that are not finite, and so has that of its reference")


def _require_repeatable(step: TrainingStep, calls: Sequence[Call], fresh: nn.Module, tolerance: float) -> None:
    """Raises `NoOracle` where a copy of a model that did not run gives other outputs or gradients in the same calls."""
    with in_place_of(step, fresh) as placed:
        again = _calls(step, placed, step.source)
    pairs = zip(calls, again, strict=True)
    apart = _worst(relative_error(values, other[name]) for call, other in pairs for name, values in call.items())
    if apart is not None and apart > REPEATED * tolerance:
        theirs = ""
        if any(type(module).__module__.startswith("snntorch.") for module in fresh.modules()):
            theirs = ". snntorch.utils.reset finds no copy: leave it out, states are reset between steps"
        raise NoOracle(
            f"it is another function every time, by {apart:.2g} with the same input and the same draws of torch, numpy "
            "and random: it reads a clock, another source of numbers, or what an earlier step left outside of the model"
            + theirs
        )


def _require_same_function(apart: float, tolerance: float) -> None:
    """Raises `NoOracle` where the output in float64 is further away than rounding explains."""
    if apart > tolerance:
        raise NoOracle(f"its output in float64 is another by {apart:.2g}, and so is what its gradient must be")


def _errors(
    tested: Sequence[Call], same: Sequence[Call], exact: Sequence[Call], tolerance: float
) -> dict[str, float | None]:
    """The worst error over the calls of output, gradients at input and parameters, one parameter's, and states."""
    by_call = [_errors_of_call(*each, tolerance) for each in zip(tested, same, exact, strict=True)]
    names = ("output", "input", "parameters", "largest", "states")
    errors = {name: _worst(each.get(name) for each in by_call) for name in names}
    if tolerance >= TOLERANCE[torch.float16]:
        errors["largest"] = None  # rounding alone is wrong by a per cent of one parameter
    if errors["input"] in (None, 0.0) and not any(x.any() for call in exact for x in call["input"]):
        # Integers, or values that are drawn from, as in an encoding by spikes: no gradient comes to the input.
        errors["input"] = errors["input"] if errors["parameters"] is None else errors["parameters"]
    return errors


def _restore_buffers(model: nn.Module, fresh: nn.Module) -> None:
    """Gives buffers of a model the values of one that has not run: a spectral norm's vectors move with every call."""
    theirs = dict(fresh.named_buffers())
    for name, buffer in model.named_buffers():
        if name in theirs and theirs[name].shape == buffer.shape and not same_bits(buffer, theirs[name]):
            buffer.detach().copy_(theirs[name])


def _decided(step: TrainingStep, model: nn.Module) -> Decisions:
    """What a forward of a model in the place of the step's own decides, and what it cuts."""
    decisions = Decisions(places=True)

    def in_surrogate(entered: bool) -> Callable[..., None]:
        return lambda *_: setattr(decisions, "in_surrogate", entered)

    with in_place_of(step, model) as placed, ExitStack() as stack:
        for surrogate in surrogates_of(placed):
            stack.enter_context(surrogate.register_forward_pre_hook(in_surrogate(True)))
            stack.enter_context(surrogate.register_forward_hook(in_surrogate(False)))
        moved = step.replaced(placed, step.source)
        moved.prepare()
        with decisions:
            moved.run(moved.make_input())
        moved.prepare()
    return decisions


def _all_within(calls: Sequence[Call], others: Sequence[Call], tolerance: float) -> bool:
    """Whether calls have the outputs and gradients of others, to a tolerance."""
    errors = _errors(calls, others, others, tolerance)
    return all(error is None or error <= tolerance for error in errors.values())


def _by_differences(step: TrainingStep, bare: TrainingStep, own: bool) -> FidelityRecord:
    """The fidelity of a step without a reference, by differences of its own forward; for the rest see `Subject`."""
    one, other = copied(step.model), copied(step.model)
    found = measure_oracle_errors(step, own)
    tolerance = found.tolerance
    record = FidelityRecord(
        gradient_error=found.input,
        parameter_gradient_error=found.parameters,
        state_gradient_error=found.states,
        tolerance=tolerance,
        neurons=step.source[0].numel(),
        judged_by="differences",
    )
    if record.beyond_tolerance():
        with in_place_of(bare, one) as placed:
            calls = _calls(bare, placed, bare.source)
        _require_finite(calls)
        hooked, decided = any(parameter._backward_hooks for parameter in learned(one)), _decided(bare, one)
        meant = own and (hooked or decided.cuts)
        _restore_buffers(step.model, other)
        if meant and _all_within(_calls(step, step.model, step.source), calls, tolerance):
            cause = "changes gradients in hooks" if hooked else "cuts values from their graph (`no_grad`, `.data`)"
            raise NoOracle(f"it {cause}, and a difference cannot leave out a path")
        _require_repeatable(bare, calls, other, tolerance)
        _require_same_function(found.output, tolerance)
        if decided.jumps:
            raise NoOracle(
                "an `autograd.Function` of its own decides something, such as who fires, and a difference does not "
                "know the derivative that it means"
            )
        if found.bent:
            raise NoOracle(
                "its forward has a kink where its values lie, as `leaky_relu` has at the zeros of no spikes, and a "
                "difference has a part of both sides"
            )
    return record


def _bias(model: nn.Module, tested: Call, exact: Call) -> GradientBias:
    """How far the parameter gradients of a call are from the exact ones: all of them, and module by module."""
    places: dict[str, list[int]] = {}
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    for index, name in enumerate(names):
        places.setdefault(name.rpartition(".")[0], []).append(index)

    def apart(indices: Iterable[int]) -> tuple[float, float]:
        mine, theirs = ([call["parameters"][i] for i in indices] for call in (tested, exact))
        return relative_error(mine, theirs), cosine(mine, theirs)

    relative, whole = apart(range(len(tested["parameters"])))
    return GradientBias(relative=relative, cosine=whole, by_module={name: apart(of) for name, of in places.items()})


def cosine(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Cosine of the angle between several tensors taken as one vector and others; NaN where either is 0."""
    a, b = (torch.cat([in_reals(x).flatten() for x in each]) for each in (values, expected))
    return float(a @ b / (a.norm() * b.norm()))


def _calls(step: TrainingStep, model: nn.Module, source: Tensor) -> list[Call]:
    """Output and gradients of a model in the place of the step's own, call after call from its prepared state."""
    parameters = learned(model)
    known = set(map(id, parameters))
    of_another = [parameter for parameter in learned(step.model) if id(parameter) not in known]
    states: list[Tensor] = []
    calls = []
    for number in range(CALLS):
        moved = step.replaced(model, shifted(source) if number else source)
        if not number:
            moved.prepare()
        with same_draws(source.device, number):
            output = moved.run(moved.make_input())
        inputs = [moved.source] if moved.source.requires_grad else []
        given = [*inputs, *parameters, *states]
        arriving = moved.output_gradient(output).to(output.dtype)
        found = backward_gradients(output, arriving, [*given, *of_another])
        if any(g is not None for g in found[len(given) :]):
            raise NoOracle("its loss reads the model's parameters by itself, and no reference can take its place there")
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(given, found, strict=False)]
        first, last = len(inputs), len(inputs) + len(parameters)
        call = {"input": grads[:first], "parameters": grads[first:last], "states": grads[last:]}
        calls.append({"output": [output.detach()], **call})
        states = cut_states(model)
    moved.prepare()
    return calls


def _count_equal(step: TrainingStep, tested: list[Call], plain: TrainingStep) -> tuple[int, int]:
    """How many tensors of the calls, and buffers after them, have the bits of the plain step's, and of how many."""
    expected = _calls(plain, plain.model, plain.source)
    sides = [
        [
            *(x for call in calls for values in call.values() for x in values),
            *chain.from_iterable(map(parts_of, model.buffers())),
        ]
        for calls, model in ((tested, step.model), (expected, plain.model))
    ]
    equal = [same_bits(a, b) for a, b in zip(*sides, strict=True)]
    return sum(equal), len(equal)


def shifted(source: Tensor) -> Tensor:
    """The input of a later call: the same values, each a step later."""
    return source.detach().roll(1, 0).requires_grad_(source.requires_grad)


def _reference_calls(step: TrainingStep, same: nn.Module) -> tuple[nn.Module, list[Call], list[Call], set[torch.dtype]]:
    """A copy of the reference that did not run; calls of it in the precision under test, and in float64 with the
    decisions of the first; and the first's dtypes."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in same.modules()):
        raise NoOracle(
            "it has a scripted or traced part, which runs in the precision that it was made for, and in no other"
        )
    with in_float64():
        fresh, double = copied(same), in_precision(copied(same), torch.float64)
    source = step.source.detach()
    in_double = (source.double() if source.is_floating_point() else source).requires_grad_(step.source.requires_grad)
    decisions = Decisions()
    with decisions, in_place_of(step, same) as placed:
        same_calls = _calls(step, placed, step.source)
    dtypes = set(decisions.dtypes)
    with in_float64(), decisions.repeated(), in_place_of(step, double) as placed:
        return fresh, same_calls, _calls(step, placed, in_double), dtypes


def _errors_of_call(mine: Call, same: Call, exact: Call, least_share: float) -> dict[str, float | None]:
    """Errors of a call by what they are of, that of the worst parameter as `largest`; none where there is nothing.

    A model of another structure may carry other states, which cannot be held against each other. The gradient of one
    parameter may be nearly nothing, such as that of a bias before a batch norm, and all rounding: what is below a share
    of the norm of all is held against that, and what plain autograd in the same precision misses, against its miss; and
    where that is larger than the gradient, it is no part of the error of all.
    """
    errors: dict[str, float | None] = {}
    nothing = NOTHING * max(map(_norm, _gradients(exact)))
    for name, values in mine.items():
        expected = (same if name == "output" else exact)[name]
        alike = [x.shape for x in values] == [x.shape for x in expected]
        if values and (alike or name != "states"):
            errors[name] = relative_error(values, expected, 0.0 if name == "output" else nothing)
    if "parameters" in errors:
        norms = [float(in_reals(each).norm()) for each in exact["parameters"]]
        least = max(nothing, least_share * float(torch.tensor(norms, dtype=torch.float64).norm()))
        of_each, of_all = [], []
        for got, plain, right, norm in zip(*(call["parameters"] for call in (mine, same, exact)), norms, strict=True):
            wrong, rounding = (float((in_reals(each) - in_reals(right)).norm()) for each in (got, plain))
            size = max(norm, least, rounding / least_share)
            of_each.append(wrong / size if size else float(wrong > 0))
            if norm >= rounding or not wrong <= ONE_PARAMETER * rounding:
                of_all.append((got, right))
        errors["parameters"] = relative_error([got for got, _ in of_all], [right for _, right in of_all], nothing)
        errors["largest"] = _worst(of_each)
    return errors


def _worst(errors: Iterable[float | None]) -> float | None:
    """The largest error there is; NaN is larger than any number."""
    return max((each for each in errors if each is not None), key=lambda each: (each != each, each), default=None)


def _errors_of_blocks(whole: TrainingStep, reference: nn.Module, samples: int) -> dict[str, float]:
    """Errors of a layer's output and input gradient, against the reference in its precision, some samples at a time."""
    whole.prepare()
    output = whole.run(whole.make_input())
    arriving = whole.output_gradient(output)
    (gradient,) = torch.autograd.grad(output, whole.source, arriving)
    whole.prepare()
    wrong, scale = {"output": 0.0, "input": 0.0}, {"output": 0.0, "input": 0.0}
    for first in range(0, output.shape[1], samples):
        block = slice(first, first + samples)
        x = whole.source.detach()[:, block].clone().requires_grad_()
        reference.reset()  # type: ignore[operator]
        y = reference(x)
        (expected,) = torch.autograd.grad(y, x, arriving[:, block])
        for name, got, right in (("output", output[:, block], y), ("input", gradient[:, block], expected)):
            wrong[name] += (got.double() - right.double()).square().sum().item()
            scale[name] += right.double().square().sum().item()
    reference.reset()  # type: ignore[operator]
    return {name: (wrong[name] / scale[name]) ** 0.5 if scale[name] else float(wrong[name] > 0) for name in wrong}


def _recovered(subject: Subject) -> dict[str, Any]:
    """What `Subject.recover` finds for the input of a step; leaves the step prepared."""
    if subject.recover is None:
        return {}
    step = subject.step
    step.prepare()
    with torch.no_grad():
        x = step.make_input()
        found = subject.recover(x, step.run(x))
    step.prepare()
    return found
