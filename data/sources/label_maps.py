"""Reader: folders of images and of their label maps.

`path/images/train/*.jpg` with `path/annotations/train/*.png`, and the other layouts of LAYOUTS; other
folders through `data.train_split` and `data.train_annotations` and their validation twins. A label map
has the name of its image, apart from the extension and from an ending that all of them share
(`a.jpg`, `a_mask.png`). Class names come from `data.labels`, `path/categories.json` (a list by id) or
`path/id2label.json` (a table {"0": name}).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.findings import Findings
from data.schema import Split
from data.sources.files import (
    ImageFiles,
    Inside,
    existing_folder,
    image_files,
    load_json,
    note_unlisted,
)
from data.sources.label_pictures import LabelRules, dense_record
from data.sources.values import as_int
from errors import UserError
from settings.keys import DataConfig
from settings.tasks import Labels

LAYOUTS = [
    *(("images/{split}", f"{folder}/{{split}}") for folder in ("annotations", "labels", "masks")),
    *(("{split}/images", f"{{split}}/{f}") for f in ("annotations", "labels", "masks")),
    *(("{split}", f"{{split}}{end}") for end in ("_labels", "_masks", "annot", "_annotations")),
    ("images/{split}", "label_maps/{split}"),
    ("img_dir/{split}", "ann_dir/{split}"),
    ("{split}", "annotations/{split}"),
    ("{split}", "labels/{split}"),
    ("{split}", "masks/{split}"),
    ("{split}", "{split}"),
]
"""Folders of images and of their label maps, below data.path"""
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
"""Of label maps beside their images: formats that keep numbers as they are"""


def read_split(
    cfg: DataConfig, which: str, findings: Findings, labels: Labels = "regions"
) -> Split:
    """The training or validation split ("train" or "val") of folders of images and label maps.

    Raises:
        UserError: for a missing folder, one without images, or names that do not belong together.
    """
    assert cfg.path is not None
    root = existing_folder(cfg.path)
    images, maps = _folders(cfg, which, root)
    inside = Inside(root, images, maps, links=cfg.follow_links)
    found = image_files(images)
    if maps == images:
        stems = {
            path.with_suffix("") for path in found if path.suffix.lower() not in LABEL_SUFFIXES
        }
        found = [p for p in found if p.suffix.lower() not in LABEL_SUFFIXES] or found
        if not stems:
            raise UserError(
                f"{images}: has images and no folder of label maps beside it; set data.{which}_annotations"
            )
    if not found:
        raise UserError(f"{images}: has no images")
    names = label_names(cfg, names_of_folder(root))
    rules = LabelRules.of(cfg, names)
    partners, repeated = _partners(found, images, maps, which)
    records, paths, used = [], [], set()
    for path in found:
        where = str(path)
        partner = partners.get(path)
        if not inside.holds(path, where, findings):
            continue
        if partner is None:
            twin = repeated.get(path)
            detail = f"{twin} has that name as well" if twin else f"none of its name in {maps}"
            findings.add("missing label map", where, detail)
            continue
        used.add(partner)
        if not inside.holds(partner, where, findings):
            continue
        name = path.relative_to(images).as_posix()
        record = dense_record(name, where, path, partner, rules, findings)
        if record is not None:
            records.append(record)
            paths.append(path)
    if maps != images:
        for path in image_files(maps):
            if path not in used and path.suffix.lower() in LABEL_SUFFIXES:
                findings.add("image without annotation", str(path), "a label map without an image")
    else:
        note_unlisted(images, [*found, *used], findings)
    return Split(records, ImageFiles(paths), names, dense=True)


def label_names(
    cfg: DataConfig, names: Mapping[int, str], of_segments: bool = False
) -> Mapping[int, str]:
    """Names of classes by their ids in label maps: the dataset's own, else those of data.labels, of which
    the first one has the id 0, or 1 where 0 says that the class is not known.

    Args:
        of_segments: label maps have numbers of segments, and ids of classes stand elsewhere.

    Raises:
        UserError: as `refuse_ignored`.
    """
    if cfg.label_values is not None and cfg.labels is not None:
        return dict(zip(cfg.label_values, cfg.labels, strict=True))
    if not names and cfg.labels is not None:
        names = dict(enumerate(cfg.labels, int(cfg.ignore_index == 0 and not cfg.reduce_labels)))
    if not of_segments:
        refuse_ignored(cfg, names)
    return names


def refuse_ignored(cfg: DataConfig, names: Mapping[int, str]) -> None:
    """
    Raises:
        UserError: if a class is ignored by data.ignore_index, and not by data.label_values a class in any case.
    """
    category = cfg.ignore_index - int(cfg.reduce_labels)
    if category in names and cfg.ignore_index not in (cfg.label_values or ()):
        raise UserError(
            f"data.ignore_index {cfg.ignore_index}: is the value of class {names[category]!r} as well, whose "
            "pixels would be ignored; set it to a value that is no class, or take the class out of the names"
        )


def names_of_folder(root: Path) -> dict[int, str]:
    """Class names by id of categories.json or id2label.json; empty if there is none.

    Raises:
        UserError: if such a file holds something else.
    """
    for name in ("categories.json", "id2label.json"):
        file = root / name
        if not file.is_file():
            continue
        names = load_json(file)
        if isinstance(names, list):
            names = dict(enumerate(names))
        ids = (
            {as_int(key): label for key, label in names.items()} if isinstance(names, dict) else {}
        )
        if not ids or None in ids or not all(isinstance(label, str) for label in ids.values()):
            raise UserError(f"{file}: expected a list of class names, or a table of them by id")
        return ids  # type: ignore[return-value]
    return {}


def _folders(cfg: DataConfig, which: str, root: Path) -> tuple[Path, Path]:
    """Folders of a split's images and of its label maps.

    Raises:
        UserError: if they are not where they could be.
    """
    split = str(cfg.train_split if which == "train" else cfg.val_split)
    given = cfg.train_annotations if which == "train" else cfg.val_annotations
    if given is not None:
        places = [f"images/{split}", f"{split}/images", split]
        images = next((root / p for p in places if (root / p).is_dir()), root / split)
        maps = root / given
        for folder in (images, maps):
            if not folder.is_dir():
                raise UserError(
                    f"{folder}: no such folder of data.{which}_split or data.{which}_annotations"
                )
        return images, maps
    for image_place, map_place in LAYOUTS:
        images, maps = root / image_place.format(split=split), root / map_place.format(split=split)
        if images.is_dir() and maps.is_dir():
            return images, maps
    raise UserError(
        f"data.path {root}: no images of split {split!r} with label maps, such as images/{split} with "
        f"annotations/{split}, or both in {split}; name the folders by data.{which}_split and "
        f"data.{which}_annotations (there are: {', '.join(_folders_below(root)) or 'none'})"
    )


def _folders_below(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())[:10]


def _partners(
    images: Sequence[Path], folder: Path, maps: Path, which: str
) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """The label map of each image that has one, and for images whose name an earlier one has, that.

    Raises:
        UserError: if no ending fits.
    """
    key = f"data.{which}_annotations names their folder"
    found = [p for p in image_files(maps) if p.suffix.lower() in LABEL_SUFFIXES]
    by_stem = {path.relative_to(maps).with_suffix("").as_posix(): path for path in found}
    if not by_stem:
        raise UserError(f"{maps}: has no label maps ({', '.join(LABEL_SUFFIXES)}); {key}")
    stems: dict[str, Path] = {}
    repeated = {}
    for path in images:
        first = stems.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if first != path:
            repeated[path] = first
    if not stems.keys() & by_stem.keys():
        by_stem = _without_ending(stems, by_stem, f"{maps}: ", key)
    return {path: by_stem[stem] for stem, path in stems.items() if stem in by_stem}, repeated


def _without_ending(
    stems: Mapping[str, Path], by_stem: Mapping[str, Path], where: str, key: str
) -> dict[str, Path]:
    """Label maps by the names of their images: without the ending that gives most images one.

    Raises:
        UserError: if there is none, or more than one.
    """
    counts: Counter[str] = Counter()
    for stem in by_stem:
        cuts = range(1, len(stem))
        counts.update({stem[cut:] for cut in cuts if stem[:cut] in stems})
    best = counts.most_common(2)
    if not best or (len(best) > 1 and best[0][1] == best[1][1]):
        example = ", ".join(map(repr, sorted(by_stem)[:3]))
        raise UserError(
            f"{where}label maps ({example}) are not named like the images ({next(iter(stems))!r}), nor like "
            f"them with one ending; {key}"
        )
    ending = best[0][0]
    return {stem.removesuffix(ending): p for stem, p in by_stem.items() if stem.endswith(ending)}
