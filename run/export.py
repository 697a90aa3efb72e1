"""The end of a run: its best weights as others use them."""

import json

from data.feed.collate import collate
from data.feed.loader import EvalDataset
from disk import write_whole
from errors import UserError
from export.card import model_card, origin, public_name
from export.folder import export_model
from export.hub import push
from model.build import build_model
from report.evaluation import read_metrics
from run.build import Run
from run.evaluate import evaluation_folder
from training.shelf import find_flaw
from training.state import load_model, load_state

RECOMMENDED = "permafrost.json"
"""File of an exported folder: `threshold` is the lowest score with which F1 was best in validation"""
CHECKED_IMAGES = 2
"""Validation images on which the export has to predict what the run does"""


def export(run: Run, repo_id: str | None) -> None:
    """Write the best weights into export/, and push them if asked. On rank 0 alone."""
    best = run.checkpoints.best_folder() or run.checkpoints.newest()
    assert best is not None, "a run that is done has been saved"
    if defect := find_flaw(best):
        raise UserError(f"{best}: {defect}; nothing was exported")
    detector = run.detector
    if run.cfg.train.parallel == "fsdp2":  # this process has a part of its weights
        detector = build_model(run.cfg.model, run.data.taxonomy, run.cfg.data.image_size)
    load_model(best, detector.model, averaged=run.cfg.train.ema_decay is not None)
    step = load_state(best).step
    metrics = read_metrics(evaluation_folder(run.folder, step))
    assert metrics is not None, "complete_best has seen to it"
    card = model_card(run.cfg, metrics, run.facts, step)
    folder = run.folder / "export"
    shown = EvalDataset(run.data.val, detector.rule)
    batch = collate([shown[index] for index in range(min(CHECKED_IMAGES, len(shown)))])
    backbone = public_name(origin(run.cfg))
    # On the CPU, where equal weights give equal boxes; the run does not need its device any more.
    export_model(detector.trainable.cpu(), card, folder, backbone, batch)
    if "threshold" in metrics:
        content = json.dumps({"threshold": metrics["threshold"]})
        write_whole(folder / RECOMMENDED, content + "\n")
    name = str(run.cfg.eval.metric)
    value = "-" if metrics[name] is None else f"{metrics[name]:.3f}"
    run.log.say(f"best step {step}: {name} {value}, exported to {folder}")
    if repo_id:
        run.log.say(f"uploaded to {push(folder, repo_id, run.cfg.hub.private)}")
