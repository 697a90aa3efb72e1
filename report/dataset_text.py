"""The text of `tools.check_data`."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from data.check.parts import PixelStatistics
from data.check.statistics import Quantiles, SplitStatistics
from data.findings import KINDS, REMEDIES, Finding
from errors import printable
from settings.keys import ImageSizeConfig

Statistics = SplitStatistics | PixelStatistics
"""Of splits with objects, or with a class for every pixel"""
NO_START = "TRAINING WILL NOT START"


def exit_status(findings: Sequence[Finding]) -> int:
    """0 where no finding is a defect, else 1."""
    return int(any(finding.remedy != "noted" for finding in findings))


def verdict(findings: Sequence[Finding], splits: Mapping[str, Statistics]) -> str:
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
            f"{NO_START}: of {defects:,} defects in {size}, {num['refused']:,} must be "
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
    for kind in sorted(groups, key=lambda k: (order.index(KINDS[k].remedy), list(KINDS).index(k))):
        found = groups[kind]
        lines.append(
            f"{kind}: {len(found):,}  [{REMEDIES[KINDS[kind].remedy]}]  {KINDS[kind].advice}"
        )
        for finding in found[:most]:
            detail = f"  ({finding.detail})" if finding.detail else ""
            lines.append("    " + _short(f"{finding.where}{detail}", root))
        if most is not None and len(found) > most:
            lines.append(f"    ... and {len(found) - most:,} more (--all lists them)")
        lines.append("")
    return lines


def statistics_lines(splits: Mapping[str, Statistics], size: ImageSizeConfig) -> list[str]:
    """Tables of the figures, one column per split."""
    boxes = {name: s for name, s in splits.items() if isinstance(s, SplitStatistics)}
    pixels = {name: s for name, s in splits.items() if isinstance(s, PixelStatistics)}
    lines = _of_pixels(pixels) if pixels else _of_boxes(boxes)
    if size.fit == "stretch":
        lines += ["", f"The resize: stretched to {size.longest_px} x {size.longest_px} px."]
    else:
        limit = f"longest side {size.longest_px}"
        limit += f", shortest {size.shortest}" if size.shortest else ""
        lines += ["", f"The resize: {limit} px, the aspect ratio is kept."]
    lines += ["", _row("least / 5 % / median / 95 % / most", list(splits))]
    for title, key, scale in _quantities(pixels):
        lines.append(_row(title, [_five(getattr(s, key), scale) for s in splits.values()]))
    return lines


def _quantities(pixels: Mapping[str, PixelStatistics]) -> list[tuple[str, str, float]]:
    """(title, key of the figures, what they are multiplied by)."""
    sides = [
        ("  image width, px", "image_width_px", 1.0),
        ("  image height, px", "image_height_px", 1.0),
    ]
    if pixels:
        unit = next(iter(pixels.values())).unit
        return [
            (f"  one of the {unit}, % of its image", "part_share", 100.0),
            (f"  {unit} an image", "parts_per_image", 1.0),
            *sides,
        ]
    return [
        ("  box side after the resize, px", "box_side_px", 1.0),
        ("  shorter side after the resize, px", "box_shortest_px", 1.0),
        ("  box width / height", "box_aspect", 1.0),
        ("  boxes an image", "boxes_per_image", 1.0),
        *sides,
    ]


def _of_boxes(splits: Mapping[str, SplitStatistics]) -> list[str]:
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
        lines.append(
            _row(f"  {printable(entry.name, 34)}", [f"{n.boxes:,} ({n.images:,})" for n in counts])
        )
    lines += ["", _row("boxes by size, after the resize", names)]
    for title, values in (
        ("  small, below 32 x 32 px", [s.small_boxes for s in figures]),
        ("  medium", [s.medium_boxes for s in figures]),
        ("  large, 96 x 96 px and more", [s.large_boxes for s in figures]),
    ):
        shares = zip(values, figures, strict=True)
        lines.append(_row(title, [f"{n:,} ({n / max(s.boxes, 1):.0%})" for n, s in shares]))
    return lines


def _of_pixels(splits: Mapping[str, PixelStatistics]) -> list[str]:
    names, figures = list(splits), list(splits.values())
    unit, segments = figures[0].unit, figures[0].unit == "segments"
    rows = [
        ("images", [s.images for s in figures]),
        ("images of ignored pixels alone", [s.images_without_labels for s in figures]),
        (unit, [s.parts for s in figures]),
    ]
    if segments:
        rows.append(("segments of groups (iscrowd)", [s.crowd_parts for s in figures]))
    lines = [_row("", names)]
    lines += [_row(title, [f"{value:,}" for value in values]) for title, values in rows]
    inside = "segments in images" if segments else "images"
    lines += ["", _row(f"pixels ({inside}) by class", names)]
    for c, entry in enumerate(figures[0].classes):
        cells = []
        for found in (s.classes[c] for s in figures):
            counts = f"{found.parts:,} in {found.images:,}" if segments else f"{found.images:,}"
            cells.append(f"{percent(found.share)} ({counts})")
        lines.append(_row(f"  {printable(entry.name, 34)}", cells))
    ignored = [f"{percent(s.ignored_share)} ({s.ignored_images:,})" for s in figures]
    return [*lines, _row(f"ignored{' (images)' if segments else ''}", ignored)]


def percent(share: float) -> str:
    """A share as text, in which little is not nothing and nearly all is not all."""
    if 0 < share < 0.0001:
        return "< 0.01 %"
    if 0.9999 < share < 1:
        return "> 99.99 %"
    return f"{share * 100:.2f} %" if share < 0.1 else f"{share * 100:.1f} %"


def _five(q: Quantiles | None, scale: float = 1.0) -> str:
    if q is None:
        return "-"
    values = [scale * value for value in (q.least, q.p5, q.median, q.p95, q.most)]
    return " / ".join(f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in values)


def _row(title: str, cells: Sequence[str]) -> str:
    return f"{title:<38}" + "".join(f"  {cell:>30}" for cell in cells)


def _short(text: str, root: str | None) -> str:
    """`text` without the folder that all places begin with."""
    if root is None:
        return text
    root = root.rstrip("/")
    return text.replace(f"{root}/", "").removeprefix(f"{root}, ")
