"""The measurement measures itself: a step whose bytes and operations are known in closed form.

`linear -> sigmoid that recomputes itself -> relu`, with a carried state, on [n, f] -> [n, g] in float32. With
A = 4 n f, B = 4 n g and W = 4 f g bytes, when 3 B > A + W the peak is in the backward of the sigmoid:

    source  input  charge  relu output  state | output grad  relu grad  recomputed sigmoid  sigmoid grad
    (alive)     A       B            B      B |           B          B                   B             B
"""

from typing import Any

import torch
from torch import Tensor, nn

from revsnn_bench.meters.flops import measure_flops
from revsnn_bench.meters.memory import measure_memory
from revsnn_bench.meters.step import TrainingStep
from revsnn_bench.records import SavedBytes


class _RecomputedSigmoid(torch.autograd.Function):
    """Keeps its input and computes its output again in backward."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, charge: Tensor) -> Tensor:
        ctx.save_for_backward(charge)
        return charge.sigmoid()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (charge,) = ctx.saved_tensors  # type: ignore[attr-defined]
        with torch.profiler.record_function("recompute"):
            output = charge.sigmoid()
        return torch.ops.aten.sigmoid_backward(gradients[0], output)  # type: ignore[no-any-return]


class SigmoidNode(nn.Module):
    """A sigmoid that keeps its input, computes its output again, and carries its last output as state."""

    state: Tensor | None = None

    def forward(self, charge: Tensor) -> Tensor:
        """[n, g] -> [n, g], the sigmoid."""
        output: Tensor = _RecomputedSigmoid.apply(charge)
        self.state = output.detach().clone()
        return output


class SelfTestStep(TrainingStep):
    """A `TrainingStep` whose every measured quantity is known in closed form, by its name in `expected`."""

    def __init__(self, rows: int = 24, features: int = 16, units: int = 40, device: str = "cpu") -> None:
        a, b, w = (4 * size for size in (rows * features, rows * units, features * units))
        if 3 * b <= a + w:
            raise ValueError(
                f"`units` must make 3 n g > n f + f g; got n={rows}, f={features}, g={units}. Otherwise the "
                "peak is in the linear layer's backward and the closed form does not hold. Pass more rows."
            )
        generator = torch.Generator().manual_seed(0)
        linear = nn.Linear(features, units, bias=False, device=device)
        source = torch.randn(rows, features, generator=generator).to(device).requires_grad_()
        self.node = SigmoidNode()
        super().__init__(nn.Sequential(linear, self.node, nn.ReLU()), source)
        macs, outputs = rows * features * units, rows * units
        categories = {"input": a, "output": b, "output gradient": b, "state": b, "retained": b, "temporary": 3 * b}
        self.expected: dict[str, Any] = {
            "retained_bytes": a + b,  # the input, kept by linear, and the charge, kept by the sigmoid
            "state_bytes": b,
            "output_bytes": b,
            "saved_bytes": SavedBytes(own=b, input=a, output=b),
            "peak_bytes": a + 7 * b,  # see the table above
            "peak_by_category_bytes": categories,
            "peak_phase": "backward",
            "peak_module": "1",  # the sigmoid
            "forward_flops": 2 * macs + 2 * outputs,  # linear; sigmoid and relu
            "backward_flops": 4 * macs + 4 * outputs,  # linear; sigmoid 3, relu 1; copies and fills are none
            "recompute_flops": outputs,
        }

    def reset_state(self) -> None:
        """Drops the carried state."""
        self.node.state = None

    def state_tensors(self) -> list[Tensor]:
        """The carried state, [n, g]."""
        return [] if self.node.state is None else [self.node.state]


def run_selftest(device: str = "cpu") -> list[tuple[str, object, object]]:
    """(quantity, expected, measured) of the self-test step; the meters are right when all pairs are equal."""
    step = SelfTestStep(device=device)
    memory, flops = measure_memory(step), measure_flops(step)
    measured = {f"{phase}_flops": getattr(flops, phase).total for phase in ("forward", "backward", "recompute")}
    return [
        (name, value, measured[name] if name in measured else getattr(memory, name))
        for name, value in step.expected.items()
    ]
