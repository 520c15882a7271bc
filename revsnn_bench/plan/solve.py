"""The cheapest choice of options within a budget: a mixed-integer program over pairs of neighbouring blocks.

One binary variable z for each block and pair of options; a path through them chooses. With m, f, p, r of
`revsnn_bench.plan.profile` and seconds c beyond plain,

    minimise    sum of c z, and the least m among equals
    subject to  sum over j < i of m_j z_j + f_i z_i <= budget                               for every block i
                sum over j < i of m_j z_j + p_i z_i + sum over j > i of r_j z_j <= budget   for every block i
                the option that a pair ends with is the one that the next pair starts with
"""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np

from revsnn_bench.plan.profile import Choice, Profile, Record

Variable = tuple[int, str, str]
"""A block by its number, the option of the one before it, "" for the first, and its own."""

FRONTIER_STEPS = 8
"""Budgets for which plans are recorded to draw the frontier."""

EQUAL = 1e-4
"""Share of the step's time that it is worth to keep nothing at all: of plans that take equal time, one is smaller."""

MOST_RECORDED = 6
"""Plans for one budget that are recorded to correct the costs."""


def cheapest(profile: Profile, budget_bytes: int) -> Choice | None:
    """The options with the least time whose peak is within a budget; None where there are none."""
    found = _solve(profile, budget_bytes)
    return _cheapest_of([*profile.recorded, *([] if found is None else [found])], profile, budget_bytes)


def least(profile: Profile) -> Choice:
    """The options with the least peak."""
    found = _solve(profile, None)
    assert found is not None
    return min((found, *profile.recorded), key=profile.peak_bytes)


def refined(profile: Profile, budgets: Iterable[int], record: Record) -> Profile:
    """A profile in which the plan for each budget was recorded, and has corrected the costs where they were wrong."""
    for budget_bytes in budgets:
        for _ in range(MOST_RECORDED):
            choice = cheapest(profile, budget_bytes) or least(profile)
            if choice in profile.recorded:
                break
            profile = profile.corrected(choice, record(choice))
    return profile


def chosen(profile: Profile, budget_bytes: int) -> Choice:
    """Of the choices that were recorded the one with the least time within a budget, or with the least peak."""
    return _cheapest_of(profile.recorded, profile, budget_bytes) or min(profile.recorded, key=profile.peak_bytes)


def frontier(profile: Profile) -> list[Choice]:
    """Of the choices that were recorded those with the least time for some budget, by falling peak and rising time."""
    choices: list[Choice] = []
    budget = max(profile.recorded.values())
    while (choice := _cheapest_of(profile.recorded, profile, budget)) is not None:
        choices.append(choice)
        budget = profile.peak_bytes(choice) - 1
    return choices


def frontier_budgets(profile: Profile) -> list[int]:
    """Budgets for `refined`, evenly from the peak without a plan down to the least one recorded."""
    lowest, highest = min(profile.recorded.values()), profile.plain_bytes
    return [highest - (highest - lowest) * number // FRONTIER_STEPS for number in range(1, FRONTIER_STEPS + 1)]


def _cheapest_of(choices: Iterable[Choice], profile: Profile, budget_bytes: int) -> Choice | None:
    """Of choices with equal time the one with the least peak."""
    fitting = [choice for choice in choices if profile.peak_bytes(choice) <= budget_bytes]
    return min(fitting, key=lambda choice: (profile.step_s(choice), profile.peak_bytes(choice)), default=None)


def _solve(profile: Profile, budget_bytes: int | None) -> Choice | None:
    """With a budget the least time, without one the least peak, which is then one more variable."""
    # Not above: workers import this module, none of them solves, and this takes 0.8 s to load.
    from scipy.optimize import Bounds, LinearConstraint, milp

    variables = [
        (i, before, option)
        for i, options in enumerate(profile.options)
        for before, option in product(profile.options[i - 1] if i else ("",), options)
    ]
    count = len(variables)
    scale = 1000 / profile.plain_bytes  # the solver takes 1e-6 for nothing
    memory, path = _memory(profile, variables, scale), _path(variables)
    equal = np.zeros(path.shape[0])
    equal[0] = -1.0  # before the first segment one starts
    kept = np.array([profile.costs[i][before, option].kept_bytes for i, before, option in variables])
    seconds = np.array([profile.extra_s(i, option) for i, _, option in variables])
    seconds += kept * (EQUAL * profile.plain_s / profile.plain_bytes)
    top = np.inf if budget_bytes is None else budget_bytes * scale
    objective = np.append(seconds * (1e-6 if budget_bytes is None else 1.0), 1.0 if budget_bytes is None else 0.0)
    found = milp(
        objective,
        integrality=np.append(np.ones(count), 0),
        bounds=Bounds(np.zeros(count + 1), np.append(np.ones(count), top)),
        constraints=[LinearConstraint(memory, -np.inf, 0.0), LinearConstraint(path, equal, equal)],
    )
    if found.x is None:
        return None
    chosen = {i: option for number, (i, _, option) in enumerate(variables) if found.x[number] > 0.5}
    return tuple(chosen[i] for i in range(len(profile.blocks)))


def _memory(profile: Profile, variables: Sequence[Variable], scale: float) -> Any:
    """Rows of what a step holds less the peak, the last column: in backward of every segment, then in forward."""
    from scipy.sparse import lil_array

    segments = len(profile.blocks)
    rows = lil_array((2 * segments, len(variables) + 1))
    for number, (j, before, option) in enumerate(variables):
        cost = profile.costs[j][before, option]
        rows[:j, [number]] = cost.left_bytes * scale
        rows[j, number], rows[segments + j, number] = cost.peak_bytes * scale, cost.forward_bytes * scale
        rows[j + 1 : segments, [number]] = rows[segments + j + 1 :, [number]] = cost.kept_bytes * scale
    rows[:, [len(variables)]] = -1.0
    return rows.tocsr()


def _path(variables: Sequence[Variable]) -> Any:
    """A row for every border between segments and option that ends there: what ends with it, less what starts."""
    from scipy.sparse import lil_array

    borders = {border: row for row, border in enumerate(dict.fromkeys((i, before) for i, before, _ in variables))}
    rows = lil_array((len(borders), len(variables) + 1))
    for number, (i, before, option) in enumerate(variables):
        rows[borders[i, before], number] = -1.0
        if (i + 1, option) in borders:
            rows[borders[i + 1, option], number] = 1.0
    return rows.tocsr()
