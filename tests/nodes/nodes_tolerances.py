"""How close is equal: every tolerance of the node tests, per dtype, with its reason."""

import torch

RTOL = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}
"""Largest relative L2 error of a gradient against the float64 oracle, where no membrane is inverted: some hundred
roundings in float64 and float32, three roundings of the output (2^-10, 2^-7) in the half precisions."""

HALF_RTOL = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""The same where no input is decoded from an output that fired (so not for the carrier at small tau): one rounding of
the gradient and one of a kept charge (2^-10, 2^-7), since membranes are float32; whatever T and tau are."""

INVERSE_RTOL_FLOAT64 = 1e-6
"""The same for nodes that invert in float64, up to T = 8: rounding 1e-16, times at most 4^8 = 7e4 by the expansion of
the inverse, times the slope of the division by 1 - alpha g."""

ALIKE_RTOL = {torch.float64: 1e-12, torch.float32: 2e-6}
"""Two implementations of one formula, operations in another order: a few roundings."""

DRIFT_SLACK = 100.0
"""Where the guard warns, the measured error exceeds tolerance / DRIFT_SLACK: it errs on the safe side, not blindly."""
