"""Addresses of packed datasets, and the pieces of them that are kept here."""

import contextlib
import multiprocessing
import os
import time

import pytest

import tools.pack
from builders import tiny_run
from data.pieces import Cache
from data.remote import told
from errors import UserError
from settings.checks import check_config
from settings.load import load_config


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://me:hunter2@host/packed", "would stand in the run's files"),
        ("https://hunter2@host/packed", "would stand in the run's files"),
        ("https://host/packed?sig=hunter2", "would stand in the run's files"),
        ("s3://key:hunter2@bucket/packed", "would stand in the run's files"),
        ("zip://packed::https://host/a.zip", "chain of addresses"),
        ("http://[::1/packed", "is no address"),
    ],
)
def test_secrets_are_not_taken_in_addresses_nor_repeated(tmp_path, address, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(tiny_run(tmp_path, data__packed=address))
    assert "hunter2" not in str(caught.value)


def test_addresses_of_stores_are_taken(tmp_path):
    for address in ("hf://datasets/me/set@main/packed", "abfs://box@me.dfs.core.windows.net/a"):
        check_config(load_config(tiny_run(tmp_path, data__packed=address)), 1)
    with pytest.raises(UserError, match=r"data.packed_cache_gb 0.0: must be"):
        load_config(tiny_run(tmp_path, data__packed_cache_gb=0.0))
    with pytest.raises(UserError, match="is written to a folder here"):
        tools.pack.main([*tiny_run(tmp_path), "--out", "s3://bucket/packed"])


def test_errors_of_libraries_are_told_without_secrets():
    secrets = [
        "403, url='https://cdn.host/x?X-Amz-Signature=hunter2&y=1'",
        "https://me:hunter2@host/x failed",
        "headers: {'Authorization': 'Bearer hunter2'}",
        "token hunter2 is not valid",
    ]
    for text in secrets:
        assert "hunter2" not in told(OSError(text))
    assert told(OSError("503 Slow Down")) == "OSError: 503 Slow Down"


def fill(cache, turn):
    for number in range(40):
        cache.keep(f"{turn}-{number}", bytes(1000))


def held_in(folder):
    """Bytes, finished or not; a file that is renamed meanwhile counts once."""
    found = {}
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            state = entry.stat()
            if entry.name not in (".used", ".lock"):
                found[state.st_ino] = state.st_size
    return sum(found.values())


def test_processes_together_keep_within_the_room_and_the_oldest_go(tmp_path):
    cache = Cache(tmp_path, 20_000)
    fork = multiprocessing.get_context("fork")
    jobs = [fork.Process(target=fill, args=(cache, turn)) for turn in range(4)]
    for job in jobs:
        job.start()
    while any(job.is_alive() for job in jobs):
        assert held_in(tmp_path) <= 20_000
    assert [job.exitcode for job in jobs] == [0] * 4
    cache.keep("last", bytes(1000))
    names = sorted((f.stat().st_mtime_ns, f.name) for f in tmp_path.iterdir() if f.name[0] != ".")
    assert 10 < len(names) <= 20
    assert names[-1][1] == "last"
    oldest = names[0][1]
    for number in range(3):
        cache.keep(f"more-{number}", bytes(4000))
    assert cache.read(oldest, 0, 1) is None
    assert cache.read("more-2", 0, 4000) == bytes(4000)
    cache.keep("too large", bytes(30_000))
    assert cache.read("too large", 0, 1) is None


def test_what_a_killed_process_has_left_is_counted_and_removed(tmp_path):
    cache = Cache(tmp_path, 10_000)
    left, young = tmp_path / ".writing-1-1-ab", tmp_path / ".writing-2-1-cd"
    for file in (left, young):
        file.write_bytes(bytes(6000))
    os.utime(left, (time.time() - 7200,) * 2)
    (tmp_path / ".used").write_text("not a num")
    cache.keep("a", bytes(3000))
    assert not left.exists()
    assert cache.read("a", 0, 3000) == bytes(3000)
    (tmp_path / ".used").write_text("1000000")  # of files that somebody has removed
    cache.keep("b", bytes(500))
    assert cache.read("a", 0, 3000) == bytes(3000)
    assert (tmp_path / ".used").read_text() == "9500"
