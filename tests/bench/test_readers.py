"""Damaged files: every reader says what is wrong in one sentence, or reads what is left; none raises anything else."""

import json
import os
import random
from copy import deepcopy
from io import StringIO

import pytest
import torch
from revsnn_nodes.plan import apply_plan
from rich.console import Console
from typer.testing import CliRunner

from revsnn_bench.cli import app
from revsnn_bench.gate import gate
from revsnn_bench.gate.formats import RENDERERS
from revsnn_bench.report import markdown, tables
from revsnn_bench.report.comparison import render_comparison, render_comparison_html
from revsnn_bench.report.html.gallery import render_gallery
from revsnn_bench.report.html.report import render_html
from revsnn_bench.report.terminal import print_run, print_summary
from revsnn_bench.runs import Journal, JournalError, load_run

FILES = 120

NASTY = [
    *(None, True, False, -1, 0, 1, 2**31, 2**63 - 1, -(2**63) + 1, 2**63, 10**30, 10**4000, 0.5, -0.0, 1e308, 5e-324),
    *("", "NaN", "Infinity", "-Infinity", "1", "ok", "oom", "x" * 20_000, "\ud800", "a\ud83d", "\udc00b", "\ufffe"),
    *("\x00", "\x1b[31mred", "a\nb\r\tc", "=1+1", "<script>", "]]>", "{{ 7 }}", "[bold]", "../../etc", "/", "."),
    *("2026-13-45", "yesterday", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01"),
    *([], {}, [[]], [{}], {"a": 1}, ["a"], [1, 2], [None], {"": ""}, "1:2 3", "1:2 3:x", [[1, 2]], [["a", "NaN"]]),
]


def _places(value, path=()):
    """Every place in a JSON document, as the way to it."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def _changed(chance, document):
    """A copy of a JSON document with one to three of its places replaced, removed or doubled; often the text, too."""
    document = {"": deepcopy(document)}
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        *way, last = chance.choice([path for path in _places(document) if path])
        parent = document
        for key in way:
            parent = parent[key]
        kind = chance.random()
        if kind < 0.15 and way:
            del parent[last]
        elif kind < 0.25 and isinstance(parent, list):
            parent.append(deepcopy(parent[last]))
        elif kind < 0.3 and isinstance(parent, dict) and way:
            parent[chance.choice(("extra", "", "status", "\ud800"))] = parent[last]
        else:
            parent[last] = deepcopy(chance.choice(NASTY))
    return json.dumps(document.get(""))


def _torn(chance, content):
    """A file with bytes lost, turned, added, doubled or of another encoding."""
    a, b = sorted(chance.randrange(len(content)) for _ in range(2))
    text = content.decode()
    kinds = [
        lambda: content[:a],
        lambda: content[a:],
        lambda: content[:a] + content[b:],
        lambda: content[:a] + bytes(b - a) + content[b:],
        lambda: content[:a] + chance.randbytes(8) + content[a:],
        lambda: content[:a] + bytes([content[a] ^ (1 << chance.randrange(8))]) + content[a + 1 :],
        lambda: chance.randbytes(4096),
        lambda: content + content,
        lambda: b"",
        lambda: b"\xef\xbb\xbf" + content,
        lambda: text.encode("utf-16"),
        lambda: text.replace("\n", "\r\n").encode(),
        lambda: text.replace(": ", ": " + "[" * 5000, 1).encode(),
        lambda: text.replace('"', '"\\ud83d', 40).encode(),
        lambda: text.replace("0", "NaN", 5).encode(),
        lambda: text.replace("{", '{"run_id": "a", "run_id": "b", ', 2).encode(),
        lambda: text.replace("1", "1" * 6000, 3).encode(),
    ]
    return chance.choice(kinds)()


@pytest.fixture
def good(make_run, make_record, make_accuracy):
    """A run of four cases that has every part of a record, one of them failed."""
    records = [
        make_record(node="lif", timesteps=4, accuracy=make_accuracy(0.9)),
        make_record(node="revlif", timesteps=4),
        make_record(node="revlif", timesteps=200),
        make_record(node="lif-carrier", timesteps=4, status="error"),
    ]
    plan = tuple(record.case.id for record in records)
    return make_run(records).model_copy(update={"planned": plan})


@pytest.fixture
def damaged(good, tmp_path):
    """Writes a damaged copy of the run, finished or not, by its number; the same number is the same damage."""
    document = json.loads(good.model_dump_json())
    whole = json.dumps(document, indent=1).encode()
    lines = [document["header"], {"planned": document["planned"]}, *document["records"]]

    def write(number):
        chance = random.Random(number)
        finished = number % 2 == 0
        if chance.random() < 0.3:
            content = _torn(chance, whole if finished else "".join(json.dumps(x) + "\n" for x in lines).encode())
        elif finished:
            content = _changed(chance, document).encode()
        else:
            hit = chance.randrange(len(lines))
            content = "".join(
                (_changed(chance, line) if i == hit else json.dumps(line)) + "\n" for i, line in enumerate(lines)
            ).encode()
        path = tmp_path / f"run-{number}.json{'' if finished else 'l'}"
        path.write_bytes(content)
        return path

    return write


def _require_sentence(error, path):
    """File, fault and remedy on one printable line."""
    text = str(error)
    assert str(path) in text or path.name in text, text
    assert text.isprintable(), text
    assert text.endswith("."), text
    assert len(text) < 500, text


def _texts(run, good):
    """What every reader makes of a run."""
    yield markdown.render(run)
    yield render_html(run, figures=[])
    yield from (tables.wide_csv(run), tables.long_csv(run), tables.wide_json(run))
    yield from (render_comparison(good, run), render_comparison(run, good), render_comparison_html(good, run))
    yield render_gallery([run, good])
    for verdict in (gate(run, good), gate(good, run)):
        yield from (render(verdict, run) for render in RENDERERS.values())
    screen = StringIO()
    console = Console(file=screen, width=100)
    print_run(run, console)
    print_summary(run, console)
    yield screen.getvalue()


@pytest.mark.parametrize("part", range(3))
def test_a_damaged_file_is_refused_in_one_sentence_or_read(damaged, good, part):
    """120 damaged files: each is refused by name, or is a run that every report, the gate and a resume can take."""
    read = 0
    for number in range(part, FILES, 3):
        path = damaged(number)
        try:
            run = load_run(path)
        except JournalError as error:
            _require_sentence(error, path)
            continue
        read += 1
        for text in _texts(run, good):
            text.encode("utf-8")
        if path.suffix == ".jsonl":
            try:
                with Journal.resume(path, good.header, ["another"]) as journal:
                    again = load_run(journal.finish())
                kept, had = (sorted(record.model_dump_json() for record in each.records) for each in (again, run))
                assert kept == had
            except JournalError as error:
                _require_sentence(error, path)
    assert read > 2


def test_the_gate_ends_with_a_code_of_its_table(damaged, good, tmp_path):
    """A damaged run ends with 2, a damaged baseline with 3 or 4; nothing is printed but text."""
    clean = tmp_path / "clean.json"
    clean.write_text(good.model_dump_json(), encoding="utf-8")
    for number in range(0, FILES, 10):
        path = damaged(number)
        for run, baseline, refused in ((path, clean, {2}), (clean, path, {3, 4})):
            done = CliRunner().invoke(app, ["gate", str(run), "--baseline", str(baseline)])
            assert done.exit_code in {0, 1, 4, 5} | refused, done.output
            assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
            assert "Traceback" not in done.output


def test_one_bad_file_never_blocks_the_gallery(damaged, good, tmp_path):
    """Damaged files, folders, links and pipes among the runs: the page has every run, and names what it left out."""
    results, reports = tmp_path / "results", tmp_path / "reports"
    results.mkdir()
    good_file = results / "good.json"
    good_file.write_text(good.model_dump_json(), encoding="utf-8")
    (results / "bad.json").write_bytes(b"\x00\xff" * 50)
    (results / "deep.json").write_text("[" * 100_000)
    (results / "empty.jsonl").write_text("")
    (results / "good.jsonl").write_text(good.header.model_dump_json() + "\n")
    (results / "folder.json").mkdir()
    (results / "nowhere.json").symlink_to("nothing")
    os.mkfifo(results / "pipe.jsonl")
    done = CliRunner().invoke(
        app,
        ["report", str(good_file), "--gallery", "-q", "--format=md", f"--results={results}", f"--reports={reports}"],
    )
    assert done.exit_code == 0, done.output
    page = (reports / "index.html").read_text(encoding="utf-8")
    assert page.count('href="./good.html"') == 1
    for name in ("bad.json", "deep.json", "empty.jsonl"):
        assert f"{results / name}, line 1: " in done.output
        assert name in page
    for name in ("folder", "nowhere", "pipe", "good.jsonl"):
        assert name not in done.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"cores": 2', '"cores": 1' + "0" * 30), "the number 1000"),
        (lambda text: text.replace('"node": "lif"', '"node": "\\ud800"', 1), "a text has half a surrogate pair"),
        (lambda text: text.replace('"cores": 2', '"cores": NaN', 1), "NaN is no number of JSON"),
        (lambda text: text.replace('"dirty"', '"commit": null,\n"dirty"', 1), "an object has the name 'commit' twice"),
        (lambda text: text.replace("2026-01-01T00:00:00Z", "soon", 1), "`header.started_at` is wrong"),
        (lambda text: text.replace('"run-1"', '"../run"'), "`run_id` is wrong; '../run' is no name of a file"),
        (lambda text: text.replace('"rounds": 12', '"rounds": ' + "[" * 60 + "]" * 60), "nested too deeply"),
        (lambda text: text.replace('"duration_s": 1.0', '"duration_s": -1.0', 1), "`records.0.duration_s` is wrong"),
    ],
)
def test_what_no_run_holds_is_named(good, tmp_path, change, message):
    """Numbers beyond 64 bits, half characters, names that occur twice, dates, folders and nesting."""
    text = json.dumps(json.loads(good.model_dump_json()), indent=1)
    path = tmp_path / "run.json"
    path.write_text(change(text), encoding="utf-8")
    with pytest.raises(JournalError, match=r"run.json(, line 1)?: ") as refused:
        load_run(path)
    assert message in str(refused.value)


def test_a_file_with_values_that_nothing_can_have_is_refused(good, tmp_path):
    """Negative bytes, more than all right, rounds of no process, endless times, a plan or a case that cannot be."""
    document, path = json.loads(good.model_dump_json()), tmp_path / "run.json"

    def refused(change):
        changed = json.loads(json.dumps(document))
        change(changed, changed["records"][0])
        path.write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(JournalError) as error:
            load_run(path)
        _require_sentence(error.value, path)
        return str(error.value)

    rounds = len(good.records[0].time.forward_time_s)
    for place, value in {
        "memory.peak_bytes": -5,
        "memory.retained_bytes": -7,
        "memory.saved_bytes.own": -1,
        "flops.forward.pointwise": -1,
        "accuracy.accuracy": 25.0,
        "accuracy.stripped_accuracy": "NaN",
        "fidelity.tolerance": 1e9,
        "fidelity.gradient_error": -1.0,
        "fidelity.flipped_spikes": -1,
        "time.rounds_contended": -1,
        "time.forward_time_s": [1e308] * rounds,
        "time.lif_forward_time_s": [1e-308] * rounds,
        "time.rounds_by_process": [rounds, 1],
    }.items():
        *parts, name = place.split(".")
        found = refused(lambda _, record, parts=parts, name=name, value=value: _at(record, parts).update({name: value}))
        assert f"`records.0.{place.removesuffix('.rounds_by_process')}" in found
    for processes in ([0, rounds], [-1, rounds + 1], [1]):
        assert "`rounds_by_process` must be positive, with the sum" in refused(
            lambda _, record, processes=processes: record["time"].update(rounds_by_process=processes)
        )
    for error in (0.5, "NaN"):  # a status that was written over
        denied = refused(lambda _, record, error=error: record["fidelity"].update(output_error=error))
        assert "`status` cannot be ok where output_error is beyond its tolerance" in denied
    said = refused(lambda run, _: run.update(planned=[*(run["planned"] or ()), "layer/x"], complete=True))
    assert "`complete` must be false; " in said
    assert "more than once" in refused(lambda run, record: run["records"].append(record))


def _at(value, names):
    for name in names:
        value = value[name]
    return value


def test_bytes_that_are_no_text_are_named_by_their_line(good, tmp_path):
    """A byte of another encoding is not replaced in silence."""
    path = tmp_path / "run.json"
    path.write_bytes(good.model_dump_json(indent=1).encode().replace(b"Some CPU", b"Some \xff CPU"))
    with pytest.raises(JournalError, match=r"run.json, line 14: not text in UTF-8"):
        load_run(path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    """Bytes that are no checkpoint, and a checkpoint of something else: one sentence and exit code 2."""
    checkpoint = tmp_path / "c.pt"
    for write in (lambda: checkpoint.write_bytes(b"\x00\xff" * 40), lambda: torch.save({"a": 1}, checkpoint)):
        write()
        done = CliRunner().invoke(app, ["train", "--network=digits-net", f"--checkpoint={checkpoint}"])
        assert done.exit_code == 2, done.output
        assert "Error: --checkpoint must be a file that this command wrote; got" in done.output


def test_a_damaged_plan_is_refused(tmp_path):
    """A file that is no plan is named, whatever it holds."""
    plan = tmp_path / "plan.json"
    for content in (b"\xff", b"{", b"[]", b'{"neurons": "lif"}', b'{"neurons": 1, "blocks": [2]}', b"[" * 100_000):
        plan.write_bytes(content)
        with pytest.raises(ValueError, match=r"`plan` must be options by block, or a file that .*; got .*plan.json"):
            apply_plan(torch.nn.Linear(1, 1), plan)
