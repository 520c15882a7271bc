"""Validated, frozen parameters of every neuron: the numbers that its equations take; none of them changes in a run."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Literal

ResetGate = Literal["output", "spike"]
CarrierMode = Literal["train", "always"]

KAPPA = 31 / 64
"""Largest fraction that carries an input: below 1/2, and 1 + KAPPA is exact even in bfloat16, so that clamped inputs
are recognised without error."""


def require(condition: bool, argument: str, rule: str, got: object, why: str, fix: str) -> None:
    """Raises `ValueError` in the one form that every error of this package has, unless `condition` holds."""
    if not condition:
        raise ValueError(f"`{argument}` must {rule}; got {got!r}. {why} {fix}")


def require_word(argument: str, words: tuple[str, ...], got: object, why: str, fix: str) -> None:
    """Raises `ValueError` as `require` does, unless the argument is one of some words."""
    *others, last = (f'"{word}"' for word in words)
    require(got in words, argument, f"be {', '.join(others)} or {last}", got, why, fix)


def require_bool(argument: str, value: object, why: str) -> None:
    """Raises `ValueError` as `require` does, unless the argument is True or False."""
    require(isinstance(value, bool), argument, "be True or False", value, why, "Pass one of the two.")


def is_number(value: object) -> bool:
    """Whether a value is a number that can be compared, a float of numpy among them."""
    return isinstance(value, Real)


def _require_finite(argument: str, value: float) -> None:
    require(
        isinstance(value, int | float) and math.isfinite(value), argument, "be a finite number", value,
        "It enters the membrane equation.", "Pass a float.",
    )  # fmt: skip


@dataclass(frozen=True)
class LIFParameters:
    """Parameters of the leaky integrate-and-fire neuron, with SpikingJelly's names and defaults.

    Args:
        tau: membrane time constant, in steps; must exceed 1.
        decay_input: whether the input is scaled by 1/tau like the leak.
        v_threshold: membrane value at which the neuron fires.
        v_reset: membrane value after a spike and at rest; None for soft reset (subtract the threshold, rest at 0).
        detach_reset: whether the spike is a constant in the reset equation's gradient.
    Raises:
        ValueError: tau <= 1, or a value that is not finite.
    """

    tau: float = 2.0
    decay_input: bool = True
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    detach_reset: bool = False

    def __post_init__(self) -> None:
        self._check_tau("tau", self.tau)
        _require_finite("v_threshold", self.v_threshold)
        if self.v_reset is not None:
            _require_finite("v_reset", self.v_reset)
        require_bool("decay_input", self.decay_input, "It says whether the input is scaled as the leak is.")
        require_bool("detach_reset", self.detach_reset, "It says whether the reset has a gradient.")

    def _check_tau(self, argument: str, tau: float) -> None:
        _require_finite(argument, tau)
        require(
            tau > 1, argument, "be > 1 step", tau, "The leak 1/tau would overshoot rest.",
            "Pass tau in time steps, not seconds.",
        )  # fmt: skip

    @property
    def rest(self) -> float:
        """Membrane value towards which the leak pulls, and the initial state: v_reset, or 0 for soft reset."""
        return 0.0 if self.v_reset is None else self.v_reset

    @property
    def input_gain(self) -> float:
        """Derivative of the charge with respect to the input."""
        return 1.0 / self.tau if self.decay_input else 1.0

    @property
    def keep(self) -> float:
        """Derivative of the charge with respect to the membrane: 1 - 1/tau."""
        return 1.0 - 1.0 / self.tau


@dataclass(frozen=True)
class IFParameters(LIFParameters):
    """Parameters of the integrate-and-fire neuron: a LIF whose tau is infinite, and whose input enters undivided."""

    tau: ClassVar[float] = math.inf  # type: ignore[misc]
    decay_input: ClassVar[bool] = False  # type: ignore[misc]

    def _check_tau(self, argument: str, tau: float) -> None:
        """There is no leak."""


@dataclass(frozen=True)
class ParametricLIFParameters(LIFParameters):
    """Parameters of the LIF whose tau is learned; tau itself is no number of this set, and not known here.

    Args:
        init_tau: membrane time constant before training, in steps; must exceed 1.
        Others: see `LIFParameters`.
    Raises:
        ValueError: init_tau <= 1, or a value that is not finite.
    """

    tau: ClassVar[float] = math.nan  # type: ignore[misc]
    init_tau: float = 2.0

    def _check_tau(self, argument: str, tau: float) -> None:
        super()._check_tau("init_tau", self.init_tau)


@dataclass(frozen=True)
class CarrierParameters(LIFParameters):
    """Parameters of the carrier neuron: those of the LIF, and how the output carries the input.

    Args:
        epsilon: scale of the carried input, a power of two below 1, in units of what fires the neuron: see `share`.
        carrier: "train" emits spikes alone in `eval()`; "always" keeps the carrier there too.
    Raises:
        ValueError: epsilon is not a power of two in (0, 1), or carrier is another word.
    """

    epsilon: float = 1 / 16
    carrier: CarrierMode = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            is_number(self.epsilon) and 0 < self.epsilon < 1 and math.frexp(self.epsilon)[0] == 0.5,
            "epsilon", "be a power of two in (0, 1)", self.epsilon,
            "Scaling by a power of two loses no bit of the carried input.",
            "Pass for example 1/16 or 1/256.",
        )  # fmt: skip
        modes, fix = ("train", "always"), 'Pass "train" for binary spikes in eval().'
        require_word("carrier", modes, self.carrier, "It says when the output carries its input.", fix)

    @property
    def clamp(self) -> float:
        """c: the input is clamped to [-c, c], so that the fraction never reaches the spike."""
        return KAPPA / self.share

    @property
    def share(self) -> float:
        """What the input is multiplied by in the output: epsilon over the power of two at or above threshold - rest.

        The clamp so scales with the neuron: it lies at the same multiple of what fires it, whatever its units are.
        """
        mantissa, exponent = math.frexp(abs(self.v_threshold - self.rest))
        return math.ldexp(self.epsilon, (mantissa == 0.5) - exponent) if mantissa else self.epsilon


@dataclass(frozen=True)
class NormCarrierParameters(CarrierParameters):
    """Parameters of the carrier behind a norm: what it carries is normalised, and clamped in standard deviations."""

    @property
    def share(self) -> float:
        """Epsilon."""
        return self.epsilon


@dataclass(frozen=True)
class CoupledParameters(LIFParameters):
    """Parameters of the coupled (reversible) dynamics.

    Args:
        groups: n, into how many equal parts `group_dim` is split; from 2 to the size of that dimension.
        group_dim: dimension of one step `[N, *]` that is split, 1 for channels or features; not the batch dimension 0.
        alpha: strength of the reset, in (0, 1); 1 is allowed where V is never inverted (`reset_gate="spike"`).
        beta: weight of the partner's input in the output; not 0.
        reset_gate: what opens the reset: the clamped `output` (invertible), or the `spike` itself.
    Raises:
        ValueError: a value outside of its range.
    """

    groups: int = 2
    group_dim: int = 1
    alpha: float = 0.5
    beta: float = 1.0
    reset_gate: ResetGate = "output"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            isinstance(self.groups, int) and self.groups >= 2, "groups", "be an integer >= 2", self.groups,
            "Each group's output carries the next group's input.", "Pass groups=2 for the plain reversible node.",
        )  # fmt: skip
        require(
            isinstance(self.group_dim, int) and self.group_dim != 0,
            "group_dim", "be an integer, not 0", self.group_dim,
            "Dimension 0 of a step [N, *] is the batch: its samples must stay independent.",
            "Pass 1 for channels or -1 for the last dimension.",
        )  # fmt: skip
        gates, fix = ("output", "spike"), 'Pass "output" for the invertible dynamics.'
        require_word("reset_gate", gates, self.reset_gate, "It names what opens the reset.", fix)
        top = 1.0 if self.reset_gate == "spike" else math.nextafter(1.0, 0.0)
        require(
            is_number(self.alpha) and 0.0 < self.alpha <= top, "alpha",
            "lie in (0, 1)" if self.reset_gate == "output" else "lie in (0, 1]", self.alpha,
            "The inverse divides by 1 - alpha g(Y), and alpha = 0 never resets.", "Pass for example 0.5.",
        )  # fmt: skip
        _require_finite("beta", self.beta)
        require(
            self.beta != 0.0, "beta", "not be 0", self.beta,
            "The output carries the partner's input times beta; the inverse divides by it.", "Pass for example 1.0.",
        )  # fmt: skip
