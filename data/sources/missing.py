"""What is not where it is looked for: images that another folder has, links that lead out, images without labels."""

from collections.abc import Sequence
from pathlib import Path

from data.findings import Finding, Findings
from data.record import label_file
from data.sources.files import LINKS
from data.sources.layouts import folder_that_has, sampled
from settings.keys import DataConfig

FEWEST = 4
MANY_UNLABELLED = 0.2
"""Part of a split's images without labels, above which labels are probably missing"""


def note_elsewhere(cfg: DataConfig, findings: Findings) -> bool:
    """Findings of a folder that has most of the missing images; whether there is one."""
    root = Path(str(cfg.path)).expanduser()
    missing = [Path(f.where) for f in findings if f.kind == "missing image"]
    found = False
    for which, folder in _folders(cfg, root):
        names = [str(p.relative_to(folder)) for p in missing if p.is_relative_to(folder)]
        if len(names) < FEWEST:
            continue
        other = folder_that_has(root, sampled(names))
        if other is None or other == folder:
            continue
        missing = [p for p in missing if not p.is_relative_to(folder)]
        shown = other.relative_to(root).as_posix()
        findings.add(
            "images elsewhere",
            str(folder),
            f"{len(names):,} images are not there, and {shown} has them: set data.{which}_images {shown}",
        )
        found = True
    return found


def note_without_file(
    images: Sequence[Path], split: str, num: int, root: Path, findings: Findings
) -> None:
    """Findings of a split's images without label file; one that ends the start, if they are a large part of it.

    Args:
        images: those without. split: its name. num: images of the split.
    """
    if not images:
        return
    for image in images:
        findings.add("image without label file", str(image))
    told = f"{len(images):,} of {num:,} images of {split} have no label file"
    if len(images) < FEWEST or len(images) <= MANY_UNLABELLED * num:
        findings.note(
            f"{told} (taken as background; an empty file says that nothing is there): {_examples(images, root)}"
        )
        return
    findings.add(
        "label files missing",
        str(root),
        f"{told}: {_examples(images, root)} (looked for {_shown(label_file(images[0]), root)}). Are files missing? If nothing is on these images, an "
        "empty file says so of one, and of all: set data.allow_unlabelled true",
    )


def note_without_annotations(
    images: Sequence[Path], file: str, num: int, root: Path, findings: Findings
) -> None:
    """A line about images that a file lists without annotations, if they are a large part of it."""
    if len(images) >= FEWEST and len(images) > MANY_UNLABELLED * num:
        findings.note(
            f"{len(images):,} of {num:,} images of {file} have no annotations (taken as background): "
            f"{_examples(images, root)}"
        )


def _examples(images: Sequence[Path], root: Path) -> str:
    names = ", ".join(_shown(image, root) for image in images[:2])
    return names + (", ..." if len(images) > 2 else "")


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def note_links(root: str, findings: Findings) -> None:
    """One finding in place of one for each image file that is a link out of the folder."""
    links = [finding for finding in findings if _is_link(finding)]
    if len(links) < FEWEST:
        return
    findings.drop(_is_link)
    findings.add(
        "links out of the folder",
        root,
        f"{len(links):,} image files are links out of it ({links[0].detail}): if you made them, set "
        "data.follow_links true; whoever makes a link chooses which file of this machine is read",
    )


def _is_link(finding: Finding) -> bool:
    return finding.kind == "path leaves the folder" and LINKS in finding.detail


def _folders(cfg: DataConfig, root: Path) -> list[tuple[str, Path]]:
    splits = [("train", cfg.train_images or cfg.train_split)]
    if cfg.val_split is not None:
        splits.append(("val", cfg.val_images or cfg.val_split))
    return [(which, root / name) for which, name in splits]
