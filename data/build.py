"""From `cfg.data` to two clean splits and the taxonomy."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.cleaning import cleaned
from data.collector import without_collector
from data.dataset import Data
from data.findings import GUESSED_KINDS, IMAGE_KINDS, MASK_KINDS, Finding, Findings, Remedy
from data.guesses import note_guesses, with_offset
from data.images.header_cache import cached_headers
from data.index import indexed
from data.packed import load_packed
from data.regions import MOST_PARTS
from data.schema import Split
from data.sources.box_formats import format_of
from data.sources.files import LINKS
from data.sources.layouts import located
from data.sources.missing import note_elsewhere, note_links
from data.sources.recognise import recognise
from data.splits import split_off
from data.taxonomy import Taxonomy, alike, build_taxonomy, joined, with_background, with_stuff
from data.tiles import tiled, tiles_of
from errors import UserError
from settings.keys import DataConfig, TilesConfig
from settings.tasks import EVERY_PIXEL, LABELS, Labels

READERS = {
    "synthetic": "data.sources.synthetic",
    "coco": "data.sources.coco",
    "imagefolder": "data.sources.imagefolder",
    "hub": "data.sources.hub",
    "voc": "data.sources.voc",
    "yolo": "data.sources.yolo",
    "label_maps": "data.sources.label_maps",
}
"""Module of each `data.source`; it has read_split(cfg, which, findings, labels) -> Split"""

CHECK = "python -m tools.check_data --config ..."
"""In messages; who has no configuration puts another command in its place"""
MAX_LISTED = 20
"""Findings that an error names"""


def build_data(
    cfg: DataConfig, seed: int, max_bad_images: int | None = None, labels: Labels = "boxes"
) -> Data:
    """Read both splits, map categories to class indices, clean the boxes.

    Args:
        labels: what is to be learnt of the images.
        max_bad_images: more images than these that cannot be read are refused; None: never.

    Raises:
        UserError: if the dataset cannot be read, or has defects that training cannot work around.
    """
    findings = Findings()
    if cfg.packed is not None:
        data = load_packed(cfg, seed, labels)
        check_findings(data.findings, cfg.strict, max_bad_images)
        return data
    try:
        data = indexed(cfg, seed, labels, lambda: read_data(cfg, seed, findings, labels))
    except UserError:
        check_findings(findings, cfg.strict, max_bad_images)  # these explain more, if there are any
        raise
    check_findings(data.findings, cfg.strict, max_bad_images)
    return data


def with_tiles(data: Data, cfg: TilesConfig) -> Data:
    """The data whose training split has the windows of its images, and which knows those of the validation split; itself
    if none are wanted.

    Raises:
        UserError: where windows cannot be learnt.
    """
    if cfg.size is None:
        return data
    if data.labels in EVERY_PIXEL:
        tasks = [task for task, labels in LABELS.items() if labels not in EVERY_PIXEL]
        raise UserError(
            f"data.tiles.size {cfg.size}: windows are for {' and '.join(tasks)}, not for {data.labels}; leave "
            "data.tiles.size out"
        )
    tiles = tiles_of(data.val, cfg)
    return replace(
        data,
        train=tiled(data.train, tiles_of(data.train, cfg), masks=data.labels == "masks"),
        val_tiles=tiles,
        val_windows=tiled(data.val, tiles, masks=False),  # which nobody looks at
        known_fingerprint=data.fingerprint(),
    )


def found_places(cfg: DataConfig) -> DataConfig:
    """The configuration with the names of what was found, for whoever reads it later. A pack was made by the keys as they
    were given, and is asked for by them."""
    if cfg.packed is not None:
        return cfg
    found = located(cfg, Findings())
    return replace(found, val_split=found.val_split or cfg.val_split)


def read_data(cfg: DataConfig, seed: int, findings: Findings, labels: Labels = "boxes") -> Data:
    """As `build_data`, with every defect in `findings` and none refused.

    Raises:
        UserError: if there is nothing to train or to evaluate on.
    """
    if cfg.source == "synthetic":
        from data.sources.synthetic import ensure_written

        cfg = ensure_written(cfg, seed, labels)
    cfg = located(cfg, findings)
    read = importlib.import_module(READERS[cfg.source]).read_split
    with cached_headers(cfg.path, cfg.num_workers), without_collector():
        try:
            train = read(cfg, "train", findings, labels)
        except UserError as error:
            raise UserError(f"{error}{_other_source(cfg)}") from error
        val = train if cfg.val_split is None else read(cfg, "val", findings, labels)
    if cfg.category_offset:
        both = [
            with_offset(s, cfg.category_offset) for s in ([train] if val is train else [train, val])
        ]
        train, val = both[0], both[-1]
    explained = _guesses(cfg, [train] if val is train else [train, val], findings)
    if val.dense != train.dense:
        raise UserError(_mixed(cfg, "train", "val") if train.dense else _mixed(cfg, "val", "train"))
    if cfg.val_split is None and not cfg.val_on_train:
        train, val = split_off(train, cfg.val_fraction, seed)
    # Not before: which images are set aside does not depend on which can be read.
    train = train.subset([i for i, r in enumerate(train.records) if not r.unreadable])
    if cfg.limit is not None:
        train = train.subset(range(min(cfg.limit, len(train))))
    if cfg.val_on_train:
        val = train
    if cfg.labels is not None and not train.dense and cfg.source != "voc":
        both = [train] if val is train else [train, val]
        both, labels_given = joined(both, cfg.labels)
        train, val = both[0], both[-1]
        cfg = replace(cfg, labels=labels_given)
    by_value = train.dense and cfg.label_values is not None  # label maps have the names already
    taxonomy = build_taxonomy([train, val], None if by_value else cfg.labels)
    _note_alike(cfg, taxonomy, findings)
    if labels in EVERY_PIXEL and not train.dense and cfg.background is not None:
        taxonomy = with_background(taxonomy, cfg.background)
    if labels == "segments":
        taxonomy = with_stuff(taxonomy, train.stuff | val.stuff, cfg.stuff)
    train = cleaned(train, "train", taxonomy, findings)
    val = train if cfg.val_on_train else cleaned(val, "val", taxonomy, findings)
    findings.drop(lambda finding: finding.kind in explained)
    for name, split in (("training", train), ("validation", val)):
        if not _num_single(split):
            raise UserError(
                f"the {name} split has {len(split)} images and not one {_lacking(split, cfg, labels)}"
                f"{_why(findings)}"
            )
    refuse_many([train, val], taxonomy, labels)
    return Data(train, val, taxonomy, findings, labels)


def _other_source(cfg: DataConfig) -> str:
    """What is said of a folder that cannot be read as one source and looks like another."""
    folder = Path(str(cfg.path)).expanduser()
    try:
        seen = recognise(folder) if folder.is_dir() else None
    except (UserError, OSError):
        return ""
    if seen is None or seen.source == cfg.source:
        return ""
    return f"; this folder looks like {seen.source} ({seen.said}): set data.source {seen.source}"


def _note_alike(cfg: DataConfig, taxonomy: Taxonomy, findings: Findings) -> None:
    """Say which classes differ in spelling alone, and what makes one of them."""
    for one, other in alike(taxonomy.names)[:3]:
        names = [one if name == other else name for name in taxonomy.names]
        how = "give them one name in the files"
        if cfg.source != "voc":
            how = f"--data.labels '[{', '.join(names)}]' makes one class of them"
        findings.note(f"classes {one!r} and {other!r} differ in spelling alone: {how}")


def _guesses(cfg: DataConfig, splits: Sequence[Split], findings: Findings) -> set[str]:
    """Findings for mistakes of the whole dataset; the kinds that they explain."""
    if any(split.dense for split in splits) or cfg.source in ("synthetic", "label_maps"):
        return set()
    said = cfg.box_format is not None or any(s.objects.masks is not None for s in splits)
    own = None if said else format_of(cfg)
    explained = note_guesses(splits, str(cfg.path), own, findings)
    note_links(str(cfg.path), findings)
    if cfg.source == "coco" and note_elsewhere(cfg, findings):
        explained.add("missing image")
    return explained


def refuse_many(splits: Sequence[Split], taxonomy: Taxonomy, labels: Labels) -> None:
    """
    Raises:
        UserError: if an image has more objects with masks, or the dataset more classes of pixels, than the
            planes that training makes of them can tell apart.
    """
    if labels in EVERY_PIXEL and len(taxonomy.names) > MOST_PARTS:
        raise UserError(
            f"{len(taxonomy.names):,} classes: at most {MOST_PARTS:,} can be told apart"
        )
    for split in splits if labels != "boxes" else ():
        for place in np.flatnonzero(split.table.counts > MOST_PARTS).tolist():
            record = split.records[place]
            raise UserError(
                f"{record.where}: has {len(record.objects):,} masks, and at most {MOST_PARTS:,} of one image can "
                "be told apart; cut it into several images"
            )


def _mixed(cfg: DataConfig, has: str, lacks: str) -> str:
    """What is said where one split has the class of every pixel and the other has not."""
    what = "segments_info in its annotations" if cfg.source == "coco" else "label maps"
    named = cfg.source in ("hub", "imagefolder")
    column = " (data.label_map_column names their column)" if named else ""
    return (
        f"data.{has}_split {getattr(cfg, f'{has}_split')} has {what}, and data.{lacks}_split "
        f"{getattr(cfg, f'{lacks}_split')} has none; give both of them the same form{column}"
    )


def _lacking(split: Split, cfg: DataConfig, labels: Labels) -> str:
    """What there has to be, and is not."""
    if not split.dense:
        return f"valid {'box' if labels == 'boxes' else 'mask'} of a single object"
    if labels == "segments" or cfg.source == "coco":
        return "segment that is no crowd"
    zero = " or 0 (data.reduce_labels)" if cfg.reduce_labels else ""
    return (
        f"pixel of a class: all that its label maps say is data.ignore_index {cfg.ignore_index}{zero}, set it "
        "to the value that means so in your files"
    )


def _why(findings: Findings) -> str:
    """What is said of a split without anything to learn."""
    if {finding.kind for finding in findings} & MASK_KINDS == {"no mask"}:
        return ": its objects have boxes and no masks; model.task detection learns boxes"
    return f"; `{CHECK}` says what is wrong with each"


def _num_single(split: Split) -> int:
    """Objects that are no crowds, which alone are learnt."""
    crowds = split.objects.iscrowd
    return int(split.table.counts.sum()) - (0 if crowds is None else int(crowds.sum()))


def check_findings(findings: Findings, strict: bool, max_bad_images: int | None) -> None:
    """Refuse what training cannot work around.

    Raises:
        UserError: listing the first of the findings that are refused.
    """
    remedies: list[Remedy] = ["refused"]
    what, why = "defects that training cannot work around", "training cannot work around it"
    if strict:
        remedies += ["left out", "repaired", "converted"]
        what, why = "defects (data.strict true)", "refused by data.strict true"
    if guessed := [finding for finding in findings if finding.kind in GUESSED_KINDS]:
        raise UserError(_guessed(guessed))
    if refused := findings.of_remedy(*remedies):
        raise UserError(_listing(refused, what, why))
    bad = [finding for finding in findings if finding.kind in IMAGE_KINDS]
    if max_bad_images is not None and len(bad) > max_bad_images:
        limit = f"run.max_bad_images {max_bad_images}"
        raise UserError(
            _listing(bad, f"images that cannot be read ({limit})", f"more than {limit}")
        )


def _guessed(found: Sequence[Finding]) -> str:
    """What one key mends, told before everything that may come of it."""
    lines = [f"{finding.where}: {finding.kind}: {finding.detail}" for finding in found]
    hint = f"`{CHECK} --picture data.png` draws the boxes"
    return "\n  ".join([*lines, hint])


def _listing(found: Sequence[Finding], what: str, why: str) -> str:
    hint = f"`{CHECK}` lists all, and with --repair DIR writes a cleaned copy"
    if any(
        finding.kind == "path leaves the folder" and LINKS in finding.detail for finding in found
    ):
        hint = f"links that you made yourself: data.follow_links true; {hint}"
    if len(found) == 1:
        return f"{found[0]}: {why}; {hint}"
    lines = [f"the dataset has {len(found)} {what}:", *map(str, found[:MAX_LISTED])]
    if len(found) > MAX_LISTED:
        lines.append(f"... and {len(found) - MAX_LISTED} more")
    return "\n  ".join([*lines, hint])
