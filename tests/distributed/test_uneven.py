"""Two processes of which one is slower and has less memory: both are told, and go on alike."""

import re

import pytest

from builders import launch, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    keys = {"data__cache_features": 1, "data__cache_folder": folder / "cache"}
    keys |= {"train__steps": 5, "run__profile": 1, "train__micro_batch_size": "auto"}
    result = launch(tiny_run(folder, **keys), 2, script="tests/distributed/uneven_worker.py")
    assert result.returncode == 0, result.stderr
    return folder / "run"


def test_slow_rank_is_named(run):
    text = (run / "profile/summary.txt").read_text()
    assert float(re.findall(r"^agree +(\d+\.\d+)", text, re.M)[0]) > 0.15  # for two late images
    assert "rank 1, the slowest" in text
    assert re.search("advice: (rank 0 waits for rank 1|.*waiting for data)", text)
    assert not re.search("^backbone", text, re.M)  # features are stored


def test_smallest_micro_batch_is_taken_by_all(run):
    text = (run / "train.log").read_text()
    assert re.search(r"^memory .*auto: 1 image\(s\).*; 1 would fit$", text, re.M)
    assert "= 1 per pass x 2 process(es) x 2 accumulated" in text
