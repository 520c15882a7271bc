"""Pages from records: self-contained HTML files that work without a server, a network or a mouse."""

from revsnn_bench.report.html.gallery import render_gallery
from revsnn_bench.report.html.report import render_html

__all__ = ["render_gallery", "render_html"]
