"""The one table of metrics: name, unit, direction, label, meaning, and how each is read from a record.

Reports, comparisons and the gate all read this table. A new metric is one row of `METRICS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType
from typing import Any, Literal

from revsnn_bench.records import Record

Number = int | float
Read = Callable[[Record], Number | None]
Unit = Literal["B", "FLOP", "s", "1"]
Family = Literal["memory", "flops", "time", "fidelity", "accuracy"]
Better = Literal["lower", "higher"] | None
Phase = Literal["forward", "backward"]


@dataclass(frozen=True)
class Samples:
    """Raw samples of a case in seconds, and those of what ratios are taken against, of the same rounds."""

    own: tuple[float, ...]
    lif: tuple[float, ...]


ReadSamples = Callable[[Record], Samples | None]


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    Fields:
        name: stable key; ends in the unit, except for pure numbers.
        unit: of the raw value; "1" for pure numbers.
        family: the part of a record that holds it.
        label: column heading for people.
        better: the direction of progress; None where neither direction is.
        deterministic: identical in repeated runs on one machine, so that any difference is a change.
        read: the value in a record, or None where it was not measured.
        samples: raw samples behind a time; None for every other metric.
    """

    name: str
    unit: Unit
    family: Family
    label: str
    meaning: str
    better: Better
    deterministic: bool
    read: Read
    samples: ReadSamples | None = None

    @property
    def has_ratio(self) -> bool:
        """Whether the quantity is also reported as a ratio to the standard LIF, or to a user's model as it is."""
        return self.better is not None and self.family in ("memory", "flops", "time")


def total_at(*paths: str) -> Read:
    """Returns a reader of the sum over dotted paths; None as soon as a part of one was not measured."""

    def read(record: Record) -> Number | None:
        values = [_at(record, path) for path in paths]
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return read


def _at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = None if value is None else getattr(value, part)
    return value


def samples_of(*phases: Phase) -> ReadSamples:
    """Returns a reader of raw samples, added up round by round; None where the rounds of the phases do not match.

    Without those of the reference where an older version took another one.
    """

    def by_round(record: Record, whose: str) -> tuple[float, ...]:
        samples = [_at(record, f"time.{whose}{phase}_time_s") or () for phase in phases]
        return tuple(map(sum, zip(*samples, strict=True))) if len(set(map(len, samples))) == 1 else ()

    def read(record: Record) -> Samples | None:
        own = by_round(record, "")
        is_comparable = _at(record, "time.reference") == record.case.reference
        return Samples(own, by_round(record, "lif_") if is_comparable else ()) if own else None

    return read


def in_copies(phase: Phase) -> Read:
    """Returns a reader of a phase's median time over that of copying the input in the same rounds."""
    samples = samples_of(phase)

    def read(record: Record) -> Number | None:
        taken, copies = samples(record), _at(record, "time.copy_time_s")
        copy = median(copies) if copies else 0.0
        return median(taken.own) / copy if taken is not None and copy else None

    return read


def _bytes(name: str, label: str, meaning: str, path: str = "", better: Better = "lower", exact: bool = True) -> Metric:
    return Metric(name, "B", "memory", label, meaning, better, exact, total_at(f"memory.{path or name}"))


def _flops(name: str, label: str, meaning: str, *paths: str, better: Better = "lower") -> Metric:
    return Metric(name, "FLOP", "flops", label, meaning, better, True, total_at(*(f"flops.{path}" for path in paths)))


def _time(name: str, label: str, meaning: str, *phases: Phase) -> Metric:
    samples = samples_of(*phases)

    def read(record: Record) -> Number | None:
        taken = samples(record)
        return None if taken is None else median(taken.own)

    return Metric(name, "s", "time", label, meaning, "lower", False, read, samples)


def _fidelity(name: str, label: str, meaning: str, path: str = "", better: Better = "lower") -> Metric:
    return Metric(name, "1", "fidelity", label, meaning, better, False, total_at(f"fidelity.{path or name}"))


def _accuracy(name: str, label: str, meaning: str, unit: Unit = "1", better: Better = "higher") -> Metric:
    return Metric(name, unit, "accuracy", label, meaning, better, False, total_at(f"accuracy.{name}"))


# fmt: off
METRICS: tuple[Metric, ...] = (
    _bytes("retained_bytes", "retained",
           "Bytes alive after forward only because of the node or model; input dropped, output, parameters "
           "and carried state not counted."),
    _bytes("state_bytes", "state", "Neuron state carried to the next call until reset()."),
    _bytes("output_bytes", "output", "The output itself; the same for every node that spikes alike.", better=None),
    _bytes("saved_own_bytes", "saved, own",
           "Storages autograd packed for backward that belong to neither input nor output.", "saved_bytes.own"),
    _bytes("saved_input_bytes", "saved, input",
           "Packed storages that are the caller's input, kept alive by the graph.", "saved_bytes.input", better=None),
    _bytes("saved_output_bytes", "saved, output",
           "Packed storages that are the output: free where the next layer keeps its input anyway.",
           "saved_bytes.output", better=None),
    _bytes("peak_bytes", "peak",
           "Highest live tensor bytes during forward and backward, less what was alive before the step."),
    _bytes("process_peak_bytes", "process peak",
           "Growth of the process's high-water mark in the step, by the operating system; never exact.", exact=False),
    _bytes("device_peak_bytes", "device peak", "Highest bytes by the device allocator; absent on CPU."),
    _bytes("device_reserved_bytes", "device reserved", "Bytes the device allocator held; absent on CPU.", exact=False),
    _bytes("driver_peak_bytes", "driver peak", "Bytes of this process by the NVIDIA driver.", exact=False),
    _flops("forward_flops", "forward FLOPs",
           "Operations of forward: 1 per pointwise output element, 2 per multiply-accumulate.", "forward.total"),
    _flops("forward_pointwise_flops", "forward pointwise FLOPs",
           "The pointwise part of forward.", "forward.pointwise"),
    _flops("backward_flops", "backward FLOPs", "Operations of backward, without recomputation.", "backward.total"),
    _flops("recompute_flops", "recompute FLOPs",
           "Operations spent on having forward values again.", "recompute.total"),
    _flops("backward_recompute_flops", "backward + recompute FLOPs",
           "All operations after forward: what the gradient costs.", "backward.total", "recompute.total"),
    _flops("step_flops", "step FLOPs",
           "Forward, backward and recomputation together.", "forward.total", "backward.total", "recompute.total"),
    _flops("fvcore_forward_flops", "fvcore forward FLOPs",
           "Cross-check of the forward convolution and linear part by fvcore, at 2 per multiply-accumulate.",
           "fvcore_forward_flops", better=None),
    _time("forward_time_s", "forward time", "Median wall time of forward.", "forward"),
    _time("backward_time_s", "backward time", "Median wall time of backward.", "backward"),
    _time("step_time_s", "step time", "Median wall time of forward and backward together.", "forward", "backward"),
    Metric("compile_time_s", "s", "time", "compile time",
           "What the first step of a process takes beyond a later one, with nothing compiled on disk; one sample.",
           None, False, total_at("compile_time_s")),
    Metric("forward_copies", "1", "time", "forward in copies",
           "Forward time over that of copying the input, read and write, in the same rounds; one copy is the least.",
           None, False, in_copies("forward")),
    Metric("backward_copies", "1", "time", "backward in copies",
           "The same of backward; one and a half copies is the least: output and gradient read, gradient written.",
           None, False, in_copies("backward")),
    _fidelity("gradient_error", "gradient error",
              "Relative L2 error of the input's gradient against float64 backpropagation of the same forward."),
    _fidelity("parameter_gradient_error", "parameter gradient error",
              "The same error over all parameter gradients together."),
    _fidelity("state_gradient_error", "state gradient error",
              "The same error of the gradients with respect to the membranes carried from one call to the next."),
    _fidelity("output_error", "output error", "Error of the output against the reference dynamics."),
    _fidelity("gradient_bias", "gradient bias",
              "Of an approximate method: relative L2 distance of all parameter gradients to float64 backpropagation.",
              "gradient_bias.relative", better=None),
    _fidelity("gradient_cosine", "gradient cosine", "Of an approximate method: cosine of the angle between the two.",
              "gradient_bias.cosine", better=None),
    _fidelity("reconstruction_error", "reconstruction error",
              "Worst absolute input error after inverting or decoding."),
    _fidelity("flipped_spikes", "flipped spikes", "Spikes recovered wrongly."),
    _fidelity("predicted_error", "predicted error", "Gradient error that the node's own guard predicts.", better=None),
    _accuracy("accuracy", "accuracy", "Test accuracy after a fixed budget of training on real data."),
    _accuracy("stripped_accuracy", "stripped accuracy",
              "Test accuracy of the trained network with true binary spikes."),
    _accuracy("train_time_s", "training time", "Wall time of that training, one sample.", "s", better=None),
)
# fmt: on
"""Every metric, in the order in which reports show them."""

BY_NAME: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in METRICS})
"""The same metrics by name."""


def measured(record: Record) -> dict[str, Number]:
    """Every metric that the record holds, by name; a NaN was measured, what was not is absent."""
    values = {metric.name: metric.read(record) for metric in METRICS}
    return {name: value for name, value in values.items() if value is not None}
