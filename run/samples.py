"""What the model is about to learn from, drawn before and in the first steps: the folder samples/."""

from collections.abc import Sequence

from data.batch import Batch
from errors import UserError
from report.drawing import draw_batch
from report.label_charts import LABELS_PICTURE, draw_labels
from report.thumbnails import title_of
from run.build import Run

MOST_PICTURES = 100
"""However many steps run.draw_batches asks for"""


def draw_first_batches(run: Run, batches: Sequence[Batch]) -> None:
    """Draw what the model gets in the first steps into samples/."""
    turned = run.state.samples_seen // run.cfg.train.global_batch_size  # skipped steps too
    if not run.accelerator.is_main_process or turned >= run.cfg.run.draw_batches:
        return
    drawn = turned * len(batches)
    for turn, batch in enumerate(batches[: max(0, MOST_PICTURES - drawn)]):
        name = f"step-{run.state.step + 1:06d}-{turn}.png"
        titles = [title_of(run.data.train, place, "train") for place in batch.indices]
        file = run.folder / "samples" / name
        try:
            draw_batch(batch, run.data.taxonomy.names, file, run.data.labels, titles)
        except OSError as error:  # a full disk: checkpoints decide whether the run goes on
            run.log.say(f"warning: samples/{name} could not be drawn: {error}")
    if drawn < MOST_PICTURES <= drawn + len(batches) < run.cfg.run.draw_batches * len(batches):
        run.log.say(
            f"samples/ has {MOST_PICTURES} pictures now; the images of later steps are not drawn"
        )


def begin_labels(run: Run) -> None:
    """Draw samples/labels.png in a process beside the training, if this is wanted. On rank 0 alone."""
    file = run.folder / "samples" / LABELS_PICTURE
    if not (run.cfg.run.pictures and run.accelerator.is_main_process) or file.exists():
        return
    try:
        run.drawings.start(lambda: draw_labels(file, run.data, run.detector.rule.size))
    except (OSError, UserError) as error:
        run.log.say(f"warning: samples/{LABELS_PICTURE} could not be drawn: {error}")


def finish_labels(run: Run) -> None:
    """Wait for it, and say so if it came to nothing. On rank 0 alone."""
    failure = run.drawings.finish()
    if failure is not None:
        run.log.say(f"warning: samples/{LABELS_PICTURE} could not be drawn: {failure}")
