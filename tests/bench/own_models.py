"""Models as users write them, good and bad, for the tests of `--model`."""

import random
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace

import numpy
import torch
from revsnn_nodes import StandardLIF, StandardParametricLIF, surrogate
from torch import nn
from torch.nn.utils import spectral_norm
from torch.utils.checkpoint import checkpoint


def per_step(*layers):
    return PerStep(*layers)


class PerStep(nn.Sequential):
    """Layers without time, over `[T, B, *]`."""

    def forward(self, x):
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Plain(nn.Module):
    """Linear layers and neurons; `[T, B, 6]` to `[T, B, 4]`."""

    def __init__(self):
        super().__init__()
        self.one, self.first = nn.Linear(6, 8), StandardLIF(step_mode="m")
        self.two, self.second = nn.Linear(8, 4), StandardLIF(step_mode="m")

    def forward(self, x):
        return self.second(self.two(self.first(self.one(x))))


INSTANCE = Plain()


def plain():
    return Plain()


SHARED = nn.Linear(6, 6)


def lazy():
    return nn.Sequential(nn.LazyLinear(8), StandardLIF(step_mode="m"))


def compiled_part():
    return nn.Sequential(Plain(), torch.compile(nn.Linear(4, 4), backend="eager"))


@cache
def wrong_backend():
    """A backend of `torch.compile` whose backward pass is three times what it must be."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def tripled(graph, _):
        return make_boxed_func(lambda *args: tuple(None if each is None else 3 * each for each in graph(*args)))

    return aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=tripled)


def in_operators():
    """A model by operators that a compiler sees."""
    return nn.Sequential(nn.Linear(6, 4), StandardLIF(step_mode="m", backend="torch"))


def compiled_wrongly():
    return torch.compile(in_operators(), backend=wrong_backend())


def compiled_neuron():
    layer, neuron = in_operators()
    return nn.Sequential(layer, torch.compile(neuron, backend=wrong_backend()))


def compiled_in_place():
    model = in_operators()
    model.compile(backend=wrong_backend())
    return model


def compiled_method():
    model = in_operators()
    model.forward = torch.compile(model.forward, backend="aot_eager")
    return model


def pooled():
    """Norms, each with a max pooling between itself and its neuron."""
    layers = []
    for inputs, pool in ((2, nn.MaxPool2d(3, 2, 1)), (16, nn.MaxPool2d(2))):
        conv = nn.Conv2d(inputs, 16, 3, padding=1, bias=False)
        layers += [per_step(conv, nn.BatchNorm2d(16), pool), StandardLIF(step_mode="m")]
    return nn.Sequential(*layers)


def scripted_part():
    return nn.Sequential(torch.jit.script(nn.Linear(6, 4)), StandardLIF(step_mode="m"))


class Hybrid(nn.Module):
    """Recurrent layers of torch around a neuron."""

    def __init__(self):
        super().__init__()
        self.gru, self.lstm = nn.GRU(6, 6), nn.LSTM(6, 4)
        self.node = StandardLIF(step_mode="m", backend="torch")

    def forward(self, x):
        return self.lstm(self.node(3 * self.gru(x)[0]))[0]


class Constant(Plain):
    constants = torch.full((6, 6), 0.1) + torch.eye(6)  # in no buffer: nothing moves them to another type

    def forward(self, x):
        return super().forward(x.index_put((torch.tensor(0),), x[1]) @ self.constants)


class Holds(Plain):
    """What cannot be copied: a lock, and a weight that `weight_norm` left in the graph of the last forward."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.lin = nn.utils.weight_norm(nn.Linear(6, 6))

    def forward(self, x):
        with self.lock:
            return super().forward(self.lin(x))


class Draws(Plain):
    def __init__(self):
        super().__init__()
        self.numbers = (1 + i for i in range(1_000_000))

    def forward(self, x):
        return super().forward(x * next(self.numbers))


TABLES = {}


class Cached(Plain):
    """Makes a table in the first forward of the process, and keeps it for good."""

    def forward(self, x):
        if not TABLES:
            TABLES["zeros"] = torch.zeros(1 << 18)
        return super().forward(x) + TABLES["zeros"][0]


POOL = ThreadPoolExecutor(1)


class LeavesAGraph(Plain):
    """Makes for a next step what no backward pass of this one reaches, as SpikingJelly's SNASNet does."""

    def __init__(self):
        super().__init__()
        self.back = nn.Sequential(nn.Linear(8, 4096), StandardLIF(step_mode="m"))

    def forward(self, x):
        self.left = 0.0
        spikes = self.first(self.one(x))
        self.left = self.back(spikes)
        return self.second(self.two(spikes))


class Threaded(Plain):
    def forward(self, x):
        return super().forward(POOL.submit(lambda: x @ torch.eye(6)).result())


def klif():
    from spikingjelly.activation_based import neuron

    return neuron.KLIFNode(step_mode="m")


class ReadOut(Plain):
    """A layer behind the last spikes."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 4)

    def forward(self, x):
        return self.out(super().forward(x))


class ReadsTheClock(ReadOut):
    def forward(self, x):
        return super().forward(3 * x) * (1 + time.perf_counter() % 1)


class KlifReadsTheClock(ReadsTheClock):
    """A neuron without a reference."""

    def __init__(self):
        super().__init__()
        self.first = klif()


class AnotherInFloat64(ReadOut):
    def forward(self, x):
        return super().forward(x) * (2 if x.dtype == torch.float64 else 1)


class KlifAnotherInFloat64(AnotherInFloat64):
    def __init__(self):
        super().__init__()
        self.first = klif()


def wrong_and_another_in_float64():
    model = AnotherInFloat64()
    model.one.weight.register_post_accumulate_grad_hook(tripled)
    return model


class WrongAndMoving(Plain):
    """Moves its thresholds with every step, as homeostasis does, and has a wrong gradient."""

    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.zeros(6))
        self.one.weight.register_post_accumulate_grad_hook(tripled)

    def forward(self, x):
        x = x - self.threshold
        self.threshold = self.threshold + 0.5 * x.detach().mean((0, 1))
        return super().forward(x)


def loss_that_goes_on():
    model, mean = ReadOut(), [0.0]

    def loss(y):
        mean[0] = 0.9 * mean[0] + 0.1 * y.detach().mean()
        return (y - mean[0]).square().mean()

    return SimpleNamespace(model=model, inputs=lambda: torch.rand(4, 3, 6), loss=loss)


class MaskedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient.index_put((x < 0,), gradient[x < 0] * 0.5)


class AsksInBackward(Plain):
    """Asks for the numbers of a tensor in its backward pass alone."""

    def forward(self, x):
        return super().forward(MaskedGradient.apply(x))


class NoCopy(Plain):
    def __deepcopy__(self, memo):
        raise TypeError("there is one of it")


def biased_before_a_norm():
    """The norm takes the bias off again: its gradient is 0, and in float32 the rounding of large terms."""
    model = nn.Sequential(per_step(nn.Linear(3, 8), nn.BatchNorm1d(8, eps=1e-12)), StandardLIF(step_mode="m"))
    aim = torch.linspace(0, 1, 8)
    return SimpleNamespace(
        model=model, inputs=lambda: 1.5 * torch.rand(4, 256, 3), loss=lambda y: (y.mean(0) - aim).square().mean()
    )


def masked_loss():
    """Of the labelled samples alone, as of the nodes of a graph."""
    known = torch.tensor([True, False, True])
    return SimpleNamespace(
        model=Plain(), inputs=lambda: torch.rand(2, 3, 6), loss=lambda y: y[:, known].square().mean()
    )


def learned_loss():
    return SimpleNamespace(model=Plain(), inputs=lambda: torch.rand(4, 3, 6), loss=Mean())


class Mean(nn.Module):
    """A loss that has a weight, and a product that `remat` makes again."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, y):
        return (y * self.weight).square().mean()


class OfAGradient(Plain):
    """Runs on a gradient that `torch.func` makes in the forward."""

    def forward(self, x):
        return super().forward(torch.func.grad(lambda y: (y**3).sum())(x))


class OfSigns(Plain):
    """A neuron without a reference, behind signs: the input's gradient is nothing at all."""

    def __init__(self):
        super().__init__()
        self.first = klif()

    def forward(self, x):
        return super().forward((x > 0).to(x) + 0 * x)


class ComplexWeights(Plain):
    def __init__(self):
        super().__init__()
        self.complex = nn.Parameter(torch.randn(6, 6, dtype=torch.complex64))

    def forward(self, x):
        return super().forward((x.to(torch.complex64) @ self.complex).abs())


class KlifComplex(ComplexWeights):
    def __init__(self):
        super().__init__()
        self.first = klif()


def conjugated(parameter):
    parameter.grad = parameter.grad.conj()


def wrong_imaginary_part(kind=ComplexWeights):
    model = kind()
    model.complex.register_post_accumulate_grad_hook(conjugated)
    return model


def klif_wrong_imaginary_part():
    return wrong_imaginary_part(KlifComplex)


class Single(Plain):
    def forward(self, x):
        assert x.dtype is torch.float32
        return super().forward(x)


class Renormed(Plain):
    def forward(self, x):
        return super().forward(x.renorm(2, 0, 1e3))


class ReadsWhatNobodyWrote(torch.autograd.Function):
    """Adds memory that was never written to the gradient: zeros, where the system has just given it."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + torch.empty_like(gradient)


class Unwritten(nn.Sequential):
    def forward(self, x):
        return super().forward(ReadsWhatNobodyWrote.apply(x))


def unwritten():
    return Unwritten(StandardLIF(step_mode="m", backend="torch"))


def made_once():
    """A model around a part that is made once."""
    return nn.Sequential(SHARED, Plain())


def drawn_outside_of_torch():
    """Weights by numpy and Python."""
    model = Plain()
    model.one.weight.data += torch.from_numpy(numpy.random.randn(8, 6)).float() * random.random()
    return model


GENERATOR = numpy.random.default_rng(0)


def drawn_by_its_own():
    """Weights by a generator that goes on from call to call."""
    model = Plain()
    model.one.weight.data += torch.from_numpy(GENERATOR.normal(size=(8, 6))).float()
    return model


def sequential():
    return nn.Sequential(
        nn.Linear(6, 8), StandardLIF(step_mode="m"), nn.Linear(8, 8), StandardLIF(step_mode="m"), nn.Linear(8, 4)
    )


class Loop(nn.Module):
    """A loop over time, as snnTorch's tutorials write it."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 8), StandardLIF(step_mode="s")

    def forward(self, x):
        return torch.stack([self.lif(self.fc(x_t)) for x_t in x.unbind(0)])


class Written(nn.Module):
    """A neuron as people write it: a membrane, no step mode."""

    def __init__(self):
        super().__init__()
        self.v, self.fire = 0.0, surrogate.ATan()

    def reset(self):
        self.v = 0.0

    def forward(self, x):
        self.v = 0.5 * self.v + x
        spike = self.fire(self.v - 1.0)
        self.v = self.v - spike
        return spike


class WrittenLoop(Loop):
    def __init__(self):
        super().__init__()
        self.lif = Written()


def pruned(make=sequential):
    """A weight with a mask, which its gradient gets too."""
    model = make()
    weight = next(model.parameters())
    mask = (torch.arange(weight.numel()).view_as(weight) % 2).float()
    weight.data.mul_(3 * mask)
    weight.register_hook(lambda gradient: gradient * mask)
    return model


def pruned_loop():
    return pruned(WrittenLoop)


class Recurrent(nn.Module):
    """What fired goes back in at the next step; SpikingJelly's neuron takes the steps one by one."""

    def __init__(self):
        from spikingjelly.activation_based import neuron

        super().__init__()
        self.fc, self.back, self.lif, self.out = nn.Linear(6, 8), nn.Linear(8, 8), neuron.LIFNode(), nn.Linear(8, 4)

    def forward(self, x):
        spikes, outputs = x.new_zeros(x.shape[1], 8), []
        for x_t in x.unbind(0):
            spikes = self.lif(self.fc(x_t) + self.back(spikes))
            outputs.append(self.out(spikes))
        return torch.stack(outputs)


class Remembering(nn.Sequential):
    """Layers of SpikingJelly that carry a state and are no neurons: a synapse, a recurrent one, a dropout's mask."""

    def __init__(self):
        from spikingjelly.activation_based import layer, neuron

        again = layer.LinearRecurrentContainer(neuron.LIFNode(), in_features=8, out_features=8, step_mode="m")
        synapse = layer.SynapseFilter(tau=4.0, learnable=True, step_mode="m")
        super().__init__(nn.Linear(6, 8), again, layer.Dropout(0.2, step_mode="m"), nn.Linear(8, 4), synapse)


class Sparse(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("adjacency", torch.eye(6).roll(1, 0).to_sparse())

    def forward(self, x):
        return super().forward(torch.sparse.mm(self.adjacency, x.flatten(0, 1).t()).t().unflatten(0, x.shape[:2]))


class Noisy(nn.Sequential):
    """Draws numbers in each forward: noise on the input, and a dropout behind a parametric LIF or another neuron."""

    def __init__(self, kind="ParametricLIFNode"):
        from spikingjelly.activation_based import neuron, surrogate

        fires = getattr(neuron, kind)(step_mode="m", surrogate_function=surrogate.ATan())
        super().__init__(nn.Linear(6, 32), fires, nn.Dropout(0.3), nn.Linear(32, 4))

    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


class DrawsInPython(Noisy):
    """Draws numbers outside of torch, too."""

    def forward(self, x):
        return super().forward(x * random.uniform(0.5, 1.5) * numpy.random.uniform(0.5, 1.5))


def in_one_operator(kind):
    """A neuron of SpikingJelly that runs all steps as one operator, which no hook sees fire."""
    from spikingjelly.activation_based import neuron

    return nn.Sequential(nn.Linear(6, 8), getattr(neuron, kind)(step_mode="m"), nn.Linear(8, 4))


def eif():
    return in_one_operator("EIFNode")


def qif():
    return in_one_operator("QIFNode")


def izhikevich():
    return in_one_operator("IzhikevichNode")


def wrong_before_eif():
    model = eif()
    model[0].weight.register_post_accumulate_grad_hook(tripled)
    return model


def in_steps(kind, **arguments):
    """A neuron of SpikingJelly in a loop over time; many run each step as one operator, too."""
    from spikingjelly.activation_based import neuron

    model = Loop()
    model.lif = getattr(neuron, kind)(**arguments)
    return model


def eif_in_steps():
    return in_steps("EIFNode")


def wrong_before_eif_in_steps():
    model = eif_in_steps()
    model.fc.weight.register_post_accumulate_grad_hook(tripled)
    return model


def sltt():
    return in_steps("SLTTLIFNode", detach_reset=False)


def ottt():
    from spikingjelly.activation_based import layer, neuron

    model = Loop()
    model.lif = layer.OTTTSequential(neuron.OTTTLIFNode(detach_reset=False), nn.Linear(8, 4))
    return model


def masked_psn():
    return in_steps("MaskedPSN", k=2, T=4, lambda_init=1.0)


def sequential_in_steps():
    return nn.Sequential(nn.Linear(6, 6), StandardLIF())


def noisy_klif():
    return Noisy("KLIFNode")


def klif_with_a_loss(timesteps, batch):
    return SimpleNamespace(
        model=noisy_klif(), inputs=lambda: torch.rand(timesteps, batch, 6), loss=lambda y: (y - 1).square().mean()
    )


class Mixed(Plain):
    """Half precision where `torch.autocast` puts it, and a cast at the end."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


class Rounds(nn.Module):
    """A neuron of SpikingJelly's, which rounds its membranes to half precision; a strong current through it."""

    def __init__(self):
        from spikingjelly.activation_based import neuron

        super().__init__()
        self.first, self.neuron, self.second = nn.Linear(8, 16), neuron.LIFNode(step_mode="m"), nn.Linear(16, 4)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.second(self.neuron(3 * self.first(x))).float()


def faulty_mixed():
    model = Mixed()
    model.first = planted()
    return model


class Encoded(Plain):
    """Fires at random in proportion to its input: no gradient comes to that. One layer is not used."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(6, 6)

    def forward(self, x):
        return super().forward((torch.rand_like(x) < x).float())


class ByHand(nn.Module):
    """An adaptive neuron written out, recurrent, with no module for it."""

    def __init__(self):
        super().__init__()
        self.fc, self.back = nn.Linear(6, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x):
        v, threshold, spikes, outputs = *torch.zeros(3, x.shape[1], 8).unbind(0), []
        for x_t in x.unbind(0):
            v = 0.9 * v + self.fc(x_t) + self.back(spikes) - spikes
            threshold = 0.95 * threshold + spikes
            spikes = torch.sigmoid(4 * (v - 1 - 0.1 * threshold)).round()
            outputs.append(v)
        return torch.stack(outputs)


class Triangle(torch.autograd.Function):
    """Keeps the width of its surrogate as a tensor, and asks for it."""

    @staticmethod
    def forward(ctx, x, width):
        ctx.save_for_backward(x, torch.tensor([width]))
        return (x > 0).float()

    @staticmethod
    def backward(ctx, gradient):
        x, width = ctx.saved_tensors
        return gradient * (width.item() - x.abs()).clamp(min=0), None


class Triangular(nn.Module):
    """A neuron written out, with a surrogate of its own."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 8)

    def forward(self, x):
        v, spikes = 0, []
        for x_t in self.fc(x):
            v = 0.5 * v + x_t
            spikes.append(Triangle.apply(v - 0.3, 1.0))
            v = (1 - spikes[-1]) * v
        return torch.stack(spikes)


def sure_of_itself():
    """Classifies every sample as it should: what is left of a softmax in float32, and of its gradient, is rounding."""
    model, x = ByHand(), torch.rand(4, 3, 6)
    labels = model(x)[-1].argmax(1)
    loss = nn.functional.cross_entropy
    return SimpleNamespace(model=model, inputs=lambda: x, loss=lambda y: loss(200 * y[-1], labels))


def tokens(timesteps, batch):
    words = torch.randint(20, (timesteps, batch, 6))
    model = nn.Sequential(nn.Embedding(20, 8), StandardLIF(step_mode="m"), nn.Linear(8, 20))
    loss = nn.functional.cross_entropy
    return SimpleNamespace(
        model=model, inputs=lambda: words, loss=lambda y: loss(y.flatten(0, -2), words.roll(-1, 0).flatten())
    )


def without_inputs(timesteps, batch):
    return tokens(timesteps, batch).model


def without_time():
    return nn.Sequential(nn.Conv2d(3, 4, 3), StandardLIF(step_mode="m"))


def without_time_in_its_norm():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), StandardLIF(step_mode="m"))


class OfAnotherType(Plain):
    """A model in half precision, whose forward gives it its input so."""

    def forward(self, x):
        return super().forward(x.bfloat16())


class Skips(nn.Sequential):
    """A block that is left out in every second call."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) if self.calls % 2 else x


def skips():
    return nn.Sequential(Skips(nn.Linear(6, 6), StandardLIF(step_mode="m")), nn.Linear(6, 4))


def sparse_gradients(timesteps, batch):
    """An embedding of which each step learns the rows that it reads."""
    words = torch.randint(20, (timesteps, batch, 6))
    model = nn.Sequential(nn.Embedding(20, 8, sparse=True), StandardLIF(step_mode="m"), nn.Linear(8, 20))
    return SimpleNamespace(model=model, inputs=lambda: words, loss=lambda y: (y - 1).square().mean())


def wrong_sparse_gradients(timesteps, batch):
    made = sparse_gradients(timesteps, batch)
    made.model[0].weight.register_post_accumulate_grad_hook(tripled)
    return made


class Ends(ReadOut):
    """Ends in a number that makes nothing of its output, or too much."""

    by = 0.0

    def forward(self, x):
        return super().forward(x) * self.by


class EndsInNan(Ends):
    by = float("nan")


class EndsInInf(Ends):
    by = 3e38

    def forward(self, x):
        return super().forward(x) * 100


class EndsInOne(Ends):
    """A sigmoid whose slope is 0 in float32 and 1e-11 in float64."""

    by = 1.0

    def forward(self, x):
        return torch.sigmoid(super().forward(x) + 25)


class KlifEndsInNothing(Ends):
    """A neuron without a reference."""

    def __init__(self):
        super().__init__()
        self.first = klif()


class KlifEndsInNan(KlifEndsInNothing):
    by = float("nan")


class Saturated(Plain):
    """Far below its threshold, where the slope of a sigmoid is 0 in float64, and 1e-22 in a fused kernel."""

    def __init__(self):
        super().__init__()
        self.second = StandardLIF(step_mode="m", v_threshold=1e6)


class SaturatedFirst(ReadOut):
    """The same in the first layer alone: the last one learns its bias."""

    def __init__(self):
        super().__init__()
        self.second = StandardLIF(step_mode="m", v_threshold=1e6)


class Leaks(torch.autograd.Function):
    """Passes a gradient on that is a little too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + 1e-3


class LeaksInto(nn.Module):
    """A neuron that says of itself which one it is, far below its threshold, and has a gradient there."""

    def __init__(self):
        super().__init__()
        self.neuron = StandardLIF(step_mode="m", v_threshold=1e6, backend="torch")
        self.v = 0.0

    def reset(self):
        self.neuron.reset()

    def reference(self):
        return StandardLIF(step_mode="m", v_threshold=1e6, backend="torch")

    def forward(self, x):
        return self.neuron(Leaks.apply(x))


def leaks_where_nothing_is():
    return nn.Sequential(nn.Linear(6, 6), LeaksInto())


class Teacher(nn.Linear):
    """A part of which there is one, however often a model is copied."""

    def __deepcopy__(self, memo):
        return self


class Taught(Plain):
    def __init__(self):
        super().__init__()
        self.teacher = Teacher(6, 6).requires_grad_(False)

    def forward(self, x):
        return super().forward(x + self.teacher(x))


class Directions(nn.Module):
    """A weight of directions `v` and lengths `g`, drawn anew by its `reset()`, as in graph networks: no neuron."""

    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.ones(6))

    def reset(self):
        nn.init.normal_(self.v)

    def forward(self, x):
        return x @ (self.v / self.v.norm(dim=0) * self.g)


class Directed(Plain):
    def __init__(self):
        super().__init__()
        self.directions = Directions()

    def forward(self, x):
        return super().forward(self.directions(x))


class Adaptive(nn.Module):
    """A neuron of one's own whose threshold rises with what fired, which it does not learn from."""

    def __init__(self):
        super().__init__()
        self.surrogate_function = surrogate.ATan()
        self.reset()

    def reset(self):
        self.v = self.threshold = 0.0

    def forward(self, x):
        spikes = []
        for x_t in x:
            self.v = 0.8 * self.v + x_t
            spikes.append(self.surrogate_function(self.v - 1 - self.threshold))
            self.v = self.v - spikes[-1]
            self.adapt(spikes[-1])
        return torch.stack(spikes)

    def adapt(self, spike):
        self.threshold = 0.9 * self.threshold + 0.1 * spike.detach() / (1 + self.v.mean().item() ** 2)


class AdaptiveWithoutGrad(Adaptive):
    @torch.no_grad()
    def adapt(self, spike):
        self.threshold = 0.9 * self.threshold + 0.1 * spike


class Constants(nn.Module):
    """Scales by numbers and by a tensor that it does not learn from."""

    def forward(self, x):
        least = min(x.flatten().tolist())
        return checkpoint(lambda y: y * y.detach().abs() * x.clone().detach_().tanh(), x - least, use_reentrant=True)


def adaptive():
    from spikingjelly.activation_based import neuron

    klif = neuron.KLIFNode(step_mode="m", detach_reset=True)
    return nn.Sequential(nn.Linear(6, 8), Adaptive(), nn.Linear(8, 4), Constants(), klif)


def adaptive_and_faulty():
    return nn.Sequential(*adaptive(), planted())


def adaptive_without_grad():
    return nn.Sequential(nn.Linear(6, 8), AdaptiveWithoutGrad(), nn.Linear(8, 4))


class Delayed(nn.Sequential):
    """SpikingJelly's delay, which carries a queue of steps."""

    def __init__(self):
        from spikingjelly.activation_based import layer, neuron

        delay = layer.Delay(1, step_mode="m")
        super().__init__(nn.Linear(6, 8), delay, neuron.LIFNode(step_mode="m"), nn.Linear(8, 4))


def norm_of_each_step():
    """SpikingJelly's batch norm through time, which counts the steps and has norms for four."""
    from spikingjelly.activation_based import layer, neuron

    norm = layer.BatchNormThroughTime1d(4, 8, step_mode="m")
    return nn.Sequential(nn.Linear(6, 8), norm, neuron.LIFNode(step_mode="m"), nn.Linear(8, 4))


class Norse(nn.Module):
    """Norse's cells, whose states begin as leaves in float32 that want a gradient."""

    def __init__(self):
        import norse.torch as norse

        super().__init__()
        self.net = norse.SequentialState(nn.Linear(6, 8), norse.LIFCell(), nn.Linear(8, 4), norse.LICell())

    def forward(self, x):
        state, outputs = None, []
        for x_t in x:
            y, state = self.net(30 * x_t, state)
            outputs.append(y)
        return torch.stack(outputs)


class Profiled(Plain):
    """Left in from a search for what is slow."""

    def forward(self, x):
        with torch.autograd.profiler.profile():
            return super().forward(x)


class Traced(Plain):
    """Counts its own arrays."""

    def forward(self, x):
        tracemalloc.start()
        y = super().forward(x)
        tracemalloc.stop()
        return y


class Scanned(Plain):
    """A sum that fades, and one of two layers, by operators that are given functions."""

    def forward(self, x):
        from torch._higher_order_ops.scan import scan

        x = scan(lambda kept, now: (kept / 2 + now, kept / 2 + now), torch.zeros_like(x[0]), x)[1]
        x = torch.cond(x.sum() > 0, lambda x: self.one(x), lambda x: -self.one(x), (x,))
        return self.second(self.two(self.first(x)))


class Dictionary(Plain):
    def forward(self, x):
        y = super().forward(x)
        return {"rates": y.mean(0), "all": y}


def dictionary():
    return SimpleNamespace(
        model=Dictionary(), inputs=lambda: torch.rand(4, 3, 6), loss=lambda out: (out["rates"] - 1).square().mean()
    )


def regularised(change=lambda model: model):
    model = Plain()
    return SimpleNamespace(
        model=change(model),
        inputs=lambda: torch.rand(4, 3, 6),
        loss=lambda y: y.square().mean() + sum(each.square().sum() for each in model.parameters()),
    )


def regularised_and_compiled():
    return regularised(lambda model: torch.compile(model, backend="aot_eager"))


class Rated(Plain):
    """Tells how often its neurons fired in the last forward."""

    rate = 0.0

    def forward(self, x):
        y = super().forward(x)
        self.rate = y.mean()
        return y


def rate_regularised():
    model = Rated()
    return SimpleNamespace(
        model=model, inputs=lambda: torch.rand(4, 3, 6), loss=lambda y: y.square().mean() + 3 * model.rate
    )


def with_a_wrong_weight(*neurons):
    net = nn.Sequential()
    for neuron in neurons:
        net.append(nn.Linear(6, 6)).append(neuron)
    net[0].weight.register_post_accumulate_grad_hook(tripled)
    return net


def frozen_tau():
    neuron = StandardParametricLIF(step_mode="m")
    neuron.w.requires_grad_(False)
    return with_a_wrong_weight(neuron)


def tied_tau():
    one, other = StandardParametricLIF(step_mode="m"), StandardParametricLIF(step_mode="m")
    other.w = one.w
    return with_a_wrong_weight(one, other)


class ToldOfItself(nn.Module):
    """A neuron that names a reference without its own parameter."""

    def __init__(self):
        super().__init__()
        self.gain, self.neuron, self.v = nn.Parameter(torch.ones(6)), StandardLIF(step_mode="m", backend="torch"), 0.0
        self.gain.register_post_accumulate_grad_hook(tripled)

    def reset(self):
        self.neuron.reset()
        self.v = 0.0

    def reference(self):
        return StandardLIF(step_mode="m", backend="torch")

    def forward(self, x):
        y = self.neuron(x * self.gain)
        self.v = self.neuron.v
        return y


def told_of_itself():
    return nn.Sequential(nn.Linear(6, 6), ToldOfItself())


def tripled(parameter):
    parameter.grad.mul_(3)


def accumulated():
    net = nn.Sequential(nn.Linear(6, 6), StandardLIF(step_mode="m"))
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(tripled)
    return net


def doubled_by_a_hook():
    neuron = StandardLIF(step_mode="m")
    neuron.register_forward_hook(lambda module, args, output: 2 * output)
    return nn.Sequential(nn.Linear(6, 6), neuron)


def doubled_by_its_forward():
    from spikingjelly.activation_based import neuron

    node = neuron.LIFNode(step_mode="m")
    forward = node.forward
    node.forward = lambda x: 2 * forward(x)
    return nn.Sequential(nn.Linear(6, 6), node)


def begins_elsewhere():
    from spikingjelly.activation_based import neuron

    node = neuron.LIFNode(step_mode="m")
    node.set_reset_value("v", 0.7)
    node.reset()
    return nn.Sequential(nn.Linear(6, 6), node)


def klif_and_lif():
    from spikingjelly.activation_based import neuron

    return nn.Sequential(nn.Linear(6, 8), neuron.KLIFNode(step_mode="m"), nn.Linear(8, 8), StandardLIF(step_mode="m"))


def hooked():
    """SpikingJelly's first neuron has a hook and so is not exchanged; it fires as one operator, unseen in float32."""
    from spikingjelly.activation_based import neuron

    lif = neuron.LIFNode(step_mode="m")
    lif.register_forward_hook(lambda module, args, output: output * 1.0)
    return nn.Sequential(nn.Linear(6, 8), lif, nn.Linear(8, 4), StandardLIF(step_mode="m"))


def planted():
    import planted_faults

    return planted_faults.Planted(at_input=lambda g: 3 * g)


def faulty():
    """A neuron of the user's own, whose gradient is three times too large."""
    return nn.Sequential(nn.Linear(6, 8), planted(), nn.Linear(8, 4))


def faulty_before_tanh():
    """Operators that keep their results, as `tanh` does, cut nothing."""
    return nn.Sequential(faulty(), nn.Tanh())


class Rectified(Written):
    """A neuron whose membrane is 0 or more, and just 0 until something comes."""

    def forward(self, x):
        spikes = []
        for x_t in x:
            h = torch.clamp(0.5 * self.v + x_t, min=0)
            spikes.append(self.fire(h - 1))
            self.v = (1 - spikes[-1]) * h
        return torch.stack(spikes)


def rectified():
    first, second = nn.Linear(6, 8), nn.Linear(8, 4, bias=False)
    return nn.Sequential(first, Rectified(), second, Rectified(), nn.Linear(4, 4))


class Masked(Written):
    """A reset by a comparison with the spikes, which are 0 and 1 give or take what a difference moves them by."""

    def forward(self, x):
        h = 0.5 * self.v + x
        spike = self.fire(h - 0.5)
        self.v = torch.where(spike > 0, 0.0, h)
        return spike


def masked():
    loop = Loop()
    loop.lif = Masked()
    return loop


class Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient / (1 + ctx.saved_tensors[0].abs()) ** 2


class Fires(nn.Module):
    def forward(self, x):
        return Heaviside.apply(x - 0.1)


def fires_by_its_own():
    """A neuron that differences can judge, and one that they cannot."""
    return nn.Sequential(nn.Linear(6, 8), Rectified(), nn.Linear(8, 8), Fires(), nn.Linear(8, 4))


class TellsAnother(Fires):
    """A surrogate of the user's own, which names another primitive than the one that it has the derivative of."""

    def primitive(self, z):
        return torch.sigmoid(4 * (z - 0.1))


def fires_wrongly():
    import planted_faults

    return nn.Sequential(nn.Linear(6, 8), planted_faults.Planted(fire=TellsAnother()), nn.Linear(8, 4))


def leaky(neuron):
    """A `leaky_relu` of nothing but 0, where no spike has come."""
    return nn.Sequential(nn.Linear(6, 8), neuron, nn.Linear(8, 4, bias=False), nn.LeakyReLU(), nn.Linear(4, 4))


def leaky_and_right():
    import planted_faults

    return leaky(planted_faults.Planted())


def leaky_and_faulty():
    import planted_faults

    return leaky(planted_faults.Planted(at_input=lambda g: 30 * g))


def spectral():
    import planted_faults

    first = spectral_norm(nn.Linear(6, 8))
    first.register_buffer("expanded", torch.zeros(1).expand(3))  # which cannot be written to
    return nn.Sequential(first, planted_faults.Planted(), nn.Linear(8, 4))


def loop():
    return Loop()


def spikingjelly():
    from spikingjelly.activation_based import functional, layer, neuron

    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4), neuron.LIFNode(),
        layer.Conv2d(4, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4), neuron.LIFNode(),
        layer.Flatten(), layer.Linear(4 * 36, 3),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    return net


def vgg():
    """SpikingJelly's VGG-11 at an eighth of its width; needs the folder of the examples."""
    from spikingjelly_models import functional, layer, neuron, spiking_vgg

    narrow = [size if size == "M" else size // 8 for size in spiking_vgg.cfgs["A"]]
    layers = spiking_vgg.SpikingVGG.make_layers(narrow, batch_norm=True, neuron=neuron.LIFNode)
    net = nn.Sequential(*layers, layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(64, 10))
    functional.set_step_mode(net, "m")
    return net


def sew_resnet():
    """SpikingJelly's SEW-ResNet with five blocks in the place of eight."""
    from spikingjelly_models import functional, neuron, sew_resnet

    net = sew_resnet.SEWResNet(
        sew_resnet.BasicBlock, [2, 1, 1, 1], num_classes=10, cnf="ADD", spiking_neuron=neuron.LIFNode
    )
    functional.set_step_mode(net, "m")
    return net


def spikformer():
    """SpikingJelly's Spikformer of two blocks, 32 wide."""
    from spikingjelly_models import functional, neuron, spikformer

    net = spikformer.Spikformer(
        img_size_h=16, img_size_w=16, patch_size=4, embed_dims=32, num_heads=4, depths=2, num_classes=10,
        spiking_neuron=neuron.LIFNode,
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    return net


def with_loss(timesteps, batch):
    labels = torch.zeros(batch, dtype=torch.int64)
    return SimpleNamespace(
        model=Plain(),
        inputs=lambda: torch.rand(timesteps, batch, 6),
        loss=lambda y: nn.functional.cross_entropy(y.mean(0), labels),
    )


def counts_threads():
    raise ValueError(f"{torch.get_num_threads()} threads")


def raises():
    return 1 / 0


def nothing():
    return None


class NoNeuron(nn.Linear):
    pass


def snntorchs():
    import snntorch

    return nn.Sequential(nn.Linear(6, 4), snntorch.Leaky(0.9, init_hidden=True, reset_mechanism="zero"))


def no_neuron():
    return NoNeuron(6, 4)


class Tuple(Plain):
    def forward(self, x):
        return super().forward(x), x


def returns_a_tuple():
    return Tuple()


class Twice(Plain):
    def forward(self, x):
        x = self.first(self.one(x))
        return self.first(x)


def neuron_twice():
    return Twice()


class Shared(Plain):
    def __init__(self):
        super().__init__()
        self.second = self.first


def shared():
    return Shared()


class SharedBlock(nn.Module):
    """One block of weights and a neuron at two places."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Sequential(nn.Linear(6, 6), StandardLIF(step_mode="m"))

    def forward(self, x):
        return self.second(self.first(x))


def shared_block():
    return SharedBlock()


class Cut(Plain):
    def forward(self, x):
        return super().forward(x).detach()


def cut():
    return Cut()


class SingleStep(Plain):
    """A neuron that was left in step mode "s", in a network on all steps at once."""

    def __init__(self):
        super().__init__()
        self.last = StandardLIF()

    def forward(self, x):
        return self.last(super().forward(x))


class Complex(Plain):
    def forward(self, x):
        return torch.fft.fft(super().forward(x))


def exits():
    raise SystemExit(3)


class Remembers(Plain):
    """Keeps a copy of its first input for good."""

    kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = x.detach().clone()
        return super().forward(x)


class Switches(Plain):
    """Leaves the process with one thread more, another default dtype, and a check of every gradient."""

    def forward(self, x):
        torch.set_num_threads(torch.get_num_threads() % 2 + 1)
        torch.set_default_dtype(torch.float64)
        torch.autograd.set_detect_anomaly(True)
        return super().forward(x)


class Lazy(Plain):
    """The first layer gets its weights from its first input."""

    def __init__(self):
        super().__init__()
        self.lazy = nn.LazyLinear(6)

    def forward(self, x):
        return super().forward(self.lazy(x))


class Branch(Plain):
    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return super().forward(x)


def data_dependent():
    return Branch()


def loss_none():
    return SimpleNamespace(model=Plain(), inputs=lambda: torch.rand(2, 3, 6), loss=lambda y: None)


def no_loss():
    return SimpleNamespace(model=Plain(), inputs=lambda: torch.rand(2, 3, 6))


def wrong_inputs():
    return SimpleNamespace(model=Plain(), inputs=lambda: torch.rand(9, 9), loss=lambda y: y.sum())


class Carries(nn.Module):
    """Its membrane lives on from call to call, and nobody can reset it."""

    def __init__(self):
        super().__init__()
        self.fc, self.membrane = nn.Linear(6, 4), None

    def forward(self, x):
        spikes = []
        for x_t in x.unbind(0):
            self.membrane = self.fc(x_t) if self.membrane is None else 0.5 * self.membrane * self.fc(x_t)
            spikes.append(self.membrane.sigmoid())
        return torch.stack(spikes)


class Hidden(nn.Module):
    """snnTorch's neurons with hidden states, which `snntorch.utils.reset` resets in a training loop."""

    def __init__(self):
        import snntorch

        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 8), snntorch.Leaky(0.9, init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(8, 4), snntorch.Leaky(0.9, init_hidden=True, output=True)

    def forward(self, x):
        return torch.stack([self.lif2(self.fc2(self.lif1(self.fc1(x_t))))[1] for x_t in x.unbind(0)])


class HiddenReset(Hidden):
    def forward(self, x):
        from snntorch import utils

        utils.reset(self)
        return super().forward(x)


class Sinabs(nn.Module):
    """A layer of sinabs, which carries its membrane until `reset_states`."""

    def __init__(self):
        import sinabs.layers

        super().__init__()
        self.fc, self.lif = nn.Linear(6, 8), sinabs.layers.LIF(tau_mem=2.0)

    def forward(self, x):
        return self.lif(self.fc(x).transpose(0, 1)).transpose(0, 1)


class SinabsRecurrent(Sinabs):
    """A layer of sinabs whose own `__deepcopy__` raises."""

    def __init__(self):
        import sinabs.layers

        super().__init__()
        self.lif = sinabs.layers.LIFRecurrent(tau_mem=2.0, rec_connect=nn.Linear(8, 8))


def relus():
    return nn.Sequential(nn.Linear(6, 8), StandardLIF(step_mode="m"), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


class SnnTorch(nn.Module):
    """snnTorch's neurons whose membranes the loop hands on, as in its tutorials."""

    def __init__(self, features=6, hidden=8):
        import snntorch

        super().__init__()
        self.fc1, self.lif1 = nn.Linear(features, hidden), snntorch.Leaky(0.9)
        self.fc2, self.lif2 = nn.Linear(hidden, 4), snntorch.Leaky(0.9)

    def forward(self, x):
        first, second, outputs = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for x_t in x.unbind(0):
            spikes, first = self.lif1(self.fc1(x_t), first)
            spikes, second = self.lif2(self.fc2(spikes), second)
            outputs.append(second)
        return torch.stack(outputs)


class WideSnnTorch(SnnTorch):
    """The same with a weight that is larger than what a step keeps."""

    def __init__(self):
        super().__init__(512, 256)
