"""`python -m revsnn_bench.cli`, the same as the command `revsnn-bench`."""

from revsnn_bench.cli import main

main()
