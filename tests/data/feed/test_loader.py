import multiprocessing
import os
import signal
import time

import pytest
from torch.utils.data import DataLoader

from data.feed.loader import TO_STOP, batches_of, start_worker


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
