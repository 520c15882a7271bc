"""A run of several hosts: each record names its own, and no ratio, fit or ranking of times has two."""

import json

import pytest

from revsnn_bench.gate import Policy, gate
from revsnn_bench.merging import NotMergeable, merged
from revsnn_bench.report.comparison import compare
from revsnn_bench.report.figures import draw_figures
from revsnn_bench.report.findings import findings
from revsnn_bench.report.html import render_html
from revsnn_bench.report.markdown import render
from revsnn_bench.report.points import growths, ratio_to_lif
from revsnn_bench.report.tables import wide_rows
from revsnn_bench.run_options import parse_cluster
from revsnn_bench.runs import Journal, NotResumable, load_run

NODES = ("lif", "revlif", "revlif-revnet", "lif-carrier")


@pytest.fixture
def place(make_run):
    """Makes the environment of a host; keywords change it."""
    return lambda **changes: make_run([], **changes).header.environment


@pytest.fixture
def on_hosts(make_run, make_record, place):
    """Makes a run over T whose records are dealt to hosts of these names, each with a processor of its name."""

    def make(*names, run_id="run-1"):
        cases = [(node, t) for t in (2, 4, 8) for node in NODES]
        records = [
            make_record(node=node, timesteps=t, host=names[number % len(names)])
            for number, (node, t) in enumerate(cases)
        ]
        run = make_run(records, run_id=run_id)
        header = run.header.model_copy(update={"cluster": True})
        hosts = {name: place(cpu_model=f"CPU of {name}") for name in names}
        planned = tuple(record.case.id for record in records)
        return run.model_copy(update={"header": header, "hosts": hosts, "planned": planned})

    return make


def times(run):
    return [growth for growth in growths(run, "timesteps") if growth.metric.endswith("_time_s")]


def test_times_of_two_hosts_meet_in_no_fit_and_in_no_ranking(on_hosts):
    """Growth of times, the front of times and savings of time are of one host; bytes and operations are of all."""
    one, two = on_hosts("a"), on_hosts("a", "b", "c")
    assert times(one)
    assert not times(two)
    exact = [[g for g in growths(run, "timesteps") if not g.metric.endswith("_time_s")] for run in (one, two)]
    assert exact[0] == exact[1]
    assert [next(f.title for f in draw_figures(run) if f.name == "pareto-1").split()[0] for run in (one, two)] == [
        "Time",
        "Operations",
    ]
    saving = [next(f.text for f in findings(run) if f.topic == "Inverse gradient") for run in (one, two)]
    assert "backward time" in saving[0]
    assert "backward time" not in saving[1]
    assert "FLOPs" in saving[1]


def test_the_ratio_of_a_time_is_of_its_own_process(on_hosts):
    """A record holds the standard LIF's rounds beside its own, so its ratio needs no other host."""
    alone, dealt = on_hosts("a"), on_hosts("a", "b", "c")
    assert [ratio_to_lif("step_time_s", r) for r in alone] == [ratio_to_lif("step_time_s", r) for r in dealt]


def test_a_time_is_not_gated_against_another_host(make_run, make_record):
    """The gate says on which hosts the two were timed, and judges bytes all the same."""
    before, after, same = (make_run([make_record(node="revlif", host=host)]) for host in ("a", "b", "a"))
    policy = Policy(time_ratio_percent=0)
    details = [finding.detail for finding in gate(after, before, policy).remarks]
    assert "not judged: timed on a before and on b after" in details
    assert not gate(same, before, policy).remarks
    (pair,) = compare(before, make_run([make_record(node="revlif")])).cases
    assert pair.two_hosts == "timed on a before and on a machine without a cluster after"


def test_reports_name_the_hosts(on_hosts):
    """The processors in the first lines, the fields in which hosts differ, and the host of every case."""
    run = on_hosts("a", "b")
    text, page = render(run), render_html(run)
    for shown in (text, page):
        assert "2 hosts (CPU of a and CPU of b)" in shown
        assert "cpu_model CPU of b" in shown
    assert [row["host"] for row in wide_rows(run)] == [record.host for record in run]
    assert ">host<" in page
    assert ">host<" not in render_html(on_hosts("a").model_copy(update={"records": run.records[:1]}))


def test_the_journal_holds_each_host_once(tmp_path, on_hosts, place):
    """A host is a line before its first record; the finished run has hosts and the order of the plan."""
    run = on_hosts("a", "b")
    with Journal.create(tmp_path, run.header, run.planned) as journal:
        for record in reversed(run.records):
            journal.host(record.host, run.hosts[record.host])
            journal.append(record)
    kinds = [next(iter(json.loads(line))) for line in journal.path.read_text().splitlines()]
    assert kinds[:4] == ["schema_version", "planned", "host", "case"]
    assert kinds.count("host") == 2
    assert load_run(journal.path).hosts == run.hosts
    other = run.header.model_copy(update={"environment": place(cpu_model="another")})
    with Journal.resume(journal.path, other) as journal:
        journal.host("a", run.hosts["a"])
        finished = load_run(journal.finish())
    assert finished.model_dump_json(exclude={"complete"}) == run.model_dump_json(exclude={"complete"})


def test_a_cluster_and_a_machine_make_no_one_run(tmp_path, on_hosts, make_run):
    """Neither goes on with the journal of the other, and two places of one name are not merged."""
    run = on_hosts("a")
    Journal.create(tmp_path, run.header, run.planned).close()
    with pytest.raises(NotResumable, match=r"`cluster` was True, is False"):
        Journal.resume(tmp_path / "run-1.jsonl", make_run([]).header)
    with pytest.raises(NotMergeable, match=r"`cluster` was True, is False"):
        merged([run, make_run([])], "m")


def test_runs_on_clusters_merge_with_their_hosts(on_hosts, place):
    """Each name stands for one environment, or the runs are refused."""
    run = on_hosts("a", "b")
    halves = [
        run.model_copy(update={"records": run.records[k::2], "hosts": {n: run.hosts[n]}})
        for k, n in ((0, "a"), (1, "b"))
    ]
    assert merged(halves, "run-1").model_dump_json() == run.model_dump_json()
    other = halves[1].model_copy(update={"hosts": {"a": place(cpu_model="other")}})
    with pytest.raises(NotMergeable, match="its host 'a' is not the 'a' of another part"):
        merged([halves[0], other], "m")


@pytest.mark.parametrize("text", ["", "here", "ray://a:1", "a:0", "a:65536", "a:b", "a b:1", ":1", "a" * 300 + ":1"])
def test_an_address_is_a_word_of_ray_or_a_host_with_a_port(text):
    """Anything else is refused with what prints an address."""
    with pytest.raises(ValueError, match=r"must be `local`, `auto` or HOST:PORT; got .*`ray start --head` prints"):
        parse_cluster(text)
    assert [parse_cluster(good) for good in ("local", "10.0.0.1:6379", "[::1]:6379")] == [
        "local",
        "10.0.0.1:6379",
        "[::1]:6379",
    ]
