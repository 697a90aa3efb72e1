import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

import data.check.doctor
from builders import write_coco
from data.build import read_data
from data.check.doctor import check_images
from data.check.isolated import Lost, isolated
from data.check.statistics import split_statistics
from data.findings import Findings
from data.images.decode import decode
from found import crowds_alone
from planted import write_clean, write_planted
from settings.keys import DataConfig, ImageSizeConfig

WORKERS = 2


def read(root, **changes):
    cfg = DataConfig(**{"source": "coco", "path": str(root), "val_split": "val", **changes})
    return read_data(cfg, 0, Findings())


def told(findings):
    return [(f.kind, os.path.basename(f.where), f.image) for f in findings]


def test_what_only_the_pixels_show(tmp_path):
    write_planted(tmp_path)
    found = told(check_images(read(tmp_path), WORKERS))
    assert [(kind, name) for kind, name, _ in found] == [
        ("truncated image", "truncated-image.jpg"),
        ("size differs from header", "size-differs-from-header.png"),
        ("duplicate image", "plain-0.jpg"),
        ("training image in validation", "training-image-in-validation.jpg"),
    ]


def test_findings_do_not_depend_on_the_number_of_workers(tmp_path):
    write_planted(tmp_path)
    dataset = read(tmp_path)
    assert told(check_images(dataset, 1)) == told(check_images(dataset, 5))


def test_clean_images_give_no_finding_and_all_are_counted(tmp_path):
    write_clean(tmp_path)
    dataset, calls = read(tmp_path), []
    assert list(check_images(dataset, WORKERS, lambda: calls.append(1))) == []
    assert len(calls) == len(dataset.train) + len(dataset.val)


def test_validation_on_the_training_images_is_no_leak(tmp_path):
    write_clean(tmp_path)
    calls = []
    dataset = read(tmp_path, val_split=None, val_on_train=True)
    assert list(check_images(dataset, WORKERS, lambda: calls.append(1))) == []
    assert len(calls) == len(dataset.train)


def test_same_pixels_in_another_file_format_are_duplicates(tmp_path):
    write_clean(tmp_path)
    pixels = decode(tmp_path / "train" / "plain-3.jpg", "")
    Image.fromarray(pixels).save(tmp_path / "val" / "other-2.jpg", "PNG")
    assert told(check_images(read(tmp_path), WORKERS)) == [
        ("training image in validation", "other-2.jpg", ("val", 3))
    ]


def test_equal_bytes_of_another_shape_are_another_image(tmp_path):
    write_clean(tmp_path)
    for name, size in (("plain-3.jpg", (96, 64)), ("plain-4.jpg", (64, 96))):
        Image.new("RGB", size).save(tmp_path / "train" / name)
    assert told(check_images(read(tmp_path), WORKERS)) == []


def test_images_without_a_header_are_no_second_finding(tmp_path):
    write_clean(tmp_path)
    (tmp_path / "val" / "other-1.jpg").write_bytes(b"")
    dataset, calls = read(tmp_path), []
    assert [f.kind for f in dataset.findings] == ["empty file"]
    assert list(check_images(dataset, WORKERS, lambda: calls.append(1))) == []
    assert len(calls) == len(dataset.train) + len(dataset.val) - 1


def test_header_that_gives_another_size_than_the_pixels(tmp_path, monkeypatch):
    write_clean(tmp_path)

    def smaller(source, where):
        return decode(source, where)[: 63 if source.name == "plain-3.jpg" else None]

    monkeypatch.setattr(data.check.doctor, "decode", smaller)
    (finding,) = check_images(read(tmp_path), WORKERS)
    assert finding.kind == "size differs from header"
    assert finding.where.endswith("plain-3.jpg")
    assert finding.detail == "96 x 63 px, its header says 96 x 64"


def crash(*_):
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out


def hang(*_):
    time.sleep(100)


def run_out_of_memory(*_):
    raise MemoryError


def leave(*_):
    os._exit(3)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (crash, "SIGKILL"),
        (leave, "exit status 3"),
        (hang, "longer than 1.5 s"),
        (run_out_of_memory, "MemoryError"),
    ],
)
def test_image_that_ends_its_worker_is_named_and_the_others_are_checked(
    tmp_path, monkeypatch, broken, reason
):
    write_planted(tmp_path)
    usual = told(check_images(read(tmp_path), WORKERS))

    def decode_or_break(source, where):
        return (broken if source.name in ("plain-2.jpg", "plain-5.jpg") else decode)(source, where)

    monkeypatch.setattr(data.check.doctor, "decode", decode_or_break)
    monkeypatch.setattr(data.check.doctor, "LONGEST_S", 1.5)
    findings = list(check_images(read(tmp_path), WORKERS))
    lost = [f for f in findings if f.kind == "unreadable image"]
    assert [os.path.basename(f.where) for f in lost] == ["plain-2.jpg", "plain-5.jpg"]
    assert all(reason in f.detail for f in lost)
    assert [f for f in told(findings) if f[0] != "unreadable image"] == usual


def test_a_worker_that_dies_between_items_loses_one_item_only():
    results = dict(
        isolated(lambda item: item * 2 if item % 4 else os._exit(1), 40, 3, lambda _: 10.0)
    )
    assert sorted(results) == list(range(40))
    for item, result in results.items():
        assert isinstance(result, Lost) if item % 4 == 0 else result == item * 2


def test_own_errors_are_not_taken_for_defects():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(isolated(lambda item: 1 // item, 3, 2, lambda _: 10.0))


def test_statistics_count_what_is_there(tmp_path):
    write_coco(tmp_path, 8, ids=(1, 2))  # boxes: 30x20, none, 20x40 and 25x25, 64x48; twice
    write_coco(tmp_path, 4, "val", ids=(1, 2))
    dataset = read(tmp_path)
    figures = split_statistics(dataset.train, dataset.taxonomy, ImageSizeConfig(192))
    assert (figures.images, figures.images_without_boxes, figures.boxes) == (8, 2, 8)
    assert [(c.name, c.boxes, c.images) for c in figures.classes] == [
        ("class1", 6, 6),
        ("class2", 2, 2),
    ]
    # resized by 2, 2, 2 and 3: 60x40, 40x80 and 50x50, 192x144
    assert (figures.small_boxes, figures.medium_boxes, figures.large_boxes) == (0, 6, 2)
    assert figures.box_side_px.most == pytest.approx(np.sqrt(192 * 144), abs=1e-3)
    assert figures.box_shortest_px.least == 40
    assert figures.box_aspect.least == 0.5
    assert figures.boxes_per_image.most == 2
    assert (figures.image_width_px.least, figures.image_width_px.most) == (64, 96)


def test_statistics_of_an_empty_class_and_of_groups(tmp_path):
    write_coco(tmp_path, 8)
    write_coco(tmp_path, 4, "val")
    dataset = read(tmp_path)
    figures = split_statistics(crowds_alone(dataset.train), dataset.taxonomy, ImageSizeConfig(192))
    assert (figures.boxes, figures.crowd_boxes, figures.classes[0].boxes) == (0, 8, 0)
    assert figures.box_side_px is None
    assert figures.images_without_boxes == 8
