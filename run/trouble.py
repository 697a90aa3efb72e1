"""What a run says, and when it ends, if steps, images or saves go wrong."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.batch import Batch
from errors import SourceError, UserError, own_words, system_error
from model.memory import is_out_of_memory
from run.log import RunLog
from training.checkpoint import Checkpoints
from training.counts import any_rank
from training.state import TrainState

LOST_PEERS = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
"""Words of torch.distributed where another process of the run is gone"""
NOT_DETERMINISTIC = "does not have a deterministic implementation"
"""Words of torch for what run.deterministic forbids"""
LOST_WORKER = "DataLoader worker (pid"
"""Words of torch where a data worker is gone"""


def explain(error: Exception) -> str | None:
    """What the user is told of an error that is not the code's: a full disk, a lost process, too
    little memory. None for any other."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    if isinstance(error, SourceError):
        return (
            f"{own_words(error)}. Checkpoints written so far are intact; --run.resume auto goes on from them when it "
            "can be read again"
        )
    told = system_error(error)
    if told is not None:
        return f"{told}. Checkpoints written so far are intact; --run.resume auto goes on from them"
    if LOST_WORKER in str(error):
        return (
            f"a data worker has ended from outside ({text}): most often the system ran out of memory and "
            "killed it. Checkpoints written so far are intact; lower data.num_workers or data.image_size, "
            "or ask for more memory, then go on with --run.resume auto"
        )
    if any(words in str(error) for words in LOST_PEERS):
        return (
            "another process of this run has ended, and its own last line says why; this one cannot "
            f"go on alone ({text})"
        )
    if NOT_DETERMINISTIC in str(error):
        return (
            f"run.deterministic true: {text.partition(', but you')[0]} on this device; set it false"
        )
    if is_out_of_memory(error):
        return f"out of memory ({text}). Checkpoints written so far are intact"
    return None


def report_skipped(
    step: int,
    batches: Sequence[Batch],
    losses: Sequence[torch.Tensor],
    in_a_row: int,
    limit: int,
    log: RunLog,
) -> None:
    """Collective: called on every rank. Name the images of a step that was skipped.

    Args:
        losses: of each of this rank's micro-batches.

    Raises:
        UserError: after more than `limit` such steps in a row.
    """
    pairs = zip(batches, losses, strict=True)
    own = [i for batch, loss in pairs if not torch.isfinite(loss) for i in batch.image_ids]
    bad = gather_object(own)
    everything = gather_object([i for batch in batches for i in batch.image_ids])
    reason = f"loss not finite for images {bad}" if bad else f"overflow on images {everything}"
    log.say(f"step {step} skipped ({in_a_row} in a row): {reason}")
    log.metrics(step, {"train/skipped_image_ids": bad or everything})
    if in_a_row > limit:
        raise UserError(
            f"step {step}: {in_a_row} steps in a row had no finite gradient "
            "(train.max_skipped_steps). Lower optim.lr, try train.precision no or bf16 if it is fp16 (which ends at "
            "65504), or find the operation with --run.detect_anomaly true; the checkpoints written so far are kept"
        )


def report_bad_images(batches: Sequence[Batch], state: TrainState, limit: int, log: RunLog) -> None:
    """Collective: called on every rank. Name the images that cannot be decoded, each once.

    Raises:
        UserError: if they are more than run.max_bad_images; SystemExit then on other ranks.
    """
    known = state.bad_images
    found = sorted(
        set(gather_object([text for batch in batches for text in batch.bad])) - set(known)
    )
    for text in found:
        log.say(f"warning: {text}; another image takes its place")
    known += found
    if len(known) > limit:
        if not log.active:
            raise SystemExit(2)
        raise UserError(
            f"{len(known)} images cannot be decoded, more than run.max_bad_images {limit}; the last: "
            f"{known[-1]}. `python -m tools.check_data --config ...` names them all"
        )


def report_failed_save(checkpoints: Checkpoints, log: RunLog, ends: bool) -> None:
    """Say why a checkpoint could not be written, on rank 0.

    Raises:
        UserError: if that is to end the run.
        SystemExit: then, on the other ranks.
    """
    failure = checkpoints.give_up()
    if ends and not log.active:
        raise SystemExit(2)
    if ends:
        raise UserError(f"{failure}, then go on with --run.resume auto")
    log.say(f"warning: {failure}; training goes on (train.on_failed_save)")


def finish_saving(accelerator: Accelerator, checkpoints: Checkpoints, log: RunLog) -> None:
    """Collective: called on every rank. Wait for the last checkpoint.

    Raises:
        UserError: if it could not be written.
    """
    checkpoints.wait()
    if any_rank(accelerator, checkpoints.failure is not None):
        report_failed_save(checkpoints, log, ends=True)
