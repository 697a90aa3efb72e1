"""Images that are not where they are looked for: a folder that has them, links that lead out."""

from pathlib import Path

from data.findings import Finding, Findings
from data.sources.files import LINKS
from data.sources.layouts import folder_that_has, sampled
from settings.keys import DataConfig

FEWEST = 4


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
