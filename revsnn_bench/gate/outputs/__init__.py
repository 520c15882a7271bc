"""The verdict and the run in the formats of people, CI servers and benchmark services."""

from collections.abc import Callable
from enum import StrEnum

from revsnn_bench.gate.findings import Verdict
from revsnn_bench.gate.outputs import bencher, customsmaller, github, junit, markdown, table
from revsnn_bench.records import Run


class Format(StrEnum):
    """Names of the formats, as the command line takes them."""

    TABLE = "table"
    MARKDOWN = "markdown"
    JUNIT = "junit"
    GITHUB = "github"
    CUSTOM_SMALLER_IS_BETTER = "customSmallerIsBetter"
    BENCHER = "bencher"


RENDERERS: dict[Format, Callable[[Verdict, Run], str]] = {
    Format.TABLE: table.render,
    Format.MARKDOWN: markdown.render,
    Format.JUNIT: junit.render,
    Format.GITHUB: github.render,
    Format.CUSTOM_SMALLER_IS_BETTER: customsmaller.render,
    Format.BENCHER: bencher.render,
}
"""Text of a verdict in each format."""
