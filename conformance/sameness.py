"""Experiments on what may not depend on processes and micro-batches, and on what is seen how often."""

from collections import Counter

from conformance.dataset import NUM_TRAIN
from conformance.launch import Bench, Seen
from conformance.verdicts import NotMeasured, Verdict, apart, column, finished, judged

LOSS, NORM = 1e-4, 1e-3
"""Relative differences that rounding makes in three steps"""
LOOKING = {"steps": 1, "warmup": 0, "lr": 1e-9, "evaluate": True}
"""A run that changes no weights to speak of, and evaluates them"""


def one(bench: Bench) -> Seen:
    return finished(bench.run(bench.job())[1], 3)


def two(bench: Bench) -> Seen:
    return finished(bench.run(bench.job(processes=2, micro_batch=2))[1], 3)


def compared(first: Seen, second: Seen) -> tuple[bool, str]:
    """Whether the first three steps of two runs are the same."""
    images, losses, norms = (
        (column(first, name, 0, 3), column(second, name, 0, 3))
        for name in ("images", "loss", "norm")
    )
    same = [a == b for a, b in zip(*images, strict=True)]
    loss, norm = apart(*losses), apart(*norms)
    figure = (
        f"images of {sum(same)} of 3 steps equal; loss {loss:.1e}, gradient norm {norm:.1e} apart"
    )
    return all(same) and loss <= LOSS and norm <= NORM, figure


def processes(bench: Bench) -> Verdict:
    """Three steps of 4 images on one process, and as 2 + 2 on two."""
    return judged(*compared(one(bench), two(bench)))


def four_processes(bench: Bench) -> Verdict:
    """Three steps of 4 images on one process, and with one image on each of four."""
    four = finished(bench.run(bench.job(processes=4, micro_batch=1))[1], 3)
    return judged(*compared(one(bench), four))


def accumulation(bench: Bench) -> Verdict:
    """Three steps of 4 images at once, and as four micro-batches of one image with 1 to 8 objects."""
    parts = finished(bench.run(bench.job(micro_batch=1, accumulation=4))[1], 3)
    return judged(*compared(one(bench), parts))


def schedule(bench: Bench) -> Verdict:
    """The learning rates of three steps, two of them warm-up, on one process and on two."""
    rates = [column(seen, "lr", 0, 3) for seen in (one(bench), two(bench))]
    told = " and ".join(", ".join(f"{rate:.2e}" for rate in row) for row in rates)
    return judged(apart(*rates) < 1e-6, told)


def epochs(bench: Bench) -> Verdict:
    """Four epochs of 21 images on two processes: each image four times."""
    job = bench.job(processes=2, micro_batch=2, steps=None, epochs=4)
    seen = finished(bench.run(job)[1])
    often = Counter(image for step in seen.steps for image in step["images"])
    spread = Counter(often.values())
    told = ", ".join(f"{num} images {times} times" for times, num in sorted(spread.items()))
    return judged(spread == {4: NUM_TRAIN}, f"{told}, in {len(seen.steps)} steps")


def evaluation(bench: Bench) -> Verdict:
    """The same weights evaluated on 5 images by one process and by two: the logged AP."""
    results: list[float] = []
    for processes, micro_batch in ((1, 4), (2, 2)):
        job = bench.job(processes=processes, micro_batch=micro_batch, **LOOKING)
        out, seen = bench.run(job)
        if seen.status != 0 and processes > 1 and seen.steps:
            return judged(False, f"AP {results[0]:.4f} on one; two end with: {seen.says()}")
        finished(seen)
        logged = bench.adapter.logged_ap(out)
        if logged is None:
            return Verdict("not offered", "no AP is logged")
        results.append(logged)
    told = f"AP {results[0]:.4f} and {results[1]:.4f}"
    if max(results) == 0:
        raise NotMeasured(f"{told}: this model finds nothing, so equality would say nothing")
    return judged(abs(results[0] - results[1]) < 1e-4, told)


def augmentation(bench: Bench) -> Verdict:
    """21 equal images on 2 processes with 2 data workers each, in two epochs: what differs is augmentation."""
    dataset = bench.dataset(equal=True)
    keys = {"processes": 2, "micro_batch": 2, "workers": 2, "augment": True}
    job = bench.job(dataset=dataset, steps=None, epochs=4, **keys)
    seen = finished(bench.run(job)[1])
    streams = streams_of(seen)
    same = [f"{a} = {b}" for a in streams for b in streams if a < b and streams[a] == streams[b]]
    told = f"{len(streams)} streams (rank, worker, half of the run), {len(set(streams.values()))} distinct"
    kinds = len({image for stream in streams.values() for image in stream})
    if kinds < 4:
        raise NotMeasured(f"augmentation gave {kinds} different images")
    return judged(not same, told + (f": {'; '.join(same[:3])}" if same else ""))


def streams_of(seen: Seen) -> dict[str, tuple]:
    """What each data worker of each rank gave first in each half of the run: batches go round its workers."""
    from conformance.launch import of_rank

    streams = {}
    for rank, events in enumerate(seen.ranks):
        micros = [micro for step in of_rank(events) for micro in step["micros"]]
        half = len(micros) // 4 * 2  # whole rounds of two workers
        for part, begin in (("first", 0), ("second", half)):
            for worker in (0, 1):
                given = micros[begin + worker : begin + half : 2]
                streams[f"rank {rank} worker {worker} {part}"] = tuple(map(tuple, given))
    return streams
