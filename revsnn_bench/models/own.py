"""The user's own model as a workload: `package.module:callable`, what its neurons become, and what is wrong with it.

The callable returns an `nn.Module` that takes `[T, B, *]`, or an object with `model`, `inputs()` and `loss(output)`.
Integers (tokens) are inputs too, and with a loss the output may be anything. Its arguments named `timesteps` and
`batch`, if any, are those of the case. The node of such a case is a method:

    as-is            the model, untouched
    as-is+remat      the same, inside `remat`; these two for a model without neurons that can be told, too
    lif              SpikingJelly's neurons exchanged for the fused ones of the same function
    lif+remat        the same, inside `remat`
    lif+checkpoint   the same, every block run again in the backward pass
    lif+bitpack      the same, the outputs of blocks at one bit per spike
    lif+offload      the same, saved tensors moved to the host; on a GPU alone
    lif-carrier      LIF neurons exchanged for `CarrierLIF`, which changes what they emit
"""

import gc
import importlib.util
import inspect
import random
import re
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy
import torch
from revsnn_nodes import (
    CarrierLIF,
    SpikingNode,
    StandardIF,
    StandardLIF,
    StandardParametricLIF,
    apply_plan,
    remat,
    reset,
)
from revsnn_nodes.plan import find_blocks, is_neuron, neurons_of, put_in_our_neurons
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.nn.parameter import is_lazy
from torch.utils.checkpoint import CheckpointError

from revsnn_bench.case import AS_IS, Case
from revsnn_bench.meters.leaks import Older
from revsnn_bench.meters.step import in_precision, storages_of
from revsnn_bench.models.step import WorkloadStep, copy_to_try, input_noise
from revsnn_bench.records import SkipCase
from revsnn_bench.system.environment import search_working_folder

METHODS = (AS_IS, "as-is+remat", "lif", "lif+remat", "lif+checkpoint", "lif+bitpack", "lif+offload", "lif-carrier")

BY_BLOCK = {"lif+checkpoint": "checkpoint", "lif+bitpack": "bits"}
"""Methods that do the same to every block of a model: the option of a plan."""

Loss = Callable[[Any], Any]
Context = Callable[[], AbstractContextManager[Any]]


class ModelError(ValueError):
    """The user's model cannot be measured; the message is one sentence that names the line."""


class OwnStep(WorkloadStep):
    """The training step of a user's model; without a loss a fixed random gradient arrives at its output.

    Args:
        name: what its errors call a model of one of torch's classes, which has no line that the user could mend.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Tensor,
        loss: Loss | None = None,
        around: Context = nullcontext,
        name: str = "the model",
    ) -> None:
        self.loss, self.name = loss, name
        super().__init__(model, source, around=around)

    def prepare(self) -> None:
        """Drops the state and clears every gradient, those of a loss with weights too."""
        super().prepare()
        if isinstance(self.loss, nn.Module):
            self.loss.zero_grad(set_to_none=True)

    def run(self, x: Tensor) -> Tensor:
        """Runs the model, and the loss where there is one."""
        with self.around():
            output: Any = self.model(x)
            return output if self.loss is None else _scalar(self.loss, output)

    def backward(self, output: Tensor) -> None:
        """Runs backward.

        Raises:
            ModelError: the graph goes on into one that an earlier step has freed, or a block that runs again does
                something else.
        """
        try:
            super().backward(output)
        except CheckpointError as error:
            told = str(error).partition("\n")[0].removeprefix("torch.utils.checkpoint: ")
            raise ModelError(
                f"{self.name}: a block that runs again must repeat its first run. {told} Draw with torch, and let no "
                "count of calls decide in forward."
            ) from error
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            kind = type(self.model)
            raise ModelError(
                f"{_where(kind.forward)}: {kind.__name__} must begin each forward from a fresh state; this one goes on "
                "from tensors of an earlier step, whose graph is gone. Reset or detach in forward what the model "
                "carries, and compute there what depends on its parameters."
            ) from error

    def gradient_shape(self) -> torch.Size:
        """Of the output, found by a trial that checks the model; notes what that leaves, as in a cache of the class."""
        before = Older()
        shape = _trial(self)
        gc.collect()
        own = {storage._cdata for storage in storages_of((*self.model.parameters(), *self.model.buffers()))}
        self.left_by_trial = [storage for storage, _ in before.newer_storages() if storage.cdata not in own]
        return shape


def build_own(case: Case) -> OwnStep:
    """The training step of a case whose workload is a user's model and whose node is a method.

    Raises:
        ValueError: no such method; one that is a `ModelError`: the model cannot be measured.
        SkipCase: `lif+offload` on the CPU, `lif-carrier` where no neuron is a LIF, or no neuron to exchange.
    """
    model, inputs, loss, around = own_parts(case)
    source = input_noise(case) if inputs is None else leaf(inputs.to(case.device))
    return OwnStep(model, source, loss, around, case.workload)


def leaf(inputs: Tensor) -> Tensor:
    """A copy of inputs as a leaf, which gets a gradient where they are floats."""
    return inputs.detach().clone().requires_grad_(inputs.is_floating_point())


def own_parts(case: Case) -> tuple[nn.Module, Tensor | None, Loss | None, Context]:
    """Model after its method, inputs and loss where the user gives them, and the forward's context: nothing ran."""
    require_method(case.node)
    if known := [name for name in case.options if name != "backend"]:
        raise ValueError(
            f"`node_options` must be no other than `backend` for a model of your own; got {', '.join(known)}. Its "
            "neurons are made where it is made. Set them there."
        )
    refuse_offload(case)
    model, inputs, loss = _made(case)
    _check_neurons(model, case)
    around = change_neurons(model, case.node, str(case.options.get("backend") or "auto"))
    return in_precision(model.to(case.device), getattr(torch, case.dtype)), inputs, loss, around


def refuse_offload(case: Case) -> None:
    """Raises `SkipCase` for offload on the CPU."""
    if case.node.endswith("+offload") and case.device == "cpu":
        raise SkipCase(f"{case.node} moves tensors from a GPU to the host; on the CPU they are there already")


def require_method(name: str) -> None:
    """Raises `ValueError` for another name than a method's."""
    if name not in METHODS:
        raise ValueError(
            f"`node` must be a method for a model of your own; got {name!r}. The model has its neurons. Pass one of "
            f"{', '.join(METHODS)}."
        )


def is_untouched(method: str) -> bool:
    """Whether a method leaves the model's neurons as they are."""
    return method.partition("+")[0] == AS_IS


def change_neurons(model: nn.Module, method: str, backend: str) -> Context:
    """Does to a model what a method says, in place; returns the context that its forward needs."""
    if is_untouched(method):
        return remat if method.endswith("+remat") else nullcontext
    put_in_our_neurons(model)
    if method == "lif-carrier":
        _put_in_carriers(model)
    for module in model.modules():
        if isinstance(module, SpikingNode):
            setattr(module, "backend", backend)  # noqa: B010  (the setter refuses another word)
    if method == "lif+remat":
        return remat
    if method == "lif+offload":
        return partial(torch.autograd.graph.save_on_cpu, pin_memory=True)
    if option := BY_BLOCK.get(method):
        apply_plan(model, {block.name: option for block in find_blocks(model)})
    return nullcontext


def _put_in_carriers(model: nn.Module) -> None:
    found = False
    for name, module in list(model.named_modules()):
        if name and isinstance(module, StandardLIF) and not isinstance(module, StandardIF | StandardParametricLIF):
            model.set_submodule(name, module.fresh(CarrierLIF))
            found = True
    if not found:
        kinds = ", ".join(sorted({type(neuron).__name__ for neuron in neurons_of(model)}))
        raise SkipCase(f"lif-carrier takes the place of LIF neurons, and the model has none, but {kinds}")


_LEAVES_NOTHING: dict[str, Callable[[], bool]] = {
    "torch.set_grad_enabled(False)": lambda: not torch.is_grad_enabled(),
    "torch.set_default_device('meta')": lambda: torch.get_default_device().type == "meta",
}
"""Calls that a module may make for the process, under which no model has gradients or values; and whether one holds."""


def load_callable(path: str, argument: str = "--model") -> Callable[..., Any]:
    """The callable of `package.module:callable`, the working folder searched too; raises `ModelError` without one."""
    module_name, _, name = path.partition(":")
    kind, made = (
        ("callable", "function that makes the model") if argument == "--model" else ("Class", "class of blocks")
    )
    search_working_folder()
    before = {call: is_so() for call, is_so in _LEAVES_NOTHING.items()}
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            name_of_file = Path(module_name).with_suffix("").as_posix().replace("/", ".")
            fix = "Run the command in the folder that holds it."
            if module_name.endswith(".py"):
                fix = f"Pass {name_of_file}:{name}, the module's name in place of the file's."
            raise ModelError(
                f"`{argument}` must be package.module:{kind}; got {path!r}. There is no module {module_name!r} here "
                f"or among the installed packages. {fix}"
            ) from None
        raise _raised(f"the module {module_name}", error, _file_of(module_name)) from error
    for call in [call for call, is_so in _LEAVES_NOTHING.items() if is_so() and not before[call]]:
        raise ModelError(
            f"the module {module_name} must leave torch's settings as they are; it calls {call} as it is imported, "
            "which holds for all that follows, and leaves nothing to measure. Make a context of it where it is needed."
        )
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ModelError(
            f"`{argument}` must be package.module:{kind}; got {path!r}. "
            f"{f'The module has no {kind.lower()} {name!r}' if name else 'It names a module alone'}. Name the {made}."
        )
    result: Callable[..., Any] = found
    return result


def load_class(path: str) -> type[nn.Module]:
    """The class of modules of `package.module:Class`; raises `ModelError` without one."""
    found: Any = load_callable(path, "--blocks")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ModelError(
            f"`--blocks` must name a class of modules; got {path!r}, a {type(found).__name__}. Blocks are found by "
            "their class. Pass package.module:Class."
        )
    return found


def _file_of(module_name: str) -> str:
    spec = importlib.util.find_spec(module_name.partition(".")[0])
    with suppress(Exception):  # the module's package may be what raised
        spec = importlib.util.find_spec(module_name)
    return spec.origin or "" if spec else ""


def _made(case: Case) -> tuple[nn.Module, Tensor | None, Loss | None]:
    """Model, inputs and loss of the user's callable."""
    make = load_callable(case.workload)
    file = _source_file(make)
    if isinstance(make, nn.Module):
        raise ModelError(
            f"{case.workload} must be a function that makes a model; it is a model, a {type(make).__name__}. A method "
            "changes a model in place, and is held against another that is as it was."
        )
    names: Collection[str] = ()
    with suppress(ValueError):  # some of C have no signature
        names = inspect.signature(make).parameters
    arguments = {name: getattr(case, name) for name in ("timesteps", "batch") if name in names}
    torch.manual_seed(case.seed)
    random.seed(case.seed)
    numpy.random.seed(case.seed % 2**32)
    try:
        made = make(**arguments)
    except (Exception, SystemExit) as error:
        raise _raised(f"{case.workload}", error, file) from error
    _require_new(made if isinstance(made, nn.Module) else getattr(made, "model", None), make, case.workload)
    if isinstance(made, nn.Module):
        return made, None, None
    missing = [name for name in ("model", "inputs", "loss") if not hasattr(made, name)]
    if missing or not isinstance(made.model, nn.Module):
        lacks = f" without {' and '.join(missing)}" if 0 < len(missing) < 3 else ""
        raise ModelError(
            f"{_where(make)}: {case.workload} must return an nn.Module, or an object with model, inputs() and "
            f"loss(output); it returned a {type(made).__name__}{lacks}."
        )
    try:
        inputs = made.inputs()
    except Exception as error:
        raise _raised("inputs()", error, file) from error
    wanted = (case.timesteps, case.batch, *case.shape)
    if not isinstance(inputs, Tensor) or tuple(inputs.shape) != wanted or inputs.is_complex():
        got = f"{inputs.dtype} {list(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ModelError(
            f"{_where(made.inputs)}: inputs() must return floats or integers of the shape {list(wanted)} that --input "
            f"gives; it returned {got}."
        )
    if inputs.is_floating_point():
        inputs = inputs.to(getattr(torch, case.dtype))
    return made.model, inputs.detach(), made.loss


_handed_out: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
"""Modules with state of the models that were made in this process and are alive, by their `id`."""


def _require_new(model: Any, make: Callable[..., Any], workload: str) -> None:
    """Refuses a model that was returned before: a method has changed it since, and it would be held against itself."""
    modules = [*model.modules()] if isinstance(model, nn.Module) else []
    # Others, as a surrogate that is a default argument, have nothing that a method could change.
    modules = [each for each in modules if each is model or each._parameters or each._buffers or is_neuron(each)]
    if any(_handed_out.get(id(module)) is module for module in modules):
        raise ModelError(
            f"{_where(make)}: {workload} must return a new model at every call; it returned one that it returned "
            "before, or parts of it. A method changes it in place, and is held against another that is as it was. Make "
            "the model in the function, or return copy.deepcopy(model)."
        )
    _handed_out.update((id(module), module) for module in modules)


def _check_neurons(model: nn.Module, case: Case) -> None:
    places: dict[int, str] = {}
    method, kind = case.node, type(model)
    # The user's line: where the model is made, if its class is one of torch.
    made = load_callable(case.workload) if kind.__module__.startswith("torch.") else kind
    if method in BY_BLOCK and any(map(is_lazy, model.parameters())):
        raise ModelError(
            f"{_where(made)}: {kind.__name__} must have its parameters for {method}, which looks for blocks of weights "
            "and neurons; some get theirs from a first input. Run the model once where it is made."
        )
    if not neurons_of(model) and not is_untouched(method):
        fix = (
            " Exchange snnTorch's Leaky first: revsnn_nodes.snntorch.swap_neurons(model)." if _has_leaky(model) else ""
        )
        raise SkipCase(
            f"{_where(made)}: {kind.__name__} has no neuron that can be exchanged: none of its modules has a membrane "
            "`v` and a `reset()`, as the neurons of SpikingJelly and of revsnn_nodes have. Methods that leave it as it "
            f"is: as-is, as-is+remat.{fix}"
        )
    for name, module in model.named_modules(remove_duplicate=False):
        first = places.setdefault(id(module), name)
        if first != name and neurons_of(module):
            raise ModelError(
                f"{_where(made)}: {first!r} and {name!r} of {kind.__name__} are one module; a neuron has one membrane, "
                "so each place needs a module of its own."
            )


def _has_leaky(model: nn.Module) -> bool:
    """Whether a model has neurons of snnTorch that `swap_neurons` takes."""
    theirs = [module for module in model.modules() if type(module).__module__.startswith("snntorch.")]
    if not theirs:
        return False
    from revsnn_nodes.snntorch import obstacle

    return any(type(module).__name__ == "Leaky" and not obstacle(module) for module in theirs)


def _scalar(loss: Loss, output: Tensor) -> Tensor:
    try:
        value = loss(output)
    except WITHOUT_VALUES as error:
        raise asks_for_numbers("loss(output)", error, _source_file(loss)) from error
    except Exception as error:
        raise _raised("loss(output)", error, _source_file(loss)) from error
    # Where differences judge, it runs without a graph.
    if not isinstance(value, Tensor) or value.numel() != 1 or (torch.is_grad_enabled() and not value.requires_grad):
        got = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ModelError(
            f"{_where(loss)}: loss(output) must return a tensor of one element that depends on the output; it returned "
            f"{got}."
        )
    return value


_HINTS = {
    r"scalar types: Long, Int": ". Tokens are whole numbers, which inputs() gives: return an object with model and "
    "inputs() (docs/your-model.md).",
    r"\b[234]D\b|running_mean should contain": ". torch's layers know no time: fold it into the batch, by "
    "x.flatten(0, 1) before and unflatten(0, (T, B)) behind, by SpikingJelly's SeqToANNContainer, or by its layers in "
    "step_mode 'm'.",
    r"\bd(ata)?type\b|expected scalar type|Input type": ". Parameters, buffers and inputs all have the case's dtype "
    "(--dtype), whatever their own was. Put mixed precision into forward, by torch.autocast.",
}
"""What may help, by what torch says of an input that a layer cannot take."""


def _trial(step: OwnStep) -> torch.Size:
    """Runs a copy of the model once, and says what is wrong with it; returns the shape of the output."""
    model, of_torch = copy_to_try(step.model), type(step.model).__module__.startswith("torch.")
    name, file = (step.name, "") if of_torch else (type(model).__name__, _source_file(type(model)))
    with _counted_calls(model, step.source, name, file):
        try:
            with step.around():
                output = model(step.make_input())
        except ModelError:
            raise
        except WITHOUT_VALUES as error:
            raise asks_for_numbers(name, error, file) from error
        except Exception as error:
            shape = list(step.source.shape)
            hint = next((hint for words, hint in _HINTS.items() if re.search(words, str(error))), "")
            raise ModelError(f"{_raised(f'{name} on an input {shape}', error, file)}{hint}") from error
        finally:
            # A carried state may hold a checkpointed graph, and that the copy: a circle that no collector sees.
            reset(model)
    if step.loss is not None:
        return _scalar(step.loss, output).shape
    where = _where(type(model).forward) if file else name
    if not isinstance(output, Tensor):
        raise ModelError(
            f"{where}: forward must return one tensor; it returned a {type(output).__name__}. Where it returns another "
            "thing, make an object with model, inputs() and loss(output)."
        )
    if not output.is_floating_point():
        raise ModelError(f"{where}: forward must return floats; it returned {output.dtype}.")
    if not output.requires_grad:
        raise ModelError(f"{where}: forward must return a tensor with a gradient; its graph was cut on the way.")
    return output.shape


WITHOUT_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
"""What tensors that have shapes alone raise where they are asked for more."""


_NOT_THEIRS = r"[/\\](torch|revsnn_nodes|revsnn_bench)[/\\]|^<"
"""Files where no model asks for a number by itself."""


def asks_for_numbers(name: str, error: Any, file: str = "") -> ModelError:
    """The error of a model, or of its backward pass, that reads values where a prediction has none."""
    stack = traceback.extract_tb(error.__traceback__)
    others = (each.filename for each in reversed(stack) if not re.search(_NOT_THEIRS, each.filename))
    line = _line_in_stack(stack, file) or _line_in_stack(stack, next(others, ""))
    return ModelError(
        f"{line}{name} asks for the numbers of a tensor ({error.func}), as `.item()`, `if` and a mask of booleans do; "
        "a prediction has shapes alone. Measure it: revsnn-bench run."
    )


@contextmanager
def _counted_calls(model: nn.Module, source: Tensor, name: str, file: str) -> Iterator[None]:
    """Refuses a neuron that runs more often than once per step, or a single-step one that gets all steps at once."""
    calls: dict[nn.Module, int] = {}
    names = {module: name for name, module in model.named_modules()}
    steps = source.shape[0]

    def count(neuron: nn.Module, args: tuple[Any, ...]) -> None:
        calls[neuron] = calls.get(neuron, 0) + 1
        line = _line_in_stack(traceback.extract_stack(), file) or f"{name}: "
        shape = list(args[0].shape) if args and isinstance(args[0], Tensor) else []
        mode = getattr(neuron, "step_mode", None)  # a neuron of the user's own may have none
        single = mode == "s"
        most = steps if single or (mode is None and shape[:2] != list(source.shape[:2])) else 1
        if calls[neuron] > most:
            raise ModelError(
                f"{line}the neuron {names[neuron]!r} is called more than {most} times in one forward of {steps} steps; "
                "it would start from the membrane of another layer, so give each place a neuron of its own. Where "
                "forward repeats its input over time by itself, --input must begin with that T."
            )
        if single and steps > 1 and len(shape) > 2 and shape[:2] == list(source.shape[:2]):
            raise ModelError(
                f"{line}the neuron {names[neuron]!r} in step_mode 's' must get one step [B, *] per call; got {shape}, "
                "all steps at once. It would take time for a batch, and have no memory. Pass step_mode='m'."
            )

    with ExitStack() as stack:
        for neuron in neurons_of(model):
            stack.enter_context(neuron.register_forward_pre_hook(count))
        yield


def _source_file(thing: Any) -> str:
    try:
        return inspect.getsourcefile(inspect.unwrap(thing)) or ""
    except TypeError:
        return ""


def _where(thing: Any) -> str:
    """File and line of a definition."""
    thing = inspect.unwrap(thing)
    try:
        return f"{Path(_source_file(thing)).name}, line {inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):
        return str(getattr(thing, "__qualname__", type(thing).__name__))


def _line_in_stack(stack: traceback.StackSummary, file: str) -> str:
    """File and line of the innermost frame in a file; "" where none is in it."""
    lines = [frame.lineno for frame in stack if file and frame.filename == file]
    return f"{Path(file).name}, line {lines[-1]}: " if lines else ""


def _raised(what: str, error: BaseException, file: str) -> ModelError:
    """The error of a user's code, with the line of the user's file where it arose."""
    first = str(error).strip().partition("\n")[0]
    if isinstance(error, SystemExit):
        first += ". It must not end the process when it is imported or called. Put what is a program of its own under "
        first += "`if __name__ == '__main__':`."
    line = _line_in_stack(traceback.extract_tb(error.__traceback__), file)
    if isinstance(error, SyntaxError):
        line, first = f"{Path(error.filename or '').name}, line {error.lineno}: ", error.msg
    return ModelError(f"{line}{what} raised {type(error).__name__}: {first}")
