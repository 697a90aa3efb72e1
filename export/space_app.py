"""A page on which an image is dropped, a threshold moved, and what a model finds shown.

This file is the page of `python -m tools.demo`, and as app.py that of a Space: it needs gradio, transformers, torch and
Pillow alone, and the exported model in the folder `model` beside it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import numpy as np

Found = tuple[Any, str, float]
"""(x1, y1, x2, y2) in px or a mask [H, W] of 0 and 1; class; score"""
SYSTEM_FONTS: dict[str, Any] = {
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["ui-monospace", "monospace"],
}
"""Fonts that no server is asked for"""
COLOURS = (
    *("#e6194b", "#3c66d8", "#f58231", "#911eb4", "#008080", "#b8860b", "#3cb44b", "#f032e6"),
    *("#9a6324", "#46b4e0"),
)
DEFAULT_THRESHOLD = 0.5


def page(find: Callable[[Any], list[Found]], title: str, threshold: float) -> Any:
    """The page, to be launched.

    Args:
        find: what is on an RGB image of Pillow, whatever its score.
        threshold: lowest score that is shown at first.
    """
    import gradio as gr

    def looked(image: Any, lowest: float) -> tuple[list[Found], Any, str]:
        found = [] if image is None else find(image.convert("RGB"))
        return found, *shown(image, found, lowest)

    def shown(image: Any, found: list[Found], lowest: float) -> tuple[Any, str]:
        if image is None:
            return None, ""
        kept = [own for own in found if own[2] >= lowest]
        texts = [f"{label} {score:.2f}" for _, label, score in kept]
        classes = sorted({label for _, label, _ in found})
        colours = {
            text: COLOURS[classes.index(label) % len(COLOURS)]
            for text, (_, label, _) in zip(texts, kept, strict=True)
        }
        parts = [(place, text) for text, (place, _, _) in zip(texts, kept, strict=True)]
        words = f"{len(kept)} of {len(found)} found have a score of at least {lowest:.2f}"
        return gr.AnnotatedImage(value=(image, parts), color_map=colours), words

    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {title}")
        with gr.Row():
            image = gr.Image(type="pil", label="Image", sources=["upload", "clipboard"])
            drawn = gr.AnnotatedImage(label="Found", show_legend=True, elem_id="found")
        lowest = gr.Slider(0, 1, value=threshold, step=0.01, label="Lowest score")
        words = gr.Markdown(elem_id="words")
        kept = gr.State([])
        image.change(looked, [image, lowest], [kept, drawn, words], api_name="find")
        lowest.change(shown, [image, kept, lowest], [drawn, words], show_progress="hidden")
    return blocks


def launch(blocks: Any, host: str | None = None, port: int | None = None) -> None:
    """Serve the page until the process ends; nothing of it is asked for elsewhere."""
    import gradio as gr

    theme = gr.themes.Default(**SYSTEM_FONTS)
    blocks.launch(server_name=host, server_port=port, share=False, theme=theme, quiet=True)


def find_by_pipeline(folder: Path) -> Callable[[Any], list[Found]]:
    """What `transformers.pipeline` finds with an exported model."""
    import transformers

    pipeline: Any = transformers.pipeline
    task = json.loads((folder / "config.json").read_text()).get("segmentation_task")
    if task is None:
        detector = pipeline("object-detection", model=str(folder))

        def boxes(image: Any) -> list[Found]:
            found = detector(image, threshold=0.0)
            sides = ("xmin", "ymin", "xmax", "ymax")
            return [
                (tuple(row["box"][s] for s in sides), row["label"], row["score"]) for row in found
            ]

        return boxes
    segmenter = pipeline("image-segmentation", model=str(folder))
    words: dict[str, Any] = {"subtask": task.removesuffix("_segmentation")}
    if task != "semantic_segmentation":
        words["threshold"] = 0.05

    def masks(image: Any) -> list[Found]:
        found = segmenter(image, **words)
        return [
            (
                np.asarray(row["mask"]) / 255,
                row["label"],
                1.0 if row["score"] is None else row["score"],
            )
            for row in found
        ]

    return masks


def main() -> None:
    """The page of the model beside this file."""
    folder = Path(__file__).resolve().parent / "model"
    recommended = folder / "permafrost.json"
    threshold = None
    if recommended.is_file():
        threshold = json.loads(recommended.read_text()).get("threshold")
    title = os.environ.get("SPACE_TITLE", "What it finds")
    launch(
        page(find_by_pipeline(folder), title, DEFAULT_THRESHOLD if threshold is None else threshold)
    )


if __name__ == "__main__":
    main()
