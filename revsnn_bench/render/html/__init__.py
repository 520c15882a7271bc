"""Pages from records: self-contained HTML files that work without a server, a network or a mouse."""

from revsnn_bench.render.html.report import render_html

__all__ = ["render_html"]
