"""For a pytest that a test starts: its runners have servers that were forked, see `warm_servers`."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """From here to the end of the session."""
    from warm_servers import use  # not before: pytest rewrites the plugin of revsnn_bench when it is imported

    servers = use()
    servers.__enter__()
    config.add_cleanup(lambda: servers.__exit__(None, None, None))
