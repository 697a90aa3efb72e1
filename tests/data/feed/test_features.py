"""Files of stored maps, and what tells whether an image is the one that they were made from."""

import os

import pytest
import torch

from data.feed.features import SHARD_IMAGES, Contents, FeatureStore


def test_an_image_is_read_again_only_if_its_size_or_times_changed(tmp_path, monkeypatch):
    file, memory = tmp_path / "image", tmp_path / "contents.json"
    file.write_bytes(b"pixels")
    contents = Contents(memory)
    known = contents.of(file)
    contents.save()
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", lambda _: pytest.fail("is read"))
        assert Contents(memory).of(file) == known
    file.write_bytes(b"others")
    assert Contents(memory).of(file) not in ("", known)
    file.write_bytes(b"pixels")
    assert Contents(memory).of(file) == known == Contents(memory).of(b"pixels")
    os.mkfifo(tmp_path / "pipe")
    assert Contents(memory).of(tmp_path / "pipe") == ""
    assert Contents(memory).of(tmp_path / "absent") == ""
    memory.write_text('{"torn": ')
    assert Contents(memory).of(file) == known


def test_shards_hold_all_images(tmp_path):
    store = FeatureStore(tmp_path, SHARD_IMAGES + 3, 2, ("a", "b"))
    assert [list(store.images_of(shard)) for shard in range(2)] == [
        list(range(SHARD_IMAGES)),
        list(range(SHARD_IMAGES, SHARD_IMAGES + 3)),
    ]
    for shard in range(2):
        images = list(store.images_of(shard))
        maps = [torch.tensor(images, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 2, 3, 4)]
        store.write(0, shard, maps, ["bad" if i == 65 else "" for i in images])
    for image in (0, 63, 64, 66):
        (found,) = store.maps(image, 2)  # view 2 of two is the first again
        assert found.shape == (2, 3, 4)
        assert bool((found == image).all())
        assert not store.failure(image, 0)
    assert store.failure(65, 0) == "bad"
