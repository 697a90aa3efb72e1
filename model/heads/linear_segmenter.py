"""A segmenter of a backbone, one batch norm a map and one linear layer. Only torch and transformers are
needed: an exported model carries a copy of this file, since transformers has no such class."""

from torch import nn
from transformers import AutoBackbone, AutoConfig, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_outputs import SemanticSegmenterOutput


class LinearSegmenterConfig(PretrainedConfig):
    """Configuration: the backbone's, and the classes."""

    model_type = "linear_segmenter"
    sub_configs = {"backbone_config": AutoConfig}

    def __init__(self, backbone_config=None, **kwargs):
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config
        super().__init__(**kwargs)


class LinearSegmenter(PreTrainedModel):
    """Scores of classes as a linear function of the backbone's maps, each standardised by channel.

    The maps are made as large as the first one after their part of the linear layer, which is the same as
    before it, and takes less.
    """

    config_class = LinearSegmenterConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        channels = self.backbone.channels
        self.norms = nn.ModuleList([nn.BatchNorm2d(number) for number in channels])
        self.classifiers = nn.ModuleList(
            [
                nn.Conv2d(number, config.num_labels, 1, bias=place == 0)
                for place, number in enumerate(channels)
            ]
        )
        self.post_init()

    def train(self, mode=True):
        """The norms keep the statistics they have."""
        super().train(mode)
        self.norms.eval()
        return self

    def forward(self, pixel_values, **kwargs):
        """pixel_values float [B, 3, H, W], normalised; logits [B, C, h, w] of the first map's size."""
        maps = self.backbone(pixel_values).feature_maps
        logits = None
        for feature_map, norm, classifier in zip(maps, self.norms, self.classifiers, strict=True):
            own = classifier(norm(feature_map))
            if logits is None:
                logits = own
            else:
                logits = logits + nn.functional.interpolate(
                    own, size=logits.shape[-2:], mode="bilinear", align_corners=False
                )
        return SemanticSegmenterOutput(logits=logits)


LinearSegmenterConfig.register_for_auto_class()
LinearSegmenter.register_for_auto_class("AutoModelForSemanticSegmentation")
