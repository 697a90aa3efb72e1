"""What a head file says about its family, and what all families share: building, starting weights."""

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from data.batch import Batch
from errors import UserError, nearest, refusing
from model.backbone import Backbone
from model.finding import BOXES, Finder
from model.heads.owners import owners
from model.losses.terms import Criterion
from settings.image_keys import Fit
from settings.tasks import Task
from settings.wrong_types import of_argument

PROBE_PX = 128
"""Side of the blank image that a model is tried on, if it is not too small for it"""


def refuse_unknown(args: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """
    Raises:
        UserError: naming the arguments that are not among the known ones, misspelt ones first, and what to write for
            those that stay where the others are of another head.
    """
    unknown = sorted(set(args) - set(known))
    theirs = {name: ", ".join(owners(name)) for name in unknown}
    near = {name: nearest(name, known, 0.75) for name in unknown if not theirs[name]}
    unknown.sort(key=lambda name: not near.get(name))
    if not unknown:
        return
    first, *others = unknown
    told = f"model.head_args.{first}: {where} has no such argument"
    if theirs[first]:
        told += f" (it is one of {theirs[first]})"
    if near.get(first):
        told += f" - did you mean {near[first]}?"
    if others:
        more = ", ".join(
            f"{name} ({near[name]}?)" if near.get(name) else name for name in others[:6]
        )
        told += (
            f"{' Nor has it' if near.get(first) else ', nor'} {more}{', ...' if others[6:] else ''}"
        )
    if not any(theirs.values()):
        raise UserError(told if near[first] else f"{told}; leave it out")
    kept = {name: value for name, value in args.items() if name in known}
    kept |= {right: args[name] for name, right in near.items() if right}
    flow = yaml.safe_dump(kept, default_flow_style=True, sort_keys=False, width=10_000).strip()
    raise UserError(
        f"{told}; leave it out, or, where a YAML has it for another head, keep what this head has too: "
        f"--model.head_args {shlex.quote(flow)} (without any of them it is as large as transformers makes it)"
    )


@contextmanager
def refusing_arguments() -> Iterator[None]:
    """Around what makes a config of model.head_args.

    Raises:
        UserError: for an argument of another type than its field's, and for whatever else is wrong with it.
    """
    with refusing("model.head_args"):
        try:
            yield
        except StrictDataclassFieldValidationError as error:
            told = of_argument(" ".join(str(error).split()))
            if told is None:
                raise
            raise UserError(f"model.head_args.{told}") from error


def call_with_mask(model: Any, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Any:
    """The model's outputs, as its image processor's post-processing takes them."""
    return model(pixel_values=pixel_values, pixel_mask=pixel_mask)


MakeConfig = Callable[[dict[str, Any], dict[str, Any], Backbone], PretrainedConfig]


@dataclass(frozen=True)
class HeadFamily:
    """One head family of transformers, as its file describes it.

    `model` is the untouched transformers model; pixel_values float [B, 3, H, W], normalised;
    pixel_mask bool [B, H, W], true on the image.
    """

    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    processor_class: type
    defaults: dict[str, Any]
    """Arguments of the config that differ from transformers' own defaults"""
    num_maps: Callable[[dict[str, Any]], int]
    """Number of backbone maps that the head reads, given its arguments"""
    initialise: Callable[[Any], None]
    """The paper's starting weights, where transformers' differ"""
    backbone_of: Callable[[Any], nn.Module]
    num_queries: Callable[[Any], int]
    """Most objects that the head can find in an image, given its config"""
    outputs: Callable[[Any, torch.Tensor, Batch, Mapping[str, float]], Any]
    """(model, pixel_values, batch, the step's counts) -> everything that gets a loss, as the criterion takes
    it"""
    criterion: Callable[[Any], Criterion]
    """The losses of a config"""
    few_steps: int
    """Fewer steps than this from scratch are not worth starting"""
    few_steps_source: str
    call: Callable[[Any, torch.Tensor, torch.Tensor], Any] = call_with_mask
    """(model, pixel_values, pixel_mask) -> what the processor's post-processing takes"""
    make_config: MakeConfig | None = None
    """(arguments, what all heads get: backbone_config, id2label, label2id; the backbone)
    -> config; default: the config class takes the first two"""
    tasks: Mapping[Task, Finder] = field(default_factory=lambda: {"detection": BOXES})
    """The model.tasks that it is for, and how what `call` gave is read for each"""
    fit: Fit = "pad"
    """The data.image_size.fit that it needs"""
    initialise_classes: Callable[[Any], None] | None = None
    """Starting weights of the layers whose shape depends on the classes, if not those of their modules"""
    prepare: Callable[[Any, Iterable[tuple[torch.Tensor, torch.Tensor]]], None] | None = None
    """(model, pixel_values and pixel_mask of some training images): what it has to know of them before the
    first step"""
    anneal: Callable[[Any, float], None] | None = None
    """(model, part of the steps that is done): before each step, if something in the model depends on it"""
    holds_norms: bool = False
    """Its batch norms keep their statistics"""
    of_pixels: bool = False
    """Its loss of classes is a sum over pixels, not over what is to be found"""
    chooses_queries: bool = False
    """It chooses its queries among the places of its maps, and a small image has too few"""
    whole_args: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the config that are set in a pretrained detector"""
    whole_refused: Collection[str] = ()
    """Further ones that cannot be changed there"""
    needs_strides: Callable[[Any], bool] = lambda config: False
    """Whether it needs maps of several strides, given the config of the backbone"""
    level_strides: Callable[[Any, Sequence[int]], Sequence[int]] = lambda config, strides: strides
    """Strides of all maps that the head works on, px, given its config and those of the backbone"""
    side_multiples: Callable[[Any], Sequence[int]] = lambda config: ()
    """What sides of images have to be multiples of besides, px, given its config: windows, for instance"""

    def smallest_side(self, config: Any, strides: Sequence[int], multiple: int) -> int:
        """Smallest side of a square image, px, that a model of this family can be tried on.

        Args:
            strides: of the backbone's maps. multiple: sides are multiples of it.
        """
        side = -(-PROBE_PX // multiple) * multiple
        while not self.has_places(config, strides, side):
            side += multiple
        return side

    def has_places(self, config: Any, strides: Sequence[int], side: int) -> bool:
        """Whether the maps of a square image of `side` px have enough places to choose queries from."""
        levels = self.level_strides(config, strides)
        return not self.chooses_queries or places(side, levels) >= self.num_queries(config)


def places(side: int, strides: Sequence[int]) -> int:
    """Number of places in maps of these strides of a square image."""
    return sum((side // stride) ** 2 for stride in strides)
