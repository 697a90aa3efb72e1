"""The one mapping between a dataset's category ids and class indices."""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.schema import Split
from data.table import RecordTable
from errors import UserError


@dataclass(frozen=True)
class Taxonomy:
    """The one mapping between a dataset's category ids and the class indices 0..C-1."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    """category_ids[c] is the dataset's id of class c"""
    background: int | None = None
    """Class of the pixels that no mask covers, where every pixel has a class; None: it is not known"""
    stuff: tuple[int, ...] = ()
    """Classes without single objects: in an image all their pixels are one segment"""

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def class_indices(self, categories: np.ndarray) -> np.ndarray:
        """Class indices, int64 [n], of the dataset's category ids; -1 for an id that is none."""
        ids = np.array(self.category_ids, dtype=np.int64)
        order = np.argsort(ids)
        places = np.searchsorted(ids[order], categories).clip(max=len(ids) - 1)
        indices = order[places]
        return np.where(ids[indices] == categories, indices, -1).astype(np.int64)


def with_background(taxonomy: Taxonomy, name: str) -> Taxonomy:
    """With a class for what no mask covers: the one of that name, or a new one, the first."""
    if name in taxonomy.names:
        return replace(taxonomy, background=taxonomy.names.index(name))
    unused = next(i for i in itertools.count() if i not in taxonomy.category_ids)
    return Taxonomy((name, *taxonomy.names), (unused, *taxonomy.category_ids), background=0)


def with_stuff(taxonomy: Taxonomy, category_ids: Collection[int], names: Sequence[str]) -> Taxonomy:
    """With the classes that are stuff: those of these ids and names, and the background.

    Raises:
        UserError: for a name that is none.
    """
    if unknown := sorted(set(names) - set(taxonomy.names)):
        raise UserError(
            f"data.stuff {unknown[0]}: the classes are {', '.join(taxonomy.names[:20])}"
        )
    stuff = tuple(
        c
        for c, (name, category) in enumerate(
            zip(taxonomy.names, taxonomy.category_ids, strict=True)
        )
        if name in names or category in category_ids or c == taxonomy.background
    )
    return replace(taxonomy, stuff=stuff)


def joined(splits: Sequence[Split], labels: Sequence[str]) -> tuple[list[Split], list[str]]:
    """The splits with one category where `labels` gives several the same name, and the names without repeats."""
    names = {c for split in splits for c in split.category_names}
    ids = sorted(names) or list(range(len(labels)))
    if len(ids) != len(labels) or len(set(labels)) == len(labels):
        return list(splits), list(labels)
    first: dict[str, int] = {}
    target = {c: first.setdefault(name, c) for c, name in zip(ids, labels, strict=True)}
    found = []
    for split in splits:
        objects = split.objects
        classes = objects.classes.copy()
        for category, kept in target.items():
            classes[objects.classes == category] = kept
        table = RecordTable.of(split.records, replace(objects, classes=classes))
        kept_names = {c: n for c, n in split.category_names.items() if target.get(c, c) == c}
        stuff = frozenset(target.get(c, c) for c in split.stuff)
        found.append(replace(split, records=table, category_names=kept_names, stuff=stuff))
    return found, list(first)


def alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in nothing but case, spaces, hyphens and underscores."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        key = "".join(char for char in name.casefold() if char not in " _-.")
        if key in seen and seen[key] != name:
            pairs.append((seen[key], name))
        seen.setdefault(key, name)
    return pairs


def build_taxonomy(splits: Sequence[Split], labels: Sequence[str] | None) -> Taxonomy:
    """Taxonomy of the categories that the splits declare or, where they declare none, use.

    Raises:
        UserError: where `labels` does not fit the number of categories, or a name is used twice.
    """
    names: dict[int, str] = {}
    for split in splits:
        for category, name in split.category_names.items():
            if names.setdefault(category, name) != name:
                raise UserError(
                    f"category id {category} is {names[category]!r} in one split and {name!r} in the "
                    "other; their annotation files must agree"
                )
    used = np.unique(np.concatenate([split.objects.classes for split in splits])).tolist()
    ids = sorted(names) if names else used
    if labels is not None:
        if not names and len(ids) < len(labels) and 0 not in ids and ids:
            raise UserError(
                f"data.labels has {len(labels)} names, and the category ids in use are {ids}: whether "
                "ids begin at 0 or 1 cannot be told; give the names in the dataset (categories.json, "
                "ClassLabel)"
            )
        if not names and max(ids, default=0) < len(labels):
            ids = list(range(len(labels)))  # plain indices, some of which may be unused
        if len(labels) != len(ids):
            raise UserError(f"data.labels has {len(labels)} names for the category ids {ids}")
        names = dict(zip(ids, labels, strict=True))
    if not ids:
        raise UserError("the dataset has no categories and no boxes: nothing to train on")
    ordered = tuple(names.get(i, str(i)) for i in ids)
    repeated = sorted(name for name, number in Counter(ordered).items() if number > 1)
    if repeated:
        raise UserError(
            f"two categories are named {repeated[0]!r}; set data.labels to names in the order of the ids {ids}: the same "
            "name twice makes one class of them"
        )
    return Taxonomy(ordered, tuple(ids))
