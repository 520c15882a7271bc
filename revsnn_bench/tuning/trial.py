"""One trial, in a worker: foreseen on fake tensors, refused or measured, then trained and stopped where it is lost.

The order is that of the costs. Drift and bytes are predicted before anything is allocated; the peak of one step is
measured before the first epoch; spikes are counted after it. What is refused or stopped is a record, too: status
`skipped`, with the reason, and with as much of the learning curve as there is.
"""

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from revsnn_nodes.coupled import InvertingNode, predicted_gradient_error

from revsnn_bench.case import Case, Option
from revsnn_bench.measuring import Settings, measure
from revsnn_bench.models.strategies import strategy
from revsnn_bench.models.training import Recipe, Trainer
from revsnn_bench.plan.predict import predict
from revsnn_bench.records import Record, Status, TrialRecord, utc_now
from revsnn_bench.tuning.space import StudySettings

LEAST_RIVALS, FIRST_EPOCH = 5, 2
"""A trial may be lost against so many others at least, from this epoch on."""

Curve = tuple[float, ...]
"""Test accuracy by epoch."""


@dataclass(frozen=True)
class Rival:
    """A finished trial: its bytes, its operations, and its accuracy by epoch."""

    peak_bytes: int
    flops: int
    curve: Curve


@dataclass(frozen=True)
class Trial:
    """What a worker needs to know beside the case.

    Args:
        rivals: finished trials, which it may be lost against.
        again: whether it is one of the best, trained again: all is measured, and nothing stops it.
    """

    settings: StudySettings
    number: int
    params: dict[str, Option]
    rivals: tuple[Rival, ...] = ()
    again: bool = False


def measure_trial(case: Case, trial: Trial) -> Record:
    """Foresees, measures and trains a case; the record's status is `skipped` where it was refused or stopped.

    Raises:
        ValueError: the node refuses its options, or the network cannot hold it.
    """
    started_at, start = utc_now(), time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drift, tolerance, reason = predicted_drift(case), trial.settings.drift_tolerance, ""
        known = TrialRecord(number=trial.number, params=trial.params, predicted_gradient_error=drift)
        if drift is not None and not drift <= tolerance:
            reason = f"its gradient is predicted to be wrong by {drift:.1g}, more than the tolerance {tolerance:g}"
        if not reason:
            foreseen = predict(case)
            bytes_and_work = {"predicted_peak_bytes": foreseen.peak_bytes, "predicted_flops": foreseen.flops}
            known = known.model_copy(update=bytes_and_work)
            reason = _over_budget(foreseen.peak_bytes, trial.settings, "predicted")
        record = Record(case=case, status=Status.SKIPPED, started_at=started_at, duration_s=0.0, trial=known)
        if not reason:
            record = _measured(record, trial)
            peak = None if record.memory is None else record.memory.peak_bytes
            reason = _over_budget(peak, trial.settings, "measured")
        if not reason:
            record, reason = _trained(record, trial)
    changes = {"status": Status.SKIPPED, "reason": reason} if reason else {}
    return record.model_copy(update={"duration_s": time.monotonic() - start, **changes})


def predicted_drift(case: Case) -> float | None:
    """The typical gradient error that a node which inverts its membrane predicts of itself; None for others."""
    node = strategy(case.node, **case.options)()
    if not isinstance(node, InvertingNode):
        return None
    return predicted_gradient_error(case.timesteps, node.neuron, getattr(torch, case.dtype))


def _over_budget(peak_bytes: int | None, settings: StudySettings, how: str) -> str:
    budget = settings.budget_bytes
    if budget is None or peak_bytes is None or peak_bytes <= budget:
        return ""
    return f"its {how} peak is {peak_bytes:,} B, more than the budget of {budget:,} B"


def _measured(record: Record, trial: Trial) -> Record:
    """The record with the passes of a trial; what is trained again is judged, and on its first seed alone."""
    first = record.case.seed == trial.settings.fresh_seeds[0]
    passes = (("memory", "time", "fidelity") if first else ()) if trial.again else ("memory", "time")
    # `measure` would train to the end.
    found = measure(record.case.model_copy(update={"epochs": 0}), Settings(passes=passes, processes=1, target_s=0.1))
    kept = {name: getattr(found, name) for name in ("status", "reason", "memory", "time", "fidelity", "conditions")}
    return record.model_copy(update=kept)


def _trained(record: Record, trial: Trial) -> tuple[Record, str]:
    """The record with accuracy, curve and firing rate, and why training was stopped; "" where it was not."""
    case, reason, known = record.case, "", record.trial
    trainer = Trainer(case, Recipe(case.epochs, case.batch, case.learning_rate))
    rivals = [each.curve for each in trial.rivals if known is not None and costs_no_more(each, known)]
    while trainer.epoch < case.epochs and not reason:
        trainer.run_epoch()
        if trainer.epoch == 1 and known is not None:
            rates = list(trainer.firing_rates().values()) or [math.nan]
            rate, (low, high) = mean(rates), trial.settings.firing
            known = known.model_copy(update={"firing_rate": (rate, min(rates), max(rates))})
            if not trial.again and not low <= rate <= high:
                state = "silent" if rate < low else "saturated"
                reason = f"the network is {state}: {rate:.2%} of its neurons' steps fire after the first epoch"
        if trial.again or reason:
            continue
        if not math.isfinite(trainer.loss_by_epoch[-1]):
            reason = f"its loss is {trainer.loss_by_epoch[-1]} after epoch {trainer.epoch}"
        elif trainer.epoch < case.epochs and is_lost(rivals, trainer.accuracy_by_epoch):
            reason = f"after epoch {trainer.epoch} it is below the median of {len(rivals)} trials that cost no more"
    return record.model_copy(update={"accuracy": trainer.record(), "trial": known}), reason


def costs_no_more(rival: Rival, known: TrialRecord) -> bool:
    """Whether a rival takes no more bytes and operations than predicted of a trial: else both may be on the front."""
    return rival.peak_bytes <= (known.predicted_peak_bytes or 0) and rival.flops <= (known.predicted_flops or 0)


def is_lost(rivals: Sequence[Curve], own: Sequence[float]) -> bool:
    """What Optuna's median pruner, which knows one objective, says of a curve; in the others no rival costs more."""
    import optuna
    from optuna.trial import FrozenTrial, TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for curve in rivals:
        study.add_trial(create_trial(value=curve[-1], intermediate_values=dict(enumerate(curve, start=1))))
    running = FrozenTrial(
        number=len(rivals), state=TrialState.RUNNING, value=None, datetime_start=None, datetime_complete=None,
        params={}, distributions={}, user_attrs={}, system_attrs={}, trial_id=len(rivals),
        intermediate_values=dict(enumerate(own, start=1)),
    )  # fmt: skip
    return optuna.pruners.MedianPruner(LEAST_RIVALS, FIRST_EPOCH).prune(study, running)
