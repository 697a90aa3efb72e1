"""A pretrained backbone with a neck: maps of several strides, all with as many channels.

Only torch and transformers are needed: an exported model carries a copy of this file, since transformers has no
such class. Norms are over the channels of a position, so that nothing depends on the other images of a batch.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoBackbone,
    AutoConfig,
    DeformableDetrForObjectDetection,
    Deimv2ForObjectDetection,
    DFineForObjectDetection,
    Mask2FormerForUniversalSegmentation,
    MaskFormerForInstanceSegmentation,
    PreTrainedModel,
    RTDetrV2ForObjectDetection,
)
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_outputs import BackboneOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


class NeckedBackboneConfig(BackboneConfigMixin, PretrainedConfig):
    """Configuration: the backbone's, and what the neck makes of its maps."""

    model_type = "necked_backbone"
    sub_configs = {"backbone_config": AutoConfig}

    def __init__(
        self,
        backbone_config=None,
        kind="pyramid",
        channels=256,
        backbone_strides=(16,),
        strides=(8, 16, 32),
        out_features=None,
        out_indices=None,
        **kwargs,
    ):
        """
        Args:
            kind: pyramid, fpn or cnn_branch. channels: of every map that the neck gives.
            backbone_strides: of the maps of the backbone, px. strides: of those of the neck, finest first.
        """
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config
        self.kind = kind
        self.channels = channels
        self.backbone_strides = list(backbone_strides)
        self.strides = list(strides)
        self.stage_names = [f"stride{stride}" for stride in self.strides]
        if out_features is None and out_indices is None:
            out_features = list(self.stage_names)
        self.set_output_features_output_indices(out_features, out_indices)
        kwargs.pop("stage_names", None)
        super().__init__(**kwargs)


class PositionNorm(nn.LayerNorm):
    """Layer norm over the channels of each position of [B, C, H, W]."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def smoothed(inside, outside):
    """To the neck's channels, then over 3 x 3 positions."""
    return [
        nn.Conv2d(inside, outside, 1, bias=False),
        PositionNorm(outside),
        nn.Conv2d(outside, outside, 3, padding=1, bias=False),
        PositionNorm(outside),
    ]


class Pyramid(nn.Module):
    """The backbone's last map, made larger and smaller.

    As the simple feature pyramid of ViTDet (Li et al. 2022, https://arxiv.org/abs/2203.16527).
    """

    def __init__(self, config, channels):
        super().__init__()
        own = config.backbone_strides[-1]
        self.levels = nn.ModuleList(
            [self.level(own, stride, channels[-1], config.channels) for stride in config.strides]
        )

    @staticmethod
    def level(own, stride, inside, outside):
        """From the map of stride `own` to one of `stride`."""
        layers = [nn.MaxPool2d(2) for _ in range(doublings(own, stride))]
        for number in range(doublings(stride, own)):
            if number:
                layers += [PositionNorm(inside), nn.GELU()]
            layers.append(nn.ConvTranspose2d(inside, max(1, inside // 2), 2, stride=2))
            inside = max(1, inside // 2)
        return nn.Sequential(*layers, *smoothed(inside, outside))

    def forward(self, pixel_values, maps):
        return [level(maps[-1]) for level in self.levels]


class TopDown(nn.Module):
    """Each map of the backbone, with the sum of all coarser ones; further ones from the coarsest.

    A feature pyramid network (Lin et al. 2017, https://arxiv.org/abs/1612.03144).
    """

    def __init__(self, config, channels):
        super().__init__()
        size = config.channels
        self.laterals = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(number, size, 1, bias=False), PositionNorm(size))
                for number in channels
            ]
        )
        self.smooth = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(size, size, 3, padding=1, bias=False), PositionNorm(size))
                for _ in channels
            ]
        )
        further = len(config.strides) - len(channels)
        self.coarser = nn.ModuleList([halving(size, size) for _ in range(further)])

    def forward(self, pixel_values, maps):
        sums = [lateral(own) for lateral, own in zip(self.laterals, maps, strict=True)]
        for place in range(len(sums) - 1, 0, -1):
            size = sums[place - 1].shape[-2:]
            sums[place - 1] = sums[place - 1] + F.interpolate(sums[place], size=size)
        found = [smooth(own) for smooth, own in zip(self.smooth, sums, strict=True)]
        for coarser in self.coarser:
            found.append(coarser(found[-1]))
        return found


class PixelBranch(nn.Module):
    """Maps of a small convolutional network on the pixels, each joined with the backbone's last map.

    A vision transformer has no detail finer than its patches; this adds some, as the adapter of DEIMv2 does
    (Huang et al. 2025, https://arxiv.org/abs/2509.20787).
    """

    def __init__(self, config, channels):
        super().__init__()
        own = config.backbone_strides[-1]
        self.scale = 2 ** round(math.log2(own)) / own
        """Of the pixels, where patches have no power of two, so that halving them meets the strides"""
        halvings = [round(math.log2(stride * self.scale)) for stride in config.strides]
        widths = [3] + [
            max(8, config.channels >> max(0, 5 - n)) for n in range(1, halvings[-1] + 1)
        ]
        self.stages = nn.ModuleList(
            [
                nn.Sequential(*halving(inside, outside), nn.GELU())
                for inside, outside in zip(widths, widths[1:], strict=False)
            ]
        )
        self.read = halvings
        """After how many stages a map is taken"""
        self.fuse = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(widths[n] + channels[-1], config.channels, 1, bias=False),
                    PositionNorm(config.channels),
                )
                for n in halvings
            ]
        )

    def forward(self, pixel_values, maps):
        detail = pixel_values.to(self.stages[0][0].weight.dtype)
        if self.scale != 1:
            height, width = (round(side * self.scale) for side in pixel_values.shape[-2:])
            detail = F.interpolate(detail, size=(height, width), mode="bilinear")
        stages = [detail]
        for stage in self.stages:
            stages.append(stage(stages[-1]))
        found = []
        for number, fuse in zip(self.read, self.fuse, strict=True):
            own = stages[number]
            last = F.interpolate(maps[-1], size=own.shape[-2:], mode="bilinear")
            found.append(fuse(torch.cat([own, last.to(own.dtype)], dim=1)))
        return found


def halving(inside, outside):
    """A convolution that makes a map half as large."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False), PositionNorm(outside)
    )


def doublings(first, second):
    """How often `first` is doubled to reach `second`; 0 if it is not smaller."""
    return max(0, round(math.log2(second / first)))


NECKS = {"pyramid": Pyramid, "fpn": TopDown, "cnn_branch": PixelBranch}


class NeckedBackbone(BackboneMixin, PreTrainedModel):
    """A backbone to every head: it gives maps, whose strides are the neck's."""

    config_class = NeckedBackboneConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    has_attentions = False
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        self.num_features = [config.channels] * len(config.strides)
        self.neck = NECKS[config.kind](config, self.backbone.channels)
        self.post_init()

    def post_init(self):
        """Without the hooks that a backbone installs: the inner one has its own, and with a second set it would
        take each of its layers for two."""
        super(BackboneMixin, self).post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        """torch's own starting weights; the backbone has its own rule."""
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.LayerNorm):
            module.reset_parameters()

    def forward(self, pixel_values, **kwargs):
        """pixel_values float [B, 3, H, W], normalised, sides multiples of all strides."""
        maps = self.backbone(pixel_values).feature_maps
        found = self.neck(pixel_values, maps)
        names = zip(self.stage_names, found, strict=True)
        return BackboneOutput(
            feature_maps=tuple(own for name, own in names if name in self.out_features)
        )


if NeckedBackboneConfig.model_type not in CONFIG_MAPPING:  # several models bring this file along
    AutoConfig.register(NeckedBackboneConfig.model_type, NeckedBackboneConfig)
AutoBackbone.register(NeckedBackboneConfig, NeckedBackbone, exist_ok=True)


class WithNeck:
    """What the configs of all detectors and segmenters with a neck have in common."""

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            self.backbone_config = NeckedBackboneConfig(**self.backbone_config)
        super().__post_init__(**kwargs)


def with_neck(plain, auto_class):
    """A model class of transformers whose backbone has a neck: it is the same but for its name, by which
    transformers knows that this file is needed."""
    config_class = type(
        f"Necked{plain.config_class.__name__}",
        (WithNeck, plain.config_class),
        {"model_type": f"necked_{plain.config_class.model_type}", "__module__": __name__},
    )
    model_class = type(
        f"Necked{plain.__name__}", (plain,), {"config_class": config_class, "__module__": __name__}
    )
    config_class.register_for_auto_class()
    model_class.register_for_auto_class(auto_class)
    return model_class


NECKED = {
    plain: with_neck(plain, auto_class)
    for plain, auto_class in (
        (DeformableDetrForObjectDetection, "AutoModelForObjectDetection"),
        (RTDetrV2ForObjectDetection, "AutoModelForObjectDetection"),
        (DFineForObjectDetection, "AutoModelForObjectDetection"),
        (Deimv2ForObjectDetection, "AutoModelForObjectDetection"),
        (MaskFormerForInstanceSegmentation, "AutoModelForImageSegmentation"),
        (Mask2FormerForUniversalSegmentation, "AutoModelForImageSegmentation"),
    )
}
"""Every class that reads several maps and can have a neck, and the one that is saved with it"""
for necked in NECKED.values():  # by these names transformers looks for them in this file
    globals()[necked.__name__] = necked
    globals()[necked.config_class.__name__] = necked.config_class
