"""A run of several hosts: each record names its own, and no ratio, fit or ranking of times has two."""

import json

import pytest

from revsnn_bench.case import Case
from revsnn_bench.gate import Policy, gate
from revsnn_bench.measuring import Settings
from revsnn_bench.report.comparison import compare
from revsnn_bench.report.figures import draw_figures
from revsnn_bench.report.findings import findings
from revsnn_bench.report.html.report import render_html
from revsnn_bench.report.markdown import render
from revsnn_bench.report.points import growths, ratio_of
from revsnn_bench.report.tables import wide_rows
from revsnn_bench.run_options import parse_cluster
from revsnn_bench.runner import cluster as runner_cluster
from revsnn_bench.runner.cluster import Answer, Cluster, ClusterError, _Slot
from revsnn_bench.runs import Journal, NotMergeable, NotResumable, load_run, merged

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
    for undecided in {"rounds_by_process": ()}, {"rounds_contended": 1}:
        records = (r.model_copy(update={"time": r.time and r.time.model_copy(update=undecided)}) for r in one)
        run = one.model_copy(update={"records": tuple(records)})
        assert "backward time" not in next(f.text for f in findings(run) if f.topic == "Inverse gradient")
        assert next(f.title for f in draw_figures(run) if f.name == "pareto-1").startswith("Operations")
    assert not times(run)


def test_the_ratio_of_a_time_is_of_its_own_process(on_hosts):
    """A record holds the standard LIF's rounds beside its own, so its ratio needs no other host."""
    alone, dealt = on_hosts("a"), on_hosts("a", "b", "c")
    assert [ratio_of("step_time_s", r) for r in alone] == [ratio_of("step_time_s", r) for r in dealt]


def test_a_time_is_not_gated_against_another_host(make_run, make_record):
    """The gate says on which hosts the two were timed, and judges bytes all the same."""
    before, after, same = (make_run([make_record(node="revlif", host=host)]) for host in ("a", "b", "a"))
    policy = Policy(time_ratio_percent=0)
    details = [finding.detail for finding in gate(after, before, policy).remarks]
    assert "not judged: timed on a before and on b after" in details
    assert not any("timed on" in finding.detail for finding in gate(same, before, policy).remarks)
    (pair,) = compare(before, make_run([make_record(node="revlif")])).cases
    assert pair.two_machines == "timed on a before and on a machine without a cluster after"


def test_reports_name_the_hosts(on_hosts):
    """The processors in the first lines, the fields in which hosts differ, and the host of every case."""
    run = on_hosts("a", "b")
    text, page = render(run), render_html(run)
    for shown in (text, page):
        assert "2 hosts (CPU of a and CPU of b)" in shown
        assert "cpu_model CPU of b" in shown
    assert [row["host"] for row in wide_rows(run)] == [record.host for record in run]
    assert ">host<" in page
    alone = run.model_copy(update={"records": [each.model_copy(update={"host": None}) for each in run]})
    assert ">host<" not in render_html(alone)


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
    assert finished.records == run.records
    assert (finished.hosts, finished.complete) == (run.hosts, True)


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


@pytest.fixture
def cluster(place):
    """A cluster that is not started, of hosts `a` and `b` as `this machine` is one, each of which has a free actor."""
    cluster = Cluster("local", {})
    cluster._here = place()
    for name in ("a", "b"):
        assert cluster._admit(answer(name, place())) == ""
    return cluster


def answer(name, found, gpus=0):
    return Answer(name, f"number of {name}", gpus, _Slot(None, on_gpu=gpus > 0), found)


def host(cluster, name):
    return next(each for each in cluster._hosts.values() if each.name == name)


def take(cluster, host):
    """What the host gets next, by its T and device; it begins."""
    job = cluster._next_for(host)
    if job is None:
        return None
    cluster._waiting.remove(job)
    host.slots.append(_Slot(None, job.on_gpu, job))
    return job


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch": "2.6.0"}, "host 'c' cannot measure in this run: `torch` is '2.6.0' there and '2.13.0+cpu' on 'a'. "),
        ({"threads": 64}, "`threads` is 64 there and 2 on 'a'. Exact bytes belong to one environment. Pass --threads."),
        ({"package": "0.0.9"}, "`package` is '0.0.9' there and '0.1.0' on this machine. "),
        ({"commit": None}, "`commit` is None there and '0123abc' on this machine. "),
    ],
)
def test_a_host_that_differs_is_refused(cluster, place, changes, message):
    """In one sentence with both values; a processor may differ, and a name stands for one place."""
    assert message in cluster._admit(answer("c", place(**changes)))
    assert "host 'c' cannot measure: RuntimeError: no module" in cluster._admit(answer("c", RuntimeError("no module")))
    assert len(cluster._hosts) == 2
    assert cluster._admit(Answer("a", "another", 0, _Slot(None, False), place(cpu_model="Other"))) == ""
    assert [each.name for each in cluster._hosts.values()] == ["a", "b", "a/2"]
    cluster.keep_names({"b": place(cpu_model="Third")})
    assert [each.name for each in cluster._hosts.values()] == ["a", "b/2", "a/2"]


def test_a_case_that_ends_its_hosts_is_an_error(cluster):
    """A case whose host is lost goes first, to one that it has not lost while there is such; the third is its last."""
    for t in (2, 3):
        cluster.submit(Case(node="lif", timesteps=t), Settings())
    a, b = host(cluster, "a"), host(cluster, "b")
    job = take(cluster, a)
    assert cluster._sent_again(a, job, began=False) is None
    assert cluster._sent_again(a, job) is None
    a.slots.clear()
    assert cluster._next_for(a).case.timesteps == 3
    assert cluster._next_for(b) is job
    assert cluster._sent_again(b, take(cluster, b)) is None
    b.slots.clear()
    assert cluster._next_for(a) is job
    record = cluster._sent_again(a, take(cluster, a))
    assert (record.case.timesteps, record.status) == (2, "error")
    assert "its host, or the process there, was lost 3 times (a, b, a): the case may be the cause" in record.reason


def test_a_host_has_one_case_or_one_per_gpu(place):
    """Cases on GPUs run beside each other, and never beside one on the CPU; without any GPU they are skipped."""
    cluster = Cluster("local", {})
    cluster._here = place()
    cluster._admit(answer("a", place(gpu="NVIDIA H200", cuda="12.8"), gpus=2))
    a = host(cluster, "a")
    for device, t in (("cuda", 1), ("cpu", 2), ("cuda", 3), ("cuda", 4)):
        cluster.submit(Case(node="lif", timesteps=t, device=device), Settings())
    assert [take(cluster, a).case.timesteps for _ in range(2)] == [1, 3]
    assert take(cluster, a) is None
    a.slots.clear()
    assert take(cluster, a).case.timesteps == 2
    assert take(cluster, a) is None
    a.gpus = 0
    (skipped,) = cluster._impossible()
    assert (skipped.case.timesteps, skipped.status) == (4, "skipped")
    assert skipped.reason == "no host of the cluster has a GPU"


def test_a_run_ends_where_no_host_is_left(monkeypatch, cluster):
    """With the number of cases that wait; as long as one host is there it waits."""
    monkeypatch.setattr(runner_cluster, "_WITHOUT_HOSTS_S", -1.0)
    cluster.submit(Case(node="lif"), Settings())
    cluster._require_hosts()
    cluster._hosts.clear()
    with pytest.raises(ClusterError, match=r"no host of the cluster is left since .* and 1 cases wait\. Start hosts"):
        cluster._require_hosts()


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
