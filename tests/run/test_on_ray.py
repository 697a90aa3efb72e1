"""Jobs on a real Ray cluster of two nodes on this machine, one of whose processes is killed."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from builders import ROOT, launch, tiny_run, write_coco

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
        return [
            [p for p in node.children(recursive=True) if p.name().startswith("ray::_call")]
            for node in self.nodes
        ]

    def run(self, module, *arguments, kill_when=lambda: False):
        """Output of a tool on this cluster; one process that works for it is killed."""
        with open(f"{self.folder}/out.txt", "w+") as out:
            driver = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments), "--engine", "ray"],
                **{"cwd": ROOT, "env": self.environment, "stdout": out, "stderr": out},
            )
            end, busy, killed = time.monotonic() + RUN_S, set(), False
            while driver.poll() is None:
                assert time.monotonic() < end, Path(out.name).read_text()
                found = self.workers()
                busy |= {number for number, own in enumerate(found) if own}
                if not killed and all(found) and kill_when():
                    found[1][0].send_signal(signal.SIGKILL)
                    killed = True
                time.sleep(0.02)
            out.seek(0)
            text = out.read()
        assert killed, text
        assert busy == {0, 1}
        return driver.returncode, text


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.getbasetemp() / "cache")
    with RayCluster() as cluster:
        yield cluster


def tree(folder):
    return {
        file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def write_large(root, num):
    """Images that take a while to decode; each is the same."""
    write_coco(root, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "train/000.jpg")
    file = root / "annotations/train.json"
    content = json.loads(file.read_text())
    (image, *_), annotations = content["images"], []
    images = []
    for number in range(num):
        name = f"{number:03d}.jpg"
        if number:
            shutil.copy(root / "train/000.jpg", root / "train" / name)
        images.append({**image, "id": number, "file_name": name, "width": 1600, "height": 1200})
        annotations.append({**content["annotations"][0], "id": number + 1, "image_id": number})
    file.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
    write_coco(root, 5, "val", seed=1)


def test_a_check_with_a_killed_process_is_that_of_a_pool(cluster, tmp_path):
    write_large(tmp_path / "data", 200)
    arguments = [*tiny_run(tmp_path), "--range-images", "8", "--json", tmp_path / "found.json"]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    one = launch([*map(str, arguments), "--ranges", str(ours)], 1, "tools.check_data", module=True)
    content = (tmp_path / "found.json").read_bytes()
    status, out = cluster.run(
        "tools.check_data",
        *arguments,
        *("--ranges", theirs),
        kill_when=lambda: len(list(theirs.glob("range-*"))) >= 2,
    )
    assert status == one.returncode == 0, out
    assert "gave up" not in out
    assert out.endswith(one.stdout)
    assert (tmp_path / "found.json").read_bytes() == content
    assert b"199" in content
    assert tree(theirs) == tree(ours)
    assert len(tree(ours)) == 26


def test_features_with_a_killed_process_are_those_of_one(cluster, tmp_path):
    write_coco(tmp_path / "data", 300)
    write_coco(tmp_path / "data", 5, "val", seed=1)
    arguments = tiny_run(tmp_path, data__cache_features=4)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    one = launch(
        [*arguments, "--data.cache_folder", str(ours)], 1, "tools.cache_features", module=True
    )
    assert one.returncode == 0, one.stderr
    status, out = cluster.run(
        "tools.cache_features",
        *arguments,
        *("--data.cache_folder", theirs),
        kill_when=lambda: len(list(theirs.rglob("*.safetensors"))) >= 2,
    )
    assert status == 0, out
    assert out.count("is done") == 2, out
    files = {name: content for name, content in tree(ours).items() if name.name != "contents.json"}
    assert {name: c for name, c in tree(theirs).items() if name.name != "contents.json"} == files
    assert len(files) == 5 * 4 + 1 + 2
