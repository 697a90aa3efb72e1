"""Everything a run knows about its images."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from data.findings import Findings
from data.schema import Split
from data.taxonomy import Taxonomy
from data.tiles import Tiles
from settings.tasks import Labels


@dataclass(frozen=True)
class Data:
    """Everything a run needs to know about its images. Categories are class indices here."""

    train: Split
    """Without images that cannot be read"""
    val: Split
    """With them: they count as missed"""
    taxonomy: Taxonomy
    findings: Findings
    """Everything found wrong with both splits"""
    labels: Labels = "boxes"
    """What is learnt of the images"""
    known_fingerprint: str | None = None
    """Where it is known already"""
    val_tiles: Tiles | None = None
    """Windows of the validation images, if these are predicted one by one"""
    val_windows: Split | None = None
    """The split of these"""
    class_weights: np.ndarray | None = None
    """float32 [C]: what each class weighs in the loss of classes; None: all 1"""

    def fingerprint(self) -> str:
        """Hash of ids, sizes and all objects of both splits, and of each image's digest."""
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        names = [self.taxonomy.names, self.taxonomy.category_ids]
        if self.taxonomy.background is not None:
            names.append((str(self.taxonomy.background),))
        if self.taxonomy.stuff:
            names.append(self.taxonomy.stuff)
        digest = hashlib.sha256(json.dumps(names).encode())
        for split in (self.train, self.val):
            split.table.add_to(digest)
        return digest.hexdigest()
