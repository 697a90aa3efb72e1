"""Jobs on a real Ray cluster of two nodes on this machine, one of whose processes is killed."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from builders import ROOT, tiny_run, write_coco
from large import write_large
from tools import cache_features, check_data

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed (pip install -r requirements-ray.txt)",
    ),
]
START_S, RUN_S = 60.0, 200.0
RAY = Path(sys.executable).parent / "ray"


class RayCluster:
    """Two nodes of one CPU each, while the context is entered."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="ray-")  # a socket's path has at most 107 characters
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            **{"HOME": self.folder, "RAY_ADDRESS": self.address, "RAY_USAGE_STATS_ENABLED": "0"},
            **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "tests")},
        }
        self.nodes = []
        port = self.address.partition(":")[2]
        head = ["--head", "--port", port, "--temp-dir", self.folder, "--include-dashboard=false"]
        try:
            self._start(head)
            self._start(["--address", self.address])
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, options):
        usual = ["--block", "--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000"]
        with open(f"{self.folder}/start-{len(self.nodes)}.log", "w+") as log:
            command = [RAY, "start", "--node-ip-address=127.0.0.1", *usual, *options]
            # Not as a driver: RAY_ADDRESS would be another cluster's.
            own = {k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"}
            node = subprocess.Popen(
                command, cwd="/", env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            self.nodes.append(psutil.Process(node.pid))
            end = time.monotonic() + START_S
            while "Ray runtime started" not in Path(log.name).read_text():
                assert node.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < end, Path(log.name).read_text()
                time.sleep(0.1)

    def __exit__(self, *_):
        for node in self.nodes:
            self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self, node):
        """End all processes of a node."""
        try:
            processes = [*node.children(recursive=True), node]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    def workers(self):
        """Processes of each node that do a job now."""
        return [[p for p in node.children(recursive=True) if works(p)] for node in self.nodes]

    def run(self, module, *arguments, kill_when=lambda: False):
        """Output of a tool on this cluster; one process that works for it is killed."""
        with open(f"{self.folder}/out.txt", "w+") as out:
            driver = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments), "--engine", "ray"],
                **{"cwd": ROOT, "env": self.environment, "stdout": out, "stderr": out},
            )
            try:
                killed = self._watch(driver, kill_when)
            finally:
                driver.kill()
                driver.wait()
            out.seek(0)
            text = out.read()
        assert killed, text
        return driver.returncode, text

    def _watch(self, driver, kill_when):
        """Wait for its end; whether a process of a cluster that works on both nodes was killed."""
        end, killed = time.monotonic() + RUN_S, False
        while driver.poll() is None:
            assert time.monotonic() < end, "took too long"
            found = self.workers()
            if not killed and all(found) and kill_when():
                found[1][0].send_signal(signal.SIGKILL)
                killed = True
            time.sleep(0.1)
        return killed


def works(process):
    try:
        return process.name().startswith("ray::_call")
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.getbasetemp() / "cache")
    with RayCluster() as cluster:
        yield cluster


def tree(folder):
    return {
        file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def test_a_check_with_a_killed_process_is_that_of_a_pool(cluster, tmp_path, capsys):
    write_large(tmp_path / "data", 120)
    arguments = [*tiny_run(tmp_path), "--range-images", "5", "--json", str(tmp_path / "found.json")]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert check_data.main([*arguments, "--ranges", str(ours)]) == 0
    one, content = capsys.readouterr().out, (tmp_path / "found.json").read_bytes()
    status, out = cluster.run(
        "tools.check_data",
        *arguments,
        *("--ranges", theirs),
        kill_when=lambda: len(list(theirs.glob("range-*"))) >= 2,
    )
    assert status == 0, out
    assert "gave up" not in out
    assert out.endswith(one)
    assert "119 x duplicate image" in out
    assert (tmp_path / "found.json").read_bytes() == content
    assert tree(theirs) == tree(ours)
    assert len(tree(ours)) == 25


@pytest.mark.usefixtures("fresh_accelerator")
def test_features_with_a_killed_process_are_those_of_one(cluster, tmp_path):
    write_coco(tmp_path / "data", 300)
    write_coco(tmp_path / "data", 5, "val", seed=1)
    arguments = tiny_run(tmp_path, data__cache_features=4)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    cache_features.main([*arguments, "--data.cache_folder", str(ours)])
    status, out = cluster.run(
        "tools.cache_features",
        *arguments,
        *("--data.cache_folder", theirs),
        kill_when=lambda: len(list(theirs.rglob("*.safetensors"))) >= 2,
    )
    assert status == 0, out
    assert out.count("is done") == 2, out
    (
        ours / "contents.json"
    ).unlink()  # what is known of files, in the order in which they were read
    (theirs / "contents.json").unlink()
    assert tree(theirs) == tree(ours)
    assert len(tree(ours)) == 5 * 4 + 1 + 2
