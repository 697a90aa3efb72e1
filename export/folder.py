"""A folder that `transformers.pipeline("object-detection", model=FOLDER)` loads."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel


def export_model(
    model: PreTrainedModel, processor: Any, card: str, folder: Path, backbone_name: str
) -> None:
    """Write model, image processor and model card, and check that the model loads as it is.

    The folder appears under its name only when it is complete; an older one is replaced then.

    Args:
        backbone_name: what the configuration calls the backbone; its folder stays private.

    Raises:
        RuntimeError: if the written model does not load with equal tensors.
    """
    temporary = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    model.config._name_or_path = ""
    model.config.backbone_config._name_or_path = backbone_name
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    (temporary / "README.md").write_text(card)
    check_export(model, temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def check_export(model: PreTrainedModel, folder: Path) -> None:
    """Load the folder with `from_pretrained` and compare every tensor.

    Raises:
        RuntimeError: naming the first tensor that differs.
    """
    loaded = type(model).from_pretrained(folder, config=AutoConfig.from_pretrained(folder))
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in state or not torch.equal(state[name], tensor.detach().cpu()):
            raise RuntimeError(f"the export in {folder} does not reproduce tensor {name}")
