"""The process that uploads the best so far, and its end; whole uploads: tests/export/test_push.py."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from builders import ROOT
from run.hub_push import BestPusher, leaving_no_upload
from settings.keys import HubConfig

STARTING = """
import os, signal, sys
from pathlib import Path
from run.hub_push import BestPusher
from settings.keys import HubConfig

pusher = BestPusher(Path(sys.argv[1]), HubConfig(push=True, during=True), "ada/x")
pusher.begin(4)
print(pusher._process.pid, flush=True)
signal.pause()
"""


class Log:
    """What is said."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def waiting(folder):
    """With a process that waits for a checkpoint, which never comes."""
    pusher = BestPusher(folder, HubConfig(push=True, during=True), "ada/x")
    pusher.begin(4)
    return pusher, psutil.Process(pusher._process.pid)


def test_what_is_uploaded_when_a_run_ends_is_ended_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr("run.hub_push.PATIENCE_S", 0.5)
    log = Log()
    pusher, process = waiting(tmp_path)
    pusher.begin(6)  # a better one that comes meanwhile
    assert process.is_running()
    with pytest.raises(KeyError), leaving_no_upload(pusher, log, tmp_path):
        raise KeyError  # whatever ends it
    assert not process.is_running()
    (line,) = log.lines
    assert "the upload of step 4 was not done" in line
    assert f"python -m tools.export {tmp_path} --push" in line


def test_what_is_done_soon_is_waited_for_and_nothing_is_said(tmp_path, monkeypatch):
    log = Log()
    monkeypatch.setattr(sys, "executable", "/bin/true")
    pusher = BestPusher(tmp_path, HubConfig(push=True, during=True), "ada/x")
    begun = time.monotonic()
    with leaving_no_upload(pusher, log, tmp_path):
        pusher.begin(4)
    assert time.monotonic() - begun < 5
    assert not log.lines


def test_a_run_without_uploads_waits_for_nothing(tmp_path):
    log = Log()
    with leaving_no_upload(BestPusher(tmp_path, HubConfig(), None), log, tmp_path):
        pass
    assert not log.lines


def test_ctrl_c_is_for_the_run(tmp_path):
    """A terminal sends it to all of a group."""
    pusher, process = waiting(tmp_path)
    try:
        assert os.getpgid(process.pid) != os.getpgid(0)
    finally:
        assert pusher.finish() == 4


def test_it_is_killed_with_its_run(tmp_path):
    command = [sys.executable, "-c", STARTING, str(tmp_path)]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    upload = psutil.Process(int(run.stdout.readline()))
    run.send_signal(signal.SIGKILL)
    run.wait()
    upload.wait(20)
    told = (tmp_path / "hub.log").read_text()
    assert "was not written" not in told, "it did not live on for a moment"
