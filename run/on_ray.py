"""Jobs on a Ray cluster, each a call of a function that needs nothing of the others."""

import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from disk import ROOT
from errors import UserError, printable

TRIES = 4
"""How often a job is begun whose process or node is lost"""
REACH_S = 10.0
AHEAD = 2
"""Jobs handed to Ray for each of its CPUs, so that none waits for this process"""
HANDED_ON = ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "OMP_NUM_THREADS")
"""Variables that decide where data and weights are looked for, and are the same on all nodes then"""
Tag = TypeVar("Tag")


def started() -> Any:
    """Ray, connected to the cluster that RAY_ADDRESS names or that was started on this machine, otherwise to one that
    is this machine and ends with this process.

    Raises:
        UserError: if it is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"--engine ray: Ray cannot be imported ({error}); pip install -r requirements-ray.txt"
        ) from error
    if not ray.is_initialized():
        _refuse_unreachable(os.environ.get("RAY_ADDRESS", ""))
        given = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        try:
            ray.init(
                log_to_driver=False,
                logging_level=logging.WARNING,
                include_dashboard=False,
                runtime_env={
                    "env_vars": {"OMP_NUM_THREADS": "1", **given, "PYTHONPATH": str(ROOT)}
                },
            )
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise UserError(
                f"--engine ray: no cluster ({error}); see RAY_ADDRESS, or `ray start --head`"
            ) from error
    return ray


def _refuse_unreachable(address: str) -> None:
    """
    Raises:
        UserError: if nobody listens there; Ray itself would try for many minutes.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):  # none, or a word that Ray knows
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"RAY_ADDRESS {address}: nobody answers ({error}); start Ray there, or leave the variable out"
        ) from error


def on_ray(
    function: Callable[[Any], Any],
    jobs: Iterable[tuple[Tag, Any]],
    gpus: int = 0,
    alone: bool = False,
) -> Iterator[tuple[Tag, Any]]:
    """(tag, function(argument)) of jobs (tag, argument), in the order in which they are done.

    Each gets one CPU. A job that has lost its process or its node several times is named and left out.

    Args:
        gpus: that each gets. alone: each in a process of its own.

    Raises:
        UserError: as `started`, or as the function.
    """
    ray = started()
    options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": TRIES - 1}
    remote = ray.remote(**options, **({"max_calls": 1} if alone else {}))(_call)
    todo = iter(jobs)
    running: dict[Any, Tag] = {}
    while True:
        most = max(1, AHEAD * int(ray.cluster_resources().get("CPU", 1)))  # nodes come and go
        for tag, argument in itertools.islice(todo, max(0, most - len(running))):
            running[remote.remote(function, argument)] = tag
        if not running:
            return
        (done, *_), _ = ray.wait(list(running))
        tag = running.pop(done)
        try:
            result = ray.get(done)
        except UserError as error:  # Ray has put a traceback around it
            raise UserError(str(getattr(error, "cause", error))) from None
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            reason = printable(str(error).strip().split("\n")[0], 300)
            print(f"ray         gave up {tag} after {TRIES} tries: {reason}", file=sys.stderr)
            continue
        yield tag, result


def _call(function: Callable[[Any], Any], argument: Any) -> Any:
    return function(argument)
