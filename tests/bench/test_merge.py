"""Parts of a sweep as one run: what belongs together is joined, and nothing else."""

import pytest
from typer.testing import CliRunner

from revsnn_bench.cli import app
from revsnn_bench.run_options import parse_shard
from revsnn_bench.runs import NotMergeable, load_run, merged


@pytest.fixture
def whole(make_run, make_record):
    """A run of six cases that has all that it planned."""
    records = [make_record(node=node, timesteps=t) for t in (2, 4, 200) for node in ("lif", "revlif")]
    return make_run(records, run_id="whole").model_copy(update={"planned": tuple(r.case.id for r in records)})


@pytest.fixture
def part(whole):
    """Some records of the run, as a shard or an interrupted run has them; keywords change the environment."""

    def take(run_id, numbers, **environment):
        place = whole.header.environment.model_copy(update=environment)
        header = whole.header.model_copy(update={"run_id": run_id, "environment": place})
        records = tuple(whole.records[number] for number in numbers)
        return whole.model_copy(update={"header": header, "complete": False, "records": records})

    return take


def _values(run):
    return run.model_dump_json(include={"records", "planned", "complete"})


def test_parts_in_any_order_give_the_whole(whole, part):
    """Every record once, in the order of the plan, nan included; a case that two parts have counts once."""
    parts = [part("c", (5, 1)), part("a", (0, 4, 1)), part("b", (3, 2))]
    run = merged(parts, "joined", ["merge"])
    assert _values(run) == _values(whole)
    assert (run.header.run_id, run.header.command) == ("joined", ("merge",))


def test_what_is_missing_is_known(whole, part):
    """A merge of some parts is not complete, can be merged again with the rest, and then is."""
    some = merged([part("a", (0,)), part("b", (2, 3))], "some")
    assert (some.complete, some.extent) == (False, "3 of 6 planned cases")
    assert _values(merged([some, part("c", (1, 4, 5))], "all")) == _values(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch": "2.6.0"}, "'b' cannot be merged with 'a': `torch` was '2.13.0.cpu', is '2.6.0'. A ratio has both"),
        ({"threads": 1}, "`threads` was 2, is 1"),
        ({"cpu_model": "Other"}, "`cpu_model` was 'Some CPU', is 'Other'"),
        ({"commit": "ffff"}, "`commit` was '0123abc', is 'ffff'"),
    ],
)
def test_environments_are_never_mixed(part, changes, message):
    """Neither bytes nor times of two places stand in one ratio: the field and both values are named."""
    with pytest.raises(NotMergeable, match=message):
        merged([part("a", (0,)), part("b", (1,), **changes)], "m")


def test_settings_are_never_mixed(part):
    """Parts that were measured otherwise are not of one run."""
    other = part("b", (1,))
    other = other.model_copy(update={"header": other.header.model_copy(update={"settings": {"rounds": 3}})})
    with pytest.raises(NotMergeable, match=r"`settings.rounds` was 12, is 3"):
        merged([part("a", (0,)), other], "m")


def test_a_case_with_two_results_is_refused(part, make_record):
    """Equal bytes and operations, or neither of the two."""
    one, two = part("a", (0,)), part("b", (0,))
    (record,) = two.records
    more = record.memory.model_copy(update={"peak_bytes": record.memory.peak_bytes + 1})
    two = two.model_copy(update={"records": (record.model_copy(update={"memory": more}),)})
    with pytest.raises(NotMergeable, match="was measured in 'a' and in 'b', and differs in peak_bytes"):
        merged([one, two], "m")


def test_the_command_joins_files(whole, part, tmp_path):
    """0 with the file; 2 where cases are missing or the name is taken; 4 where environments differ; else no file."""
    parts = {"a": part("a", (0, 2, 4)), "b": part("b", (1, 3, 5)), "x": part("x", (1, 3, 5), torch="2.6.0")}
    for name, run in parts.items():
        (tmp_path / f"{name}.json").write_text(run.model_dump_json(), encoding="utf-8")

    def merge(*arguments):
        return CliRunner().invoke(app, ["merge", *arguments, f"--results={tmp_path}"], env={"COLUMNS": "300"})

    assert merge("a", "x", "--run-id=m").exit_code == 4
    refused = merge("a", "--run-id=m")
    assert refused.exit_code == 4
    missing = whole.records[1].case.id
    assert f"only 3 of 6 planned cases are there; missing is, among others, {missing}" in refused.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "x.json"]
    done = merge("a", "b", "--run-id=m")
    assert (done.exit_code, done.output.strip()) == (0, str(tmp_path / "m.json"))
    assert _values(load_run(tmp_path / "m.json")) == _values(whole)
    taken = merge("a", "b", "--run-id=m")
    assert taken.exit_code == 2
    assert "--run-id: `run_id` must be new; 'm' is a finished run" in taken.output
    assert merge("a", "--run-id=n", "--partial").exit_code == 0
    assert load_run(tmp_path / "n.json").extent == "3 of 6 planned cases"


def test_the_record_of_a_merge_names_files_without_their_folders(part, tmp_path, monkeypatch):
    """As every command does: a record must not tell where things lie."""
    file = tmp_path / "a.json"
    file.write_text(part("a", (0, 2)).model_dump_json(), encoding="utf-8")
    arguments = ["merge", str(file), "--run-id=m", "--partial", f"--results={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["/some/bin/revsnn-bench", *arguments])
    assert CliRunner().invoke(app, arguments).exit_code == 0
    expected = ("revsnn-bench", "merge", "a.json", "--run-id=m", "--partial", f"--results={tmp_path.name}")
    assert load_run(tmp_path / "m.json").header.command == expected


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/3/5", "", "1.0/3", "1/" + "9" * 50])
def test_a_shard_is_one_of_so_many(text):
    """Anything else is refused with an example."""
    with pytest.raises(ValueError, match=r"must be I/N with 1 <= I <= N; got .* Pass for example 2/5"):
        parse_shard(text)
    assert parse_shard("2/5") == (2, 5)
