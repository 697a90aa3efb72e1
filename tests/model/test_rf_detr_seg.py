"""RF-DETR that finds masks: where it starts, what it predicts, what is refused."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers.models.rf_detr as theirs
from transformers import AutoModelForInstanceSegmentation

from builders import make_batch, save_backbone
from data.masks import pixels_of
from donors import (
    DONOR_CLASSES,
    OTHERS,
    SIDE_PX,
    TINY_RF_DETR,
    changed_copy,
    config_of,
    inputs,
    taxonomy,
    whole,
    write_donor,
)
from errors import UserError
from export.detector import load_detector
from model.build import build_model
from model.finding import find_sigmoid_masks
from model.start import completed, head_of
from settings.keys import ImageSizeConfig, ModelConfig
from settings.load import load_config

HEAD = "rf_detr_seg"
TASK = "instance_segmentation"
QUERIES = TINY_RF_DETR["num_queries"]


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("donors")
    return {head: write_donor(folder / head, head) for head in ("rf_detr", HEAD)}


def start(folder, names=OTHERS, head=HEAD, task=TASK):
    torch.manual_seed(1)
    cfg = whole(folder, head, task=task)
    return build_model(cfg, taxonomy(names), ImageSizeConfig(SIDE_PX))


def post_process():
    """transformers' own function; the file that has it cannot be imported without torchvision."""
    file = Path(inspect.getfile(theirs)).with_name("image_processing_rf_detr.py")
    name = "post_process_instance_segmentation"
    nodes = ast.walk(ast.parse(file.read_text()))
    function = next(n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == name)
    function.returns = None
    for argument in function.args.args:
        argument.annotation = None
    space = {"torch": torch, "F": F}
    exec(compile(ast.Module([function], []), str(file), "exec"), space)
    return space[name]


def planes_of(found, size):
    planes = np.zeros((len(found), *size), bool)
    for plane, mask in zip(planes, found.masks, strict=True):
        plane[pixels_of(mask, size)] = True
    return planes


@pytest.mark.parametrize("chosen", ["all", "half"])
def test_predictions_are_those_of_its_own_image_processor(donors, chosen):
    """Masks that overlap, in the size of the image, with the scores of their classes."""
    detector = start(donors[HEAD], DONOR_CLASSES)
    model = AutoModelForInstanceSegmentation.from_pretrained(donors[HEAD]).eval()
    batch = make_batch([1, 2])
    batch.orig_sizes = [(50, 70), (120, 90)]
    with torch.no_grad():
        outputs = model(pixel_values=inputs(detector, batch), pixel_mask=batch.pixel_mask)
    best = outputs.logits.sigmoid().flatten(1).topk(QUERIES).values
    threshold = best.median().item() if chosen == "half" else -1.0
    sizes = {"threshold": threshold, "target_sizes": batch.orig_sizes}
    wanted = post_process()(None, outputs, return_binary_maps=True, **sizes)
    found = detector.trainable.eval().predict(batch, threshold=threshold)
    compared = overlaps = 0
    for row, (result, size) in enumerate(zip(wanted, batch.orig_sizes, strict=True)):
        own = found.of_image(row)
        infos = result["segments_info"]
        assert [info["label_id"] for info in infos] == own.classes.tolist()
        np.testing.assert_allclose(own.scores, [info["score"] for info in infos], atol=1e-6)
        planes = planes_of(own, size)
        assert (planes == result["segmentation"].numpy()).all()
        for plane, (x, y, w, h) in zip(planes, own.boxes.astype(int), strict=True):
            assert plane[y : y + h, x : x + w].sum() == plane.sum() > 0
        overlaps += (planes.sum(0) > 1).sum()
        compared += len(planes)
    assert compared >= 4
    assert overlaps > 0


def test_as_many_masks_are_looked_at_as_there_are_queries():
    """Of all pairs of query and class, by falling score; those that are empty are no masks."""
    generator = torch.Generator().manual_seed(0)
    outputs = type("Outputs", (), {})()
    outputs.logits = torch.randn(1, 4, 3, generator=generator)
    outputs.pred_masks = torch.randn(1, 4, 8, 8, generator=generator)
    order = outputs.logits.flatten().argsort(descending=True)
    sizes = torch.tensor([[16, 16]])
    found = find_sigmoid_masks(outputs, None, sizes, None, -1.0)
    assert found.classes.tolist() == (order[:4] % 3).tolist()
    assert len(find_sigmoid_masks(outputs, None, sizes, 2, -1.0)) == 2
    outputs.pred_masks[0, order[0] // 3] = -1.0
    empty = (order[:4] // 3 == order[0] // 3).sum().item()
    assert len(find_sigmoid_masks(outputs, None, sizes, None, -1.0)) == 4 - empty
    limit = outputs.logits.flatten()[order[1]].sigmoid().item()
    assert len(find_sigmoid_masks(outputs, None, sizes, None, limit)) == 0


def test_only_layers_of_classes_are_new(donors):
    detector = start(donors[HEAD])
    of_classes = ("class_embed.weight", "class_embed.bias")
    assert detector.fresh
    assert all("class_embed" in n or n.endswith(of_classes) for n in detector.fresh)
    assert start(donors[HEAD], DONOR_CLASSES).fresh == ()
    assert detector.unused == ()
    layers = [detector.model.model.class_embed, *detector.model.model.model.enc_out_class_embed]
    for layer in layers:
        assert torch.equal(layer.weight, layers[0].weight)
        assert torch.equal(layer.bias, torch.full((2,), layer.bias[0].item()))


def test_masks_are_learnt_on_top_of_a_detector_of_boxes(donors):
    """Its masks are new then; the other way round they are left behind."""
    detector = start(donors["rf_detr"], DONOR_CLASSES)
    assert len(detector.fresh) == 23
    assert not any(name.startswith("model.") for name in detector.fresh)
    boxes = start(donors[HEAD], DONOR_CLASSES, "rf_detr", "detection")
    assert boxes.fresh == ()


@pytest.mark.parametrize(("donor", "head"), [("rf_detr", HEAD), (HEAD, "rf_detr")])
def test_tensor_that_both_kinds_have_and_the_file_has_not(donors, donor, head, tmp_path):
    def edit(tensors):
        [name] = [
            name
            for name in tensors
            if name.endswith("decoder.layers.0.cross_attn.output_proj.weight")
        ]
        del tensors[name]

    folder = changed_copy(donors[donor], tmp_path / "donor", edit)
    with pytest.raises(UserError, match=r"1 tensors are missing in its file"):
        start(folder, DONOR_CLASSES, head, TASK if head == HEAD else "detection")


def test_kind_of_a_folder_is_what_its_config_names(donors):
    for head, folder in donors.items():
        assert head_of(folder, "x") == head
        assert completed(config_of(whole(folder, None))).model.head == head
    assert completed(config_of(whole(donors[HEAD], "rf_detr"))).model.head == "rf_detr"
    with pytest.raises(UserError, match="model.head detr: .* has the head rf_detr_seg"):
        completed(config_of(whole(donors[HEAD], "detr")))


def test_export_is_loaded_as_what_it_is(donors, tmp_path):
    detector = start(donors[HEAD], DONOR_CLASSES)
    detector.model.save_pretrained(tmp_path)
    detector.trainable.processor.save_pretrained(tmp_path)
    loaded = load_detector(str(tmp_path))
    assert type(loaded.trainable.model) is type(detector.model)
    assert loaded.trainable.task == TASK
    batch = make_batch([1, 2])
    own, other = (t.eval().predict(batch) for t in (detector.trainable, loaded.trainable))
    np.testing.assert_array_equal(own.scores, other.scores)
    np.testing.assert_array_equal(own.boxes, other.boxes)
    assert len(own) > 0


@pytest.mark.parametrize("task", ["detection", "semantic_segmentation", "panoptic_segmentation"])
def test_other_tasks_are_refused(donors, task):
    message = f"model.head rf_detr_seg is for instance_segmentation, model.task is {task}"
    with pytest.raises(UserError, match=message):
        start(donors[HEAD], task=task)


def test_boxes_head_is_for_no_masks(donors):
    with pytest.raises(UserError, match="model.head rf_detr is for detection, .*rf_detr_seg"):
        start(donors[HEAD], head="rf_detr")


def test_backbone_beside_it_is_refused(tmp_path):
    message = "it has a windowed DINOv2 of its own; .*maskformer or mask2former for this backbone"
    with pytest.raises(UserError, match=message):
        load_config(["--model.head", HEAD, "--model.task", TASK])
    backbone = str(save_backbone(tmp_path / "backbone"))
    with pytest.raises(UserError, match=message):
        build_model(ModelConfig(TASK, backbone, head=HEAD), taxonomy(OTHERS))


@pytest.mark.parametrize("key", ["group_detr", "num_queries"])
def test_number_of_queries_cannot_be_changed(donors, key):
    cfg = whole(donors[HEAD], HEAD, task=TASK, head_args={key: 1})
    with pytest.raises(UserError, match=f"model.head_args.{key}: "):
        build_model(cfg, taxonomy(OTHERS), ImageSizeConfig(SIDE_PX))


def test_masks_can_be_weighed_anew(donors):
    args = {"mask_class_loss_coefficient": 2.5, "mask_dice_loss_coefficient": 0.5}
    cfg = whole(donors[HEAD], HEAD, task=TASK, head_args=args)
    detector = build_model(cfg, taxonomy(OTHERS), ImageSizeConfig(SIDE_PX))
    weights = detector.trainable.criterion.weights
    assert (weights["loss_mask"], weights["loss_dice"]) == (2.5, 0.5)
