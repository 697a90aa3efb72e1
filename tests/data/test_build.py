import dataclasses
import json

import pytest

import painted
import segmented
from data.build import build_data
from errors import UserError


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_whose_pixels_are_all_ignored_is_told_with_the_key_that_says_so(tmp_path, split):
    """It has label maps, and none of them is broken: masks of objects are not what is missing."""
    cfg = painted.write_folders(tmp_path)
    painted.write_maps(tmp_path / f"annotations/{split}", split, edit=lambda labels: labels * 0)
    cfg = dataclasses.replace(cfg, ignore_index=0, label_values=[1, 2, 255])
    name = {"train": "training split has 4", "val": "validation split has 2"}[split]
    with pytest.raises(UserError) as error:
        build_data(cfg, 0, labels="regions")
    assert f"{name} images and not one pixel of a class: all" in str(error.value)
    assert "data.ignore_index 0, set it to" in str(error.value)
    cfg = dataclasses.replace(cfg, ignore_index=255, label_values=None, reduce_labels=True)
    with pytest.raises(UserError, match=r"data.ignore_index 255 or 0 \(data.reduce_labels\), set"):
        build_data(cfg, 0, labels="regions")


def test_panoptic_files_without_segments_are_told(tmp_path):
    cfg = segmented.write_coco(tmp_path)
    for split in segmented.SPLITS:
        file = tmp_path / f"annotations/{split}.json"
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            entry["segments_info"] = []
        file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="training split has 4 images and not one segment that is"):
        build_data(cfg, 0, labels="segments")


@pytest.mark.parametrize(("has", "lacks"), [("train", "val"), ("val", "train")])
def test_panoptic_file_beside_one_without_annotations(tmp_path, has, lacks):
    """Which of both it is, in words of its format; an empty list, and no list at all."""
    cfg = segmented.write_coco(tmp_path)
    file = tmp_path / f"annotations/{lacks}.json"
    content = json.loads(file.read_text()) | {"annotations": []}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        build_data(cfg, 0, labels="segments")
    assert f"data.{has}_split {has} has segments_info in its annotations" in str(error.value)
    assert f"data.{lacks}_split {lacks} has none" in str(error.value)
    assert "label_map_column" not in str(error.value)
    del content["annotations"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{lacks}.json: .*no list 'annotations'"):
        build_data(cfg, 0, labels="segments")
