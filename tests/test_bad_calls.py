import json

import pytest

import train_accelerate
from builders import launch, tiny_run
from errors import UserError
from runs import train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def annotation_without_image(tmp_path):
    file = tmp_path / "data/annotations/train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = 999
    file.write_text(json.dumps(content))
    return {}


def absent_image(tmp_path):
    (tmp_path / "data/train/002.jpg").unlink()
    return {"run__max_bad_images": 0}


def empty_backbone(tmp_path):
    (tmp_path / "backbone/model.safetensors").unlink()
    return {}


def occupied_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    return {}


BAD_CALLS = {
    "unknown key": (lambda p: {"train__step": 3}, "--train.step - did you mean train.steps?"),
    "missing folder": (lambda p: {"data__path": p / "no"}, "no such folder"),
    "missing annotations": (
        lambda p: {"data__val_split": "test"},
        "test.json: the COCO annotation",
    ),
    "annotation without image": (
        annotation_without_image,
        "annotation 1: annotation without image",
    ),
    "missing image": (absent_image, "002.jpg: missing image"),
    "backbone without weights": (empty_backbone, "has no weights"),
    "indivisible batch": (
        lambda p: {"train__micro_batch_size": 3},
        "micro_batch_size can be 1, 2, 4",
    ),
    "unwritable folder": (lambda p: {"run__output_dir": "/proc/nope/x"}, "cannot be written"),
    "occupied folder": (occupied_folder, "is not empty; choose another folder"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_call_is_one_clear_error_before_training(tmp_path, case):
    tiny_run(tmp_path)  # builds data and backbone
    spoil, message = BAD_CALLS[case]
    with pytest.raises(UserError) as error:
        train_accelerate.main(tiny_run(tmp_path, **spoil(tmp_path)))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("case", ["unknown key", "annotation without image"])
def test_bad_call_exits_with_status_2_and_without_traceback(tmp_path, case):
    tiny_run(tmp_path)
    spoil, message = BAD_CALLS[case]
    result = launch(tiny_run(tmp_path, **spoil(tmp_path)))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


def test_occupied_folder_is_left_as_it_was(tmp_path):
    occupied_folder(tmp_path)
    with pytest.raises(UserError):
        train(tiny_run(tmp_path))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]
