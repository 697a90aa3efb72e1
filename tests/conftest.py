import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hub library is imported
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_finish():
    """What all imports made stays: the many collections of garbage need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """Starts lives of runs that can be killed."""
    from lives import starting_lives

    with starting_lives(tmp_path_factory.mktemp("lives")) as lives:
        yield lives


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    """Nothing is read from or written to the user's caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path_factory.getbasetemp() / "trackio"))


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps one state a process: each run in it has to begin and leave without."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.autograd.set_detect_anomaly(False)
