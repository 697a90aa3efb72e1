"""What of the loss scale contradicts the rest."""

from collections.abc import Iterator

from settings.keys import TrainConfig

LARGEST_LOSS_SCALE = 2.0**40
MOST_GROWTH_STEPS = 2**31 - 1
"""What the scaler counts to"""


def check_loss_scale(train: TrainConfig) -> Iterator[str]:
    """Problems with its keys, one line each."""
    for key in ("loss_scale_start", "loss_scale_growth_steps"):
        value = getattr(train, key)
        if value is not None and train.precision != "fp16":
            yield (
                f"train.{key} {value}: has no effect with train.precision {train.precision}, whose range needs no "
                "loss scale; drop it, or set train.precision fp16"
            )
    start, steps = train.loss_scale_start, train.loss_scale_growth_steps
    if start is not None and not 1 <= start <= LARGEST_LOSS_SCALE:
        yield f"train.loss_scale_start {start}: must lie in 1 ... {LARGEST_LOSS_SCALE:.0f}"
    if steps is not None and not 1 <= steps <= MOST_GROWTH_STEPS:
        yield f"train.loss_scale_growth_steps {steps}: must lie in 1 ... {MOST_GROWTH_STEPS}"
