"""Keys of what an image is before a model gets it; `settings.keys` gives them on."""

from dataclasses import dataclass
from typing import Literal

Fit = Literal["pad", "stretch"]
MOST_OVERLAP = 0.9
"""Of two windows, as a part of a side"""


@dataclass(frozen=True)
class ImageSizeConfig:
    """Size of the image after the one resize, in pixels"""

    longest: int | Literal["auto"] | None = 1024
    """Upper limit of the longest side, px; with fit stretch both sides; auto: as the objects of the training images
    need it; null: that of model.init_from"""
    shortest: int | None = None
    """Wanted shortest side, px, as far as `longest` allows; default: the longest side decides"""
    fit: Fit | None = None
    """pad: the aspect ratio is kept, the rest of the canvas is empty; stretch: every image fills the same square;
    default: stretch for all heads but detr's kin, and for backbones that look at the whole canvas (ViTs)"""
    canvas: Literal["step", "square"] = "step"
    """What images are padded to in training: step: as much as the largest of a step needs; square: as in evaluation
    and in the export, which takes longer (docs/choosing.md)"""

    @property
    def longest_px(self) -> int:
        """`longest`, once it is known."""
        assert isinstance(self.longest, int)
        return self.longest


@dataclass(frozen=True)
class TilesConfig:
    """Windows that large images are cut into, for small objects: in training, evaluation and tools.predict alike"""

    size: int | None = None
    """Side of a window, px of the image as it is; default: images are not cut"""
    overlap: float = 0.2
    """Part of a side that neighbours share; more than the objects are wide, so that each is whole in one of them"""
    whole: bool = False
    """The whole image is one more window, for objects larger than one"""
