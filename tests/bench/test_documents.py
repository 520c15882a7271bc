"""What README and docs show of a committed run is what its records hold."""

import re
from pathlib import Path

import pytest

from revsnn_bench.report import units
from revsnn_bench.report.canvas import looks
from revsnn_bench.report.figures.memory import step_figures
from revsnn_bench.report.points import ratio_text, ratio_to_lif, standard_lifs
from revsnn_bench.report.tables import value_cell
from revsnn_bench.runs import load_run

ROOT = Path(__file__).parents[2]
RUN = load_run(ROOT / "results" / "sew-resnet18.json")
SHOWN = {
    "spikingjelly": "SpikingJelly, eager",
    "spikingjelly+bitpack": "SpikingJelly, `memopt` level 1",
    "lif": "`StandardLIF`, fused",
    "lif+remat": "the same inside `remat()`",
}


@pytest.mark.parametrize("record", RUN.records, ids=lambda record: record.case.node)
def test_readme_shows_the_numbers_of_the_run(record):
    """Bytes kept, peak, time to the fused LIF, gradient error and equal bits of a whole network, node by node."""
    equal = record.fidelity.bit_equal
    cells = (
        SHOWN[record.case.node],
        units.size(record.memory.retained_bytes),
        units.size(record.memory.peak_bytes),
        ratio_text(ratio_to_lif("step_time_s", record)),
        f"{record.fidelity.gradient_error:.1e}",
        f"{equal[0]} of {equal[1]}" if equal else "–",
    )
    assert f"| {' | '.join(cells)} |" in (ROOT / "README.md").read_text(encoding="utf-8")


EXAMPLE = load_run(ROOT / "results" / "example-quick.json")
IN_README = [
    record
    for record in EXAMPLE
    if (record.case.workload, record.case.batch, record.case.shape) == ("layer", 8, (4096,))
    and record.case.depth == 1
    and record.case.timesteps in (4, 32)
]


def example_row(record):
    """A case as README shows it; what a wrong case costs is withheld."""
    lifs = standard_lifs(EXAMPLE)
    ratios = [ratio_to_lif(name, record, lifs) for name in ("retained_bytes", "peak_bytes", "step_time_s")]
    retained, peak, time = map(ratio_text, ratios)
    shown = [value_cell(name, record) for name in ("retained_bytes", "peak_bytes", "gradient_error")]
    cells = (f"`{record.case.variant}`", record.status.value, shown[0], retained, shown[1], peak, time, shown[2])
    return f"| {record.case.timesteps} | {' | '.join(cells)} |"


@pytest.mark.parametrize("record", IN_README, ids=lambda record: record.case.id)
def test_readme_shows_the_example(record):
    """Two lengths of one layer, node by node: bytes, ratios with their intervals, gradient error."""
    assert example_row(record) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_picture_of_a_step_is_drawn_from_the_run():
    """The file that docs/remat.md shows, byte for byte: eager SpikingJelly first, then lif and lif+remat."""
    (figure,) = step_figures(RUN, looks(RUN))
    path = ROOT / "reports" / "sew-resnet18-timeline-1.svg"
    assert path.read_text(encoding="utf-8") == figure.standalone()
    assert min(map(float, re.findall(r'y="([-\d.]+)">[^<]*: peak', figure.svg))) > 9  # room for the title's 9 points
    titles = [figure.svg.index(f"{node}: peak") for node in ("spikingjelly", "lif", "lif+remat")]
    assert titles == sorted(titles)
    assert path.name in (ROOT / "docs" / "remat.md").read_text(encoding="utf-8")
