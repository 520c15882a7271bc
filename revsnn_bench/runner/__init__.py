"""One case, one fresh process, with a time limit and a memory limit; however it ends, there is a record."""

from revsnn_bench.records import SkipCase
from revsnn_bench.runner.client import Runner, measure_in_processes

__all__ = ["Runner", "SkipCase", "measure_in_processes"]
