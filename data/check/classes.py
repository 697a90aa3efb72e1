"""Names of classes that nothing can be learnt of, where every pixel has a class. None of this is an error."""

from collections.abc import Sequence

import numpy as np

from data.dataset import Data
from data.findings import Findings
from data.objects import Objects
from settings.keys import DataConfig

MOST_NAMED = 20


def check_classes(cfg: DataConfig, data: Data, parts: dict[str, Objects]) -> Findings:
    """Notes on classes without a pixel, or with pixels in validation alone, and on gaps in the values.

    Args:
        parts: of each split, as `data.check.parts.parts_of` gives them.
    """
    findings = Findings()
    names, ids = data.taxonomy.names, data.taxonomy.category_ids
    present = {name: np.bincount(p.classes, minlength=len(names)) > 0 for name, p in parts.items()}
    nowhere = ~np.any(list(present.values()), axis=0)
    kinds = {"class without pixels": nowhere}
    if "val" in present:
        kinds["class of validation alone"] = present["val"] & ~present["train"]
    where = str(cfg.path)
    for kind, found in kinds.items():
        for c in np.flatnonzero(found).tolist():
            findings.add(kind, f"{where}, class {names[c]!r}", f"id {ids[c]}")
    of_maps = data.labels == "regions" and data.train.dense and cfg.source != "coco"
    if of_maps and cfg.label_values is None and (gaps := _gaps(ids)):
        told = ", ".join(gaps[:MOST_NAMED]) + (", ..." if len(gaps) > MOST_NAMED else "")
        findings.add("gap in the ids of classes", where, f"without a name: {told}")
    return findings


def _gaps(ids: Sequence[int]) -> list[str]:
    """The ids between those that are there, as "4" or "6 to 9"."""
    ordered = sorted(ids)
    pairs = zip(ordered, ordered[1:], strict=False)
    return [
        str(low + 1) if high == low + 2 else f"{low + 1} to {high - 1}"
        for low, high in pairs
        if high > low + 1
    ]
