"""The table of a case's fields: what ids, options, columns and headings take from it."""

import csv
import io

import pytest

from revsnn_bench.case import CASE_FIELDS, FIELDS, Case, each, parse_shape
from revsnn_bench.report import tables
from revsnn_bench.report.html.report import render_html, setting
from revsnn_bench.report.markdown import render
from revsnn_bench.report.points import fixed_part

PLAIN = {"node": "lif", "workload": "digits-net", "shape": (1, 8, 8)}


def test_table_has_every_field_of_a_case():
    """One row per field, in the order of the model, but for the node's options, which have rows of their own."""
    assert [row.name for row in CASE_FIELDS] == [name for name in Case.model_fields if name != "node_options"]


def test_ids_of_saved_runs_stay_as_they_are():
    """Fields at their default add nothing to an id; the others stand in the order that saved runs have."""
    case = Case(node="revlif", timesteps=16, shape=(65536,), node_options={"groups": 4})
    assert case.id == "layer/revlif[groups=4]/T16-B8-N65536/float32/cpu"
    case = Case(**PLAIN, depth=2, seed=3, epochs=12, encoding="poisson")
    assert case.id == "digits-net/lif/T8-B8-N1x8x8-D2/float32/cpu/poisson/epochs12/seed3"


@pytest.mark.parametrize("row", [row for row in FIELDS if row.swept], ids=lambda row: row.name)
def test_examples_in_the_help_can_be_read(row):
    """Every value that the help of an option shows is one that the option takes, and that a case or a node takes."""
    shown = row.values.removeprefix("such as ").partition(";")[0] or row.meaning.partition(": ")[2].rstrip(".")
    values = each(row.parse)(shown)
    assert values
    if not row.of_node:
        for value in values:
            assert getattr(Case.model_validate({"node": "lif", row.name: value}), row.name) == value


@pytest.mark.parametrize("text", ["abc", "", "16x", "0", "1x0x8", "-4", "4.0", "4,8"])
def test_what_is_no_shape_is_refused(text):
    """One parser reads shapes, for every command and for pytest, and says what a shape is."""
    with pytest.raises(ValueError, match="`shape` must be one or more sizes of at least 1, joined by x; got"):
        parse_shape(text)
    with pytest.raises(ValueError, match="`shape` must be one or more sizes of at least 1"):
        Case(node="lif", shape=(0,))


@pytest.mark.parametrize(
    ("field", "value", "shown"), [("epochs", 12, "epochs 12"), ("encoding", "poisson", "encoding poisson")]
)
def test_cases_that_differ_in_one_field_are_told_apart(make_record, make_run, field, value, shown):
    """In columns, headings, tables and the page: training budget and encoding are part of what was measured."""
    a, b = make_record(**PLAIN), make_record(**PLAIN, **{field: value})
    run = make_run([a, b])
    for text in (tables.wide_csv(run), tables.long_csv(run)):
        rows = list(csv.DictReader(io.StringIO(text)))
        assert {row[field] for row in rows} == {str(getattr(a.case, field)), str(value)}
        assert list(rows[0]).index("seed") < list(rows[0]).index(field) < list(rows[0]).index("status")
    assert f"\n{field}," in tables.columns_csv()
    assert fixed_part(b.case) == f"{fixed_part(a.case)}, {shown}"
    assert setting(b.case) == f"{setting(a.case)}, {shown}"
    assert " ".join(b.case.place) in render(run)
    page = render_html(run)
    assert f">{field}" in page
    assert shown in page
