"""The cheapest choice of options within a budget: a mixed-integer program over pairs of neighbouring blocks.

One binary variable z for each block and pair of options; a path through them chooses. With m, f, p, r of
`revsnn_bench.plan.profile` and seconds c,

    minimise    sum of c z
    subject to  sum over j < i of m_j z_j + f_i z_i <= budget                               for every block i
                sum over j < i of m_j z_j + p_i z_i + sum over j > i of r_j z_j <= budget   for every block i
                the option that a pair ends with is the one that the next pair starts with
"""

from itertools import product

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from revsnn_bench.plan.profile import Choice, Profile

FINEST = 0.005
"""Share of the peak by which two points of the frontier differ at least."""


def cheapest(profile: Profile, budget_bytes: int) -> Choice | None:
    """The options with the least time whose predicted peak is within a budget; None where there are none."""
    found = _solve(profile, budget_bytes)
    plain = profile.plain
    if profile.peak_bytes(plain) <= budget_bytes and (found is None or profile.step_s(plain) <= profile.step_s(found)):
        return plain
    return found


def least(profile: Profile) -> Choice:
    """The options with the least predicted peak."""
    found = _solve(profile, None)
    assert found is not None
    return found


def frontier(profile: Profile) -> list[Choice]:
    """One choice for each distinct plan, by falling peak and rising time; peaks are `FINEST` apart or more."""
    choices: list[Choice] = []
    budget = max(profile.peak_bytes(profile.uniform(option)) for option in profile.options[-1])
    while (choice := cheapest(profile, budget)) is not None:
        choices.append(choice)
        budget = int(profile.peak_bytes(choice) * (1 - FINEST))
    return choices


def _solve(profile: Profile, budget_bytes: int | None) -> Choice | None:
    """With a budget the least time, without one the least peak, which is then one more variable."""
    variables = [
        (i, before, option)
        for i, options in enumerate(profile.options)
        for before, option in product(profile.options[i - 1] if i else ("",), options)
    ]
    count = len(variables)
    index = {variable: number for number, variable in enumerate(variables)}
    scale = 1000 / profile.plain_bytes  # the solver takes 1e-6 for nothing
    segments = len(profile.blocks)
    memory = lil_array((2 * segments, count + 1))  # backward of every segment, then forward
    for (j, before, option), number in index.items():
        cost = profile.costs[j][before, option]
        memory[:j, [number]] = cost.left_bytes * scale
        memory[j, number], memory[segments + j, number] = cost.peak_bytes * scale, cost.forward_bytes * scale
        memory[j + 1 : segments, [number]] = memory[segments + j + 1 :, [number]] = cost.kept_bytes * scale
    memory[:, [count]] = -1.0
    rows = [[(index[0, "", option], 1.0) for option in profile.options[0]]]
    for i in range(1, len(profile.blocks)):
        for option in profile.options[i - 1]:
            ends = [(n, 1.0) for (j, _, last), n in index.items() if j == i - 1 and last == option]
            rows.append(ends + [(index[i, option, own], -1.0) for own in profile.options[i]])
    path = lil_array((len(rows), count + 1))
    for row, entries in enumerate(rows):
        for number, value in entries:
            path[row, number] = value
    equal = np.zeros(len(rows))
    equal[0] = 1.0
    seconds = np.array([profile.seconds[i][option] for i, _, option in variables])
    top = np.inf if budget_bytes is None else budget_bytes * scale
    objective = np.append(seconds * (1e-6 if budget_bytes is None else 1.0), 1.0 if budget_bytes is None else 0.0)
    found = milp(
        objective,
        integrality=np.append(np.ones(count), 0),
        bounds=Bounds(np.zeros(count + 1), np.append(np.ones(count), top)),
        constraints=[LinearConstraint(memory.tocsr(), -np.inf, 0.0), LinearConstraint(path.tocsr(), equal, equal)],
    )
    if found.x is None:
        return None
    chosen = {i: option for (i, _, option), number in index.items() if found.x[number] > 0.5}
    return tuple(chosen[i] for i in range(len(profile.blocks)))
