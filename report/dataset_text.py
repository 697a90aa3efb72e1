"""The text of `tools.check_data`."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from data.check.statistics import Quantiles, SplitStatistics
from data.findings import KINDS, Finding, Remedy
from settings.keys import ImageSizeConfig

REMEDIES: dict[Remedy, str] = {
    "refused": "training does not start",
    "left out": "training leaves it out",
    "repaired": "training repairs it",
    "converted": "training converts it",
    "noted": "for your information",
}
ADVICE = {
    "broken row": "a row that cannot be understood; mend or delete it",
    "path leaves the folder": "an image outside the dataset's folder; move it inside",
    "duplicate image id": "which annotations belong to which image cannot be known; make ids unique",
    "annotation without image": "it belongs to an image that the file does not list; delete it",
    "unknown category": "its category is not among the dataset's; add that, or delete the annotation",
    "duplicate annotation id": "the ids of annotations are not used",
    "image without annotation": "an image file that no row mentions; it is not read",
    "size differs from annotation": "the size in the pixels is used; see whether the boxes fit it",
    "missing image": "the file does not exist",
    "empty file": "the file has no content",
    "unreadable image": "not an image, or one that no decoder reads",
    "truncated image": "the file ends too early; copy or download it again",
    "absurd size": "more pixels than any photo has, so it is not even decoded",
    "wrong extension": "read by its content, whatever its name says",
    "16-bit image": "scaled to 8 bits",
    "CMYK image": "made RGB; colours may look different from what a printer shows",
    "palette image": "made RGB",
    "transparent image": "composited on white",
    "EXIF-rotated image": "turned upright; boxes are expected in the upright image",
    "box not a number": "one of its numbers is NaN or infinite",
    "box without area": "its width or height is 0",
    "box with a negative side": "its width or height is negative; corners instead of sides?",
    "box inverted": "its corners are in the wrong order; they are swapped",
    "box outside the image": "nothing of it lies inside its image",
    "box partly outside": "clipped to the image",
    "duplicate box": "the same box and class twice in one image",
    "duplicate image": "the same pixels twice in one split, which count double",
    "training image in validation": "it makes the validation look better than it is",
}
"""What a kind means, or what to do about it, in a few words"""


def exit_status(findings: Sequence[Finding]) -> int:
    """0 where no finding is a defect, else 1."""
    return int(any(finding.remedy != "noted" for finding in findings))


def verdict(findings: Sequence[Finding], splits: Mapping[str, SplitStatistics]) -> str:
    """One line: can this dataset be trained on?"""
    size = " and ".join(f"{s.images:,} {name} images" for name, s in splits.items())
    num = {remedy: sum(f.remedy == remedy for f in findings) for remedy in REMEDIES}
    defects = len(findings) - num["noted"]
    seen = Counter(f.kind for f in findings if f.remedy == "noted")
    notes = f"; worth a look: {', '.join(f'{n:,} x {k}' for k, n in seen.items())}" if seen else ""
    if not defects:
        return f"NO DEFECTS in {size}{notes}"
    if num["refused"]:
        return (
            f"TRAINING WILL NOT START: of {defects:,} defects in {size}, {num['refused']:,} must be "
            f"mended first{notes}"
        )
    done = ", ".join(f"{num[r]} {r}" for r in REMEDIES if num[r] and r != "noted")
    return f"DEFECTS: {defects:,} in {size}, with which training copes ({done}){notes}"


def finding_lines(findings: Sequence[Finding], most: int | None, root: str | None) -> list[str]:
    """One block per kind: how many, what training does about it, where.

    Args:
        most: examples in a block; None: all. root: folder that is cut off from file names.
    """
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind].append(finding)
    lines: list[str] = []
    order = list(REMEDIES)
    for kind in sorted(groups, key=lambda k: (order.index(KINDS[k]), list(KINDS).index(k))):
        found = groups[kind]
        lines.append(f"{kind}: {len(found):,}  [{REMEDIES[KINDS[kind]]}]  {ADVICE[kind]}")
        for finding in found[:most]:
            detail = f"  ({finding.detail})" if finding.detail else ""
            lines.append("    " + _short(f"{finding.where}{detail}", root))
        if most is not None and len(found) > most:
            lines.append(f"    ... and {len(found) - most:,} more (--all lists them)")
        lines.append("")
    return lines


def statistics_lines(splits: Mapping[str, SplitStatistics], size: ImageSizeConfig) -> list[str]:
    """Tables of the figures, one column per split."""
    limit = f"longest side {size.longest}" + (
        f", shortest {size.shortest}" if size.shortest else ""
    )
    names, figures = list(splits), list(splits.values())
    lines = [_row("", names)]
    for title, values in (
        ("images", [s.images for s in figures]),
        ("images without boxes", [s.images_without_boxes for s in figures]),
        ("boxes", [s.boxes for s in figures]),
        ("boxes of groups (iscrowd)", [s.crowd_boxes for s in figures]),
    ):
        lines.append(_row(title, [f"{value:,}" for value in values]))
    lines += ["", _row("boxes (images) by class", names)]
    for c, entry in enumerate(figures[0].classes):
        counts = [s.classes[c] for s in figures]
        lines.append(_row(f"  {entry.name}", [f"{n.boxes:,} ({n.images:,})" for n in counts]))
    lines += ["", _row("boxes by size, after the resize", names)]
    for title, values in (
        ("  small, below 32 x 32 px", [s.small_boxes for s in figures]),
        ("  medium", [s.medium_boxes for s in figures]),
        ("  large, 96 x 96 px and more", [s.large_boxes for s in figures]),
    ):
        shares = zip(values, figures, strict=True)
        lines.append(_row(title, [f"{n:,} ({n / max(s.boxes, 1):.0%})" for n, s in shares]))
    lines += ["", f"The resize: {limit} px, the aspect ratio is kept."]
    lines += ["", _row("least / 5 % / median / 95 % / most", names)]
    for title, key in (
        ("  box side after the resize, px", "box_side_px"),
        ("  shorter side after the resize, px", "box_shortest_px"),
        ("  box width / height", "box_aspect"),
        ("  boxes an image", "boxes_per_image"),
        ("  image width, px", "image_width_px"),
        ("  image height, px", "image_height_px"),
    ):
        lines.append(_row(title, [_five(getattr(s, key)) for s in figures]))
    return lines


def _five(q: Quantiles | None) -> str:
    if q is None:
        return "-"
    values = (q.least, q.p5, q.median, q.p95, q.most)
    return " / ".join(f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in values)


def _row(title: str, cells: Sequence[str]) -> str:
    return f"{title:<38}" + "".join(f"{cell:>30}" for cell in cells)


def _short(text: str, root: str | None) -> str:
    """`text` without the folder that all places begin with."""
    if root is None:
        return text
    root = root.rstrip("/")
    return text.replace(f"{root}/", "").removeprefix(f"{root}, ")
