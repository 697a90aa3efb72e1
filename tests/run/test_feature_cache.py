"""The feature cache: what is stored is what the backbone gives, and nothing stale is used."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from builders import launch, save_backbone, tiny_run
from data.feed import features
from data.feed.collate import collate
from data.feed.features import FeatureStore
from data.feed.loader import EvalDataset, TrainDataset
from data.feed.sampler import SampleRef
from data.images.decode import decode
from errors import UserError
from necked import necked_run
from run import feature_cache
from run.build import build_parts, start_processes
from run.feature_files import maps_of
from runs import losses, norms, stopped_and_resumed, train
from settings.load import load_config
from tools import cache_features

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

AUGMENT = json.dumps(
    [
        {"HorizontalFlip": {"p": 0.5}},
        {"Affine": {"scale": [0.8, 1.2], "p": 0.8}},
        {"RandomBrightnessContrast": {"p": 0.5}},
        {"RandomSizedBBoxSafeCrop": {"height": 64, "width": 64, "p": 0.5}},
    ]
)
HEADS = ["deformable_detr", "deimv2", "maskformer", "linear"]


def cached_run(tmp_path, head="deformable_detr", **keys):
    usual = {
        "data__cache_features": 2,
        "data__cache_precision": "fp32",
        "data__cache_folder": tmp_path / "cache",
        "data__augment": AUGMENT,
        "train__steps": 6,
        "optim__schedule": "constant",
        "optim__lr": 1e-5,  # rounding grows with it
    }
    return tiny_run(tmp_path, head, **{**usual, **keys})


def files(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.safetensors"))


def said(run):
    return re.findall("features .*", (run / "train.log").read_text())


@pytest.mark.parametrize("head", HEADS)
def test_the_head_cannot_tell_stored_from_live(tmp_path, head, monkeypatch):
    """Three epochs of two views, against the same views with the backbone at work in every step."""
    train(cached_run(tmp_path, head, run__output_dir=tmp_path / "stored"))
    for kind in (TrainDataset, EvalDataset):
        monkeypatch.setattr(
            kind, "features", property(lambda _: None, lambda *_: None), raising=False
        )
    train(cached_run(tmp_path, head, run__output_dir=tmp_path / "live"))
    one, other = tmp_path / "stored", tmp_path / "live"
    assert losses(one)[0] == pytest.approx(losses(other)[0], rel=1e-6)
    later = 1e-3 if head == "maskformer" else 1e-5  # a pair of its matching may change
    assert losses(one) == pytest.approx(losses(other), rel=later)
    assert norms(one) == pytest.approx(norms(other), rel=100 * later)
    found = [(r / "eval/step-000006/predictions.json").read_text() for r in (one, other)]
    scores = [[row["score"] for row in json.loads(text)] for text in found]
    assert len(scores[0]) > 0
    assert scores[0] == pytest.approx(scores[1], abs=max(1e-4, later))


def test_stored_maps_and_labels_without_pixels_are_those_with_them(tmp_path):
    cfg = load_config(cached_run(tmp_path, "maskformer"))
    accelerator = start_processes(cfg)
    cfg, data, detector = build_parts(cfg, accelerator)
    stored = feature_cache.prepare_features(cfg, accelerator, data, detector).train
    part = feature_cache.plan(cfg, accelerator, data, detector)[0]
    differ = 0
    for image in range(len(data.train)):
        for view in range(2):
            ref = SampleRef(image, view, part.canvas)
            live, blank = (part.dataset.view(image, view, ref, blank) for blank in (False, True))
            one, other = collate([live]), collate([blank])
            for name in ("boxes", "classes", "masks"):
                assert torch.equal(getattr(one.objects, name), getattr(other.objects, name))
            assert torch.equal(one.ignored, other.ignored)
            assert one.noise_keys == other.noise_keys
            maps = maps_of(cfg, detector, one, accelerator.device, True)
            for made, kept in zip(maps, stored.maps(image, view), strict=True):
                torch.testing.assert_close(kept, made[0], rtol=1e-5, atol=1e-5)
        differ += not all(map(torch.equal, stored.maps(image, 0), stored.maps(image, 1)))
    assert differ == len(data.train)  # each view is another one


def test_rounding_to_half_is_all_that_fp16_changes(tmp_path):
    train(cached_run(tmp_path, run__output_dir=tmp_path / "fp32"))
    train(cached_run(tmp_path, run__output_dir=tmp_path / "fp16", data__cache_precision="fp16"))
    assert losses(tmp_path / "fp16") == pytest.approx(losses(tmp_path / "fp32"), rel=2e-3)
    sizes = sorted(
        sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
        for folder in (tmp_path / "cache").iterdir()
        if folder.is_dir()
    )
    assert len(sizes) == 4


def test_in_fp16_the_head_cannot_tell_stored_from_live(tmp_path, monkeypatch):
    keys = {"data__cache_precision": "fp16", "train__precision": "fp16"}
    train(cached_run(tmp_path, run__output_dir=tmp_path / "stored", **keys))
    monkeypatch.setattr(
        TrainDataset, "features", property(lambda _: None, lambda *_: None), raising=False
    )
    train(cached_run(tmp_path, run__output_dir=tmp_path / "live", **keys))
    one, other = tmp_path / "stored", tmp_path / "live"
    assert losses(one) == pytest.approx(losses(other), rel=1e-3)
    assert norms(one) == pytest.approx(norms(other), rel=1e-2)


def test_what_is_stored_in_fp16_is_computed_in_fp16(tmp_path):
    cfg = load_config(cached_run(tmp_path, train__precision="fp16"))
    accelerator = start_processes(cfg)
    cfg, data, detector = build_parts(cfg, accelerator)
    stored = feature_cache.prepare_features(cfg, accelerator, data, detector).train
    part = feature_cache.plan(cfg, accelerator, data, detector)[0]
    batch = collate([part.dataset.view(0, 0, SampleRef(0, 0, part.canvas))])
    pixels = detector.trainable.normalization(batch.pixel_values, batch.pixel_mask)
    with torch.no_grad():
        fp32 = detector.backbone_module(pixels).feature_maps[-1][0]
        with accelerator.autocast():
            fp16 = detector.backbone_module(pixels).feature_maps[-1][0].float()
    kept = stored.maps(0, 0)[-1].float()
    assert (kept - fp16).norm() / fp16.norm() < 1e-4 < (kept - fp32).norm() / fp32.norm()


def test_run_goes_on_bit_exactly(tmp_path):
    stopped_and_resumed(
        tmp_path, lambda **keys: cached_run(tmp_path, **{**keys, "data__augment": AUGMENT})
    )


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Each of them makes half of the files."""
    result = launch(cached_run(tmp_path, run__output_dir=tmp_path / "two"), processes=2)
    assert result.returncode == 0, result.stderr
    made = {file: file.read_bytes() for file in files(tmp_path)}
    shutil.rmtree(tmp_path / "cache")
    train(cached_run(tmp_path, run__output_dir=tmp_path / "one", train__micro_batch_size=1))
    assert {file: file.read_bytes() for file in files(tmp_path)} == made
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert norms(tmp_path / "two") == pytest.approx(norms(tmp_path / "one"), rel=1e-4)


def test_a_later_run_makes_nothing_anew(tmp_path):
    train(cached_run(tmp_path, run__output_dir=tmp_path / "one"))
    times = {file: file.stat().st_mtime_ns for file in files(tmp_path)}
    assert len(times) == 3  # two views of training images, one of validation images
    train(cached_run(tmp_path, run__output_dir=tmp_path / "other", optim__lr=0.01))
    assert {file: file.stat().st_mtime_ns for file in files(tmp_path)} == times


@pytest.mark.parametrize(
    "keys",
    [
        {"run__seed": 1},
        {"data__augment": '[{"VerticalFlip": {"p": 0.5}}]'},
        {"data__image_size__longest": 96},
        {"model__out_features": "[stage2]"},
        {"data__cache_precision": "fp16"},
    ],
    ids=str,
)
def test_whatever_maps_depend_on_has_files_of_its_own(tmp_path, keys):
    train(cached_run(tmp_path, run__output_dir=tmp_path / "one"))
    before = {f.parent for f in files(tmp_path)}
    train(cached_run(tmp_path, **{"run__output_dir": tmp_path / "other", **keys}))
    assert {f.parent for f in files(tmp_path)} > before


def test_another_backbone_has_files_of_its_own(tmp_path):
    train(cached_run(tmp_path, run__output_dir=tmp_path / "one"))
    save_backbone(tmp_path / "another")
    weights = load_file(tmp_path / "another/model.safetensors")
    name = next(n for n, value in weights.items() if value.ndim == 4)
    weights[name] = weights[name] + 0.01
    save_file(weights, tmp_path / "another/model.safetensors", {"format": "pt"})
    before = files(tmp_path)
    train(
        cached_run(tmp_path, run__output_dir=tmp_path / "two", model__backbone=tmp_path / "another")
    )
    assert len(files(tmp_path)) == 2 * len(before)


def test_a_changed_image_is_made_anew(tmp_path):
    train(cached_run(tmp_path, run__output_dir=tmp_path / "one"))
    before = {file: file.read_bytes() for file in files(tmp_path)}
    image = tmp_path / "data/train/000.jpg"
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    train(cached_run(tmp_path, run__output_dir=tmp_path / "two"))
    assert (
        len(files(tmp_path)) == len(before) + 2
    )  # both views; a run may still read those of before
    assert all(file.read_bytes() == content for file, content in before.items())


def test_a_changed_box_is_made_anew(tmp_path):
    """What is cut out of an image may depend on it."""
    train(cached_run(tmp_path, run__output_dir=tmp_path / "one"))
    before = files(tmp_path)
    annotations = tmp_path / "data/annotations/train.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"][2] -= 3
    annotations.write_text(json.dumps(content))
    train(cached_run(tmp_path, run__output_dir=tmp_path / "two"))
    assert len(files(tmp_path)) == len(before) + 2


@pytest.mark.parametrize("damage", ["cut", "absent", "rows", "no text"])
def test_a_broken_file_is_made_anew(tmp_path, damage):
    train(cached_run(tmp_path, run__output_dir=tmp_path / "one"))
    file = files(tmp_path)[0]
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:-10])
    elif damage == "absent":
        file.unlink()
    elif damage == "rows":
        save_file({n: v[:-1].clone() for n, v in load_file(file).items()}, file)
    else:
        save_file(load_file(file), file)
    train(cached_run(tmp_path, run__output_dir=tmp_path / "two"))
    assert files(tmp_path)[0].read_bytes() == whole


def test_an_image_that_could_not_be_read_for_a_moment_is_tried_again(tmp_path, monkeypatch):
    def decode_all_but(source, where, *rest):
        if str(where).endswith("002.jpg"):
            raise UserError(f"{where}: cannot decode the image: Input/output error")
        return decode(source, where, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("data.feed.loader.decode", decode_all_but)
        train(cached_run(tmp_path, run__output_dir=tmp_path / "one"))
    before = {file: file.stat().st_mtime_ns for file in files(tmp_path)}
    train(cached_run(tmp_path, run__output_dir=tmp_path / "two"))
    assert [file.stat().st_mtime_ns == time for file, time in before.items()].count(False) == 3
    assert "002.jpg" in (tmp_path / "one/train.log").read_text()
    assert "002.jpg" not in (tmp_path / "two/train.log").read_text()


def test_what_is_stored_is_compared_with_the_backbone(tmp_path):
    """A file that says it is right, and is not."""
    train(cached_run(tmp_path, run__output_dir=tmp_path / "one"))
    for file in files(tmp_path):
        with safe_open(file, "pt") as opened:
            told = opened.metadata()
        save_file({n: v.flip(-1).contiguous() for n, v in load_file(file).items()}, file, told)
    features._opened.cache_clear()
    with pytest.raises(UserError, match="is not what the backbone makes of it"):
        train(cached_run(tmp_path, run__output_dir=tmp_path / "two"))


def test_a_killed_build_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("run.feature_files.FeatureStore.write", killed_after(1))
    with pytest.raises(KeyboardInterrupt):
        train(cached_run(tmp_path, run__output_dir=tmp_path / "one"))
    monkeypatch.undo()
    AcceleratorState._reset_state(reset_partial_state=True)
    (first,) = files(tmp_path)
    time_of_first = first.stat().st_mtime_ns
    train(cached_run(tmp_path, run__output_dir=tmp_path / "two"))
    assert len(files(tmp_path)) == 3
    assert first.stat().st_mtime_ns == time_of_first


def killed_after(number):
    write, done = FeatureStore.write, []

    def counted(*args):
        if len(done) == number:
            raise KeyboardInterrupt
        done.append(write(*args))

    return counted


def test_an_unreadable_image_is_stood_in_for_as_without_cache(tmp_path):
    arguments = cached_run(tmp_path, run__output_dir=tmp_path / "one")
    image = sorted((tmp_path / "data/train").glob("*.jpg"))[2]
    image.write_bytes(image.read_bytes()[:700])  # its header is whole
    train(arguments)
    train(cached_run(tmp_path, run__output_dir=tmp_path / "live", data__cache_features=0))
    told = [(tmp_path / name / "train.log").read_text() for name in ("one", "live")]
    assert all(image.name in text for text in told)


def test_unreadable_images_alone_in_a_file(tmp_path, monkeypatch):
    """They are missed in evaluation, as without cache."""
    monkeypatch.setattr(features, "SHARD_IMAGES", 2)  # five validation images: the last is alone
    cached_run(tmp_path)
    image = tmp_path / "data/val/004.jpg"
    image.write_bytes(image.read_bytes()[:700])
    for name, views in (("stored", 2), ("live", 0)):
        train(cached_run(tmp_path, run__output_dir=tmp_path / name, data__cache_features=views))
    assert len(files(tmp_path)) == 2 * 4 + 3
    found = [
        json.loads((tmp_path / n / "eval/step-000006/predictions.json").read_text())
        for n in ("stored", "live")
    ]
    assert {row["image_id"] for row in found[0]} == {row["image_id"] for row in found[1]}
    assert len({row["image_id"] for row in found[0]}) == 4


def test_heads_that_look_at_pixels_are_refused(tmp_path):
    with pytest.raises(UserError, match="looks at the pixels too"):
        train(necked_run("deformable_detr-cnn_branch", tmp_path, data__cache_features=1))


def test_trained_backbones_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.cache_features 2: with model\.freeze none"):
        train(cached_run(tmp_path, model__freeze="none"))


def test_no_room_is_told_before_anything_is_made(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("run.feature_cache.shutil.disk_usage", lambda _: free)
    with pytest.raises(UserError, match="has 0.0 GB free; take fewer views"):
        train(cached_run(tmp_path))
    assert not files(tmp_path)


def test_much_is_only_made_if_somebody_agrees(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "LARGE_BYTES", 1000)
    with pytest.raises(UserError, match="tools.cache_features --yes"):
        train(cached_run(tmp_path))
    assert not files(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    cache_features.main(["--yes", *cached_run(tmp_path)])
    assert len(files(tmp_path)) == 3
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.undo()
    train(cached_run(tmp_path))
    (line,) = said(tmp_path / "run")
    assert line.startswith("features    2 view(s) of each training image, stored in ")


def test_frozen_weights_stay_and_are_stored_nowhere_else(tmp_path):
    train(cached_run(tmp_path))
    saved = load_file(tmp_path / "run/checkpoints/step-000006/model/trainable.safetensors")
    backbone = load_file(tmp_path / "backbone/model.safetensors")
    exported = load_file(tmp_path / "run/export/model.safetensors")
    assert not [name for name in saved if ".backbone." in name]
    contents = {tuple(value.flatten().tolist()) for value in exported.values()}
    assert all(tuple(v.flatten().tolist()) in contents for v in backbone.values())
