"""The templates of cloud/: what they run is ours, and goes on after a stop; their own validators take them."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from builders import ROOT, launch, metrics_lines, tiny_run
from runs import losses
from settings.load import load_config

SKYPILOT, TRAINJOB = ROOT / "cloud/skypilot.yaml", ROOT / "cloud/trainjob.yaml"
VALIDATORS = {"skypilot": "skypilot==0.14.1", "trainjob": "kubeflow-trainer-api==2.3.0"}
START_S = 120.0


def skypilot():
    return yaml.safe_load(SKYPILOT.read_text())


def trainjob():
    runtime, job = yaml.safe_load_all(TRAINJOB.read_text())
    return runtime, job


def asked_by_skypilot():
    """Arguments, and the number of processes."""
    task = skypilot()
    gpus = int(task["resources"]["accelerators"].rpartition(":")[2])
    return task["envs"]["ARGUMENTS"].split(), task["num_nodes"] * gpus


def asked_by_trainjob():
    trainer = trainjob()[1]["spec"]["trainer"]
    return trainer["args"], trainer["numNodes"] * trainer["numProcPerNode"]


@pytest.mark.parametrize("asked", [asked_by_skypilot, asked_by_trainjob])
def test_what_is_run_is_what_our_parser_takes_on_as_many_processes(asked, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments, world = asked()
    ours = ["--run.output_dir", "/runs/coco", "--run.resume", "auto"]  # of launch.sh
    assert load_config([*arguments, *ours], world=world).data.path == "/runs/data"
    assert world == 16


def test_processes_and_mounts_agree():
    task = skypilot()
    assert task["envs"]["RUN"].startswith(next(iter(task["volumes"])))
    runtime, job = trainjob()
    trainer = job["spec"]["trainer"]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["spec"]["runtimeRef"]["kind"] == runtime["kind"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (
        container["name"] == "node"
    )  # the name that Kubeflow Trainer puts command and environment into
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    (run,) = [entry["value"] for entry in trainer["env"] if entry["name"] == "RUN"]
    assert run.startswith("/runs/")
    assert "/runs" in mounts


def test_scripts_are_sound(tmp_path):
    scripts = {
        "launch": (ROOT / "cloud/launch.sh").read_text(),
        "run": skypilot()["run"],
        "setup": skypilot()["setup"],
        "trainjob": trainjob()[1]["spec"]["trainer"]["command"][2],
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(text if text.startswith("#!") else f"#!/bin/bash\n{text}")
        subprocess.run(["bash", "-n", str(tmp_path / name)], check=True)
        if shutil.which("shellcheck"):
            ignored = "--exclude=SC2086"  # ARGUMENTS are words
            subprocess.run(["shellcheck", ignored, str(tmp_path / name)], check=True)
    wrong = subprocess.run([ROOT / "cloud/launch.sh"], cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "usage, from the repository" in wrong.stderr


class Nodes:
    """The command of a template on two "nodes" of this machine, with one process each on its CPU."""

    def __init__(self, template, run, config):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.nodes = [
            subprocess.Popen(
                command_of(template, config),
                cwd=ROOT,
                env={**os.environ, **environment_of(template, rank, port), "RUN": str(run)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            for rank in range(2)
        ]

    def ended(self):
        """Exit statuses, and what was printed."""
        outputs = [node.communicate(timeout=240)[0] for node in self.nodes]
        return [node.returncode for node in self.nodes], "\n".join(outputs)

    def kill(self):
        """All that runs on both, at once; the launcher gives its processes sessions of their own."""
        nodes = [psutil.Process(node.pid) for node in self.nodes]
        for process in [one for node in nodes for one in (node, *node.children(recursive=True))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for node in self.nodes:
            node.wait()


def command_of(template, config):
    if template == "skypilot":
        return ["bash", "-c", skypilot()["run"]]
    return [*trainjob()[1]["spec"]["trainer"]["command"], "--config", str(config)]


def environment_of(template, rank, port):
    common = {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if template == "skypilot":
        return {
            **common,
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NUM_GPUS_PER_NODE": "1",
            "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2",
            "MAIN_PORT": str(port),
        }
    return {
        **common,
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }


def write_config(folder, **keys):
    """The tiny run's arguments as a file."""
    arguments = tiny_run(folder, **keys)[2:]
    pairs = dict(zip(arguments[::2], arguments[1::2], strict=True))
    told = {}
    for name, value in pairs.items():
        *parents, key = name.removeprefix("--").split(".")
        place = told
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = yaml.safe_load(value)
    told["run"].pop("output_dir")
    file = folder / "config.yaml"
    file.write_text(json.dumps(told))
    return file


def wait_for(file: Path):
    begun = time.monotonic()
    while not file.exists():
        assert time.monotonic() < begun + START_S, file
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The configuration of a run, and its folder after nothing has interrupted it."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder, train__steps=150, train__checkpoint_every=25)
    done = launch(["--config", str(config), "--run.output_dir", str(folder / "run")], 2)
    assert done.returncode == 0, done.stderr
    return config, folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("template", ["skypilot", "trainjob"])
def test_two_nodes_are_preempted_and_go_on_to_the_same_losses(
    tmp_path, monkeypatch, whole, template
):
    """skypilot: the machines vanish. trainjob: one pod is asked to end, and the run saves."""
    config, undisturbed = whole
    monkeypatch.setenv("ARGUMENTS", f"--config {config}")
    run = tmp_path / "runs/mine"
    first = Nodes(template, run, config)
    wait_for(run / "checkpoints/step-000025/manifest.json")
    if template == "skypilot":
        first.kill()
    else:
        first.nodes[1].send_signal(signal.SIGTERM)
        statuses, output = first.ended()
        assert 0 not in statuses, output
        assert "node 1: asking the training to save and stop" in output
        assert "stopped with a checkpoint of step" in (run / "train.log").read_text()
    assert not (run / "DONE").exists()
    statuses, output = Nodes(template, run, config).ended()
    assert statuses == [0, 0], output
    assert (run / "DONE").exists()
    assert "resumed at step" in (run / "train.log").read_text()
    assert "2 process(es)" in (run / "train.log").read_text()
    assert len(metrics_lines(run)) == len(metrics_lines(undisturbed))
    assert losses(run) == losses(undisturbed)


CODE = {
    "skypilot": "import sky, sys; sky.Task.from_yaml(sys.argv[1])",
    "trainjob": """
import json, sys
import kubeflow_trainer_api.models as models
for told in json.loads(sys.argv[2]):
    made = getattr(models, "TrainerV1alpha1" + told["kind"]).from_dict(told)
    assert made.to_dict() == told, made.to_dict()  # an unknown key would be dropped
""",
}


@pytest.fixture
def validator(tmp_path):
    """Asks a validator in an environment of its own: docs/clusters.md makes one, or it is made here if that is quick."""

    def ask(name, file, text="null"):
        home = tmp_path / name
        python = Path.home() / f".cache/permafrost-validators/{name}/bin/python"
        if not python.exists():
            if name == "skypilot":
                pytest.skip("SkyPilot takes minutes to install; docs/clusters.md says where to")
            python = home / "env/bin/python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(home / "env")], check=True)
            command = [str(python), "-m", "pip", "install", "--quiet", VALIDATORS[name]]
            made = subprocess.run(command, capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"{VALIDATORS[name]} could not be installed: {made.stderr[-200:]}")
        home.mkdir(exist_ok=True)
        environment = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        command = [str(python), "-c", CODE[name], str(file), text]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return ask


@pytest.mark.slow
def test_kubeflow_takes_the_job_and_its_runtime(validator):
    documents = list(trainjob())
    made = validator("trainjob", TRAINJOB, json.dumps(documents))
    assert made.returncode == 0, made.stderr
    documents[1]["spec"]["trainer"]["numNode"] = documents[1]["spec"]["trainer"].pop("numNodes")
    assert validator("trainjob", TRAINJOB, json.dumps(documents)).returncode != 0


@pytest.mark.slow
def test_skypilot_takes_the_task(validator, tmp_path):
    made = validator("skypilot", SKYPILOT)
    assert made.returncode == 0, made.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(SKYPILOT.read_text().replace("num_nodes:", "num_node:"))
    assert validator("skypilot", wrong).returncode != 0
