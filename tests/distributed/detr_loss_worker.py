"""transformers' DETR loss of the same random batch on every rank."""

import torch
from accelerate import Accelerator
from transformers import DetrConfig
from transformers.loss.loss_utils import LOSS_MAPPING

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
config = DetrConfig(backbone_config={"model_type": "resnet"}, num_queries=5)
labels = [{"class_labels": torch.tensor([0, 1]), "boxes": torch.rand(2, 4) * 0.3 + 0.3}]
logits, boxes = torch.randn(1, 5, config.num_labels + 1), torch.rand(1, 5, 4)
_, terms, _ = LOSS_MAPPING["ForObjectDetection"](logits, labels, logits.device, boxes, config)
if accelerator.is_main_process:
    print("losses", terms["loss_ce"].item(), terms["loss_bbox"].item(), flush=True)
accelerator.state.destroy_process_group()
