"""What is on images, as one table: truth and predictions, of one image, a batch or a whole split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

Column = Any
"""numpy array (on the way to the model: torch tensor) whose first dimension counts objects"""


@dataclass(frozen=True)
class Objects:
    """Columns of n objects. A column that is None is not there, and costs nothing.

    Every method treats all columns alike: to add one is to add a line here.
    """

    boxes: Column
    """float64 [n, 4] xywh in pixels; in a batch float32 cxcywh in [0, 1] of the unpadded image"""
    classes: Column
    """int64 [n]: class indices; before a taxonomy is applied the dataset's own category ids"""
    image: Column = None
    """int64 [n]: place of the image in its split or batch; None where all lie on one image"""
    areas: Column = None
    """float64 [n], px^2, as annotated"""
    iscrowd: Column = None
    """bool [n]: a group that is no single object"""
    numbers: Column = None
    """int64 [n]: what each annotation is called in its file: its id or line, or ~place without one"""
    scores: Column = None
    """float64 [n], of predictions"""
    weights: Column = None
    """float32 [n], in batches: what the class weighs in the loss of classes; None: 1"""
    masks: Column = None
    """object [n] of `data.masks.Mask`, in pixels of the decoded image; in a batch uint8 [n, H/4, W/4]:
    how many of the 16 pixels of each square it covers"""

    def __len__(self) -> int:
        return len(self.boxes)

    @staticmethod
    def none() -> "Objects":
        """No objects."""
        return Objects(np.zeros((0, 4)), np.zeros(0, np.int64))

    @staticmethod
    def concat(tables: Sequence["Objects"]) -> "Objects":
        """One table after the other; it has the columns that all of them have.

        Tables without objects and without a column do not count.
        """
        parts = [table for table in tables if len(table)] or list(tables[:1]) or [Objects.none()]
        columns = {name: [getattr(part, name) for part in parts] for name in COLUMNS}
        return Objects(
            **{
                name: np.concatenate(found)
                for name, found in columns.items()
                if not any(column is None for column in found)
            }
        )

    @staticmethod
    def of_images(tables: Sequence["Objects"]) -> "Objects":
        """The objects of images 0, 1, ..., each given as a table of its own."""
        counts = [len(table) for table in tables]
        image = np.repeat(np.arange(len(tables), dtype=np.int64), counts)
        return replace(Objects.concat(tables), image=image)

    def columns(self) -> dict[str, Column]:
        """The columns that are there, by name."""
        found = {name: getattr(self, name) for name in COLUMNS}
        return {name: column for name, column in found.items() if column is not None}

    def each(self, change: Callable[[Column], Column]) -> "Objects":
        """The table with every column changed."""
        return Objects(**{name: change(column) for name, column in self.columns().items()})

    def take(self, chosen: Column) -> "Objects":
        """Some of the objects: a mask [n], or places in the wanted order."""
        return self.each(lambda column: column[chosen])

    def of_image(self, image: int) -> "Objects":
        """Those of one image, as a table of it alone."""
        assert self.image is not None
        return replace(self.take(self.image == image), image=None)

    def by_image(self, num_images: int) -> list["Objects"]:
        """One table an image, where the objects are in the order of their images."""
        assert self.image is not None
        ends = np.searchsorted(self.image, np.arange(num_images), side="right").tolist()
        alone = replace(self, image=None)
        return [alone.take(slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]

    def scaled(self, x: float, y: float) -> "Objects":
        """As they lie on an image that is made `x` times as wide and `y` times as high."""
        boxes = self.boxes * np.array([x, y, x, y])
        return replace(self, boxes=boxes, areas=None if self.areas is None else self.areas * x * y)


COLUMNS = tuple(field.name for field in fields(Objects))
