"""Behaviour of libraries that the code works around. A failure here means: look whether the
workaround named in the test is still needed.
"""

import warnings

import albumentations as A
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader, Dataset
from transformers import DeformableDetrConfig, DetrConfig

from builders import launch
from model.heads.detr import FAMILY


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Draws(Dataset):
    """One random augmentation parameter per item."""

    def __init__(self):
        shift = A.Affine(translate_px=(-1000, 1000), p=1.0)
        self.compose = A.Compose([shift], bbox_params=A.BboxParams("coco", label_fields=[]), seed=0)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = np.zeros((2001, 2001), np.uint8)
        return self.compose(image=image, bboxes=[[1000.0, 1000.0, 1.0, 1.0]])["bboxes"][0][0]


def test_albumentations_repeats_itself_with_workers():
    """Hence every draw of ours is seeded by (seed, epoch, index)."""
    loader = DataLoader(Draws(), batch_size=1, num_workers=2, collate_fn=lambda x: x[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = [float(x) for x in loader], [float(x) for x in loader]
    assert first[0::2] == first[1::2], "the two workers draw the same"
    assert first == second, "every epoch draws the same"


def test_translate_percent_of_equal_limits_is_a_constant_shift():
    """Hence the recipes write ranges from -0.05 to 0.05."""
    compose = A.Compose([A.Affine(translate_percent=(0.05, 0.05), p=1.0)])
    shifts = set()
    for seed in range(10):
        compose.set_random_seed(seed)
        image = np.zeros((100, 100), np.uint8)
        image[50, 50] = 255
        shifts.add(tuple(int(v) for v in np.argwhere(compose(image=image)["image"] > 100)[0]))
    assert shifts == {(55, 55)}


def test_auxiliary_losses_are_off_by_default():
    """Hence the heads turn them on."""
    assert not DetrConfig().auxiliary_loss
    assert not DeformableDetrConfig().auxiliary_loss


def test_detr_processor_makes_box_targets_depend_on_batch_mates():
    """Hence our own collate."""
    annotation = {
        "image_id": 1,
        "annotations": [
            {"bbox": [10, 50, 20, 50], "category_id": 0, "area": 1000, "iscrowd": 0, "id": 1}
        ],
    }
    empty = {"image_id": 2, "annotations": []}
    wide, tall = np.zeros((100, 200, 3), np.uint8), np.zeros((200, 100, 3), np.uint8)
    processor = FAMILY.processor_class(do_resize=False)
    alone = processor([wide], [annotation], return_tensors="pt")["labels"][0]["boxes"]
    together = processor([wide, tall], [annotation, empty], return_tensors="pt")["labels"][0][
        "boxes"
    ]
    assert not torch.allclose(alone, together)


def test_prepared_scheduler_steps_once_per_process():
    """Hence the learning rate is set by our own function of the step."""
    result = launch([], 2, script="tests/distributed/scheduler_worker.py")
    assert "scheduler at 2 after 1 step" in result.stdout, result.stderr


def test_gather_for_uneven_ranks_repeats_samples():
    """Hence evaluation deals out whole batches and gathers by count."""
    result = launch([], 2, script="tests/distributed/even_batches_worker.py")
    assert "gathered 6 of 5" in result.stdout, result.stderr


def test_torchrun_without_cpu_flag_gives_separate_worlds():
    """Hence Accelerator(cpu=True) where there is no GPU, and a check of WORLD_SIZE."""
    if torch.accelerator.is_available():
        pytest.skip("a GPU is here")
    result = launch([], 2, script="tests/distributed/world_worker.py")
    assert result.stdout.count("world of 1") == 2, result.stdout + result.stderr


def test_transformers_multiplies_detrs_box_losses_by_the_world_size():
    """Hence the criterion is our own."""
    values = {}
    for processes in (1, 2):
        result = launch([], processes, script="tests/distributed/detr_loss_worker.py")
        line = next(x for x in result.stdout.splitlines() if x.startswith("losses"))
        values[processes] = [float(v) for v in line.split()[1:]]
    assert values[2][0] == pytest.approx(values[1][0], rel=1e-4)  # cross-entropy
    assert values[2][1] == pytest.approx(2 * values[1][1], rel=1e-4)  # boxes, the same on each rank


def test_resnet_in_detr_is_frozen_whatever_is_asked():
    """Hence `freeze: none` sets requires_grad itself."""
    from transformers import DetrForObjectDetection, ResNetConfig

    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    model = DetrForObjectDetection(DetrConfig(backbone_config=resnet, d_model=32))
    assert not any(p.requires_grad for p in model.model.backbone.parameters())


def test_accelerate_takes_fp16_on_a_cpu_and_silently_computes_in_fp32():
    """Hence run/precision.py turns it on."""
    accelerator = Accelerator(mixed_precision="fp16", cpu=True)
    model = accelerator.prepare(torch.nn.Linear(1, 1))
    assert accelerator.mixed_precision == "fp16"
    assert accelerator.scaler is None
    assert not hasattr(model, "_original_forward")


def test_train_mode_reaches_a_frozen_backbone(tmp_path):
    """Hence `freeze` overrides train()."""
    from transformers import DetrForObjectDetection, DINOv3ConvNextBackbone

    from builders import save_backbone

    backbone = DINOv3ConvNextBackbone.from_pretrained(save_backbone(tmp_path))
    model = DetrForObjectDetection(DetrConfig(backbone_config=backbone.config, d_model=32))
    model.model.freeze_backbone()
    model.eval()
    model.train()
    assert model.model.backbone.model.training
