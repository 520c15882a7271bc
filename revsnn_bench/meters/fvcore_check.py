"""A second opinion on the forward pass: fvcore's count of its convolutions and matrix products."""

import logging
import warnings

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    # Its imports warn of deprecations that neither a user nor we can change.
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis

_PRODUCTS = ("conv", "linear", "addmm", "mm", "matmul", "bmm", "baddbmm", "einsum")


def fvcore_forward_flops(model: nn.Module, input: Tensor) -> int | None:
    """Operations that fvcore finds in the convolutions and matrix products of one forward pass, 2 per MAC.

    fvcore traces the model and counts 1 per multiply-accumulate. It sees nothing inside an autograd Function:
    a product in there is missing here.

    Args:
        model: run once under `torch.no_grad`; neurons keep the state of that run.
        input: what the model takes.
    Returns:
        2 per multiply-accumulate; None where fvcore cannot trace the model.
    """
    with warnings.catch_warnings():
        # So does torch's tracer.
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(model, (input,)).unsupported_ops_warnings(False)
        analysis = analysis.uncalled_modules_warnings(False).tracer_warnings("none")
        logger = logging.getLogger("fvcore")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            with torch.no_grad():
                counts = analysis.by_operator()
        except Exception:  # The tracer raises whatever the traced model raises.
            return None
        finally:
            logger.setLevel(level)
    return 2 * int(sum(counts[name] for name in _PRODUCTS))
