"""The drift guard: how wrong a gradient the inverse in time will give, said before anyone trains on it.

A leaky membrane contracts forward, so its inverse expands: an error in V grows by 1 / ((1 - alpha g)(1 - 1/tau)) with
every step back, g in [0, 1] being how far the reset's gate is open. Averaged over neurons this is
(1 - alpha)^-gate / (1 - 1/tau) with an exponent `gate` near the mean of g. The constants below, and the powers of tau,
were fitted to the measured error over T, tau, alpha and dtype at input N(0.3, 1); the test of this file measures it
again.
"""

import warnings
from typing import Literal

import torch

from revsnn_nodes.parameters import CoupledParameters, require

OnDrift = Literal["warn", "error", "ignore"]

GATE = 0.55
"""Effective opening of the reset's gate for a drive scaled by 1/tau."""

GATE_UNDECAYED = 0.67
"""The same where `decay_input=False`: the drive is tau times stronger, and gates are open more often."""


class DriftWarning(UserWarning):
    """The gradient of a node that inverts its membrane is predicted to be wrong."""


class DriftError(RuntimeError):
    """The same, where the node was told to raise."""


def predicted_gradient_error(timesteps: int, neuron: CoupledParameters, dtype: torch.dtype) -> float:
    """Relative L2 error of the input gradient that inverting `timesteps` steps is predicted to have; at most 1.

    Args:
        timesteps: T of one call.
        neuron: tau, alpha, soft or hard reset, and `decay_input` decide the growth.
        dtype: rounding, 2^-24 in float32, starts it.
    Exactness: for inputs around N(0.3, 1) in units of the threshold. Where it passes a tolerance of 1e-3 the measured
        error lies between 1e-5 and 1; where it stays below, so does the measured error. Inputs whose mean reaches the
        threshold open the gates further and drift earlier: measure, with `ReversibleLIF.invert`.
    """
    gate = GATE if neuron.decay_input else GATE_UNDECAYED
    reset_growth = 1.0 if neuron.v_reset is None else (1.0 - neuron.alpha) ** -gate
    # The error of the first inverted step, in units of rounding: it grows with the share of the drive in the charge.
    onset = neuron.tau**-1.5 if neuron.decay_input else neuron.tau
    rounding = torch.finfo(dtype).eps / 2
    try:
        growth = (reset_growth / neuron.keep) ** timesteps
    except OverflowError:
        return 1.0
    return min(1.0, rounding * (1.0 + onset * growth))


class DriftGuard:
    """Warns once, raises, or stays silent where the predicted gradient error exceeds a tolerance.

    Args:
        on_drift: "warn" (once per guard), "error" or "ignore".
        tolerance: largest relative gradient error that passes silently.
    """

    def __init__(self, on_drift: OnDrift = "warn", tolerance: float = 1e-3) -> None:
        require(
            on_drift in ("warn", "error", "ignore"),
            "on_drift",
            'be "warn", "error" or "ignore"',
            on_drift,
            "It says what to do where the inverse is predicted to give a wrong gradient.",
            'Pass "warn".',
        )
        require(
            0.0 < tolerance <= 1.0,
            "drift_tolerance",
            "lie in (0, 1]",
            tolerance,
            "It is a relative error of the gradient.",
            "Pass for example 1e-3.",
        )
        self.on_drift = on_drift
        self.tolerance = tolerance
        self.warned = False

    def check(self, timesteps: int, neuron: CoupledParameters, dtype: torch.dtype, name: str) -> None:
        """Acts on the prediction for one call of the node called `name`.

        Raises:
            DriftError: it exceeds the tolerance and `on_drift="error"`.
        """
        if self.on_drift == "ignore" or (self.warned and self.on_drift == "warn"):
            return
        predicted = predicted_gradient_error(timesteps, neuron, dtype)
        if predicted <= self.tolerance:
            return
        message = (
            f"{name} inverts its membrane over T = {timesteps} steps; with tau = {neuron.tau:g}, alpha = "
            f"{neuron.alpha:g} and {str(dtype).removeprefix('torch.')} its gradient is predicted to be wrong by "
            f"{predicted:.0e} (relative), more than the tolerance {self.tolerance:g}. The inverse of a leaky membrane "
            "expands rounding errors. Use CarrierLIF or AnchoredReversibleLIF, which are right at every T, or a "
            'smaller T; on_drift="ignore" silences this.'
        )
        if self.on_drift == "error":
            raise DriftError(message)
        self.warned = True
        warnings.warn(message, DriftWarning, stacklevel=2)
