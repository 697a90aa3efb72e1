"""fp16: how it comes to a CPU, and the loss scale, without which small gradients would vanish in it.

The loss is multiplied by the scale, gradients are divided by it. Where they overflow the scale is halved, and where they
have not for a while it is doubled. Here, in logs and in checkpoints it is the factor of the step's loss; the scaler
of one of W processes holds a W-th of it, since each multiplies its loss by W for DDP to average. So numbers in fp16 are
the same on any number of processes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from run.log import RunLog
from settings.keys import LOSS_SCALE, LOSS_SCALE_GROWTH_STEPS, TrainConfig
from training.counts import any_rank


class Attempt(NamedTuple):
    """What came of an optimizer step."""

    taken: bool
    grad_norm: torch.Tensor
    losses: Sequence[torch.Tensor]
    """Of each of this rank's micro-batches"""


def set_up_fp16(accelerator: Accelerator, cfg: TrainConfig) -> None:
    """Let an Accelerator of precision fp16 compute in it on its device, with the configured loss scale.

    accelerate takes fp16 on a CPU and then computes in fp32, though torch has autocast and scaler there too.
    """
    if cfg.precision != "fp16":
        return
    if accelerator.device.type == "cpu":
        accelerator.native_amp = True  # what `prepare`, `autocast` and `clip_grad_norm_` go by
        accelerator.scaler = torch.amp.GradScaler("cpu")
    load_scaler(
        accelerator, {"scale": cfg.loss_scale_start or LOSS_SCALE, "_growth_tracker": 0}, cfg
    )


def load_scaler(
    accelerator: Accelerator, state: Mapping[str, Any] | None, cfg: TrainConfig
) -> None:
    """Go on with the loss scale of a checkpoint, if it and the run have one.

    Args:
        state: as `scaler_state` gives it.
    """
    if state is None or accelerator.scaler is None:
        return
    own = {
        "scale": state["scale"] / accelerator.num_processes,
        "growth_interval": cfg.loss_scale_growth_steps or LOSS_SCALE_GROWTH_STEPS,
        "_growth_tracker": state["_growth_tracker"],
    }
    accelerator.scaler.load_state_dict({**accelerator.scaler.state_dict(), **own})


def scaler_state(accelerator: Accelerator) -> dict[str, Any] | None:
    """What a checkpoint keeps of the scaler, the same on any number of processes; None without one."""
    if accelerator.scaler is None:
        return None
    return {**accelerator.scaler.state_dict(), "scale": loss_scale(accelerator)}


def loss_scale(accelerator: Accelerator) -> float | None:
    """What the step's loss is multiplied by; None without a scaler. Waits for the device."""
    scaler = accelerator.scaler
    return None if scaler is None else float(scaler.get_scale()) * accelerator.num_processes


def with_fitting_scale(
    accelerator: Accelerator, attempt: Callable[[], Attempt], step: int, log: RunLog
) -> Attempt:
    """Collective: called on every rank. The last attempt at a step: in fp16 it is made again on the same images, each
    time with half the loss scale, as long as that may be what made the gradient overflow.

    It may not where the loss itself is not finite, and not where it is not enlarged any more. Then the scale is put
    back, and the step is skipped as in any precision.

    Args:
        attempt: forward and backward passes of the step, and the optimizer step unless the gradient is not finite.
    """
    made = attempt()
    scaler, world = accelerator.scaler, accelerator.num_processes
    if made.taken or scaler is None:
        return made
    lost = any_rank(accelerator, not all(bool(torch.isfinite(loss)) for loss in made.losses))
    scale = first = scaler.get_scale()
    while not made.taken:
        scaler.update()
        lower = scaler.get_scale()
        if lost or scale * world <= 1 or lower >= scale:
            scaler.update(first)
            return made
        scale = lower
        made = attempt()
    log.say(
        f"step {step}: gradients overflow in fp16 at a loss scale of {first * world:g}; taken with {scale * world:g}"
    )
    return made
