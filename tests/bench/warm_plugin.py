"""For a pytest that a test starts: its runners have servers that were forked, see `warm_servers`."""


def pytest_configure() -> None:
    from warm_servers import use  # not before: pytest rewrites the plugin of revsnn_bench when it is imported

    use().start()
