"""huggingface_hub against a server that stands in for the Hub: uploads, repeated attempts, refusals."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import psutil
import pytest

import export.hub
import tools.export
from builders import ROOT, tiny_run
from errors import UserError
from export.hub import push
from runs import train
from training.stopping import EXIT_STOPPED

TOKEN = "hf_" + "verysecret" * 3
AGAIN = "python -m tools.export runs/x --push"


class Hub(ThreadingHTTPServer):
    """Repositories in memory; `answers` are statuses that come first, each once, to requests of a kind."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.answers, self.asked, self.commits = {}, {}, [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def send(self, status, content, headers=()):
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in [("Content-Type", "application/json"), *headers]:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, hub = self.path.partition("?")[0], self.server
        kind = next((k for k in ("create", "preupload", "commit", "whoami") if k in path), path)
        hub.asked.append(kind)
        if hub.answers.get(kind):
            status = hub.answers[kind].pop(0)
            if status in ("silence", "hangs"):
                time.sleep(1 if status == "silence" else 60)
                return None
            headers = [("Retry-After", "0")] if status == 429 else []
            return self.send(status, {"error": "no"}, headers)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401, {"error": "no login"})
        name = "/".join(path.split("/")[3:5])
        if kind == "whoami":
            return self.send(200, {"name": "ada", "type": "user", "auth": {}})
        if kind == "create":
            asked = json.loads(body)
            hub.repos[f"ada/{asked['name']}"] = {
                "private": asked.get("visibility") == "private",
                "files": {},
            }
            return self.send(200, {"url": f"{hub.url}/ada/{asked['name']}"})
        if kind == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.send(200, {"files": files})
        if kind == "commit":
            rows = [json.loads(line)["value"] for line in body.splitlines()]
            hub.commits.append(rows[0]["summary"])
            for row in rows[1:]:
                hub.repos[name]["files"][row["path"]] = base64.b64decode(row["content"])
            return self.send(
                200,
                {"commitUrl": f"{hub.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True},
            )
        if path.startswith("/api/models/") and name in hub.repos:
            return self.send(
                200, {"id": name, "private": hub.repos[name]["private"], "sha": "1" * 40}
            )
        if path == "/api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        return self.send(404, {"error": "nothing"}, [("X-Error-Code", "RepoNotFound")])

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    api = partial(huggingface_hub.HfApi, endpoint=server.url, token=TOKEN)
    monkeypatch.setattr(export.hub, "HfApi", api)
    monkeypatch.setattr(export.hub, "WAITS_S", (0.01, 0.01, 0.01))
    monkeypatch.setattr(export.hub, "SILENCE_S", 0.3)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(huggingface_hub.utils._http, "time", quick)  # between its own attempts
    yield server
    server.shutdown()
    huggingface_hub.close_session()


@pytest.fixture
def folder(tmp_path):
    own = tmp_path / "export"
    (own / "images").mkdir(parents=True)
    (own / "README.md").write_text("---\ntags: [permafrost]\n---\n# x\n")
    (own / "model.safetensors").write_bytes(bytes(range(256)))
    (own / "images/results.png").write_bytes(b"curves")
    return own


def test_everything_is_there_in_one_commit_and_private(hub, folder):
    assert push(folder, "ada/x", True, AGAIN) == f"{hub.url}/ada/x"
    repo = hub.repos["ada/x"]
    assert repo["private"] is True
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert repo["files"] == files
    assert len(hub.commits) == 1
    (folder / "model.safetensors").write_bytes(b"better")
    push(folder, "ada/x", True, AGAIN)
    assert repo["files"]["model.safetensors"] == b"better"
    assert hub.asked.count("create") == 1


def test_a_repository_that_is_public_gets_nothing_unless_asked(hub, folder):
    hub.repos["ada/x"] = {"private": False, "files": {}}
    with pytest.raises(UserError, match=r"ada/x is there and public; set hub.private false"):
        push(folder, "ada/x", True, AGAIN)
    assert not hub.repos["ada/x"]["files"]
    push(folder, "ada/x", False, AGAIN)
    assert hub.repos["ada/x"]["files"]


@pytest.mark.parametrize("answers", [[500], [429, 503], ["silence"], [502, "silence", 429]])
@pytest.mark.parametrize("kind", ["create", "preupload", "commit"])
def test_what_passes_by_itself_is_tried_again(hub, folder, kind, answers):
    hub.answers = {kind: list(answers)}
    push(folder, "ada/x", True, AGAIN)
    assert hub.repos["ada/x"]["files"]["images/results.png"] == b"curves"
    assert len(hub.commits) == 1


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "the login is not valid; run `hf auth login`"),
        (403, "may not write there"),
        (500, "busy or out of order"),
        (429, "busy or out of order"),
        ("silence", "no answer for 0.3 s"),
    ],
)
def test_a_refusal_says_why_and_how_to_repeat_it(hub, folder, status, told, capfd, caplog):
    hub.answers = {"commit": [status] * 20}
    with pytest.raises(UserError, match="is complete, and this tries again: python -m") as raised:
        push(folder, "ada/x", True, AGAIN)
    assert told in str(raised.value)
    out = "".join(capfd.readouterr()) + caplog.text
    assert TOKEN not in str(raised.value) + out
    assert not hub.commits
    if status in (401, 403):
        assert hub.asked.count("commit") == 1
    hub.answers = {}
    push(folder, "ada/x", True, AGAIN)
    assert len(hub.commits) == 1


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_run_that_was_refused_is_done_and_pushed_later(hub, tmp_path):
    hub.answers = {"commit": [403]}
    keys = {"hub__push": "true", "run__name": "plates", "train__steps": 2}
    with pytest.raises(UserError, match=r"403: .*--push"):
        train(tiny_run(tmp_path, **keys))
    run = tmp_path / "run"
    assert (run / "DONE").is_file()
    log = (run / "train.log").read_text()
    assert "hub.push: the upload to ada/plates failed (403" in log
    assert TOKEN not in log
    assert not hub.commits
    shutil.rmtree(tmp_path / "data")
    tools.export.main([str(run), "--push"])
    files = hub.repos["ada/plates"]["files"]
    assert files["model.safetensors"] == (run / "export/model.safetensors").read_bytes()
    assert "images/predictions.png" in files
    assert b"![Predictions on validation images](images/predictions.png)" in files["README.md"]
    everything = b"".join(f.read_bytes() for f in run.rglob("*") if f.is_file())
    assert TOKEN.encode() not in everything


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_accelerator")
def test_the_best_is_uploaded_while_training_goes_on(hub, tmp_path, monkeypatch):
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen = []
    original = export.hub.push

    def at_the_end(*words):
        seen.extend(hub.commits)
        return original(*words)

    monkeypatch.setattr("run.export.push", at_the_end)
    slow = train_slowly(monkeypatch, hub)
    keys = {"hub__push": "true", "hub__during": "true", "run__name": "plates"}
    train(tiny_run(tmp_path, **keys, train__steps=6, train__evaluate_every=2))
    assert slow
    assert seen == ["Upload step 2"]
    assert hub.commits[-1] == "Upload the model"
    log = (tmp_path / "run/hub.log").read_text()
    assert "uploaded to" in log
    assert TOKEN not in log


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_upload_ends_with_its_run(hub, tmp_path, number):
    hub.answers = {"commit": ["hangs"] * 20}
    keys = {"hub__push": "true", "hub__during": "true", "run__name": "plates"}
    keys |= {"train__steps": 100_000, "train__evaluate_every": 20}
    command = [sys.executable, "train_accelerate.py", *tiny_run(tmp_path, **keys)]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        end = time.monotonic() + 150
        while "commit" not in hub.asked:
            assert run.poll() is None, "it trains"
            assert time.monotonic() < end, "it uploads"
            time.sleep(0.2)
        (upload,) = [p for p in psutil.Process(run.pid).children() if "--push" in p.cmdline()]
        run.send_signal(number)
        assert run.wait(60) == (EXIT_STOPPED if number == signal.SIGTERM else -number)
        upload.wait(10)
    finally:
        run.kill()
    told = (tmp_path / "run/train.log").read_text()
    again = f"was not done (hub.log); `python -m tools.export {tmp_path / 'run'} --push` uploads"
    assert (again in told) == (number == signal.SIGTERM)


def train_slowly(monkeypatch, hub):
    """Let the loop wait before its fourth step until the upload of the second has come."""
    import train_accelerate

    real, waits = train_accelerate.log_step, []

    def log_step(run, *words):
        real(run, *words)
        end = time.monotonic() + 90
        while run.state.step == 3 and not hub.commits and time.monotonic() < end:
            waits.append(1)
            time.sleep(0.2)

    monkeypatch.setattr(train_accelerate, "log_step", log_step)
    return waits
