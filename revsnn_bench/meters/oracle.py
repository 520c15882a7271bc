"""Is a gradient right that names no reference? Held against finite differences of its own forward, in float64.

The gradient of a spiking network is not the derivative of its forward, which jumps. It is the derivative of

    s(z) = s0 + P(z) - P(z0)        in place of the spike Theta(z)

where s0 and z0 are the spikes and distances to the threshold of the forward that is judged, and P is the primitive of
the surrogate's derivative phi. At the forward that is judged both give the same values, and the derivative of the
second is exactly what backpropagation with the surrogate must return. So the model's own forward is run in float64
with that replacement, central differences along random directions give directional derivatives, and the gradient
under test must have the same ones. Nothing of the backward pass under test takes part. Maxima stay where the forward
that is judged found them, `relu` and `clamp` on the side they were on: spikes tie, and a difference would change sides.

Two calls in a row are judged: the second from the membrane that the first one left, cut from its graph.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from math import isfinite, isnan
from typing import Any, NamedTuple

import torch
from revsnn_nodes import reset
from revsnn_nodes.swap import is_hooked, replaced_method
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from revsnn_bench.meters.decisions import Decisions, Detached
from revsnn_bench.meters.step import (
    TrainingStep,
    backward_gradients,
    copied,
    hooked,
    in_place_of,
    in_precision,
    in_reals,
    is_compiled,
    learned,
    relative_error,
    same_draws,
    tensors_in,
)
from revsnn_bench.records import NoOracle

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative gradient error that counts as right, by dtype: training tolerates noise, not a wrong direction."""

DIRECTIONS = 12
"""Random directions per call: a relative error is then estimated to about a fifth of itself."""

FEW = 4
"""Directions after which no more are tried where the estimate is far below the tolerance, by `FAR`: of a gradient that
is wrong by the tolerance, 3 estimates of 100 million are (the ratio of two chi-squares of four degrees of freedom)."""

FAR = 0.01
"""Share of the tolerance."""

STEP = 1e-7
"""Half width of the central difference, for directions of unit variance per element; so small that hardly a value
crosses a kink by it. Only maxima, `relu` and `clamp`, where values tie exactly, are held on their side."""

CALLS = 2

LEAST_SHARE = 0.01
"""A parameter's gradient counts by its own norm, from this share of the norm of all on."""

KINKED = 10
"""How often the squared difference of the derivatives of both sides may be in the squared error of their mean, which
is half of that difference or less, with another sign for each of many kinks."""

NO_GRADIENT = "every gradient is 0, as any method has it. Scale its input or its weights, so that it learns"


class OracleErrors(NamedTuple):
    """Estimated relative L2 errors of gradients, the worst of the calls, and the largest that counts as right.

    Of an input of integers the error is that of the parameters, which count each by its own norm; None where there are
    none. States are the membranes that the second call starts from. The output's is how far that of float64 is away.
    `bent` is whether kinks of the forward explain what of these is beyond the tolerance.
    """

    input: float
    parameters: float | None
    states: float | None
    output: float
    tolerance: float
    bent: bool


def tolerance_of(dtypes: Iterable[torch.dtype]) -> float:
    """Of a step that computes in several types, as under `torch.autocast`: the largest of theirs holds."""
    return max(TOLERANCE.get(dtype, 0.0) for dtype in dtypes)


def measure_oracle_errors(step: TrainingStep, own: bool = False) -> OracleErrors:
    """Judges the gradient of a step by finite differences of its own forward; leaves the step prepared.

    Args:
        own: whether it is a user's model, in which a value taken by `detach()` or `item()` is meant as a constant.
    Raises:
        NoOracle: no surrogate with a known primitive fires in it, the spikes are decided elsewhere, the reset of a node
            is detached (nothing tells which paths are meant to be left out), the model cannot be copied or run in
            float64, or every gradient is 0, rightly.
    """
    if not own and any(getattr(module, "detach_reset", False) is True for module in step.model.modules()):
        raise NoOracle("its reset is detached, and a difference of values cannot leave out a path")
    generator = torch.Generator().manual_seed(0)
    with in_float64():
        double = _in_double(step.model)
    tested = _tested_gradients(step, generator)
    worst: dict[str, float] = {}
    for number, call in enumerate(tested):
        with in_float64():
            model = copied(double)
            for earlier in tested[:number]:
                _replay(step, model, earlier, Decisions())
                _cut(model)
            errors = _errors(step, model, call, generator, Decisions(constants=own))
        for name, error in errors.items():
            # A NaN must stay: it is compared the other way round.
            worst[name] = worst[name] if name in worst and error <= worst[name] else error
    step.prepare()
    of_gradients = [worst[name] for name in ("input", "parameters", "states") if name in worst]
    if not any(of_gradients) and not any(x.any() for call in tested for each in call.gradients.values() for x in each):
        raise NoOracle(NO_GRADIENT)
    parameters = worst.get("parameters")
    error = worst.get("input", parameters or 0.0)
    tolerance = tolerance_of(tested[0].decisions.dtypes)
    return OracleErrors(error, parameters, worst.get("states"), worst["output"], tolerance, "smooth" not in worst)


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside, a model that runs as it is fails where it is copied to float64 or runs there: nothing can judge it.

    Raises:
        NoOracle: whatever it raised, but for an error that speaks of memory.
    """
    try:
        yield
    except (NoOracle, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "memory" in str(error):
            raise
        raise NoOracle(f"it does not run in float64 ({type(error).__name__}: {error})") from error


class _Call(NamedTuple):
    """One call of the step under test: its input in float64, what fired, what else was decided, and what came back."""

    source: Tensor
    output: Tensor
    arriving: Tensor
    gradients: dict[str, list[Tensor]]
    spikes: list[Tensor]
    decisions: Decisions


def _tested_gradients(step: TrainingStep, generator: torch.Generator) -> list[_Call]:
    step.prepare()
    states: list[Tensor] = []
    calls = []
    for number in range(CALLS):
        source = _source(step, number)
        fired: list[Tensor] = []
        decisions = Decisions(places=True)
        called: set[nn.Module] = set()

        def record(module: nn.Module, args: tuple[Any, ...], out: Any, fired: list[Tensor] = fired) -> None:
            if isinstance(out, Tensor):  # a neuron that learns online returns its trace, too
                fired.extend(_spikes_of(module, out.detach(), called))  # noqa: B023  (hooked in this turn alone)

        with hooked([*surrogates_of(step.model), *filter(_may_be_fused, step.model.modules())], record), decisions:
            output = _run(step, step.model, source)
        arriving = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        in_double = source.detach().double() if source.requires_grad else source
        gradients = _gradients(step, source, states, output, arriving)
        calls.append(_Call(in_double, output.detach(), arriving, gradients, fired, decisions))
        states = cut_states(step.model)
    if not calls[0].spikes:
        raise NoOracle("it does not fire through a surrogate whose primitive is known")
    return _as_compiled(step, calls) if is_compiled(step.model) else calls


def _as_compiled(step: TrainingStep, calls: list[_Call]) -> list[_Call]:
    """The same calls with the gradients of compiled code, which runs as it is written where it is watched."""
    step.prepare()
    states: list[Tensor] = []
    compiled = []
    for number, call in enumerate(calls):
        source = _source(step, number)
        output = _run(step, step.model, source)
        compiled.append(call._replace(gradients=_gradients(step, source, states, output, call.arriving)))
        states = cut_states(step.model)
    return compiled


def _source(step: TrainingStep, number: int) -> Tensor:
    """The input of a call: of a later one the same values, each a step later."""
    source = step.source.detach()
    if number and source.is_floating_point():
        source = source.roll(1, 0)
    return source.requires_grad_(source.is_floating_point())


def _gradients(
    step: TrainingStep, source: Tensor, states: list[Tensor], output: Tensor, arriving: Tensor
) -> dict[str, list[Tensor]]:
    """Gradients in float64 of the input, the parameters and the states that a call began with."""
    given: dict[str, list[Tensor]] = {
        "input": [source] if source.requires_grad else [],
        "parameters": [*learned(step.model)],
        "states": states,
    }
    tensors = [x for group in given.values() for x in group]
    found = backward_gradients(output, arriving.to(output.dtype).to(output.device), tensors)
    filled = iter(torch.zeros_like(x) if g is None else g for x, g in zip(tensors, found, strict=True))
    return {name: [in_reals(next(filled)) for _ in group] for name, group in given.items()}


def _errors(
    step: TrainingStep, model: nn.Module, call: _Call, generator: torch.Generator, jumps: Decisions
) -> dict[str, float]:
    """Relative errors of the directional derivatives of one call, from the state that `model` carries.

    `smooth` is 1 where one is beyond the tolerance by more than the derivatives of both sides differ: at a kink whose
    side no decision holds, a difference is their mean.
    """
    distances, exact = _replay(step, copied(model), call, jumps)
    errors = {"output": relative_error([call.output], [exact])}
    tolerance = tolerance_of(call.decisions.dtypes)
    far = FAR * tolerance

    def value_of(moved: nn.Module, x: Tensor) -> float:
        output = _smooth(step, moved, call, jumps, distances, x)
        return float((output.double() * call.arriving.to(x.device)).sum())

    middle = value_of(copied(model), call.source)
    for name, gradients in call.gradients.items():
        if not gradients:
            continue
        wrong = scale = bent = 0.0
        weights = _balanced(gradients) if name == "parameters" else [1.0] * len(gradients)
        for number in range(DIRECTIONS):
            if number == FEW and wrong <= far**2 * scale:
                break
            along = [torch.randn(each.shape, generator=generator, dtype=torch.float64) for each in gradients]
            along = [weight * each.to(call.source.device) for weight, each in zip(weights, along, strict=True)]
            values = []
            for sign in (STEP, -STEP):
                moved, x = copied(model), call.source
                if name == "input":
                    x = x + sign * along[0]
                else:
                    moving = learned(moved) if name == "parameters" else cut_states(moved)
                    with torch.no_grad():
                        for tensor, each in zip(moving, along, strict=True):
                            (torch.view_as_real(tensor) if tensor.is_complex() else tensor).add_(sign * each)
                values.append(value_of(moved, x))
            expected = (values[0] - values[1]) / (2 * STEP)
            got = sum(float((gradient * each).sum()) for gradient, each in zip(gradients, along, strict=True))
            wrong += (got - expected) ** 2
            scale += expected**2
            bent += ((values[0] - 2 * middle + values[1]) / STEP) ** 2
        of_a_kink = wrong <= KINKED * bent or (isfinite(middle) and isnan(bent))
        if not wrong <= tolerance**2 * scale and not of_a_kink:
            errors["smooth"] = 1.0
        errors[name] = (wrong / scale) ** 0.5 if scale else float(wrong > 0)
    return errors


def _balanced(gradients: Sequence[Tensor]) -> list[float]:
    """Lengths by which each parameter has the same share of a directional derivative, the longest 1.

    Without them a small gradient among large ones would be lost. One below `LEAST_SHARE` of all has less.
    """
    norms = [float(each.norm()) for each in gradients]
    least = LEAST_SHARE * float(torch.tensor(norms).norm())
    if not least > 0.0:
        return [1.0] * len(norms)
    inverse = [1.0 / max(norm, least) for norm in norms]
    return [each / max(inverse) for each in inverse]


def _replay(step: TrainingStep, model: nn.Module, call: _Call, jumps: Decisions) -> tuple[list[Tensor], Tensor]:
    """Runs a call in float64 with the spikes that fired; returns the distances to the threshold, and the output.

    `jumps` records what is decided there beside the spikes, as by a reset `where(spike > 0, ...)`.
    """
    spikes, distances = iter(call.spikes), []

    def replace(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        distances.append(args[0])
        fired = next(spikes)
        if fired.shape != out.shape:  # of another neuron: one that was not seen has fired before
            raise StopIteration
        return fired.to(out)

    try:
        with torch.no_grad(), hooked(surrogates_of(model), replace), call.decisions.repeated(), jumps, Detached():
            output = _run(step, model, call.source)
    except StopIteration:
        distances.clear()
    if len(distances) != len(call.spikes):
        raise NoOracle("it fires another number of times in float64")
    return distances, output


def _smooth(
    step: TrainingStep, model: nn.Module, call: _Call, jumps: Decisions, distances: list[Tensor], source: Tensor
) -> Tensor:
    """The output with every spike replaced by s0 + P(z) - P(z0), and all else decided as in `_replay`."""
    spikes, origins = iter(call.spikes), iter(distances)

    def replace(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        primitive = _primitive_of(module)
        assert primitive is not None
        with _disable_current_modes():  # what a primitive compares was not recorded
            moved = primitive(args[0]) - primitive(next(origins))
            return next(spikes).to(moved) + moved

    firing = hooked(surrogates_of(model), replace)
    with torch.no_grad(), firing, call.decisions.repeated(), jumps.repeated(), Detached():
        return _run(step, model, source)


def _primitive_of(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The function whose derivative a surrogate uses; None where a module tells none."""
    own: Callable[[Tensor], Tensor] | None = getattr(module, "primitive", None)
    if callable(own):
        return own
    theirs = getattr(module, "primitive_function", None)  # SpikingJelly's
    return (lambda z: theirs(z, **getattr(module, "_sg_params", {}))) if callable(theirs) else None


def surrogates_of(model: nn.Module) -> list[nn.Module]:
    """The surrogates of a model; a wrapped surrogate, inside of another one, is left to the outer one."""
    inner: set[int] = set()
    firing = []
    for module in model.modules():
        if id(module) not in inner and _primitive_of(module) is not None:
            firing.append(module)
            inner.update(id(each) for each in module.modules() if each is not module)
    return firing


def _may_be_fused(module: nn.Module) -> bool:
    """Whether a neuron may run as one operator: ours, and SpikingJelly's, as written."""
    theirs = type(module).__module__.startswith("spikingjelly.")
    is_neuron = theirs and isinstance(getattr(module, "surrogate_function", None), nn.Module)
    return hasattr(module, "backend_in_use") or (is_neuron and not (is_hooked(module) or replaced_method(module)))


def _spikes_of(module: Any, out: Tensor, called: set[nn.Module]) -> Sequence[Tensor]:
    """What a surrogate gave, or a fused neuron step by step: its surrogate is not called there, but is in float64.

    Args:
        called: the surrogates that have been since their neurons began; changed.
    """
    if _primitive_of(module) is not None:
        called.add(module)
        return (out,)
    seen = module.surrogate_function in called or getattr(module, "backend_in_use", "fused") != "fused"
    called.discard(module.surrogate_function)
    # What computes its charges again from an output that is no spikes would have others of a spike that moves.
    if (not seen or hasattr(module, "backend_in_use")) and not bool(((out == 0) | (out == 1)).all()):
        raise NoOracle(f"its {type(module).__name__} emits no spikes that could be decided again")
    if seen:
        return ()
    return out.unbind(0) if module.step_mode == "m" else (out,)


def _run(step: TrainingStep, model: nn.Module, source: Tensor) -> Tensor:
    """Runs the step with another model and source; the state of the model is kept."""
    with same_draws(source.device, 0), in_place_of(step, model) as placed:
        moved = step.replaced(placed, source)
        return moved.run(moved.make_input())


def _in_double(model: nn.Module) -> nn.Module:
    double = in_precision(copied(model), torch.float64)
    reset(double)
    for module in double.modules():
        if hasattr(module, "backend"):
            setattr(module, "backend", "torch")  # noqa: B010  (not every module declares it)
    return double


def cut_states(model: nn.Module) -> list[Tensor]:
    """Cuts every carried state from its graph; returns the membranes, as leaves whose gradient can be asked for."""
    _cut(model)
    leaves = []
    for module in model.modules():
        v = getattr(module, "v", None)
        keeps = callable(getattr(module, "reset", None)) and not isinstance(v, nn.Parameter)
        if keeps and isinstance(v, Tensor) and v.is_floating_point():
            leaf = v.detach().requires_grad_()
            setattr(module, "v", leaf)  # noqa: B010  (a module's own type declares it)
            leaves.append(leaf)
    return leaves


def _cut(model: nn.Module) -> None:
    """Cuts every carried state from its graph, in lists too, as a delay's queue is; counts of steps begin again."""
    parts = ("_parameters", "_modules", "_buffers")
    for module in model.modules():
        own = {name: value for name, value in vars(module).items() if name not in parts}
        for name, value in [*own.items(), *module.named_buffers(recurse=False)]:  # a buffer: snnTorch's
            if (cut := _without_graph(value)) is not value:
                setattr(module, name, cut)
        memories = getattr(module, "_memories", {})
        if any(type(value) is int for value in memories.values()):  # SpikingJelly's count of steps
            to_rest: Any = module.reset  # together with what belongs to these steps, as a queue does
            to_rest()


def _without_graph(value: Any) -> Any:
    """A tensor that a graph made, cut from it; a list, tuple or dictionary with such ones; anything else as it is."""
    if isinstance(value, Tensor):
        return value if value.grad_fn is None else value.detach()
    if type(value) in (list, tuple):
        cut = [_without_graph(each) for each in value]
        return type(value)(cut) if any(new is not old for new, old in zip(cut, value, strict=True)) else value
    if type(value) is dict:
        cut_values = {name: _without_graph(each) for name, each in value.items()}
        return cut_values if any(cut_values[name] is not value[name] for name in value) else value
    return value


FUNCTIONS_OF_OTHERS = {"torch", "revsnn_nodes", "spikingjelly", "snntorch", "norse", "sinabs"}
"""Packages whose custom functions are not held against differences: their spikes are judged, or known."""

FUNCTION_STEP = 1e-4
"""Half width of a difference of a custom function, whose decisions are repeated, for directions of its input's size."""

FUNCTION_TOLERANCE = 1e-2
"""Relative error from which on a custom function's gradient is said not to be the derivative of its forward."""


def errors_of_functions(step: TrainingStep) -> dict[str, float]:
    """How far the gradient of each custom `autograd.Function` in a step is from the derivative of its own forward.

    By the name of its class, where that is more than `FUNCTION_TOLERANCE`. The first call of each in a forward is
    judged, in float64, with what it decides and draws repeated. One whose forward then does not move, as that of a
    spike or of a rounding, has a derivative of another function, and tells nothing; nor does one that fails in float64.
    """
    kinds = [kind for kind in _functions() if kind.__module__.partition(".")[0] not in FUNCTIONS_OF_OTHERS]
    if not kinds or is_compiled(step.model):
        return {}
    step.prepare()
    with _first_calls(kinds) as calls:
        step.run(step.make_input())
    step.prepare()
    errors = {}
    for kind, args in calls.items():
        with suppress(Exception):  # whatever it raises in float64, or moved by a little
            error = _error_of_function(kind, args)
            if error > FUNCTION_TOLERANCE:
                errors[kind.__name__] = error
    return errors


def _functions(kind: Any = torch.autograd.Function) -> Iterator[type[torch.autograd.Function]]:
    """Every `autograd.Function` there is that has a forward."""
    for each in kind.__subclasses__():
        if "forward" in vars(each):
            yield each
        yield from _functions(each)


@contextmanager
def _first_calls(kinds: Iterable[Any]) -> Iterator[dict[Any, tuple[Any, ...]]]:
    """Inside, the arguments of the first call of each function are recorded, copies of tensors."""
    calls: dict[Any, tuple[Any, ...]] = {}

    def recording(kind: Any, forward: Callable[..., Any]) -> Any:
        has_context = kind.setup_context is torch.autograd.Function.setup_context

        @wraps(forward)
        def record(*args: Any) -> Any:
            if kind not in calls:
                given = args[1:] if has_context else args
                calls[kind] = tuple(
                    x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in given
                )
            return forward(*args)

        return staticmethod(record)

    own = {kind: vars(kind)["forward"] for kind in kinds}
    for kind, forward in own.items():
        kind.forward = recording(kind, getattr(forward, "__func__", forward))
    try:
        yield calls
    finally:
        for kind, forward in own.items():
            kind.forward = forward


def _error_of_function(kind: Any, args: tuple[Any, ...]) -> float:
    """Relative error of a function's directional derivatives, in float64; 0 where its forward does not move."""
    generator = torch.Generator().manual_seed(0)
    wide = [x.detach().double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
    moving = [number for number, x in enumerate(args) if isinstance(x, Tensor) and x.requires_grad]
    decisions = Decisions()

    def run(changes: Iterable[Tensor]) -> list[Tensor]:
        given = [x.clone() if isinstance(x, Tensor) else x for x in wide]
        for number, change in zip(moving, changes, strict=True):
            given[number] = wide[number] + change
        with same_draws(wide[moving[0]].device, 0):
            return [x for x in tensors_in(kind.apply(*given)) if x.is_floating_point()]

    leaves = [torch.zeros_like(wide[number]).requires_grad_() for number in moving]
    with decisions:
        outputs = run(leaves)
    arriving = [torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) for x in outputs]
    found = torch.autograd.grad(outputs, leaves, arriving, materialize_grads=True)
    wrong = scale = 0.0
    for _ in range(FEW):
        along = [
            torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            * (wide[number].square().mean().sqrt() or 1.0)
            for number, x in zip(moving, leaves, strict=True)
        ]
        sides = []
        for width in (FUNCTION_STEP, -FUNCTION_STEP):
            with torch.no_grad(), decisions.repeated():
                sides.append(run(width * each for each in along))
        ends = zip(*sides, arriving, strict=True)
        expected = sum(float(((up - down) * each).sum()) for up, down, each in ends) / (2 * FUNCTION_STEP)
        wrong += (sum(float((g * each).sum()) for g, each in zip(found, along, strict=True)) - expected) ** 2
        scale += expected**2
    return (wrong / scale) ** 0.5 if scale else 0.0
