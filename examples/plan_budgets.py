"""Plans at several budgets against the best method that is the same for every block, timed in turns in one process.

python plan_budgets.py spikingjelly_models:sew_resnet18 4,8,3,64,64
"""

import os
import sys
import time
from functools import partial
from statistics import median

from revsnn_nodes import apply_plan

from revsnn_bench.case import Case, parse_input
from revsnn_bench.models.workloads import build
from revsnn_bench.plan.planning import measure_step, solve_plan
from revsnn_bench.plan.profile import profile_step, record_step
from revsnn_bench.plan.solve import refined

SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)
ROUNDS = 5


def main(model: str, size: str) -> None:
    """Prints a table: budget, peaks, and time against the best uniform method that fits."""
    step = build(Case.model_validate({"node": "lif", "workload": model, **parse_input(size)}))
    step.backward(step.forward())
    start = time.perf_counter()
    profile = profile_step(step)
    profiled = time.perf_counter() - start
    refine = partial(refined, record=partial(record_step, step, profile.blocks))
    plans, spent = {}, {}
    for share in SHARES:
        start = time.perf_counter()
        plans[share] = solve_plan(profile, int(share * profile.plain_bytes), refine, partial(measure_step, step))
        spent[share] = profiled + time.perf_counter() - start
    rest, *blocks = profile.options
    uniform = {
        option: profile.plain if option == "plain" else (*rest, *(option for _ in blocks)) for option in blocks[0]
    }
    planned = {share: tuple(plan.options.values()) for share, plan in plans.items()}
    times: dict = {choice: [] for choice in (*uniform.values(), *planned.values())}
    for number in range(ROUNDS + 1):
        for choice, samples in times.items():
            apply_plan(step.model, dict(zip(profile.blocks, choice, strict=True)))
            step.prepare()
            start = time.perf_counter()
            step.backward(step.forward())
            if number:
                samples.append(time.perf_counter() - start)
    took = {choice: median(samples) for choice, samples in times.items()}
    of_step = f"plain {profile.plain_bytes / 2**20:.1f} MiB, {len(profile.blocks) - 1} blocks"
    print(f"{model} {size}: {of_step}; load {os.getloadavg()[0]:.1f}")
    for share, plan in plans.items():
        fitting = [option for option, each in uniform.items() if profile.recorded[each] <= plan.budget_bytes]
        best = min(fitting, key=lambda option: took[uniform[option]]) if fitting else None
        against = f"{took[planned[share]] / took[uniform[best]]:.3f} of {best}" if best else "no uniform method fits"
        print(
            f"{share:5.0%} fits {plan.fits!s:5} predicted {plan.predicted_bytes / 2**20:8.2f} measured "
            f"{plan.measured.peak_bytes / 2**20:8.2f} MiB ({plan.measured.peak_bytes / plan.predicted_bytes - 1:+.2%}) "
            f"time {against}, gradient error {plan.measured.gradient_error:.0e}, planned in {spent[share]:.0f} s"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
