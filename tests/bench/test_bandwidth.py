"""Kernels against a copy of the same bytes: the shares, and the table of a report."""

from revsnn_bench.report import markdown
from revsnn_bench.report.html.report import render_html
from revsnn_bench.report.tables import BANDWIDTH_HEADINGS, NEW_PAGES, NO_NEW_PAGES, bandwidth_rows, bandwidth_shares

COPIES_OF_THE_INPUT = 64 * 8 * 4 * 4  # neurons, batch, steps, bytes


def test_shares_are_the_least_copies_over_those_taken(kernel_record):
    """Forward in 4 copies has a quarter of the bandwidth, backward in 3 has half: it needs one and a half."""
    assert bandwidth_shares(kernel_record("lif", "fused", 4.0, 3.0)) == {"forward": 0.25, "backward": 0.5}


def test_rows_tell_the_copy_the_shares_and_what_compilation_took(kernel_record, make_run):
    """The fastest first; 8 KiB copied in 1 s are read and written once; eager code compiles nothing."""
    fused = kernel_record("lif", "fused", 2.0, 3.0, timesteps=4).model_copy(update={"compile_time_s": 5.25})
    rows = bandwidth_rows(make_run([kernel_record("revlif-stored", None, 10.0, 15.0, timesteps=4), fused]))
    assert [dict(zip(BANDWIDTH_HEADINGS, row, strict=True)) for row in rows] == [
        {
            "T": "4",
            "input": "8.00 KiB",
            "node": node,
            "copy": "1.00 s",
            "copy, GB/s": f"{2 * COPIES_OF_THE_INPUT / 1e9:.6f}",
            "forward, copies": forward,
            "forward, of the bandwidth": share,
            "backward, copies": backward,
            "backward, of the bandwidth": share,
            "compile time": compilation,
        }
        for node, forward, backward, share, compilation in (
            ("lif[backend=fused]", "2.00", "3.00", "50.0 %", "5.25 s"),
            ("revlif-stored", "10.0", "15.0", "10.0 %", "–"),
        )
    ]


def test_sizes_come_as_they_grow(kernel_record, make_run):
    """By bytes of the input, whatever the order of the run; one node alone at its size is compared with nothing."""
    records = [
        kernel_record(node, backend, 2.0, 3.0, timesteps=timesteps)
        for timesteps, backends in ((32, ("torch", "fused")), (4, ("torch", "fused")), (8, ("fused",)))
        for backend in backends
        for node in ("lif",)
    ]
    assert [row[0] for row in bandwidth_rows(make_run(records))] == ["4", "4", "32", "32"]


def test_reports_have_the_table_where_there_is_something_to_compare(kernel_record, make_run, sweep_run):
    """The Markdown report gets a section and the page its columns; a run that names no backend gets neither."""
    run = make_run([kernel_record("lif", backend, 2.0, 3.0) for backend in ("torch", "fused")])
    assert "## Against a copy of the input" in markdown.render(run)
    assert "backward in copies" in render_html(run)
    assert "Against a copy" not in markdown.render(sweep_run)


def test_report_says_whether_pages_were_new(kernel_record, make_run):
    """Times with the mapping of new pages, and without, are not the same times."""
    records = [kernel_record("lif", backend, 2.0, 3.0) for backend in ("torch", "fused")]
    kept = [
        record.model_copy(update={"time": record.time.model_copy(update={"freed_memory_kept": True})})
        for record in records
    ]
    assert NEW_PAGES in markdown.render(make_run(records))
    assert NO_NEW_PAGES in markdown.render(make_run(kept))
    assert NEW_PAGES in markdown.render(make_run([records[0], kept[1]]))
