"""The page of a study: what is chosen and how sure that is, the front, the parameters, the curves, every trial."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from revsnn_bench.case import Case
from revsnn_bench.metrics import BY_NAME
from revsnn_bench.records import Record, Run
from revsnn_bench.report import canvas, units
from revsnn_bench.report import study as read
from revsnn_bench.report.canvas import Looks
from revsnn_bench.report.html import render_page

_MIB = 2**20
_FADED = 0.3
_SHORT = {"timesteps": "T"}
_ERRORS = (0.1, 0.3, 1, 3, 10, 30, 100)
"""Ticks of an axis of errors, in percent."""


def study_page(run: Run) -> str:
    """Returns a run of the tuner, whole or not, as one self-contained page, which needs no script."""
    tried, best = read.trials(run), read.chosen(run)
    scores = ["" if r.accuracy is None else f", {units.percent(r.accuracy.accuracy)}" for r in run]
    labels = [f"{record.case.variant}{score}" for record, score in zip(run, scores, strict=True)]
    return render_page(
        "study",
        title=f"Study: {run.header.run_id}",
        run_id=run.header.run_id,
        settings=run.header.settings,
        summary=read.summary(run),
        command="" if best is None else read.command(best),
        again=[_again(each) for each in read.retrained(run)],
        effects=[
            (each.node, each.name, str(each.trials), f"{each.correlation.mean:+.2f}",
             f"{each.correlation.low:+.2f} to {each.correlation.high:+.2f}")
            for each in read.effects(run)
        ],
        figures={figure.name: (figure, Markup(figure.inline(labels))) for figure in study_figures(run)},
        trials=[_row(record) for record in tried],
        anchors=[f"case-{run.records.index(record)}" for record in tried],
    )  # fmt: skip


def _again(each: read.Retrained) -> tuple[str, ...]:
    error = BY_NAME["parameter_gradient_error"].read(each.judged)
    first = each.first.accuracy
    return (
        str(read.known(each.first).number),
        each.first.case.variant,
        f"{each.first.case.learning_rate:g}",
        "" if first is None else units.percent(first.accuracy),
        units.spread(each.fresh.values()),
        each.to_first.in_points(),
        "the baseline" if each.to_baseline is None else each.to_baseline.in_points(),
        units.measured("peak_bytes", each.judged),
        units.ABSENT if error is None else f"{error:.1e}",
        each.judged.status.value,
    )


def _row(record: Record) -> tuple[str, ...]:
    known, accuracy = read.known(record), record.accuracy
    predicted, rate = known.predicted_peak_bytes, known.firing_rate
    return (
        str(known.number),
        record.case.variant,
        f"{record.case.learning_rate:g}",
        str(record.case.timesteps),
        record.status.value,
        units.ABSENT if accuracy is None else units.percent(accuracy.accuracy),
        units.ABSENT if accuracy is None else str(accuracy.epochs),
        units.ABSENT if predicted is None else units.size(predicted),
        units.measured("peak_bytes", record),
        units.measured("step_time_s", record),
        units.ABSENT if known.predicted_gradient_error is None else f"{known.predicted_gradient_error:.1e}",
        units.ABSENT if rate is None else units.percent(rate[0]),
        (record.reason or "").partition("\n")[0],
    )


def study_figures(run: Run) -> list[canvas.Figure]:
    """The front, parallel coordinates, importances and learning curves; those that the run has data for."""
    looks = Looks(record.model_copy(update={"case": Case(node=record.case.node)}) for record in read.trials(run))
    done = read.finished(run)
    figures = []
    if done:
        figures += [_front(run, done, looks), _parallel(done, looks)]
    shares = read.importances(run)
    if shares:
        figures.append(_importances(shares))
    curves = [record for record in read.trials(run) if record.accuracy is not None]
    if curves:
        figures.append(_curves(curves, done, looks))
    return figures


def _legend(looks: Looks, records: Sequence[Record]) -> list[Any]:
    nodes = looks.in_order(record.case.node for record in records)
    return [canvas.entry(looks[node].label, **looks[node].point()) for node in nodes]


def _front(run: Run, done: Sequence[Record], looks: Looks) -> canvas.Figure:
    best = {record.case for record in read.front(run)}
    budget = run.header.settings["budget_bytes"]
    with canvas.panels(legend=_legend(looks, done)) as (axes,):
        for record in sorted(done, key=lambda record: record.case in best):
            if record.memory is not None and record.accuracy is not None:
                style: dict[str, Any] = looks[record.case.node].point()
                axes.plot(
                    [record.memory.peak_bytes / _MIB], [100 * record.accuracy.accuracy],
                    alpha=1.0 if record.case in best else _FADED, url=f"case:{run.records.index(record)}", **style,
                )  # fmt: skip
        if budget is not None and any(r.memory and r.memory.peak_bytes > budget / 4 for r in done):
            axes.axvline(budget / _MIB, color=canvas.MUTED, linestyle=":")
        axes.set_xlabel("measured peak of a step (MiB)")
        axes.set_ylabel("test accuracy (%)")
        caption = (
            "Trials trained to their end. Faded ones are beaten in everything that was asked for; one that is not "
            "faded and not at the upper left takes less time. The dotted line is the budget."
        )
        return canvas.finish(axes, "study-front", "Accuracy against memory", caption)


def _parallel(done: Sequence[Record], looks: Looks) -> canvas.Figure:
    """A line per trial over the numbers that it was given, the accuracy last; gaps where a node lacks one."""

    def given(record: Record, name: str) -> Any:
        params = read.known(record).params
        return record.accuracy and record.accuracy.accuracy if name == "accuracy" else params.get(name)

    names = dict.fromkeys(name for record in done for name in read.known(record).params if name != "node")
    columns = [*names, "accuracy"]
    places = {name: _places([given(record, name) for record in done]) for name in columns}
    ranked = sorted(done, key=lambda record: record.accuracy.accuracy if record.accuracy else 0)
    top = {record.case for record in ranked[-max(1, len(ranked) // 4) :]}
    with canvas.panels(legend=_legend(looks, done)) as (axes,):
        for record in ranked:
            heights = [places[name].get(str(given(record, name)), float("nan")) for name in columns]
            look = looks[record.case.node]
            strong = record.case in top
            axes.plot(range(len(columns)), heights, color=look.colour, alpha=1 if strong else 0.25,
                      linewidth=1.6 if strong else 0.8, marker=look.marker, markersize=3.5)  # fmt: skip
        axes.set_xticks(
            range(len(columns)), [_SHORT.get(name, name).replace("_", "\n") for name in columns], fontsize=6.5
        )
        axes.set_yticks([0, 1], ["lowest", "highest"])
        caption = (
            "Each line is a trial, each axis goes from the lowest value tried to the highest, numbers that span a "
            "decade by their logarithm. The quarter with the highest accuracy is strong; a node has no place on an "
            "axis of others."
        )
        return canvas.finish(axes, "study-parallel", "What was tried", caption)


def _places(found: Sequence[Any]) -> dict[str, float]:
    """Where values stand between 0 and 1; words and truth values in the order of their names."""
    values = {value for value in found if value is not None}
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        order = sorted(map(str, values))
        return {word: place / max(1, len(order) - 1) for place, word in enumerate(order)}
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    log = low > 0 and high / low >= 10
    scale: Callable[[float], float] = math.log if log else float
    width = scale(high) - scale(low) if high > low else 1.0
    return {str(value): (scale(float(value)) - scale(low)) / width for value in values}


def _importances(shares: Mapping[str, float]) -> canvas.Figure:
    names = list(shares)
    with canvas.named_rows(names, 0.27 * len(names) + 0.3) as axes:
        axes.barh(range(len(names)), [100 * share for share in shares.values()], color=canvas.MUTED, height=0.6)
        axes.set_xlabel("share of the variance of accuracy (%)")
        caption = (
            "fANOVA over the parameters that every node has, as Optuna computes it; mean over five random forests."
        )
        return canvas.finish(axes, "study-importances", "Importances", caption)


def _curves(curves: Sequence[Record], done: Sequence[Record], looks: Looks) -> canvas.Figure:
    ended = {record.case for record in done}
    with canvas.panels(legend=_legend(looks, curves)) as (axes,):
        for record in curves:
            found = record.accuracy
            assert found is not None
            heights = [100 - 100 * min(each, 1 - 0.5 / found.test_samples) for each in found.accuracy_by_epoch]
            axes.plot(
                range(1, len(heights) + 1), heights, color=looks[record.case.node].colour,
                linestyle="-" if record.case in ended else ":", linewidth=1.0, alpha=0.7,
                marker="" if record.case in ended else "x", markersize=4, markevery=[-1],
            )  # fmt: skip
        longest = max(r.accuracy.epochs for r in curves if r.accuracy is not None)
        axes.set_xticks(range(1, longest + 1, -(-longest // 12)))
        axes.set_xlabel("epoch")
        axes.set_yscale("log")
        axes.set_yticks(_ERRORS, [f"{tick:g}" for tick in _ERRORS])
        axes.set_yticks([], minor=True)
        axes.set_ylim(0.1, 100)
        axes.set_ylabel("test error (%)")
        caption = "Dotted lines that end in a cross were stopped there. No error at all is drawn as half an image."
        return canvas.finish(axes, "study-curves", "Learning curves", caption)
