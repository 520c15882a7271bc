"""A progress bar for a run: the case in flight, how many are done, and the time left."""

import pytest
import rich.progress as rich
from rich.console import Console


class Progress:
    """Shows progress on stderr while pytest itself stays silent."""

    def __init__(self) -> None:
        self._bar = rich.Progress(
            rich.SpinnerColumn(),
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=24),
            rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(),
            rich.TextColumn("left"),
            rich.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("collecting", total=None)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Starts the bar when the number of cases is known."""
        self._bar.update(self._task, total=len(session.items), description="starting")
        self._bar.start()

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Names the case in flight."""
        callspec = getattr(item, "callspec", None)
        self._bar.update(self._task, description=item.name if callspec is None else callspec.id)

    def pytest_runtest_logfinish(self) -> None:
        """Counts a case that ended."""
        self._bar.advance(self._task)

    def pytest_sessionfinish(self) -> None:
        """Takes the bar away before the results are shown."""
        self._bar.stop()

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Prints no letter per test, since the bar shows how many are done."""
        category = report.outcome if report.when == "call" or report.outcome != "passed" else ""
        return category, "", ""
