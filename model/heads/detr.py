"""DETR (Carion et al. 2020, https://arxiv.org/abs/2005.12872)."""

from torch import nn
from transformers import DetrConfig, DetrForObjectDetection, PreTrainedModel
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from model.heads.family import Head


def initialise(model: PreTrainedModel) -> None:
    """The paper's starting weights: Xavier in the transformer, N(0, 1) queries.

    transformers draws everything from N(0, 0.02), which makes all queries nearly equal at the start
    and learning very slow.
    """
    for part in (model.model.encoder, model.model.decoder):
        for parameter in part.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
    nn.init.normal_(model.model.query_position_embeddings.weight)
    linears = (model.class_labels_classifier, *model.bbox_predictor.layers)
    for layer in (model.model.input_projection, *linears):
        layer.reset_parameters()


HEAD = Head(
    config_class=DetrConfig,
    model_class=DetrForObjectDetection,
    processor_class=DetrImageProcessorPil,
    defaults={"auxiliary_loss": True},
    focal=False,
    num_maps=lambda args: 1,
    initialise=initialise,
    backbone_of=lambda model: model.model.backbone.model,
    few_steps=30_000,
    few_steps_source="about 300,000 steps at lr 1e-4 on COCO, facebookresearch/detr#22",
)
