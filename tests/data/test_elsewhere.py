"""Packed datasets at an address: the same run as with files, and nothing damaged or stale."""

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys

import fsspec
import numpy as np
import pyarrow as pa
import pytest

import data.pieces
import data.remote
import tools.pack
from builders import ROOT, some, tiny_run
from data.packed import load_packed
from data.remote import Store
from errors import SourceError, UserError
from lives import Strike
from runs import losses, stopped_and_resumed, train
from settings.keys import DataConfig
from settings.load import load_config
from stores import serving

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ROOM_GB = 0.01


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr(data.remote, "WAITS_S", (0.01,) * 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of 8 + 5 images, packed in files of 3."""
    folder = tmp_path_factory.mktemp("made")
    tools.pack.main([*tiny_run(folder), "--out", str(folder / "packed"), "--shard-images", "3"])
    return folder


@pytest.fixture
def web(tmp_path, made):
    """A copy of it, on a web server."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    with serving(tmp_path / "packed") as found:
        yield found


def keys_of(tmp_path, web, **keys):
    where = {"data__packed": web.address, "data__packed_cache_folder": tmp_path / "here"}
    return {**where, "data__packed_cache_gb": ROOM_GB, **keys}


def loaded(tmp_path, web, **keys):
    cfg = load_config(tiny_run(tmp_path, **keys_of(tmp_path, web, **keys)))
    return load_packed(cfg.data, cfg.run.seed, "boxes")


def images_of(found):
    return [split.images[n] for split in (found.train, found.val) for n in range(len(split))]


def files_of(tmp_path):
    """The encoded images of the loose files, training and validation."""
    folders = [tmp_path / "data" / split for split in ("train", "val")]
    return [file.read_bytes() for folder in folders for file in sorted(folder.iterdir())]


def numbers_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if "time" not in k and "seconds" not in k} for row in rows
    ]


def assert_same_run(one, other):
    assert numbers_of(one) == numbers_of(other)
    for file in ("export/model.safetensors", "checkpoints/step-000003/state/optimizer.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def test_training_is_bit_equal_to_that_on_files_though_the_store_fails_now_and_then(
    tmp_path, web, monkeypatch
):
    """Workers fetch the images, and nearly none of these can stay."""
    monkeypatch.setattr(data.remote, "WAITS_S", (0.01,) * 4)
    monkeypatch.setattr("data.elsewhere.GB", 1.5e6)  # a file of three images has about 9 kB
    keys = {"data__augment": '[{"HorizontalFlip": {"p": 0.5}}]', "data__num_workers": 1}
    train(tiny_run(tmp_path, run__output_dir=tmp_path / "files", **keys))
    shutil.move(tmp_path / "data", tmp_path / "gone")
    (tmp_path / "data").mkdir()
    web.every = 5
    of_address = tiny_run(tmp_path, **keys, **keys_of(tmp_path, web))
    train(of_address)
    assert_same_run(tmp_path / "run", tmp_path / "files")
    fetched = [path for path in web.requests if "images-" in path]
    assert len(fetched) > 5  # pieces, some of them more than once
    held = sum(f.stat().st_size for f in (tmp_path / "here/pieces").iterdir() if f.name[0] != ".")
    assert 0 < held <= 15_000


def test_a_stopped_run_goes_on_bit_equally_with_an_address(tmp_path, web):
    keys = keys_of(tmp_path, web)
    stopped_and_resumed(tmp_path, lambda **more: tiny_run(tmp_path, **{**keys, **more}))


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_to_the_same_bits(tmp_path, web, lives):
    web.every = 6
    keys = {"train__steps": 6, "train__checkpoint_every": 2, "data__num_workers": 1}
    files, killed = (
        tiny_run(tmp_path, run__output_dir=tmp_path / name, **keys) for name in ("files", "killed")
    )
    lives.finish(files, 2)
    place = keys_of(tmp_path, web)
    killed = tiny_run(
        tmp_path, run__output_dir=tmp_path / "killed", run__resume="auto", **keys, **place
    )
    for strike in (Strike("step", 4, rank=1), Strike("manifest", 1)):
        assert any(lives.live(killed, 2, (strike,)))
    lives.finish(killed, 2)
    assert losses(tmp_path / "killed") == losses(tmp_path / "files")
    for file in ("export/model.safetensors", "checkpoints/step-000006/state/optimizer.safetensors"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "files" / file).read_bytes()
    lives.finish(tiny_run(tmp_path, run__output_dir=tmp_path / "one", **keys, **place))
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "files"), rtol=1e-5)


def test_images_are_fetched_once_and_an_index_once(tmp_path, web):
    assert images_of(loaded(tmp_path, web)) == files_of(tmp_path)
    first = list(web.requests)
    assert len([path for path in first if "images-" in path]) == 5
    assert images_of(loaded(tmp_path, web)) == files_of(tmp_path)
    assert web.requests[len(first) :] == ["/manifest.json"]


def test_images_that_could_not_be_read_are_none_there_either(tmp_path):
    tiny_run(tmp_path)
    (tmp_path / "data/val/001.jpg").write_bytes(b"no image")
    arguments = tiny_run(tmp_path, run__max_bad_images=1)
    tools.pack.main([*arguments, "--out", str(tmp_path / "packed"), "--shard-images", "3"])
    with serving(tmp_path / "packed") as web:
        found = loaded(tmp_path, web)
        with pytest.raises(UserError, match=r"image 9 of .*could not be read when"):
            found.val.images[1]
        assert found.val.images[2] == (tmp_path / "data/val/002.jpg").read_bytes()


@pytest.mark.parametrize("damage", some(["cut", "flipped", "empty", "a folder"], ["flipped"]))
def test_what_is_damaged_here_is_fetched_anew(tmp_path, web, damage):
    images_of(loaded(tmp_path, web))
    pieces = [file for file in (tmp_path / "here/pieces").iterdir() if file.name[0] != "."]
    assert len(pieces) == 5
    for file in pieces:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "a folder":
            file.unlink()
            file.mkdir()
        else:
            made = {"cut": content[:-10], "flipped": content, "empty": b""}
            file.write_bytes(bytes(made[damage]))
    index = next((tmp_path / "here").glob("index-*/dataset/train.images"))
    index.write_bytes(index.read_bytes()[:100])
    assert images_of(loaded(tmp_path, web)) == files_of(tmp_path)


def test_another_dataset_in_its_place_is_not_mixed_with_it(tmp_path, web, no_waits):
    before = loaded(tmp_path, web)
    assert before.train.images[0]
    image = tmp_path / "data/train/004.jpg"
    image.write_bytes((tmp_path / "data/train/000.jpg").read_bytes() + b" ")
    shutil.rmtree(tmp_path / "packed")
    tools.pack.main([*tiny_run(tmp_path), "--out", str(tmp_path / "packed"), "--shard-images", "3"])
    assert images_of(loaded(tmp_path, web)) == files_of(tmp_path)
    with pytest.raises(SourceError, match="another dataset has taken its place"):
        images_of(before)


def test_a_store_that_is_gone_ends_the_run_in_one_line(tmp_path, web, no_waits):
    """And is no cause to take another image, or to count one as missed."""
    gone = {"every": 1}

    def after_start(*_):
        web.every = gone["every"]

    for workers in (0, 1):
        web.every = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("train_accelerate.draw_first_batches", after_start)
            shutil.rmtree(tmp_path / "here", ignore_errors=True)
            arguments = tiny_run(
                tmp_path,
                run__output_dir=tmp_path / f"run {workers}",
                **keys_of(tmp_path, web, data__num_workers=workers, train__global_batch_size=1),
            )
            with pytest.raises(UserError) as caught:
                train(arguments)
        text = str(caught.value)
        assert "503 Service Unavailable, at the last of 5 attempts" in text
        assert "images-0000" in text
        assert "--run.resume auto goes on" in text
        assert "\n" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": 403, "every": 1}, r"manifest.json: 403 Forbidden. It has to be the address"),
        (
            {"status": 503, "every": 1},
            r"manifest.json: .*503 Service Unavailable, at the last of 5",
        ),
        ({"parts": False}, "gives whole files alone, not parts of them"),
    ],
)
def test_a_start_that_cannot_be_says_why(tmp_path, web, no_waits, change, message):
    for name, value in change.items():
        setattr(web, name, value)
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, web)


def test_what_is_not_packed_or_damaged_there_is_refused(tmp_path, web, no_waits):
    manifest = tmp_path / "packed/manifest.json"
    whole = manifest.read_text()
    listed = json.loads(whole)["files"]
    wrong = (
        *({"../x": {"size": 1, "sha256": ""}}, list(listed)),
        {name: {**said, "size": -1} for name, said in listed.items()},
    )
    for text in ("", "[]", "[" * 200_000, *(json.dumps({"files": files}) for files in wrong)):
        manifest.write_text(text)
        with pytest.raises(UserError, match=r"manifest.json is none of tools.pack"):
            loaded(tmp_path, web)
    manifest.write_text(whole)
    rows = tmp_path / "packed/dataset/train.objects"
    content = bytearray(rows.read_bytes())
    content[-40] ^= 1
    rows.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"train.objects: is not what manifest.json says"):
        loaded(tmp_path, web)
    assert not list((tmp_path / "here").glob("*index-*/dataset"))
    manifest.unlink()
    with pytest.raises(UserError, match=r"manifest.json: 404 Not Found"):
        loaded(tmp_path, web)


def test_no_more_is_taken_than_was_asked_for(tmp_path, web, no_waits, monkeypatch):
    found = loaded(tmp_path, web)
    web.more = bytes(1 << 20)
    with pytest.raises(SourceError, match="more than .* bytes came"):
        found.train.images[0]
    monkeypatch.setattr(data.remote, "LARGEST_WHOLE", 1000)
    with pytest.raises(UserError, match=r"manifest.json: more than 1,000 bytes came"):
        loaded(tmp_path, web)


def test_numbers_of_images_that_are_not_there_are_damage(tmp_path, web):
    shards = loaded(tmp_path, web).train.images.shards
    assert len(shards.images(pa.array([0, 12]))[1]) > 100
    for wrong in ([13], [-1, 2]):
        with pytest.raises(ValueError, match="not there"):
            shards.images(pa.array(wrong))


def test_it_must_be_what_is_asked_for(tmp_path, web):
    with pytest.raises(UserError, match=r"data.limit was None, and is 4"):
        loaded(tmp_path, web, data__limit=4)


def test_fsspec_reads_it_as_well(tmp_path, web):
    web.address = f"file://{tmp_path}/packed"
    assert images_of(loaded(tmp_path, web)) == files_of(tmp_path)


def test_what_fsspec_needs_is_named(tmp_path, web, monkeypatch):
    def missing(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    web.address = "s3://bucket/packed"
    with pytest.raises(UserError, match=r"s3://bucket/packed: s3 needs .*`pip install s3fs`"):
        loaded(tmp_path, web)
    monkeypatch.undo()
    web.address = "nothing://bucket/packed"
    with pytest.raises(UserError, match=r"nothing://bucket/packed: .*Protocol not known"):
        loaded(tmp_path, web)


def test_a_folder_that_cannot_be_written_is_done_without_or_named(tmp_path, web):
    (tmp_path / "here").write_text("a file")
    with pytest.raises(UserError, match=r"data.packed_cache_folder .*here: cannot be used"):
        loaded(tmp_path, web)
    (tmp_path / "here").unlink()
    found = loaded(tmp_path, web)
    shutil.rmtree(tmp_path / "here/pieces")
    assert images_of(found) == files_of(tmp_path)


def test_a_store_goes_to_processes_that_are_started_or_forked(tmp_path, web):
    store = Store(web.address)
    assert store.read("packed.json") == (tmp_path / "packed/packed.json").read_bytes()
    fork = multiprocessing.get_context("fork")
    jobs = [fork.Process(target=store.read, args=("packed.json", 0, 10)) for _ in range(3)]
    for job in jobs:
        job.start()
    assert store.read("packed.json", 0, 10) == (tmp_path / "packed/packed.json").read_bytes()[:10]
    for job in jobs:
        job.join(30)
    assert [job.exitcode for job in jobs] == [0] * 3
    code = (
        "import pickle, sys; store = pickle.loads(sys.stdin.buffer.read());"
        "print(len(store.read('packed.json')))"
    )
    told_size = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(store),
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    assert int(told_size) == (tmp_path / "packed/packed.json").stat().st_size


def test_pieces_end_where_files_do_and_where_they_are_long_enough(monkeypatch):
    monkeypatch.setattr(data.pieces, "PIECE_BYTES", 100)
    sizes = np.array([60, 40, 1, -1, 300, 5, 95, 1])
    starts = np.concatenate([[8], 8 + np.cumsum(np.maximum(sizes, 0))[:-1]])
    table = data.pieces.spans_of(starts, sizes, np.zeros(8, np.uint64), 1000)
    assert table["piece"].to_pylist() == [1000, 1000, 1002, 1002, 1004, 1005, 1005, 1007]


def test_the_cache_is_no_part_of_what_is_packed(tmp_path, web):
    cfg = DataConfig()
    assert cfg.packed_cache_gb == 50
    one = loaded(tmp_path, web, data__packed_cache_gb=1.0)
    assert one.fingerprint() == loaded(tmp_path, web).fingerprint()
