"""What the gate tolerates: percentages per metric, cases that may be added or removed, fields that may differ."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import MappingProxyType

from revsnn_bench.metrics import BY_NAME, METRICS
from revsnn_bench.records import Environment

_FOLLOWS_FROM_OTHERS = ("forward_pointwise_flops", "backward_recompute_flops", "step_flops")

GATED: tuple[str, ...] = tuple(
    metric.name for metric in METRICS if metric.deterministic and metric.name not in _FOLLOWS_FROM_OTHERS
)
"""Metrics that are gated unless told otherwise: everything exact, sums and parts of the others left out."""


@dataclass(frozen=True)
class Policy:
    """What may differ between a run and its baseline without failing the gate.

    Args:
        tolerance_percent: by how much a deterministic metric may grow, in percent of the baseline; 0 where
            not named. Naming a metric that is not gated by default gates it.
        allow: case ids, or patterns with `*`, `?` and `[...]`, of cases that may be added, removed, skipped
            or newly failing. A pattern never allows more bytes, more operations or a wrong gradient.
        allow_environment: fields of the environment that may differ.
        allow_partial: whether a run that has not measured all of its planned cases is judged by those that it has.
        time_ratio_percent: by how much the time relative to the reference may grow, in percent; None
            leaves time out.
    Raises:
        ValueError: a metric that is not deterministic or does not exist, an unknown field, or a percentage
            that is negative or not finite.
    """

    tolerance_percent: Mapping[str, float] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    allow_environment: tuple[str, ...] = ()
    allow_partial: bool = False
    time_ratio_percent: float | None = None

    def __post_init__(self) -> None:
        exact = [*GATED, *_FOLLOWS_FROM_OTHERS]
        for name, percent in self.tolerance_percent.items():
            if name not in BY_NAME:
                raise ValueError(f"`tolerance` must name a metric; got {name!r}. {_near(name, exact)}")
            if not BY_NAME[name].deterministic:
                raise ValueError(
                    f"`tolerance` must name a metric that repeats exactly; got {name!r}. It varies from run to run on "
                    "an unchanged program. Gate times with a time ratio, and leave the others to reports."
                )
            _require_percentage(f"tolerance of {name}", percent)
        if self.time_ratio_percent is not None:
            _require_percentage("time_ratio_percent", self.time_ratio_percent)
        for name in self.allow_environment:
            if name not in Environment.model_fields:
                raise ValueError(
                    f"`allow_environment` must name a field of the environment; got {name!r}. "
                    f"{_near(name, Environment.model_fields)}"
                )
        object.__setattr__(self, "tolerance_percent", MappingProxyType(dict(self.tolerance_percent)))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the gated metrics, in the order of the table of metrics."""
        return tuple(metric.name for metric in METRICS if metric.name in {*GATED, *self.tolerance_percent})

    def pattern_for(self, case_id: str) -> str | None:
        """The first of `allow` that names a case, or None."""
        return next((pattern for pattern in self.allow if names(pattern, case_id)), None)


def names(pattern: str, case_id: str) -> bool:
    """Whether a pattern names a case; an id, which may hold brackets, names itself."""
    return pattern == case_id or fnmatchcase(case_id, pattern)


def _require_percentage(name: str, percent: float) -> None:
    if not (math.isfinite(percent) and percent >= 0):
        raise ValueError(
            f"`{name}` must be a percentage of at least 0; got {percent}. It bounds how much a value may grow. "
            "Pass for example 5 for 5 %."
        )


def _near(name: str, known: Collection[str]) -> str:
    """The names that begin with a wrong one or hold it, or are spelled like it; all where there is none."""
    held = sorted((each for each in known if name in each), key=lambda each: not each.startswith(name))
    close = (name and held) or get_close_matches(name, list(known), 3)
    return f"Did you mean {' or '.join(close[:3])}?" if close else f"Pass one of {', '.join(sorted(known))}."
