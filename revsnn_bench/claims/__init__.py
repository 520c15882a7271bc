"""The paper's claims put to the test: which cases each needs, and what their records say of it.

Source of the claims: Lei et al., *Towards Zero Memory Footprint Spiking Neural Network Training*, arXiv 2308.08649.
Verdicts are computed from records (`verdicts.py`); nothing here is written by hand.
"""

from revsnn_bench.claims.judge import CLAIMS, ClaimFinding, Verdict, judge
from revsnn_bench.claims.plan import Plan

__all__ = ["CLAIMS", "ClaimFinding", "Plan", "Verdict", "judge"]
