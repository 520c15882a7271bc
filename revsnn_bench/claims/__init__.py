"""The paper's claims: which cases each needs, and the verdict that follows from their records.

Source of the claims: Lei et al., *Towards Zero Memory Footprint Spiking Neural Network Training*, arXiv 2308.08649.
"""

from revsnn_bench.claims.claim import ClaimFinding, Verdict
from revsnn_bench.claims.judge import CLAIMS, judge
from revsnn_bench.claims.plan import Plan

__all__ = ["CLAIMS", "ClaimFinding", "Plan", "Verdict", "judge"]
