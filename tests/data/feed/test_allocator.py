import ctypes
import os
import platform
import resource
import subprocess
import sys

import pytest
import torch

from builders import tiny_run
from data.feed.allocator import MMAP_MAX, TRIM_THRESHOLD, keep_freed_memory
from disk import ROOT
from run.build import start_processes
from settings.load import load_config

FAULTS = """
import resource, sys
from data.feed.allocator import keep_freed_memory
done = keep_freed_memory() if sys.argv[1] == "keep" else None
def fill():
    [b"1" * 8_000_000 for _ in range(4)], b"1" * 40_000_000
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
[fill() for _ in range(10)]
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc has these settings"
)


def faults(way, **environment):
    own = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run(
        [sys.executable, "-c", FAULTS, way],
        **{"cwd": ROOT, "env": {**own, **environment}, "capture_output": True, "text": True},
        check=True,
    )
    done, number = result.stdout.split()
    return done, int(number)


def test_memory_that_was_freed_costs_no_page_fault_again():
    assert faults("keep")[0] == "True"
    assert faults("keep")[1] * 10 < faults("leave")[1]


@pytest.mark.parametrize(
    "own",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"MALLOC_ARENA_MAX": "2"},
        {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"},
    ],
)
def test_settings_of_the_environment_are_left_alone(own):
    assert not keep_freed_memory(own)
    assert faults("keep", **own)[0] == "False"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is done on a CPU alone")
def test_a_run_on_a_cpu_keeps_freed_memory(tmp_path, fresh_accelerator):
    for name, value in ((MMAP_MAX, 65_536), (TRIM_THRESHOLD, 131_072)):
        ctypes.CDLL(None).mallopt(name, value)  # as before any run

    def faults_of_a_block():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        assert b"1" * 100_000_000
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    first = faults_of_a_block()
    start_processes(load_config(tiny_run(tmp_path)))
    faults_of_a_block()
    assert faults_of_a_block() * 10 < first
