"""Whole runs through the command line that start from a whole detector."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline

import tools.evaluate
from builders import REAL_TIME, launch, some, tiny_run
from data.images.decode import decode
from donors import HEADS, SIDE_PX, write_donor
from export.detector import load_detector
from runs import ids, losses, norms, stopped_and_resumed, train
from tools.predict import detect

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def whole_run(tmp_path, head="deimv2", **keys):
    """Command line of a run that leaves to a donor what it can."""
    donor = tmp_path / "donor"
    if not donor.exists():
        write_donor(donor, head)
    silent = {
        "model__backbone": "null",
        "model__head": "null",
        "model__head_args": "{}",
        "model__init_from": donor,
        "data__image_size__longest": "null",
        "optim__new_layers_lr": 0.01,
    }
    return tiny_run(tmp_path, **{**silent, **keys})


@pytest.mark.parametrize("head", some(HEADS, ["deimv2"]))
def test_export_of_a_whole_detector_finds_elsewhere_what_was_evaluated(tmp_path, head):
    train(whole_run(tmp_path, head))
    run = tmp_path / "run"
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["model"]["head"], written["model"]["backbone"]) == (head, None)
    assert written["data"]["image_size"]["longest"] == SIDE_PX
    donor, export = (
        load_file(tmp_path / name / "model.safetensors") for name in ("donor", "run/export")
    )
    assert export.keys() == donor.keys()
    of_backbone = "backbone.0.encoder." if head == "rf_detr" else ".stages."
    inside = [name for name in export if of_backbone in name]
    assert inside
    assert all(torch.equal(export[name], donor[name]) for name in inside)
    statistics = [name for name in export if "running_" in name]
    assert all(torch.equal(export[name], donor[name]) for name in statistics)
    moved = [name for name in export if export[name].shape == donor[name].shape]
    assert sum(not torch.equal(export[name], donor[name]) for name in moved) > 40
    evaluated = json.loads((run / "eval/step-000003/predictions.json").read_text())
    model = AutoModelForObjectDetection.from_pretrained(run / "export").eval()
    processor = AutoImageProcessor.from_pretrained(run / "export", backend="pil")
    found = pipeline("object-detection", model=str(run / "export"))
    ours = load_detector(str(run / "export"))
    assert ours.names == ["class1"]
    content = json.loads((tmp_path / "data/annotations/val.json").read_text())
    for image in content["images"]:
        file = tmp_path / "data/val" / image["file_name"]
        with torch.no_grad():
            pixels = processor(Image.open(file).convert("RGB"), return_tensors="pt")
            outputs = model(**pixels)
        sizes = torch.tensor([[image["height"], image["width"]]])
        theirs = processor.post_process_object_detection(outputs, -1.0, sizes)[0]
        order = theirs["scores"].argsort(descending=True, stable=True)
        boxes = theirs["boxes"][order].double().numpy()
        boxes[:, 2:] -= boxes[:, :2]
        own = detect(ours, decode(file, str(file)), -1.0, torch.device("cpu"))
        np.testing.assert_allclose(own.scores, theirs["scores"][order], atol=1e-5)
        np.testing.assert_allclose(own.boxes, boxes, atol=0.01)
        logged = [p for p in evaluated if p["image_id"] == image["id"]]
        np.testing.assert_allclose([p["bbox"] for p in logged], boxes, atol=0.02)
        piped = sorted(found(str(file), threshold=-1.0), key=lambda box: -box["score"])
        scores = [box["score"] for box in piped]
        np.testing.assert_allclose(scores, own.scores, atol=1e-5)
        corners = [[box["box"][k] for k in ("xmin", "ymin", "xmax", "ymax")] for box in piped]
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(corners, boxes, atol=1.01)  # whole pixels there


def test_evaluating_the_export_repeats_the_logged_metric(tmp_path):
    train(whole_run(tmp_path, train__steps=8, optim__lr=0.003))
    run = tmp_path / "run"
    arguments = ["--model", str(run / "export"), "--config", str(run / "config.yaml")]
    again = tools.evaluate.main(arguments)
    logged = json.loads((run / "eval/step-000008/metrics.json").read_text())
    for name in ("AP", "AP50", "AR_100"):
        assert again[name] == pytest.approx(logged[name], abs=1e-4)


@pytest.mark.parametrize("head", some(HEADS, ["deimv2"]))
def test_resumed_run_is_bit_equal_to_one_that_was_not_stopped(tmp_path, head):
    """Although its configuration leaves head and image size to the donor in both lives."""
    stopped_and_resumed(tmp_path, lambda **keys: whole_run(tmp_path, head, **keys))


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_loss_is_the_same_on_one_and_two_processes(tmp_path, head):
    one = whole_run(tmp_path, head, run__output_dir=tmp_path / "one")
    two = whole_run(tmp_path, head, run__output_dir=tmp_path / "two", data__num_workers=1)
    split = whole_run(tmp_path, head, run__output_dir=tmp_path / "split", train__micro_batch_size=1)
    train(one)
    train(split)
    result = launch(two, processes=2)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "two/run.json").read_text())["world_size"] == 2
    for name in ("two", "split"):
        assert ids(tmp_path / name) == ids(tmp_path / "one")
        # An image of one colour has places of one score; which of them are queries is rounding, and
        # moves gradients of boxes that have not been trained.
        assert losses(tmp_path / name)[0] == pytest.approx(losses(tmp_path / "one")[0], rel=1e-5)
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        rel = 0.1 if head in REAL_TIME else 1e-3
        assert norms(tmp_path / name) == pytest.approx(norms(tmp_path / "one"), rel=rel)


def test_export_is_a_donor_again(tmp_path):
    """The same classes go on with the layers that they have."""
    train(whole_run(tmp_path))
    shutil.copytree(tmp_path / "run/export", tmp_path / "trained")
    again = {"run__output_dir": tmp_path / "again", "model__init_from": tmp_path / "trained"}
    train(whole_run(tmp_path, optim__lr=1e-12, **{**again, "optim__new_layers_lr": "null"}))
    first, second = (load_file(tmp_path / n / "export/model.safetensors") for n in ("run", "again"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_rf_detr_with_random_weights_learns_eight_images(tmp_path):
    """There is no head of it to begin with nothing: donor and backbone are random, and all of it trains."""
    windows = {"hidden_size": 32, "num_attention_heads": 4, "mlp_ratio": 2}
    sizes = {"d_model": 64, "decoder_ffn_dim": 128, "num_queries": 12, "decoder_n_points": 4}
    write_donor(tmp_path / "donor", "rf_detr", windows=windows, noise=0.0, **sizes)
    keys = {
        **{
            "data__val_split": "null",
            "data__val_on_train": "true",
            "data__image_size__longest": 96,
        },
        **{"model__freeze": "none", "optim__lr": 1e-3, "optim__backbone_lr": 1e-3},
        **{"optim__max_grad_norm": 1.0, "optim__warmup_steps": 10, "optim__new_layers_lr": 1e-3},
        **{"train__steps": 180, "train__global_batch_size": 8, "run__draw_batches": 0},
    }
    train(whole_run(tmp_path, "rf_detr", **keys))
    metrics = json.loads((tmp_path / "run/eval/step-000180/metrics.json").read_text())
    assert metrics["AP50"] >= 0.9
