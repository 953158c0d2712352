"""Which processes belong together, from flags, host lists and the environment."""

import os

import pytest

from hope_jax.cluster import addresses as cluster
from hope_jax.cluster.addresses import AUTO, Cluster
from hope_jax.core.errors import ConfigError


def find(coordinator=None, count=None, index=None, hosts=(), mode="none", environment=None, names=("b",)):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", environment or {})
        patch.setattr(cluster, "own_names", lambda: {*names})
        return cluster.find(coordinator, count, index, hosts, mode)


def test_nothing_given_is_one_process():
    assert find(environment={"HOPE_PROCESS_ID": "1", "SLURM_PROCID": "3"}) is None


def test_flags_hosts_and_detection():
    assert find("a:1", 3, 2) == Cluster("a:1", 3, 2)
    assert find("[::1]:70", 1, 0) == Cluster("[::1]:70", 1, 0)
    assert find(hosts=["a", "b", "c"]) == Cluster("a:8476", 3, 1)
    assert find(hosts=["b:99", "c"]) == Cluster("b:99", 2, 0)
    assert find(hosts=["x", "x"], environment={"HOPE_PROCESS_ID": "1"}) == Cluster("x:8476", 2, 1)
    assert find(mode="auto") == AUTO


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "a:1"}, "--coordinator without --num_processes and --process_id"),
        ({"count": 2, "index": 0}, "--num_processes, --process_id without --coordinator"),
        ({"coordinator": "a:1", "count": 2, "index": 2}, "--process_id=2: want 0 to 1"),
        ({"coordinator": "a:1", "count": 0, "index": 0}, "--num_processes=0"),
        ({"coordinator": "a", "count": 2, "index": 0}, "want HOST:PORT"),
        ({"coordinator": "a:0", "count": 2, "index": 0}, "want HOST:PORT"),
        ({"coordinator": "a:1", "hosts": ["a"]}, "--coordinator and --hosts both"),
        ({"hosts": ["a"], "mode": "auto"}, "--hosts and --distributed=auto both"),
        ({"mode": "slurm"}, "want none or auto"),
        ({"hosts": ["a", "c"]}, "this host .b. is not among them"),
        ({"hosts": ["b", "b"]}, "named more than once"),
        ({"hosts": ["a", "b:1"]}, "want names parted by commas"),
        ({"hosts": ["a", ""]}, "want names parted by commas"),
        ({"hosts": ["a", "b"], "environment": {"HOPE_PROCESS_ID": "2"}}, "HOPE_PROCESS_ID=2: want 0 to 1"),
        ({"hosts": ["a", "b"], "environment": {"HOPE_PROCESS_ID": "x"}}, "HOPE_PROCESS_ID='x' is no number"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        find(**given)


def test_own_names_hold_the_host_name():
    import socket

    assert socket.gethostname() in cluster.own_names()
