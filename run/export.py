"""A checkpoint's weights as others use them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.batch import Sample
from data.feed.collate import collate
from data.feed.loader import EvalDataset
from data.objects import Objects
from data.schema import Split
from errors import UserError
from export.card import model_card, origin, public_name
from export.folder import export_model
from export.hub import push
from export.recommended import write_recommended
from model.build import Detector, build_model
from report.evaluation import read_metrics
from run.build import Run
from run.evaluate import draw_run, evaluation_folder
from run.outcome import outcome
from settings.keys import Config
from training.shelf import find_flaw
from training.state import load_model, load_state

CHECKED_IMAGES = 2
"""Images on which the export has to predict what the run does"""


def export(run: Run, repo_id: str | None) -> UserError | None:
    """Write the best weights into export/, and push them if asked. On rank 0 alone.

    Returns: why they were not pushed; all else is done.
    """
    best = run.checkpoints.best_folder() or run.checkpoints.newest()
    assert best is not None, "a run that is done has been saved"
    detector = run.detector
    if run.cfg.train.parallel == "fsdp2":  # this process has a part of its weights
        detector = build_model(run.cfg.model, run.data.taxonomy, run.cfg.data.image_size)
    step = load_state(best).step
    metrics = read_metrics(evaluation_folder(run.folder, step))
    assert metrics is not None, "complete_best has seen to it"
    load_weights(best, detector, run.cfg)
    folder = run.folder / "export"
    write_export(run.cfg, detector, run.data.val, step, metrics, run.facts, folder)
    name = str(run.cfg.eval.metric)
    value = "-" if metrics[name] is None else f"{metrics[name]:.3f}"
    run.log.say(f"best step {step}: {name} {value}, exported to {folder}")
    if (told := outcome(run, metrics[name])) is not None:
        run.log.say(told)
        try:
            draw_run(run, told)
        except UserError as error:
            run.log.say(f"warning: {error}")
    if repo_id is None:
        return None
    if run.pusher is not None:
        run.pusher.finish()
    try:
        again = f"python -m tools.export {run.folder} --push"
        run.log.say(f"uploaded to {push(folder, repo_id, run.cfg.hub.private, again)}")
    except UserError as error:
        run.log.say(str(error))
        return error
    return None


def load_weights(checkpoint: Path, detector: Detector, cfg: Config) -> None:
    """Load what a checkpoint has for use: the average, where there is one.

    Raises:
        UserError: if it is damaged or of another model.
    """
    if defect := find_flaw(checkpoint):
        raise UserError(f"{checkpoint}: {defect}; nothing was exported")
    load_model(checkpoint, detector.model, averaged=cfg.train.ema_decay is not None)


def write_export(
    cfg: Config,
    detector: Detector,
    split: Split | None,
    step: int,
    metrics: dict[str, Any] | None,
    facts: dict[str, Any],
    folder: Path,
    complete: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a detector into a folder for transformers, with its card.

    Args:
        split: images on which the export has to predict the same; None: images of noise.
        step, metrics, facts: of the weights, as the card has them.
        complete: gets the folder before it has its name, and may put more into it or raise an error.

    Raises:
        UserError, RuntimeError: if it is not what `detector` is; an older folder stays then.
    """
    run_folder = Path(cfg.run.output_dir)
    sources = {
        "images/results.png": run_folder / "results.png",
        "images/predictions.png": evaluation_folder(run_folder, step) / "predictions.png",
    }
    pictures = {name: file for name, file in sources.items() if file.is_file()}
    card = model_card(cfg, metrics, facts, step, list(pictures))

    def finish(place: Path) -> None:
        for name, file in pictures.items():
            (place / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place / name)
        write_recommended(place, (metrics or {}).get("threshold"), cfg.data.tiles)
        complete(place)

    if split is None:
        samples = [noise(detector, seed) for seed in range(CHECKED_IMAGES)]
    else:
        shown = EvalDataset(split, detector.rule)
        samples = [shown[index] for index in range(min(CHECKED_IMAGES, len(shown)))]
    backbone = public_name(origin(cfg))
    # On the CPU, where equal weights give equal boxes; the run does not need its device any more.
    trainable = detector.trainable.cpu()
    export_model(trainable, card, folder, backbone, collate(samples), finish)


def noise(detector: Detector, seed: int) -> Sample:
    """A square image of random pixels."""
    size = detector.rule.resized(*detector.rule.full)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Sample(pixels, Objects.none(), seed, seed, size, detector.rule.full)
