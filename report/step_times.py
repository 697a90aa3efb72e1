"""Where the time of a step goes: a table for people, and what to do about it where that is known."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from settings.keys import Config

STEP = "step"
WAIT, COPY, BACKBONE, HEAD, ENCODER, LOSS = (
    *("wait for data", "copy to device", "backbone", "head"),
    *("encoder", "loss"),
)
AGREE, BACKWARD, OPTIMIZER, REST = "agree", "backward", "optimizer", "rest"
ROWS = (WAIT, AGREE, COPY, BACKBONE, HEAD, ENCODER, LOSS, BACKWARD, OPTIMIZER, REST)
"""In the order of a step; the encoder is a part of the head"""
TOGETHER = (AGREE, BACKWARD)
"""Parts in which a rank waits for others"""
HEADS_WITH_LEVELS = ("deformable_detr", "mask2former")
"""Whose encoder looks at all maps at once"""

Seconds = Mapping[str, float]
"""Of the parts of a step, by name, and of the whole"""


@dataclass(frozen=True)
class Setting:
    """What advice depends on besides the seconds."""

    cfg: Config
    can_store: Callable[[], bool]
    """Whether data.cache_features would be allowed; it takes a moment to find out"""
    strides: tuple[int, ...]
    """Of the maps that the head gets, px"""
    ranks_here: int = 1
    """Processes on this machine"""


def table(ranks: Sequence[Seconds]) -> Iterator[str]:
    """Lines with seconds and share of each part: of rank 0 and, where it is another one, of the slowest."""
    slow = slowest(ranks)
    shown = sorted({0, slow})
    yield "".join([f"{'':<17}", *(f"{_name(rank, slow, ranks):>24}" for rank in shown)]).rstrip()
    for part in (*ROWS, STEP):
        if all(part not in ranks[rank] for rank in shown):
            continue
        name = f"  of it {part}" if part == ENCODER else part
        cells = (_cell(ranks[rank], part) for rank in shown)
        yield "".join([f"{name:<17}", *cells])
    if len(ranks) > 1 and not differ(ranks):
        yield f"all {len(ranks)} ranks have as much to do, up to a tenth of a step"
    elif len(ranks) > 1:
        work = own_work(ranks[slow])
        fastest = min(range(len(ranks)), key=lambda rank: own_work(ranks[rank]))
        yield (
            f"rank {slow} is the slowest: {work:.4f} s of a step before its backward, rank {fastest} "
            f"{own_work(ranks[fastest]):.4f} s; the others wait for it in agree and backward"
        )


def _name(rank: int, slow: int, ranks: Sequence[Seconds]) -> str:
    if len(ranks) == 1:
        return "seconds   share"
    return f"rank {rank}{', the slowest' if rank == slow and differ(ranks) else ''}"


def _cell(seconds: Seconds, part: str) -> str:
    if part not in seconds:
        return f"{'':>24}"
    return f"{seconds[part]:>16.4f} {100 * seconds[part] / seconds[STEP]:>5.1f} %"


def own_work(seconds: Seconds) -> float:
    """Seconds of a step in which a rank waits for no other one."""
    return seconds[STEP] - sum(seconds.get(part, 0.0) for part in TOGETHER)


def slowest(ranks: Sequence[Seconds]) -> int:
    """The rank with the most work of its own; 0 if they are all alike."""
    return max(range(len(ranks)), key=lambda rank: own_work(ranks[rank])) if differ(ranks) else 0


def differ(ranks: Sequence[Seconds]) -> bool:
    """Whether some rank has clearly more to do than another: by a tenth of the step."""
    work = [own_work(seconds) for seconds in ranks]
    return max(work) - min(work) > 0.1 * ranks[0][STEP]


def advice(ranks: Sequence[Seconds], setting: Setting) -> str | None:
    """What helps most, in one sentence; None where nothing is known to."""
    slow = ranks[slowest(ranks)]
    share = {part: seconds / slow[STEP] for part, seconds in slow.items()}
    found = [
        *_waiting(share, setting),
        *_backbone(share, setting),
        *_encoder(share, setting),
        *_optimizer(share, setting.cfg),
        *_other_ranks(ranks),
    ]
    return max(found, default=(0.0, None), key=lambda each: each[0])[1]


def _waiting(share: Seconds, setting: Setting) -> Iterator[tuple[float, str]]:
    if share[WAIT] < 0.15:
        return
    workers = setting.cfg.data.num_workers
    remedies = []
    if (workers + 1) * setting.ranks_here < (os.cpu_count() or 1):
        remedies.append(f"raise data.num_workers (now {workers})")
    if setting.can_store():
        remedies.append("store what the frozen backbone gives (data.cache_features 4)")
    if remedies:
        text = f"{100 * share[WAIT]:.0f} % of a step are spent waiting for data: {', or '.join(remedies)}"
        yield share[WAIT], text


def _backbone(share: Seconds, setting: Setting) -> Iterator[tuple[float, str]]:
    part = share.get(BACKBONE, 0.0)
    if part > 0.5 and setting.can_store():
        yield (
            part,
            f"{100 * part:.0f} % of a step are a backbone that is frozen: data.cache_features 4 stores what "
            "it gives for 4 views of each image, which this configuration and this head allow",
        )


def _encoder(share: Seconds, setting: Setting) -> Iterator[tuple[float, str]]:
    part, forward = share.get(ENCODER, 0.0), share[HEAD] + share.get(BACKBONE, 0.0) + share[LOSS]
    model = setting.cfg.model
    if part < 0.15 or part < 0.5 * forward or model.head not in HEADS_WITH_LEVELS:
        return
    remedies = []
    if model.head == "deformable_detr" and model.head_args.get("num_feature_levels", 4) > 1:
        remedies.append("fewer model.head_args.num_feature_levels")
    if min(setting.strides) < 16 and len(setting.strides) > 1 and model.head == "deformable_detr":
        remedies.append("model.out_features from stride 16 on")
    remedies.append("fewer model.head_args.encoder_layers")
    yield (
        part,
        f"the encoder is {100 * part / forward:.0f} % of the forward pass; it gets smaller by {', or '.join(remedies)} "
        "(small objects need fine maps: docs/choosing.md)",
    )


def _optimizer(share: Seconds, cfg: Config) -> Iterator[tuple[float, str]]:
    if share[OPTIMIZER] > 0.2:
        names = "optimizer" if cfg.train.ema_decay is None else "optimizer and average"
        yield (
            share[OPTIMIZER],
            f"{names} take {100 * share[OPTIMIZER]:.0f} % of a step, as much for few images as for many: a larger "
            "train.global_batch_size (with a higher optim.lr and fewer steps) needs them less often",
        )


def _other_ranks(ranks: Sequence[Seconds]) -> Iterator[tuple[float, str]]:
    waits = [seconds.get(AGREE, 0.0) / seconds[STEP] for seconds in ranks]
    slow, waiting = slowest(ranks), waits.index(max(waits))
    if max(waits) < 0.15 or slow == waiting or not differ(ranks):
        return
    more = {p: ranks[slow].get(p, 0.0) - ranks[waiting].get(p, 0.0) for p in ROWS}
    why = max((part for part in more if part not in TOGETHER), key=lambda part: more[part])
    yield (
        max(waits),
        f"rank {waiting} waits for rank {slow} {100 * max(waits):.0f} % of a step, where '{why}' takes "
        f"{ranks[slow][why]:.3f} s instead of {ranks[waiting].get(why, 0.0):.3f} s: look at that machine",
    )
