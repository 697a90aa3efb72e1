"""Runs of detectors with a neck: resumed, on two processes, loaded again, and started from."""

import json

import pytest
import torch
from safetensors.torch import load_file

import tools.evaluate
from builders import launch, some
from errors import UserError
from export.detector import load_detector
from model.build import build_model
from necked import FAST, HEADS, RUN, TAXONOMY, config, necked_run
from runs import losses, norms, stopped_and_resumed, train
from settings.keys import ImageSizeConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

WEIGHTS = "checkpoints/step-000004/model/trainable.safetensors"


@pytest.mark.parametrize("case", some(RUN, ["deformable_detr-cnn_branch"]))
def test_run_goes_on_bit_exactly(tmp_path, case):
    keys = {"train__micro_batch_size": 2}
    one, _ = stopped_and_resumed(
        tmp_path, lambda **more: necked_run(case, tmp_path, **keys, **more)
    )
    saved = load_file(one / WEIGHTS)
    assert any(".neck." in name for name in saved)
    assert not [name for name in saved if "patch_embeddings" in name or "depthwise" in name]


@pytest.mark.slow
@pytest.mark.parametrize("case", FAST)
def test_two_processes_take_the_steps_of_one(tmp_path, case):
    keys = {"optim__lr": 1e-5}  # AdamW makes whole steps of what rounding leaves of small gradients
    train(necked_run(case, tmp_path, run__output_dir=tmp_path / "one", **keys))
    result = launch(
        necked_run(case, tmp_path, run__output_dir=tmp_path / "two", **keys), processes=2
    )
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert norms(tmp_path / "two") == pytest.approx(norms(tmp_path / "one"), rel=1e-3)


@pytest.mark.parametrize("case", some(FAST, FAST[:1]))
def test_export_is_loaded_without_running_what_lies_in_it(tmp_path, case):
    """Evaluation repeats the logged metric, by our own class: the copy in the folder is never run."""
    train(necked_run(case, tmp_path, train__steps=8, optim__lr=0.003))
    run = tmp_path / "run"
    (run / "export/necked_backbone.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    arguments = ["--model", str(run / "export"), "--config", str(run / "config.yaml")]
    again = tools.evaluate.main(arguments)
    logged = json.loads((run / "eval/step-000008/metrics.json").read_text())
    for name in ("AP", "AP50", "AR_100"):
        assert again[name] == pytest.approx(logged[name], abs=1e-4)
    assert not (tmp_path / "ran").exists()
    entries = json.loads((run / "export/config.json").read_text())
    entries["model_type"] = "another"
    (run / "export/config.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match="code of its own"):
        load_detector(str(run / "export"))


@pytest.mark.parametrize("case", some(RUN, ["deformable_detr-cnn_branch"]))
def test_training_goes_on_from_an_export(tmp_path, case):
    """Whole, with its neck; or its head and neck on a backbone that is named."""
    head, neck = case.split("-")
    train(necked_run(case, tmp_path, optim__lr=0.003))
    export = tmp_path / "run/export"
    donor = load_detector(str(export)).trainable.model.state_dict()
    keys = {"model__backbone": "null", "model__neck": "null", "model__head": "null"}
    keys |= {"model__head_args": "{}", "data__image_size__longest": "null"}
    keys |= {"model__init_from": export, "run__output_dir": tmp_path / "again"}
    train(necked_run(case, tmp_path, **keys))
    again = load_detector(str(tmp_path / "again/export")).trainable.model.state_dict()
    assert again.keys() == donor.keys()
    moved = {name for name, value in again.items() if not torch.equal(value, donor[name])}
    assert any(".neck." in name for name in moved)
    assert f"neck        {neck}, " in (tmp_path / "again/train.log").read_text()
    assert "trust_remote_code" in (tmp_path / "again/export/README.md").read_text()
    cfg = config(case, tmp_path, init_from=str(export))
    detector = build_model(cfg, TAXONOMY, ImageSizeConfig(128))
    ours = detector.model.state_dict()
    taken = [name for name in ours if ".neck." in name]
    assert len(taken) > 8
    assert all(torch.equal(ours[name], donor[name]) for name in taken)
    assert not [name for name in detector.fresh if ".neck." in name]


@pytest.mark.parametrize("head", some(HEADS, HEADS[:1]))
def test_head_of_a_detector_without_neck_is_taken_and_the_neck_is_new(tmp_path, head):
    case = f"{head}-fpn"
    plain = build_model(config(case, tmp_path, neck="none"), TAXONOMY, ImageSizeConfig(128))
    plain.model.save_pretrained(tmp_path / "donor")
    cfg = config(case, tmp_path, init_from=str(tmp_path / "donor"))
    detector = build_model(cfg, TAXONOMY, ImageSizeConfig(128))
    theirs, ours = plain.model.state_dict(), detector.model.state_dict()
    decoder = [n for n in ours if "decoder." in n and n in theirs]
    same = [n for n in decoder if torch.equal(ours[n], theirs[n])]
    assert len(same) > 20
    neck = {n for n, _ in detector.model.named_parameters() if ".neck." in n}
    assert neck <= set(detector.fresh)
    assert detector.backbone.num_tensors > 10
