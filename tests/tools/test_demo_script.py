"""tools/demo.sh: what it says after Ctrl-C is true."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from builders import ROOT, tiny_run
from settings.load import load_config
from settings.walk import config_to_dict

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path):
    """A folder like the repository's, with a runs folder of its own."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".venv", ".git"):
            (folder / path.name).symlink_to(path)
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return folder


def interrupted(place, config, log, ready):
    """What the script says, if Ctrl-C comes when `ready` stands in the log."""
    words = ["sh", "tools/demo.sh", str(config), "mine"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, cwd=place, start_new_session=True, **options) as process:
        until = time.monotonic() + 120
        while not (log.exists() and ready in log.read_text()):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        told = process.stdout.read()
    return process.returncode, told


def test_the_same_command_goes_on_after_an_interrupt(place, tmp_path):
    config = tmp_path / "tiny.yaml"
    given = config_to_dict(load_config(tiny_run(tmp_path, train__steps=20000)))
    config.write_text(yaml.safe_dump(given))
    run = place / "runs/mine"
    for ready in ("step     3/20000", "resumed at step"):
        status, told = interrupted(place, config, run / "train.log", ready)
        assert status == 75
        assert "The same command again goes on with runs/mine; without that folder" in told
    assert [path.name for path in (place / "runs").iterdir()] == ["mine"]
    given["optim"]["lr"] = 0.5
    config.write_text(yaml.safe_dump(given))
    words = ["sh", "tools/demo.sh", str(config), "mine"]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True)
    assert done.returncode == 2
    assert "optim.lr" in done.stderr
    assert "It was to go on with runs/mine; without that folder it begins anew" in done.stderr
