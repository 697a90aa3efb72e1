"""A page on which an image is dropped, a threshold moved, and boxes or masks seen.

`python -m tools.demo --model runs/demo/export` serves it on this machine, and asks nothing of any other.
`python -m tools.demo --model runs/demo/export --space my_space` writes a folder that is a Space of the Hugging Face Hub.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from disk import refuse_unwritable
from errors import UserError, ending_with_one_line, printable

DEFAULT_THRESHOLD = 0.5


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for.

    Raises:
        UserError: for what cannot be.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="exported folder or Hub id")
    parser.add_argument("--title", help="heading of the page (default: the folder's name)")
    parser.add_argument(
        "--threshold",
        type=float,
        help=f"lowest score at first (default: what the model recommends, else {DEFAULT_THRESHOLD})",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 shows it to the network")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--space", type=Path, metavar="DIR", help="write a Space, and serve nothing"
    )
    args = parser.parse_args(argv)
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold {args.threshold}: must lie between 0 and 1")
    if args.space is not None and args.space.exists():
        raise UserError(f"--space {args.space}: is there already; it would be replaced")
    refuse_unwritable("--space", args.space, folder=True)
    return args


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = arguments(sys.argv[1:])

import json
import shutil
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import yaml

from data.boxes import to_corners
from data.masks import pixels_of
from devices import compute_in_fp32
from disk import ROOT, whole_folder
from errors import markdown_text
from export import space_app
from export.detector import LoadedDetector, load_detector
from export.recommended import FILE, THRESHOLD
from model.source import OWN_MODELS, local_folder

LOWEST = 0.01
"""Scores below are not shown whatever the threshold: of heads with hundreds of queries most are noise"""
NEEDED = ("torch", "transformers", "scipy", "pillow")
"""Packages of a Space, which brings gradio itself"""
UNREAD = ("rf_detr",)
"""Types whose masks the pipeline of transformers reads only with torchvision"""


def main(argv: Sequence[str]) -> None:
    """Serve or write what a command line asks for."""
    demo(arguments(argv))


def demo(args: argparse.Namespace) -> None:
    """
    Raises:
        UserError: if gradio is missing, or the model is none or cannot be shown so.
    """
    folder = local_folder(args.model, None, "--model")
    title = args.title or title_of(folder)
    detector = load_detector(args.model)
    if args.space is not None:
        write_space(folder, args.space, title, args.threshold, detector)
        print(printable(f"written to {args.space}; try it: python {args.space}/app.py"))
        print(f"publish it: hf upload --repo-type space --private USER/NAME {args.space} .")
        return
    require_gradio()
    compute_in_fp32()
    detector.trainable.to("cuda" if torch.cuda.is_available() else "cpu")
    threshold = args.threshold
    if threshold is None:
        threshold = DEFAULT_THRESHOLD if detector.threshold is None else detector.threshold
    print(f"http://{args.host}:{args.port} (Ctrl-C ends it)", flush=True)
    blocks = space_app.page(finding(detector, threshold), markdown_text(title), threshold)
    try:
        space_app.launch(blocks, args.host, args.port)
    except OSError as error:
        raise UserError(f"--port {args.port}: {' '.join(str(error).split())}") from error


def finding(detector: LoadedDetector, threshold: float) -> Any:
    """What the page asks: an image of Pillow to places, classes and scores.

    Args:
        threshold: of segments, which depend on it.
    """
    lowest = threshold if detector.labels == "segments" else LOWEST

    def find(image: Any) -> list[space_app.Found]:
        pixels = np.asarray(image)
        found = detector.find_on([detector.views(pixels)], lowest)[0]
        places: list[Any] = [
            tuple(round(v) for v in box) for box in to_corners(found.boxes).tolist()
        ]
        if found.masks is not None:
            places = []
            for mask in found.masks:
                plane = np.zeros(pixels.shape[:2])
                plane[pixels_of(mask, (pixels.shape[0], pixels.shape[1]))] = 1
                places.append(plane)
        names = [detector.names[kind] for kind in found.classes]
        return list(zip(places, names, found.scores.tolist(), strict=True))

    return find


def title_of(folder: Path) -> str:
    """A model's name: that of its run, where the folder is called export."""
    place = folder.resolve()
    return place.parent.name if place.name == "export" else place.name


def require_gradio() -> None:
    """
    Raises:
        UserError: if it is missing.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the page needs a package that is not installed ({error.name}): pip install -r requirements-demo.txt"
        ) from error


def write_space(
    folder: Path, out: Path, title: str, threshold: float | None, detector: LoadedDetector
) -> None:
    """A folder with app.py, its requirements, a README that the Hub reads, and the model.

    Raises:
        UserError: if transformers alone cannot show the model.
    """
    kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
    if kind in OWN_MODELS:
        raise UserError(
            f"--space: {kind} brings code of its own, and this page of a Space runs none"
        )
    if kind in UNREAD and detector.labels != "boxes":
        raise UserError(f"--space: the pipeline of transformers does not read the masks of {kind}")
    if detector.tiles.size is not None:
        raise UserError(
            "--space: this model is used on windows of images, which the page of a Space does not cut"
        )
    pinned = (ROOT / "requirements-demo.txt").read_text()
    gradio = next(w for w in pinned.split() if w.startswith("gradio==")).partition("==")[2]
    header = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": gradio,
        "app_file": "app.py",
        "tags": ["permafrost"],
    }
    text = f"# {markdown_text(title)}\n\nDrop an image, move the threshold. The model lies in `model/`; its card says what it knows.\n"
    with whole_folder(out) as temporary:
        shutil.copyfile(space_app.__file__, temporary / "app.py")
        packages = [f"{name}=={version(name).partition('+')[0]}\n" for name in NEEDED]
        (temporary / "requirements.txt").write_text("".join(packages))
        front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
        (temporary / "README.md").write_text(f"---\n{front}---\n\n{text}")
        (temporary / "model").mkdir()
        for file in sorted(folder.iterdir()):
            if file.suffix in (".json", ".safetensors", ".md") and file.is_file():
                shutil.copyfile(file, temporary / "model" / file.name)
        if threshold is not None:
            content = json.dumps({THRESHOLD: threshold})
            (temporary / "model" / FILE).write_text(content + "\n")


if __name__ == "__main__":
    with ending_with_one_line():
        demo(GIVEN)
