"""One labelled image before it is decoded: what every reader gives of it."""

from dataclasses import dataclass

from data.objects import Objects


@dataclass(frozen=True)
class Record:
    """One labelled image before it is decoded.

    Boxes are COCO xywh in pixels of the decoded image (EXIF orientation applied), and classes the
    dataset's category ids, both as the dataset has them; `data.cleaning` makes of them what is
    trained on.
    """

    image_id: int | str
    where: str
    """File or row, for messages"""
    width: int
    """Width of the decoded image, px"""
    height: int
    """Height of the decoded image, px"""
    objects: Objects
    """Boxes, classes, areas, iscrowd, numbers"""
    unit: str = "annotation"
    """What objects.numbers counts: annotation, object, line"""
    digest: str = ""
    """Of the encoded image's size, beginning and end (`data.images.headers`)"""
    unreadable: bool = False
    """Its pixels cannot be had: no part of training, and missed in evaluation. The size is then the
    annotation's, or 1 x 1 where that gives none"""

    def box_where(self, index: int) -> str:
        """Image and annotation of box `index`, for messages."""
        numbers = self.objects.numbers
        number = index if numbers is None else int(numbers[index])
        return f"{self.where}, {number_text(self.unit, number)}"


def number_text(unit: str, number: int) -> str:
    """'annotation 17', or 'annotation at place 3' for ~3: places count from 0, as in the file's list."""
    return f"{unit} {number}" if number >= 0 else f"{unit} at place {~number}"
