"""`python -m revsnn_bench` is the command `revsnn-bench`, for a Python whose scripts are not on the path."""

from revsnn_bench.cli import main

if __name__ == "__main__":
    main()
