import multiprocessing
import os
import signal
import stat
import threading
import time

import pytest

import disk
from disk import alone


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole_folder_appears_when_it_is_complete_and_replaces_an_older_one(tmp_path):
    final = tmp_path / "deep" / "final"
    for text in ("first", "second"):
        with disk.whole_folder(final) as folder:
            (folder / "file").write_text(text)
            assert not final.exists() or (final / "file").read_text() == "first"
        assert (final / "file").read_text() == text
        assert names(final.parent) == ["final"]


def fill_and_fail(folder):
    (folder / "file").write_text("new")
    raise KeyError


@pytest.mark.parametrize("shared", [False, True])
def test_error_leaves_the_old_folder_and_nothing_else(tmp_path, shared):
    final = tmp_path / "final"
    for before in (None, "old"):
        if before is not None:
            final.mkdir()
            (final / "file").write_text(before)
        with pytest.raises(KeyError), disk.whole_folder(final, shared=shared) as folder:
            fill_and_fail(folder)
        assert names(tmp_path) == ([] if before is None else ["final"])
    assert (final / "file").read_text() == "old"


def test_error_of_the_disk_is_raised(tmp_path):
    for shared in (False, True):
        with pytest.raises(OSError, match="full"), disk.whole_folder(tmp_path / "x", shared=shared):
            raise OSError("full")
    assert names(tmp_path) == []


def test_of_several_writers_the_first_ones_folder_stays(tmp_path):
    final = tmp_path / "final"
    with disk.whole_folder(final, shared=True) as slow:
        (slow / "file").write_text("slow")
        with disk.whole_folder(final, shared=True) as fast:
            (fast / "file").write_text("fast")
    assert (final / "file").read_text() == "fast"
    assert names(tmp_path) == ["final"]


def test_an_error_where_another_writer_was_faster_is_none(tmp_path):
    final = tmp_path / "final"
    with disk.whole_folder(final, shared=True):
        final.mkdir()
        raise OSError("disk full")
    assert names(tmp_path) == ["final"]


@pytest.mark.parametrize("moment", ["writing", "between the renames", "after them", "removing"])
def test_what_a_kill_left_is_finished_or_undone(tmp_path, moment):
    final = tmp_path / "final"
    kept = final if moment != "between the renames" else tmp_path / ".replaced-final"
    kept.mkdir()
    (kept / "file").write_text("whole")
    leftover = {"writing": ".writing-final", "after them": ".replaced-final"}
    leftover |= {"between the renames": ".writing-final", "removing": ".removing-other"}
    (tmp_path / leftover[moment]).mkdir()
    places = disk.unfinished(tmp_path)
    assert places == [tmp_path / ("other" if moment == "removing" else "final")]
    assert disk.recover(places[0]) == (moment in ("writing", "between the renames"))
    assert names(tmp_path) == ["final"]
    assert (final / "file").read_text() == "whole"


def test_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "file"
    disk.write_whole(file, "first")
    disk.write_whole(file, b"second")
    assert file.read_text() == "second"

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="disk full"):
        disk.write_whole(file, "third")
    assert file.read_text() == "second"
    assert names(tmp_path) == ["file"]


def test_what_is_written_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        for shared in (False, True):
            with disk.whole_folder(tmp_path / f"folder{shared}", shared=shared):
                pass
        disk.write_whole(tmp_path / "file", "x")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes == {"folderFalse": 0o750, "folderTrue": 0o750, "file": 0o640}


def test_link_is_moved_in_one_step(tmp_path):
    for target in ("a", "b"):
        disk.link(tmp_path / "last", target)
        assert os.readlink(tmp_path / "last") == target
    assert names(tmp_path) == ["last"]


@pytest.mark.parametrize("value", [None, ""])
def test_cache_without_a_wish_is_in_the_home_folder(tmp_path, monkeypatch, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert disk.cache_root() == tmp_path / ".cache" / "permafrost"


def _hold(file, ready, child):
    with alone(file):
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        child.value = pid
        ready.set()
        time.sleep(60)


def test_a_lock_ends_with_its_process_whatever_that_has_forked(tmp_path):
    fork = multiprocessing.get_context("fork")
    ready, child = fork.Event(), fork.Value("i", 0)
    holder = fork.Process(target=_hold, args=(tmp_path / "lock", ready, child))
    holder.start()
    assert ready.wait(20)
    begun = time.monotonic()
    threading.Timer(0.3, holder.kill).start()
    try:
        with alone(tmp_path / "lock") as waited:
            assert waited
    finally:
        os.kill(child.value, signal.SIGKILL)
        holder.join()
    assert 0.2 < time.monotonic() - begun < 20
