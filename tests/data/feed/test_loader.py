import multiprocessing
import os
import signal
import time
import tracemalloc

import pytest
from torch.utils.data import DataLoader

from data.feed.loader import MAX_CANDIDATES, TO_STOP, TrainDataset, batches_of, start_worker
from data.feed.sampler import SampleRef
from errors import UserError
from settings.keys import DataConfig


def start_slowly(worker: int) -> None:
    """A machine with other work to do."""
    time.sleep(1)
    start_worker(worker)


@pytest.mark.parametrize("number", TO_STOP)
def test_signal_to_a_worker_that_is_starting_is_none_for_it(number):
    """As of scancel to a whole process group, in the moment in which an evaluation starts its workers."""
    loader = DataLoader(list(range(6)), batch_size=2, num_workers=2, worker_init_fn=start_slowly)
    with batches_of(loader) as batches:
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid, number)
        assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]


def test_signals_reach_the_main_process_again_once_workers_have_started():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(True))
    try:
        loader = DataLoader(list(range(2)), num_workers=1, worker_init_fn=start_worker)
        with batches_of(loader):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert heard
    finally:
        signal.signal(signal.SIGUSR1, before)


class Drawn:
    """A split of many images."""

    def __len__(self) -> int:
        return 3_000_000


def test_a_sample_of_millions_makes_no_list_of_all(monkeypatch):
    dataset = TrainDataset(Drawn(), DataConfig(), seed=0)
    tried = []

    def sample(self, index, ref):
        tried.append(index)
        raise UserError(f"image {index}")

    monkeypatch.setattr(TrainDataset, "_sample", sample)
    tracemalloc.start()
    with pytest.raises(UserError, match="too many images in a row"):
        dataset[SampleRef(index=2_999_998, epoch=0, canvas=(64, 64), spares=(7, 0, 7))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tried[:7] == [2_999_998, 7, 0, 2_999_999, 1, 2, 3]
    assert len(set(tried)) == len(tried) == MAX_CANDIDATES
    assert peak < 1_000_000  # a list of all would have 100 times as much
