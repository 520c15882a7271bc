"""What README and docs show of a committed run is what its records hold."""

import functools
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, median, stdev

import pytest
import revsnn_nodes
from scipy.special import stdtrit
from typer.testing import CliRunner

import revsnn_bench
from revsnn_bench.claims import Plan, Verdict, claims_markdown, judge
from revsnn_bench.cli import app
from revsnn_bench.exit_codes import ExitCode
from revsnn_bench.records import Status
from revsnn_bench.report import study, units
from revsnn_bench.report.canvas import Looks
from revsnn_bench.report.figures import method_figures
from revsnn_bench.report.html.study import study_figures
from revsnn_bench.report.memory_figures import step_figures
from revsnn_bench.report.points import ratio_of, ratio_text, references
from revsnn_bench.report.tables import value_cell
from revsnn_bench.runs import load_run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = load_run(ROOT / "results" / "sew-resnet18.json")
SHOWN = {
    "spikingjelly": ("SpikingJelly as it comes", "SpikingJelly, as it comes"),
    "spikingjelly+bitpack": ("its `memopt`, level 1", "SpikingJelly, memopt 1"),
    "lif": ("`swap_neurons(model)`", "StandardLIF, fused"),
    "lif+remat": ("the same `with remat():`", "StandardLIF, remat"),
}
"""How README and the example on the card call a node of the run."""


def on_card():
    """Peak, milliseconds launched and replayed of each variant on the H200, at B = 32 and at B = 128."""
    printed = (ROOT / "results" / "gpu" / "h200-sew-resnet18.txt").read_text(encoding="utf-8")
    found = re.findall(r"^(\S.*?)  +([\d.]+ MiB) +([\d.]+) ms", printed, flags=re.MULTILINE)
    halves: list[tuple[dict, dict]] = [({}, {}), ({}, {})]
    for number, (name, peak, milliseconds) in enumerate(found):
        halves[number // 8][number // 4 % 2][name] = peak, float(milliseconds)
    return halves


@pytest.mark.parametrize("record", RUN.records, ids=lambda record: record.case.node)
def test_readme_shows_the_numbers_of_the_run(record):
    """Peak and time of a whole network on both machines, gradient error and equal bits, node by node."""
    equal, ((_, _), (launched, _)) = record.fidelity.bit_equal, on_card()
    name, name_on_card = SHOWN[record.case.node]
    peak, milliseconds = launched[name_on_card]
    cells = (
        name,
        units.size(record.memory.peak_bytes),
        ratio_text(ratio_of("step_time_s", record)),
        peak,
        f"{milliseconds / launched['StandardLIF, fused'][1]:.2f}",
        f"{record.fidelity.gradient_error:.1e}",
        f"{equal[0]} of {equal[1]} |" if equal else "|",
    )
    assert f"| {' | '.join(cells)}\n" in README


def test_readme_says_what_each_thing_changes():
    """Times of `remat` on the card at a small batch, what stripping costs, and where the paper's node goes wrong."""
    (launched, replayed), _ = on_card()
    small, graph = (each["StandardLIF, remat"][1] / each["StandardLIF, fused"][1] for each in (launched, replayed))
    assert f"where Python is slower than the card, {small:.1f} times, or {graph:.2f} from" in README
    stripped = [spread(DIGITS, "lif-carrier", True, epsilon=1 / n).partition(" ")[0] for n in (16, 256)]
    lif = spread(DIGITS, "lif").partition(" ")[0]
    assert f"has {stripped[0]} % where LIF has {lif} %; with `epsilon=1/256` {stripped[1]} % |" in README
    (wrong,) = re.findall(r"its gradient is wrong at T = (\d+),", findings()["constant"].measured)
    small_lif, small_paper = re.findall(r"(?:lif|revlif\S+) ([\d.]+ )± [\d.]+ %", findings()["accuracy"].measured)[:2]
    assert f"gradient is wrong from T = {wrong} on; a small network on digits has {small_paper}% where LIF" in README
    assert f"where LIF has {small_lif}% |" in README
    anchored = [r for r in EXAMPLE if r.case.node == "revlif-anchored" and r.case.dtype == "float32"]
    assert {r.status.value for r in anchored} == {"ok"}
    assert f"right at every T measured, up to {max(r.case.timesteps for r in anchored):,} |" in README


def test_remat_page_shows_what_the_run_keeps():
    """Retained bytes of eager SpikingJelly and of `remat`."""
    kept = {r.case.node: units.size(r.memory.retained_bytes) for r in RUN}
    page = (ROOT / "docs" / "remat.md").read_text(encoding="utf-8")
    assert f"{kept['spikingjelly']} eager, {kept['lif+remat']} inside." in page


def test_remat_page_shows_what_loops_of_snntorchs_neurons_keep():
    """Bytes and time of both networks, as the example printed them; README has their ratios in short."""
    printed = (ROOT / "results" / "remat-snntorch.txt").read_text(encoding="utf-8")
    row = r"^([\w -]+)\.\n.*\nas it is +(\S+ MiB).*\ninside remat +(\S+ MiB).* ms +(\S+) +(\S+)  (\S+)$"
    found = re.findall(row, printed, flags=re.MULTILINE)
    assert len(found) == 2
    for name, plain, kept, less, peak, time in found:
        assert f"| {name.replace(' ', '')} | {plain} | {kept}, {less} | {peak} | {time} |" in (
            ROOT / "docs" / "remat.md"
        ).read_text(encoding="utf-8")
    less, times = ([f"{float(each[i].removeprefix('1/')):.1f}" for each in found] for i in (3, 5))
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    assert f"keep {' and '.join(less)} times less inside `remat`" in readme
    assert f"in {' and '.join(times)} times the time" in readme


def test_remat_page_shows_what_spikingjellys_networks_keep():
    """Bytes and times of every network, as the example printed them."""
    names = {
        "sew_resnet18 --batch 32": ("SEW-ResNet-18", "SEW-ResNet-18, 32"),
        "sew_resnet18 --batch 16": ("the same, T = 8, batch 16", "SEW-ResNet-18, T = 8, 16"),
        "sew_resnet18 --batch 8": (None, "SEW-ResNet-18, 8"),
        "spiking_resnet18 --batch 32": ("spiking ResNet-18", "spiking ResNet-18, 32"),
        "vgg11 --batch 8": ("VGG-11-BN", "VGG-11-BN, 8"),
        "ms_resnet18 --batch 32": ("MS-ResNet-18", "MS-ResNet-18, 32"),
        "spikformer --batch 8": ("Spikformer", "Spikformer, 8"),
        "qkformer --batch 8": ("QKFormer", "QKFormer, 8"),
        "sdt --batch 8": ("Spike-driven Transformer", "Spike-driven Transformer, 8"),
        "maxformer --batch 8": ("MaxFormer", "MaxFormer, 8"),
    }
    page = (ROOT / "docs" / "remat.md").read_text(encoding="utf-8")
    printed = (ROOT / "results" / "remat-networks.txt").read_text(encoding="utf-8")
    runs = re.findall(r"^\$ \S+ \S+ (\S+ --batch \d+).* --rounds (\d+)\n((?:[^$].*\n?)+)", printed, flags=re.MULTILINE)
    assert {call for call, _, _ in runs} == set(names)
    row = r"^(\S.*?)  +([\d.]+) MiB +([\d.]+) MiB +([\d.]+) ms +(\S+) +(\S+)"
    for call, rounds, table in runs:
        found = {name: rest for name, *rest in re.findall(row, table, flags=re.MULTILINE)}
        eager, memopt, fused, inside = (
            found.get(name) for name in
            ("SpikingJelly, as it comes", "SpikingJelly, memopt 1", "StandardLIF, fused", "StandardLIF, remat")
        )  # fmt: skip
        bytes_name, times_name = names[call]
        less = [f"{each[3]}, {each[4]}" if each else "-" for each in (memopt, fused, inside)]
        assert not bytes_name or f"| {bytes_name} | {eager[0]} / {eager[1]} MiB | {' | '.join(less)} |" in page
        slower = [f"{float(inside[2]) / float(each[2]):.2f}" if each else "-" for each in (fused, memopt)]
        assert f"| {times_name}, {rounds} | {' | '.join(slower)} |" in page
    ratios = re.findall(r"^StandardLIF, remat .* 1/([\d.]+) +1/([\d.]+)", printed, flags=re.MULTILINE)
    kept, peak = ([f"{end(map(float, each)):.1f}" for end in (min, max)] for each in zip(*ratios, strict=True))
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    assert f"keeps {' to '.join(kept)} times less than as it comes, and the peak is {' to '.join(peak)} times" in readme


def test_remat_page_has_the_peaks_of_another_processor():
    """Where they are others than with AVX-512; what is kept, and all of the other networks, is the same there."""
    page = (ROOT / "docs" / "remat.md").read_text(encoding="utf-8")
    names = {
        "sew_resnet18 --batch 32": "SEW-ResNet-18",
        "sew_resnet18 --batch 8": "the same, batch 8",
        "spiking_resnet18 --batch 32": "spiking ResNet-18",
        "ms_resnet18 --batch 32": "MS-ResNet-18",
    }
    tables = []
    for file in ("remat-networks.txt", "remat-networks-avx2.txt"):
        printed = (ROOT / "results" / file).read_text(encoding="utf-8")
        runs = re.findall(r"^\$ \S+ \S+ (\S+ --batch \d+).*\n((?:[^$].*\n?)+)", printed, flags=re.MULTILINE)
        row = r"^(\S.*?)  +([\d.]+) MiB +([\d.]+) MiB .*?1/\S+ +(1/\S+)"
        tables.append({call: re.findall(row, table, flags=re.MULTILINE) for call, table in runs})
    wide, narrow = tables
    for call, rows in narrow.items():
        assert [each[:2] for each in rows] == [each[:2] for each in wide[call]]  # what is kept
        if call in names:
            (_, _, eager, _), *less = rows
            fused, inside, memopt = (ratio for *_, ratio in less)
            assert f"| {names[call]} | {eager} MiB | {memopt} | {fused} | {inside} |" in page
        else:
            assert rows == wide[call]
    least = min(float(rows[2][3].removeprefix("1/")) for rows in narrow.values())
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    assert f"on a processor without AVX-512, where convolutions take more, {least:.2f} " in readme


FIELD = load_run(ROOT / "results" / "field.json")
OVER_ALL_T = load_run(ROOT / "results" / "field-long.json")
LONGEST = [r for r in FIELD if r.case.timesteps == 64 and r.status.value != "skipped"]
OVER_TIME = [r for r in LONGEST if r.case.workload == "mlp"]
OF_PEERS = [r for r in LONGEST if r.case.workload == "layer"]


def field_row(record):
    """A method as docs/methods.md shows it: its peak at every T, and at the last its cost and its bias."""
    rows = [r for r in OVER_ALL_T if r.memory is not None]
    peaks = {r.case.timesteps: r for r in rows if r.case.node == record.case.node}
    bias = record.fidelity.gradient_bias
    fractions = (bias.relative, bias.cosine, bias.by_module["net.1.inner"][0]) if bias else ()
    cells = (
        f"`{record.case.node.removeprefix('lif+')}`",
        record.status.value,
        *(units.measured("peak_bytes", peaks[t]) if t in peaks else "–" for t in (4, 16, 64, 256, 1024)),
        *(units.measured(name, record) for name in ("retained_bytes", "step_flops", "step_time_s")),
        ratio_text(ratio_of("step_time_s", record)),
        *(map(units.fraction, fractions) if bias else ("–",) * 3),
    )
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("record", OVER_TIME, ids=lambda record: record.case.node)
def test_the_field_shows_the_numbers_of_its_run(record):
    """Every method of the committed run at T = 64: memory, operations, time and bias."""
    assert field_row(record) in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_both_runs_of_the_field_have_the_same_bytes_and_operations():
    """Of every case that both have; times are of the shorter run alone, which had the machine for itself."""
    short = {r.case.id: r for r in FIELD if r.case.workload == "mlp" and r.memory is not None}
    both = [(r, short[r.case.id]) for r in OVER_ALL_T if r.case.id in short]
    assert len(both) == len(short)
    assert all(a.memory.peak_bytes == b.memory.peak_bytes and a.flops == b.flops for a, b in both)


def peer_row(record):
    """A peer as docs/methods.md shows it; what an unverified one costs is withheld."""
    lifs = references(FIELD)
    shown = [value_cell(name, record) for name in ("retained_bytes", "peak_bytes", "gradient_error")]
    time = ratio_text(ratio_of("step_time_s", record, lifs))
    return f"| {' | '.join((f'`{record.case.variant}`', record.status.value, *shown[:2], time, shown[2]))} |"


@pytest.mark.parametrize("record", OF_PEERS, ids=lambda record: record.case.variant)
def test_the_field_shows_its_peers(record):
    """Every peer of the committed run at T = 64: bytes, time against our LIF, and gradient error."""
    assert peer_row(record) in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


TRAINED = {name: load_run(ROOT / "results" / f"{name}.json") for name in ("field-accuracy", "field-pixels")}


def accuracy_row(run, node):
    """Mean and deviation over seeds, and of the differences to BPTT seed by seed the mean and its 95 % interval."""
    of = {each: {r.case.seed: 100 * r.accuracy.accuracy for r in run if r.case.node == each} for each in (node, "lif")}
    less = [of[node][seed] - of["lif"][seed] for seed in of[node]]
    half = stdtrit(len(less) - 1, 0.975) * stdev(less) / len(less) ** 0.5
    paired = f"{mean(less):+.1f} [{mean(less) - half:.1f}, {mean(less) + half:.1f}]" if node != "lif" else "–"
    values = of[node].values()
    return f"| `{node.removeprefix('lif+')}` | {mean(values):.1f} ± {stdev(values):.1f} % | {paired} |"


@pytest.mark.parametrize(
    ("name", "node"), dict.fromkeys((name, record.case.node) for name, run in TRAINED.items() for record in run)
)
def test_the_field_shows_what_was_learned(name, node):
    """Accuracy of each method over the seeds of its run, paired with BPTT."""
    assert accuracy_row(TRAINED[name], node) in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_readme_shows_the_field():
    """Peaks of backpropagation, of an exact method and of an approximate one, and its bias in the first layer."""
    of = {r.case.node: r for r in OVER_TIME}
    lif, revolve, sltt = (units.measured("peak_bytes", of[node]) for node in ("lif", "lif+revolve-3", "lif+sltt"))
    bias = units.fraction(of["lif+sltt"].fidelity.gradient_bias.by_module["net.1.inner"][0])
    said = " ".join(README.split())
    assert f"at T = 64 backpropagation through time takes {lif}, `lif+revolve-3` {revolve} with the same" in said
    assert f"`lif+sltt` {sltt} with a first layer's gradient that is {bias} away from it" in said
    assert of["lif+revolve-3"].status.value == "ok"


def test_the_picture_of_the_field_is_drawn_from_its_run():
    """The file that docs/methods.md shows, byte for byte."""
    run = OVER_ALL_T
    (figure,) = method_figures(run, Looks(run))
    path = ROOT / "reports" / "field-long-methods-1.svg"
    assert path.read_text(encoding="utf-8") == figure.standalone()
    assert path.name in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


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
    lifs = references(EXAMPLE)
    ratios = [ratio_of(name, record, lifs) for name in ("retained_bytes", "peak_bytes", "step_time_s")]
    retained, peak, time = map(ratio_text, ratios)
    shown = [value_cell(name, record) for name in ("retained_bytes", "peak_bytes", "gradient_error")]
    cells = (f"`{record.case.variant}`", record.status.value, shown[0], retained, shown[1], peak, time, shown[2])
    return f"| {record.case.timesteps} | {' | '.join(cells)} |"


@pytest.mark.parametrize("record", IN_README, ids=lambda record: record.case.id)
def test_readme_shows_the_example(record):
    """Two lengths of one layer, node by node: bytes, ratios with their intervals, gradient error."""
    assert example_row(record) in README


PAPER = load_run(ROOT / "results" / "paper.json")
SAID = {
    "memory": "the node takes 58.65 times less memory",
    "memory-right": "the same with a right gradient, by `lif-carrier`, which is not the paper's",
    "constant": "its memory does not grow with T",
    "network": "a network keeps at most half with the node swapped",
    "flops": "23 % fewer backward FLOPs than classic reversible backprop",
    "time": "23.8 % less training time than that",
    "accuracy": "accuracy is maintained",
    "accuracy-beta": "the same at `beta` 0.1, which is not the paper's",
    "groups": "accuracy rises with the number of groups",
    "one-node": "one node swapped in a small VGG: less memory, the same accuracy",
    "inverse": "the inverse gives stored activations back",
    "remat": "one tensor per block, the network unchanged, by `remat`, which is not the paper's",
}


@functools.cache
def findings():
    """What the committed run says of each claim, by its key."""
    return {finding.key: finding for finding in judge(PAPER, Plan())}


def test_every_claim_was_measured_and_is_on_its_page():
    """The committed run holds every case of today's claims, and its table is what those records give."""
    assert list(findings()) == list(SAID)
    assert not [key for key, finding in findings().items() if finding.verdict is Verdict.OPEN]
    assert (ROOT / "reports" / "paper-claims.md").read_text(encoding="utf-8") == claims_markdown(
        PAPER, list(findings().values())
    )


CLAIMS_PAGE = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", SAID)
def test_the_claims_page_shows_the_claims(key):
    """The verdict of each claim, and no number that its finding does not hold; README has some of these rows."""
    (row,) = [line for line in CLAIMS_PAGE.splitlines() if line.startswith(f"| {SAID[key]} |")]
    assert [line for line in README.splitlines() if line.startswith(f"| {SAID[key]} |")] in ([], [row])
    _, _, shown, verdict, _ = row.split("|")
    assert verdict.strip() == findings()[key].verdict.value
    text = f"{findings()[key].measured} {findings()[key].conditions} {findings()[key].why}"
    numbers = re.findall(r"(?<![\w-])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", shown)
    assert numbers
    assert not [number for number in numbers if number not in text]


DIGITS = load_run(ROOT / "results" / "vgg11-digits.json")
BETAS = load_run(ROOT / "results" / "vgg11-digits-beta.json")


def spread(run, node, stripped=False, **options):
    """Mean and deviation over seeds, in percent, as docs/accuracy.md shows them."""
    found = [
        record.accuracy.stripped_accuracy if stripped else record.accuracy.accuracy
        for record in run
        if record.case.node == node and options.items() <= record.case.options.items()
    ]
    return f"{100 * mean(found):.1f} ± {100 * stdev(found):.1f} %"


def test_accuracy_page_shows_the_trainings():
    """Every mean and deviation of the two tables of VGG-11."""
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    for node in ("lif", "lif-checkpoint", "revlif-stored", "revlif-revnet", "revlif", "revlif-anchored"):
        assert f"| `{node}` | {spread(DIGITS, node)} |" in page
    for node in ("lif-carrier", "norm-carrier"):
        for text, epsilon in (("1/256", 1 / 256), ("1/16", 1 / 16)):
            plain, bare = (spread(DIGITS, node, stripped, epsilon=epsilon) for stripped in (False, True))
            (row,) = re.findall(rf"^\| `{node}`, `epsilon` {text} \|.*$", page, re.MULTILINE)
            assert row.startswith(f"| `{node}`, `epsilon` {text} | {plain} |")
            assert f"| {bare} |" in row
    betas = (0.05, 0.1, 0.25, 0.5, 1.0)
    assert f"| test accuracy | {' | '.join(spread(BETAS, 'revlif-anchored', beta=beta) for beta in betas)} |" in page


def test_accuracy_page_shows_the_long_sequences():
    """How each node ended at T = 1,024 in 256 MiB, epoch by epoch."""
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    for record in load_run(ROOT / "results" / "pixels-1024.json"):
        (row,) = re.findall(rf"^\| `{record.case.node}` \| `{record.status.value}` \|.*$", page, re.MULTILINE)
        if record.accuracy is not None:
            epochs = ", ".join(f"{100 * each:.1f} %" for each in record.accuracy.accuracy_by_epoch)
            assert f"| {epochs}" in row
            assert row.endswith(f"| {record.accuracy.train_time_s:.0f} s |")


@pytest.mark.parametrize("name", ["digits-tune", "vgg11-tune"])
def test_tuning_page_shows_its_studies(name):
    """What came out, every setting trained again and every effect; no trained trial exceeded the budget as measured."""
    run, page = load_run(ROOT / "results" / f"{name}.json"), (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    assert all(line in page for line in study.summary(run)[:2])
    for each in study.retrained(run):
        first, paired = each.first, each.to_baseline
        cells = (
            str(study.known(first).number),
            f"`{first.case.node}`, T = {first.case.timesteps}",
            units.measured("peak_bytes", each.judged),
            units.percent(first.accuracy.accuracy),
            units.spread(each.fresh.values()),
            each.to_first.in_points(),
            "the baseline" if paired is None else paired.in_points(),
        )
        assert f"| {' | '.join(cells)} |" in page
    if name == "vgg11-tune":
        for node, parameter, trials, (rho, low, high) in study.effects(run):
            assert f"| `{node}` | `{parameter}` | {trials} | {rho:+.2f} [{low:+.2f}, {high:+.2f}] |" in page
    peaks = [record.memory.peak_bytes for record in run if record.accuracy and record.memory]
    assert max(peaks) <= run.header.settings["budget_bytes"]
    drawn = ROOT / "reports" / f"{name}-front.svg"
    assert drawn.read_text(encoding="utf-8") == study_figures(run)[0].standalone()


def test_no_committed_figure_is_left_over():
    """Each is shown by a report or a page: one of an older rendering would be read as of today."""
    pages = [ROOT / "README.md", *(path for folder in ("reports", "docs") for path in (ROOT / folder).glob("*.md"))]
    shown = "".join(page.read_text(encoding="utf-8") for page in pages)
    drawn = {path.name for path in (ROOT / "reports").glob("*.svg")} - {"vgg11-tune-front.svg"}  # shown by no page
    assert not [name for name in sorted(drawn) if name not in shown]


def test_the_picture_of_a_step_is_drawn_from_the_run(tmp_path):
    """The file that README and docs/remat.md show, byte for byte: eager SpikingJelly first, then lif and lif+remat.

    `revsnn-bench report sew-resnet18 --format md,svg` writes it.
    """
    command = ["report", str(ROOT / "results" / "sew-resnet18.json"), "--format", "svg", "--reports", str(tmp_path)]
    assert CliRunner().invoke(app, command).exit_code == 0
    (written,) = tmp_path.glob("sew-resnet18-timeline-1.svg")
    assert written.read_bytes() == (ROOT / "reports" / written.name).read_bytes()
    assert f"](reports/{written.name})" in README
    (figure,) = step_figures(RUN, Looks(RUN))
    path = ROOT / "reports" / "sew-resnet18-timeline-1.svg"
    assert path.read_text(encoding="utf-8") == figure.standalone()
    assert min(map(float, re.findall(r'y="([-\d.]+)">[^<]*: peak', figure.svg))) > 9  # room for the title's 9 points
    titles = [figure.svg.index(f"{node}: peak") for node in ("spikingjelly", "lif", "lif+remat")]
    assert titles == sorted(titles)
    assert path.name in (ROOT / "docs" / "remat.md").read_text(encoding="utf-8")


GPU_PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
SPEEDS = json.loads((ROOT / "results" / "gpu" / "h200-kernels.json").read_text(encoding="utf-8"))
COLUMNS = [(dtype, steps) for dtype in ("float32", "bfloat16") for steps in (4, 16, 64)]


@pytest.mark.parametrize("name", sorted({each["name"] for each in SPEEDS["kernels"]} - {"copy"}))
def test_gpu_page_shows_the_kernels(name):
    """The share of a copy's rate that each kernel reached on the card."""
    rates = {(k["name"], k["dtype"], k["steps"]): k["nbytes"] / k["time_s"] for k in SPEEDS["kernels"]}
    cells = [f"{100 * rates[name, *column] / rates['copy', *column]:.1f} %" for column in COLUMNS]
    assert f"| `{name}` | {' | '.join(cells)} |" in GPU_PAGE


@pytest.mark.parametrize("node", sorted({each["node"] for each in SPEEDS["steps"]}))
def test_gpu_page_shows_the_steps_of_a_layer(node):
    """Copies that a replayed step took."""
    copies = {(each["node"], each["dtype"], each["steps"]): each["copies"] for each in SPEEDS["steps"]}
    assert all(each["in_graph"] for each in SPEEDS["steps"])
    assert f"| `{node}` | {' | '.join(f'{copies[node, *column]:.2f}' for column in COLUMNS)} |" in GPU_PAGE


def test_gpu_page_shows_the_network():
    """Peak and times of every variant, launched and replayed, at both batches, as the example printed them."""
    printed = (ROOT / "results" / "gpu" / "h200-sew-resnet18.txt").read_text(encoding="utf-8")
    found = re.findall(r"^(\S.*?)  +([\d.]+ MiB) +([\d.]+ ms)", printed, flags=re.MULTILINE)
    assert len(found) == 16
    for start in range(4):
        quarters = [found[start + 4 * quarter] for quarter in range(4)]
        (name, peak, launched), (_, _, replayed), (_, large, large_launched), (_, _, large_replayed) = quarters
        cells = (name, peak, launched, replayed, large, large_launched, large_replayed)
        assert f"| {' | '.join(cells)} |" in GPU_PAGE


@pytest.mark.parametrize("kernel", ["carrier_backward", "norm_lif_backward"])
def test_gpu_page_shows_what_rows_and_cache_gave(kernel):
    """Times of the shapes that the rule chooses, by the kernels before and after, with sixteen rows and eight."""
    timed = json.loads((ROOT / "results" / "gpu" / "h200-rows.json").read_text(encoding="utf-8"))
    before, now = "before", "and the rest given up first"
    cells = [
        f"{1e3 * each['ms']:.0f} µs"
        for variant in ((before, 16, 1), (now, 16, 1), (before, 16, 4), (before, 8, 4), (now, 8, 4))
        for each in timed
        if (each["kernels"], each["most_rows"], each["c"]) == variant
        and (each["kernel"], each["T"]) == (kernel, 64)
        and each["dtype"] == ("float32" if each["c"] == 1 else "bfloat16")
    ]
    assert f"| `{kernel}` | {' | '.join(cells)} |" in GPU_PAGE


def test_gpu_page_says_how_much_of_the_suite_ran():
    """The cases of the run that was saved; all of them ended well."""
    run = load_run(ROOT / "results" / "gpu" / "h200-suite.jsonl")
    left = len(run.planned) - len(run.records)
    assert {record.status for record in run.records} == {Status.OK}
    assert f"The last {left} of the {len(run.planned)} cases" in GPU_PAGE
    assert f"The first {len(run.records)}\nran and are right" in GPU_PAGE


RELIABILITY = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_each_promise_names_a_test_that_exists():
    """Every row of every table but that of the exit codes; a test that is renamed takes its promise with it."""
    there = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", RELIABILITY))
    assert [name for name in named if f"def {name}(" not in there] == []
    rows = [line for line in RELIABILITY.partition("## Exit codes")[0].splitlines() if line.startswith("| ")]
    assert [row for row in rows if not re.search(r"test_|the same|held by", row.rsplit("|", 2)[1])] == []


def test_every_exit_code_is_listed():
    """The table and the enumeration hold the same codes."""
    listed = re.findall(r"^\| (\d+) \|", RELIABILITY, re.MULTILINE)
    assert [int(code) for code in listed] == [code.value for code in ExitCode]


KERNELS_PAGE = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
PAGES = [load_run(ROOT / "results" / f"{name}.json") for name in ("kernels-32x1m", "kernels-32x1m-kept")]
KERNEL_ROWS = {
    "`lif-carrier`, fused": ("lif-carrier[backend=fused]", "0"),
    "`revlif-anchored`, fused": ("revlif-anchored[backend=fused]", "0"),
    "SpikingJelly 2.0 `LIFNode` under `torch.compile`": ("spikingjelly-compiled", "1 output"),
    "SpikingJelly 2.0 `LIFNode`, eager": ("spikingjelly", "3 outputs"),
    "`lif-carrier`, PyTorch reference": ("lif-carrier[backend=torch]", "0"),
}


def in_copies(variant, prefix=""):
    """Medians forward and backward, in copies of the input, in either run; a dash where it was not measured."""
    cells = []
    for run in PAGES:
        times = next((record.time for record in run if record.case.variant == variant), None)
        for phase in ("forward", "backward"):
            samples = getattr(times, f"{prefix}{phase}_time_s", None)
            cells.append(f"{median(samples) / median(times.copy_time_s):.1f}" if samples else "–")
    return cells


@pytest.mark.parametrize("name", KERNEL_ROWS)
def test_kernels_page_shows_its_runs(name):
    """Copies forward and backward with new pages and with memory kept, and what is retained, in outputs."""
    variant, retained = KERNEL_ROWS[name]
    assert f"| {name} | {' | '.join(in_copies(variant))} | {retained} |" in KERNELS_PAGE
    record = next(record for record in PAGES[0] if record.case.variant == variant)
    assert record.status is Status.OK
    assert round(record.memory.retained_bytes / record.memory.output_bytes) == int(retained[0])


def test_kernels_page_says_what_the_carrier_takes_of_compiled_spikingjelly():
    """Both steps in copies of the input, with new pages and with memory kept; README has the first, rounded."""
    shares = []
    for run in PAGES:
        copies = {}
        for record in run:
            if record.case.variant in ("lif-carrier[backend=fused]", "spikingjelly-compiled"):
                phases = record.time.forward_time_s, record.time.backward_time_s
                copies[record.case.node] = sum(map(median, phases)) / median(record.time.copy_time_s)
        shares.append(copies["lif-carrier"] / copies["spikingjelly-compiled"])
    assert f"takes {shares[0]:.2f} of its copies, and {shares[1]:.2f} with memory kept" in KERNELS_PAGE
    assert f"and {shares[0]:.1f} of compiled SpikingJelly's" in README


def test_kernels_page_shows_the_lif_of_the_carrier_s_rounds():
    """The fused LIF, as it was timed beside the carrier."""
    cells = " | ".join(in_copies("lif-carrier[backend=fused]", "lif_"))
    assert f"| `lif`, fused, in the carrier's rounds | {cells} | 1 output |" in KERNELS_PAGE


def test_the_rule_for_launches_is_near_the_best_shape_that_was_timed():
    """On the card; a choice that was not timed counts by the one that differs in its warps alone, if that was."""
    launch = pytest.importorskip("revsnn_nodes.kernels.triton.launch", reason="needs triton")
    timed = json.loads((ROOT / "results" / "gpu" / "h200-shapes.json").read_text(encoding="utf-8"))
    places = defaultdict(dict)
    for each in timed:
        if each["kernel"] != "copy":
            place = each["kernel"], each["T"], each["dtype"], each["cols"]
            places[place][each["c"], each["w"], each["s"]] = each["ms"]
    shares = []
    for (kernel, steps, dtype, neurons), times in places.items():
        groups = 2 if kernel in ("coupled_forward", "inverse_backward", "anchored_backward") else 1
        itemsize = 2 if dtype == "bfloat16" else 4
        _, rows = launch.pieces_of(steps, launch.MOST_ROWS[itemsize] // groups)
        block, warps, stages = launch.shape_of(kernel, neurons // groups, itemsize, rows, groups)
        columns = block // (32 * warps)
        took = times.get((columns, warps, stages)) or times[columns, 4, stages]
        shares.append(min(times.values()) / took)
    near = sum(share >= 0.9 for share in shares)
    assert f"in {near} of the {len(shares)} places" in GPU_PAGE


def test_the_api_page_has_every_name_that_users_import():
    """Names of `__all__` of both packages and of the gate, where they are defined."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    there = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    exported = {*revsnn_nodes.__all__, *revsnn_bench.__all__, "gate", "Policy", "load_baseline", "load_run"}
    assert exported <= there


def test_nothing_is_told_to_be_installed_from_an_index_that_does_not_have_it():
    """Messages name the package behind an extra, and pages install the clone: the index has no revsnn-bench."""
    folders = ("nodes", "revsnn_bench", "suites", "tests", "docs", "examples")
    files = [*ROOT.glob("*.md"), *(each for folder in folders for each in (ROOT / folder).rglob("*.*"))]
    wrong = re.compile(r"pip install.*revsnn[-]bench|revsnn[-]bench\[")
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".md", ".toml")}
    assert [str(path) for path, text in texts.items() if wrong.search(text)] == []
