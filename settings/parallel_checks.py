"""What `train.parallel fsdp2` cannot be combined with."""

from collections.abc import Iterator

from settings.keys import AUTO, FROZEN_STAGES, Config


def check_parallel(cfg: Config) -> Iterator[str]:
    """Contradictions of train.parallel with other keys."""
    if cfg.train.parallel != "fsdp2":
        return
    told = "train.parallel fsdp2"
    if cfg.model.freeze == "all":
        yield (
            f"{told} with model.freeze all: nothing of the backbone trains, and what is frozen is whole on each process; "
            f"set ddp, or model.freeze none or {FROZEN_STAGES}2"
        )
    if cfg.train.micro_batch_size == AUTO:
        yield (
            f"{told} with train.micro_batch_size auto: what fits is tried on one process, with whole weights; give a "
            "number"
        )
