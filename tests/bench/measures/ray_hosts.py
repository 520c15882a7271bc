"""Hosts of a Ray cluster on this machine, for tests: `python ray_hosts.py N`; each line read from stdin kills one.

The first line printed is the address; after each kill comes one more line. All of them end with stdin.
"""

import os
import sys
from contextlib import suppress

import psutil

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

RESOURCES = {"revsnn_host": 1}


def main() -> None:
    """Starts the hosts, of which the first holds the cluster together and is never killed."""
    options = {"num_cpus": 1, "resources": RESOURCES, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=options | {"include_dashboard": False})
    others = [cluster.add_node(**options, wait=False) for _ in range(int(sys.argv[1]) - 1)]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        host = others.pop()
        end_processes(host)
        cluster.remove_node(host, allow_graceful=False)
        print("killed", flush=True)
    cluster.shutdown()


def end_processes(host) -> None:
    """Kills all at once, as when a machine fails: left alone, a worker would still send what it just measured."""
    for started in host.all_processes["raylet"]:
        raylet = psutil.Process(started.process.pid)
        for process in (raylet, *raylet.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


main()
