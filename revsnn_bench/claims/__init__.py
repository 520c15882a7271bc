"""The paper's claims put to the test: which cases each needs, and what their records say of it.

Source of the claims: Lei et al., *Towards Zero Memory Footprint Spiking Neural Network Training*, arXiv 2308.08649.
Verdicts are computed from records (`verdicts.py`); nothing here is written by hand.
"""

from revsnn_bench.claims.finding import ClaimFinding, Verdict
from revsnn_bench.claims.plan import Plan
from revsnn_bench.claims.verdicts import CLAIMS, judge

__all__ = ["CLAIMS", "ClaimFinding", "Plan", "Verdict", "judge"]
