"""A folder that `transformers.pipeline(..., model=FOLDER)` loads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from data.batch import Batch
from data.objects import Objects
from disk import whole_folder
from export.detector import load_detector
from model.folding import unfolded
from model.neck import as_saved, inner_config
from model.trainable import Trainable

SCORE_TOLERANCE, BOX_TOLERANCE_PX = 1e-4, 1e-2


def export_model(
    trainable: Trainable,
    card: str,
    folder: Path,
    backbone_name: str,
    batch: Batch,
    complete: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write model, image processor and model card, and check that the model loads as it is.

    The folder appears under its name only when it is complete; an older one is replaced then.

    Args:
        backbone_name: what the configuration calls the backbone; its folder stays private.
        batch: images on which the export has to predict what `trainable` does.
        complete: gets the folder that was checked, before it has its name; an error of it leaves the older one.

    Raises:
        RuntimeError: if the written model differs in a tensor or a prediction.
    """
    model = trainable.model
    with whole_folder(folder) as temporary:
        model.config._name_or_path = ""
        inner_config(model.config)._name_or_path = backbone_name
        as_saved(model).save_pretrained(temporary)
        trainable.processor.save_pretrained(temporary)
        (temporary / "README.md").write_text(card)
        check_export(trainable, temporary, batch)
        complete(temporary)


def check_export(trainable: Trainable, folder: Path, batch: Batch) -> None:
    """Load the folder as anyone would, and compare every tensor, and the predictions on a batch.

    Raises:
        RuntimeError: naming the first tensor that differs, or if it predicts other boxes.
    """
    loaded = load_detector(str(folder)).trainable
    state = loaded.model.state_dict()
    for name, tensor in trainable.model.state_dict().items():
        if name not in state or not torch.equal(state[name], tensor.detach().cpu()):
            raise RuntimeError(f"the export in {folder} does not reproduce tensor {name}")
    was_training = trainable.training
    trainable.eval()
    with unfolded(trainable.model):  # the same arithmetic, or rounding could choose other queries
        ours = trainable.predict(batch)
    theirs = loaded.to(batch.pixel_values.device).predict(batch)
    trainable.train(was_training)
    # Scores fall, and boxes are taken on average: rounding may swap two of nearly equal scores.
    if len(ours) != len(theirs) or not (
        np.allclose(ours.scores, theirs.scores, atol=SCORE_TOLERANCE)
        and np.allclose(_mean_box(ours), _mean_box(theirs), atol=BOX_TOLERANCE_PX)
    ):
        raise RuntimeError(f"the export in {folder} predicts other boxes than the run")


def _mean_box(objects: Objects) -> np.ndarray:
    """float64 [4]; a model that has learnt nothing may find no mask at all."""
    return objects.boxes.mean(0) if len(objects) else np.zeros(4)
