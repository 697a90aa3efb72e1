"""train.class_weights: what it is made of, what is refused, and what a run says and keeps of it."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from builders import tiny_run, write_coco
from data.build import build_data
from data.feed.collate import collate
from data.feed.loader import TrainDataset
from data.feed.sampler import SampleRef
from errors import UserError
from painted import NAMES, VOID, labels_of, write_folders
from run.class_weights import balanced, weights_of, with_class_weights
from runs import losses, train
from segmented import write_coco as write_panoptic
from settings.load import load_config
from settings.tasks import LABELS

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def two_classes(tmp_path, **keys):
    """A run on 8 images with 6 objects of class1 and 2 of class3."""
    if not (tmp_path / "data").exists():
        write_coco(tmp_path / "data", 8, ids=(1, 3))
        write_coco(tmp_path / "data", 5, "val", ids=(1, 3), seed=1)
    return tiny_run(tmp_path, **keys)


def of_label_maps(tmp_path, variant, **keys):
    source = write_folders(tmp_path / "maps")
    own = {"data__source": "label_maps", "data__path": source.path}
    return tiny_run(tmp_path, variant, data__labels=json.dumps(list(NAMES)), **own, **keys)


def weighed(argv):
    cfg = load_config(argv)
    return with_class_weights(cfg, build_data(cfg.data, 0, labels=LABELS[cfg.model.task]))


def exported(run):
    """The config of what a run exported, and the names of its tensors."""
    config = (run / "export/config.json").read_text()
    return config, load_file(run / "export/model.safetensors").keys()


def wanted_of(amount):
    """sqrt(n / n_c), divided by its mean over everything."""
    raw = (np.sum(amount) / np.array(amount, float)) ** 0.5
    return raw * np.sum(amount) / np.sum(raw * amount)


def test_balanced_is_the_root_of_rarity_with_mean_one_within_limits():
    weights = balanced(np.array([900.0, 100.0, 0.0]))
    assert weights == pytest.approx([1000 / 40 / 30, 1000 / 40 / 10, 1.0])
    assert (weights[:2] * [900, 100]).sum() == pytest.approx(1000)
    assert balanced(np.array([1e6, 1.0])).tolist() == pytest.approx([1, 10], rel=1e-3)


def test_of_boxes_balanced_counts_objects_as_often_as_they_come(tmp_path):
    argv = two_classes(tmp_path, train__class_weights="balanced")
    assert weighed(argv).class_weights == pytest.approx(wanted_of([6, 2]))
    argv += ["--data.repeat_threshold", "1.0"]
    # class1 is on 6 of 8 images, class3 on 2, which come twice; they have a class1 each.
    often = (8 / 6) ** 0.5
    counts = [4 * often + 2 * 2, 2 * 2]
    assert weighed(argv).class_weights == pytest.approx(wanted_of(counts))


def test_of_label_maps_balanced_counts_pixels_where_the_loss_does(tmp_path):
    labels = np.concatenate([labels_of(number).ravel() for number in range(4)])
    pixels = np.bincount(labels[labels != VOID], minlength=3)
    argv = of_label_maps(tmp_path, "linear", train__class_weights="balanced")
    assert weighed(argv).class_weights == pytest.approx(wanted_of(pixels))


def test_of_label_maps_balanced_counts_regions_where_the_loss_does(tmp_path):
    regions = [len(set(range(3)) & set(labels_of(n).ravel().tolist())) for n in range(4)]
    argv = of_label_maps(tmp_path, "maskformer_semantic", train__class_weights="balanced")
    assert sum(regions) == 12
    assert weighed(argv).class_weights == pytest.approx([1, 1, 1])


def test_of_segments_balanced_counts_things_one_by_one_and_stuff_as_one(tmp_path):
    source = write_panoptic(tmp_path / "segments")
    keys = {"model__task": "panoptic_segmentation", "train__class_weights": "balanced"}
    argv = tiny_run(tmp_path, "maskformer", data__path=source.path, **keys)
    assert weighed(argv).class_weights == pytest.approx(wanted_of([2, 1, 1, 1]))


def test_a_table_has_ones_where_it_is_silent():
    assert weights_of({"b": 4.0}, ["a", "b", "c"]).tolist() == [1, 4, 1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{clas3: 2}", "train.class_weights.clas3: no class has this name; did you mean class3?"),
        ("{x: 2}", "train.class_weights.x: no class has this name; the classes are class1, class3"),
        ("{class1: 0, class3: 0}", "every class weighs 0"),
        ("{class1: -1}", "train.class_weights.class1 -1: must lie in 0 ... 1e+06"),
        ("{class1: .inf}", "train.class_weights.class1 inf: must be a finite number"),
        ("{class1: .nan}", "train.class_weights.class1 nan: must be a finite number"),
        ("{1: 2}", "train.class_weights 1: is no name to YAML; write it in quotes"),
        ("{}", "is empty"),
        ("balance", "must be balanced, a table or null - did you mean balanced?"),
    ],
)
def test_wrong_weights_are_refused_before_a_run_begins(tmp_path, value, said):
    with pytest.raises(UserError) as error:
        train(two_classes(tmp_path, train__class_weights=value))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", ["balanced", "{class1: 2}"])
def test_one_class_has_nothing_to_be_weighed_against(tmp_path, value):
    with pytest.raises(UserError, match="the dataset has one class, class1"):
        weighed(tiny_run(tmp_path, train__class_weights=value))


def test_of_masks_that_may_overlap_pixels_are_not_known(tmp_path):
    with pytest.raises(UserError, match="give a table"):
        weighed(two_classes(tmp_path, variant="linear", train__class_weights="balanced"))
    argv = two_classes(tmp_path, variant="linear", train__class_weights="{background: 0.5}")
    assert weighed(argv).class_weights.tolist() == [0.5, 1, 1]


def test_batches_have_the_weights_of_their_objects(tmp_path):
    cfg = load_config(two_classes(tmp_path, train__class_weights="{class3: 4}"))
    data = with_class_weights(cfg, build_data(cfg.data, 0))
    dataset = TrainDataset(data.train, cfg.data, 0, class_weights=data.class_weights)
    batch = collate([dataset[SampleRef(index, 0, (64, 64))] for index in range(4)])
    assert batch.objects.weights.tolist() == [1, 1, 4, 1]
    assert batch.objects.weights.dtype == torch.float32
    none = collate([dataset[SampleRef(1, 0, (64, 64))]])
    assert none.objects.weights.shape == (0,)


def test_a_run_says_and_keeps_them_and_goes_on_with_no_others(tmp_path, capsys):
    keys = {"optim__schedule": "constant", "train__class_weights": "{class3: 4}"}
    train(two_classes(tmp_path, **keys))
    run = tmp_path / "run"
    assert "classes weigh in their loss: class3 4, class1 1" in capsys.readouterr().out
    assert json.loads((run / "run.json").read_text())["class_weights"] == [1, 4]
    changed = {**keys, "train__class_weights": "balanced"}
    with pytest.raises(UserError, match=r"train.class_weights: {'class3': 4.0} -> balanced"):
        train(two_classes(tmp_path, run__resume="auto", train__steps=4, **changed))
    train(two_classes(tmp_path, run__resume="auto", train__steps=4, **keys))
    train(two_classes(tmp_path, run__output_dir=tmp_path / "whole", train__steps=4, **keys))
    assert losses(run) == losses(tmp_path / "whole")
    plain = tmp_path / "plain"
    train(two_classes(tmp_path, run__output_dir=plain, optim__schedule="constant"))
    assert losses(run)[0] == losses(plain)[0]  # without an object of class3
    assert losses(run)[1] != losses(plain)[1]
    assert json.loads((plain / "run.json").read_text())["class_weights"] is None
    config, names = exported(run)
    assert (config, names) == exported(plain)
