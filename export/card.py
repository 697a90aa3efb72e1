"""The model card: what was trained on what, how well it does, how to use it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from errors import markdown_text, printable
from evaluation.metrics import NEXT_TO_NOTHING, TOTALS
from settings.keys import FROZEN_STAGES, Config
from settings.walk import config_to_dict

PIPELINES = {
    "detection": "object-detection",
    "instance_segmentation": "image-segmentation",
    "semantic_segmentation": "image-segmentation",
    "panoptic_segmentation": "image-segmentation",
}
"""The pipeline of transformers that an exported model of each task is for"""
CARD, TAG = "README.md", "permafrost"
"""The card's file, and what it has among its tags"""
PLACES = (
    *("path", "train_annotations", "val_annotations", "train_split", "val_split"),
    *("train_images", "val_images"),
)
"""Keys of `data` of which the card has no folders of the machine"""
CACHES = ("packed", "packed_cache_gb", "packed_cache_folder", "cache_folder")
"""Those that say where the machine keeps what is in them"""
WHAT = {
    "detection": "COCO metrics",
    "instance_segmentation": "COCO metrics of the masks",
    "semantic_segmentation": "Intersection over union and accuracy of all pixels whose class is known",
    "panoptic_segmentation": "Panoptic quality",
}
"""What the card's numbers are, by task"""


def model_card(
    cfg: Config,
    metrics: dict[str, Any] | None,
    facts: dict[str, Any],
    step: int,
    pictures: Sequence[str] = (),
) -> str:
    """README.md of the exported folder.

    Args:
        metrics: of the exported weights, as in metrics.json; None if they were not evaluated.
        facts: as in run.json. step: optimizer step of the exported weights.
        pictures: those of PICTURES that lie in the folder.
    """
    name = printable(cfg.run.name or Path(cfg.run.output_dir).name)
    header = card_header(cfg, metrics or {}, facts, name)
    necked = facts.get("neck", "none") != "none"
    own_code = OWN_CODE if necked or cfg.model.head in OWN_CODE_HEADS else ""
    use = HEAD_USE.get(cfg.model.head or "", PIPELINE + USE[cfg.model.task]).format(
        threshold=(metrics or {}).get("threshold", cfg.eval.score_threshold),
        panoptic_threshold=cfg.eval.panoptic_threshold,
        own_code=own_code,
    )
    frozen = {"all": "frozen", "none": "trained with the head"}.get(
        cfg.model.freeze, f"frozen up to its stage {cfg.model.freeze.removeprefix(FROZEN_STAGES)}"
    )
    return f"""---
{header.to_yaml().strip()}
---

# {markdown_text(name)}

{cfg.model.head} head on {markdown_text(public_name(origin(cfg)))} ({frozen}; {facts["backbone_tensors"]} tensors equal to
the checkpoint, sha256 `{facts["backbone_sha256"]}`), {step} optimizer steps of
{cfg.train.global_batch_size} images, {facts["train_images"]} training images.

## Use

```python
{use}
```
{WHY_CODE.format(neck=facts["neck"]) if necked else ""}{WINDOWS.format(size=cfg.data.tiles.size) if cfg.data.tiles.size else ""}
## Results

{_results(cfg, metrics, facts)}{_shown(pictures)}
## Limits

The numbers hold for images like the validation images. Nothing was measured on other cameras,
places or image sizes. The licence of the backbone and of the training data applies.

## Training

```yaml
{yaml.safe_dump(_public(cfg), sort_keys=False, width=10**6).strip()}
```

Data: sha256 `{facts.get("data_sha256", "not known")}` (of annotations and images of both splits).
Code: {code_text(facts["code"])}.
Versions: {", ".join(f"{k} {v}" for k, v in facts["versions"].items())}.
Image processing: {facts["image_processor"]} (Pillow resizing).
"""


WINDOWS = """
It was trained and measured on windows of {size} px of each image, which a pipeline does not cut: give it such windows, or use
`python -m tools.predict` of the code that trained it, which cuts them and puts together what is found.
"""
PIPELINE = """from transformers import pipeline

"""
USE = {
    "detection": """detector = pipeline("object-detection", model="path/or/repo_id"{own_code})
for box in detector("image.jpg", threshold={threshold}):
    print(box["label"], round(box["score"], 2), box["box"])""",
    "instance_segmentation": """segmenter = pipeline("image-segmentation", model="path/or/repo_id"{own_code})
for part in segmenter("image.jpg", subtask="instance", threshold={threshold}):
    print(part["label"], round(part["score"], 2), part["mask"].getbbox())""",
    "semantic_segmentation": """segmenter = pipeline("image-segmentation", model="path/or/repo_id"{own_code})
for part in segmenter("image.jpg", subtask="semantic"):
    print(part["label"], part["mask"].getbbox())""",
    "panoptic_segmentation": """segmenter = pipeline("image-segmentation", model="path/or/repo_id"{own_code})
for part in segmenter("image.jpg", subtask="panoptic", threshold={panoptic_threshold}):
    print(part["label"], round(part["score"], 2), part["mask"].getbbox())""",
}
HEAD_USE = {
    "rf_detr_seg": """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForInstanceSegmentation

processor = AutoImageProcessor.from_pretrained("path/or/repo_id", backend="pil")
model = AutoModelForInstanceSegmentation.from_pretrained("path/or/repo_id")
image = Image.open("image.jpg").convert("RGB")
with torch.no_grad():
    outputs = model(**processor(image, return_tensors="pt"))
size = (image.height, image.width)
masks = torch.nn.functional.interpolate(outputs.pred_masks, size=size, mode="bilinear")[0] > 0
scores, classes = outputs.logits[0].sigmoid().max(-1)
for query in (scores > {threshold}).nonzero()[:, 0].tolist():
    label = model.config.id2label[classes[query].item()]
    print(label, round(scores[query].item(), 2), masks[query].sum().item(), "px")""",
}
"""Of heads whose outputs the pipeline of transformers reads only with torchvision"""
OWN_CODE_HEADS = ("linear", "pmd")
"""Heads that transformers has no class for: the export carries one"""
OWN_CODE = ", trust_remote_code=True"
"""Python that uses a model of each task"""
WHY_CODE = """
`trust_remote_code`: between backbone and head stands a neck ({neck}) that transformers has no class for. It is
`necked_backbone.py` in this folder, which runs when the model is loaded; read it first.
"""


PICTURES = {
    "images/results.png": "Curves of the training",
    "images/predictions.png": "Predictions on validation images",
}
"""Files in the exported folder that its card shows, and what they are"""


def _shown(pictures: Sequence[str]) -> str:
    """Markdown of pictures."""
    return "".join(f"\n![{PICTURES[name]}]({name})\n" for name in PICTURES if name in pictures)


def _results(cfg: Config, metrics: dict[str, Any] | None, facts: dict[str, Any]) -> str:
    """What was measured, as tables."""
    if metrics is None:
        return "These weights were not evaluated.\n"
    shown = shown_metrics(metrics)
    columns = list(next(iter(metrics["per_class"].values())))
    name, poor = str(cfg.eval.metric), ""
    if (value := metrics.get(name)) is not None and value < NEXT_TO_NOTHING:
        poor = (
            f"**These weights find next to nothing yet: {name.replace('_', ' ')} {value:.3f}.**\n\n"
        )
    return f"""{poor}{WHAT[cfg.model.task]} on {facts["val_images"]} validation images, prepared by the image processor in this folder, in fp32.

| {" | ".join(name.replace("_", " ") for name in shown)} |
|{"---|" * len(shown)}
| {" | ".join(map(_text, shown.values()))} |

| Class | {" | ".join(name if name[0].isupper() else name.capitalize() for name in columns)} |
|---|{"---|" * len(columns)}
{_class_rows(metrics)}
"""


def code_text(code: dict[str, Any]) -> str:
    """The project's own version, in words."""
    if code["commit"] is None:
        return f"no commit known, sha256 of the files `{code['sha256']}`"
    changed = f", with changes (sha256 of the files `{code['sha256']}`)" if code["dirty"] else ""
    return f"commit `{code['commit'][:12]}`{changed}"


def card_header(
    cfg: Config, metrics: dict[str, Any], facts: dict[str, Any], name: str
) -> ModelCardData:
    """What the Hub reads: task, origins, and the metrics as a `model-index`."""
    on_hub = cfg.data.source == "hub" and cfg.data.path and not Path(cfg.data.path).exists()
    dataset = printable(public_name(cfg.data.path or cfg.data.source))
    results = [
        EvalResult(
            task_type=PIPELINES[cfg.model.task],
            dataset_type=dataset if on_hub else cfg.data.source,
            dataset_name=dataset,
            dataset_split=public_name(_split(cfg.data.val_split)),
            metric_type=key,
            metric_value=round(value, 4),
        )
        for key, value in shown_metrics(metrics).items()
        if value is not None
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=PIPELINES[cfg.model.task],
        tags=[PIPELINES[cfg.model.task], str(cfg.model.head), TAG],
        base_model=None if facts["backbone_is_local"] else origin(cfg),
        datasets=[str(cfg.data.path)] if on_hub else None,
        model_name=name,
        eval_results=results or None,
    )


def is_card(text: str) -> bool:
    """Whether a card is one of ours."""
    header = text.removeprefix("---\n").partition("\n---")[0]
    return text.startswith("---\n") and f"- {TAG}" in header.splitlines()


def _split(name: str | None) -> str:
    return "set aside from training" if name in (None, "none") else str(name)


def origin(cfg: Config) -> str:
    """The model whose backbone it is."""
    name = cfg.model.backbone or cfg.model.init_from
    assert name is not None
    return name


def public_name(name: str) -> str:
    """A model's or dataset's name without the folders of the machine it was trained on."""
    return Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else name


def _public(cfg: Config) -> dict[str, Any]:
    """The training-relevant configuration, without paths of the machine."""
    values = config_to_dict(cfg)
    for key in PLACES:
        values["data"][key] = public_name(values["data"][key]) if values["data"][key] else None
    for key in CACHES:
        del values["data"][key]
    for key in ("backbone", "init_from"):
        values["model"][key] = public_name(values["model"][key]) if values["model"][key] else None
    return {name: values[name] for name in ("data", "model", "optim", "train")}


def shown_metrics(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Those that the card has."""
    return {name: metrics[name] for name in TOTALS if name in metrics}


def _class_rows(metrics: dict[str, Any]) -> str:
    return "\n".join(
        f"| {markdown_text(name)} | {' | '.join(map(_text, row.values()))} |"
        for name, row in metrics["per_class"].items()
    )


def _text(value: float | None) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if value is None else f"{value:.3f}"
