import dataclasses
import json
import multiprocessing
import shutil

import numpy as np
import pytest

import tools.export
import tools.pack
from builders import launch, tiny_run
from data.build import build_data
from data.packed import Pack, load_packed
from errors import UserError
from formats import WRITERS, write_format
from runs import losses, stopped_and_resumed, train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def packed(tmp_path, *arguments, out="packed"):
    folder = tmp_path / out
    tools.pack.main([*arguments, "--out", str(folder), "--shard-images", "3"])
    return folder


def without_times(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if "time" not in k and "seconds" not in k} for row in rows
    ]


def test_training_is_bit_equal_to_that_on_files_which_may_be_gone(tmp_path):
    keys = {"data__augment": '[{"HorizontalFlip": {"p": 0.5}}]', "data__num_workers": 1}
    of_files = tiny_run(tmp_path, run__output_dir=tmp_path / "files", **keys)
    train(of_files)
    folder = packed(tmp_path, *of_files)
    assert len(list(folder.glob("images-*.arrow"))) == 5
    shutil.rmtree(tmp_path / "data")
    of_shards = [*of_files, "--data.packed", str(folder), "--run.output_dir", str(tmp_path / "one")]
    train(of_shards)
    assert without_times(tmp_path / "one") == without_times(tmp_path / "files")
    for file in ("export/model.safetensors", "checkpoints/step-000003/state/optimizer.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "files" / file).read_bytes()
    two = launch([*of_shards[:-1], str(tmp_path / "two")], processes=2)
    assert two.returncode == 0, two.stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)


def test_a_stopped_run_goes_on_bit_equally_with_shards(tmp_path):
    folder = packed(tmp_path, *tiny_run(tmp_path))
    stopped_and_resumed(tmp_path, lambda **keys: tiny_run(tmp_path, data__packed=folder, **keys))


def test_a_split_that_was_found_is_that_of_the_pack(tmp_path):
    """A run from a pack is exported, and one from files goes on from a pack when they are gone."""
    keys = {"train__checkpoint_every": 1, "train__keep_checkpoints": 9}
    argv = tiny_run(tmp_path, **keys)
    place = argv.index("--data.val_split")
    del argv[place : place + 2]
    of_pack = ["--data.packed", str(packed(tmp_path, *argv))]
    train([*argv, *of_pack, "--run.output_dir", str(tmp_path / "first")])
    tools.export.main([str(tmp_path / "first")])
    train(argv)
    shutil.rmtree(tmp_path / "run/checkpoints/step-000003")
    shutil.rmtree(tmp_path / "data")
    train([*argv, *of_pack, "--run.resume", "auto"])
    assert losses(tmp_path / "run") == losses(tmp_path / "first")


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_the_same_when_packed(tmp_path, name):
    cfg = write_format(tmp_path / "set", name)
    for labels in ("boxes",) if name in ("voc", "voc folders", "yolo") else ("boxes", "masks"):
        data = build_data(cfg, 3, labels=labels)
        pack = Pack(tmp_path / labels, data, size=2)
        pack.begin(cfg, 3)
        for shard in pack.missing():
            pack.write(shard)
        pack.finish()
        again = load_packed(dataclasses.replace(cfg, packed=str(tmp_path / labels)), 3, labels)
        assert again.fingerprint() == data.fingerprint()
        assert again.taxonomy == data.taxonomy
        assert list(again.findings) == list(data.findings)
        for one, other in ((data.train, again.train), (data.val, again.val)):
            assert [record.where for record in one.records] == [r.where for r in other.records]
            for index in range(len(one)):
                source = one.images[index]
                content = source if isinstance(source, bytes) else source.read_bytes()
                assert other.images[index] == content


def test_shares_of_killed_jobs_are_made_by_later_ones(tmp_path, monkeypatch, capsys):
    arguments = [*tiny_run(tmp_path), "--out", str(tmp_path / "packed"), "--shard-images", "2"]
    tools.pack.main([*arguments, "--share", "1/2"])
    assert "3 of 7 are missing" in capsys.readouterr().out
    with pytest.raises(UserError, match="is not complete, or damaged; call tools.pack again"):
        train(tiny_run(tmp_path, data__packed=tmp_path / "packed"))
    write = Pack.write

    def killed(self, shard, progress):
        if shard == 3:
            raise KeyboardInterrupt
        write(self, shard, progress)

    monkeypatch.setattr(Pack, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        tools.pack.main([*arguments, "--share", "2/2"])
    monkeypatch.undo()
    made = {f: f.stat().st_mtime_ns for f in (tmp_path / "packed").glob("images-*")}
    assert len(made) == 5
    tools.pack.main([*arguments, "--share", "2/2"])
    assert "--data.packed" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in made} == made
    train(tiny_run(tmp_path, data__packed=tmp_path / "packed"))
    tools.pack.main(arguments)  # nothing is left to do


def test_what_is_packed_must_be_what_is_asked_for(tmp_path):
    folder = packed(tmp_path, *tiny_run(tmp_path))
    for keys, told in (
        ({"data__limit": 4}, "data.limit was None, and is 4"),
        ({"data__val_split": "null"}, "data.val_split was val, and is None"),
        ({"variant": "maskformer"}, "for boxes, and model.task wants masks"),
    ):
        with pytest.raises(UserError, match=told):
            train(tiny_run(tmp_path, data__packed=folder, **keys))
    with pytest.raises(UserError, match="is no folder that tools.pack has made"):
        train(tiny_run(tmp_path, data__packed=tmp_path / "data"))
    with pytest.raises(UserError, match="is packed already"):
        packed(tmp_path, *tiny_run(tmp_path, data__packed=folder))
    with pytest.raises(UserError, match="holds another dataset"):
        packed(tmp_path, *tiny_run(tmp_path, data__limit=4))
    with pytest.raises(UserError, match="neither empty nor a packed dataset"):
        packed(tmp_path, *tiny_run(tmp_path), out="data")


def test_an_image_that_changes_while_it_is_packed_is_named(tmp_path, monkeypatch):
    arguments = tiny_run(tmp_path)
    begin = Pack.begin

    def meanwhile(self, cfg, seed):
        begin(self, cfg, seed)
        image = tmp_path / "data/train/004.jpg"
        image.write_bytes((tmp_path / "data/train/005.jpg").read_bytes())

    monkeypatch.setattr(Pack, "begin", meanwhile)
    with pytest.raises(UserError, match=r"004.jpg.*has changed since the dataset was checked"):
        packed(tmp_path, *arguments)


def test_what_is_damaged_is_refused_and_made_again(tmp_path):
    arguments = tiny_run(tmp_path)
    folder = packed(tmp_path, *arguments)
    whole = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    shard = folder / "images-00001.arrow"
    for damage in (lambda: shard.write_bytes(shard.read_bytes()[:-64]), shard.unlink):
        damage()
        with pytest.raises(UserError, match=r"images-00001.arrow is not as it was written"):
            train([*arguments, "--data.packed", str(folder)])
        packed(tmp_path, *arguments)
        assert shard.read_bytes() == whole[shard]
    with (folder / "dataset/train.images").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match="not complete, or damaged"):
        train([*arguments, "--data.packed", str(folder)])
    packed(tmp_path, *arguments)
    train([*arguments, "--data.packed", str(folder)])


def test_a_shard_that_is_cut_off_before_the_folder_is_complete_is_seen(tmp_path):
    arguments = [*tiny_run(tmp_path), "--out", str(tmp_path / "packed"), "--shard-images", "3"]
    tools.pack.main([*arguments, "--share", "1/2"])
    shard = tmp_path / "packed/images-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:200])
    (tmp_path / "packed/.writing-images-00001.arrow").write_bytes(b"of a killed job")
    with pytest.raises(UserError, match=r"images-00000.arrow: cannot be read"):
        tools.pack.main([*arguments, "--share", "2/2"])
    assert not list((tmp_path / "packed").glob(".writing-*"))
    shard.unlink()
    tools.pack.main(arguments)
    train(tiny_run(tmp_path, data__packed=tmp_path / "packed"))


def test_jobs_that_begin_at_once_do_not_refuse_each_other(tmp_path):
    cfg = write_format(tmp_path / "set", "coco")
    data = build_data(cfg, 0)
    fork = multiprocessing.get_context("fork")
    for turn in range(10):
        jobs = [
            fork.Process(target=Pack(tmp_path / str(turn), data).begin, args=(cfg, 0))
            for _ in range(4)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        assert [job.exitcode for job in jobs] == [0] * 4


NESTED = "[" * 200_000


@pytest.mark.parametrize("name", ["packed.json", "shards.json", "dataset/rest.json"])
@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"shard_images": 0, "data": {}}', '{"a": "b"}', NESTED],
    ids=lambda text: text[:12],
)
def test_notes_of_a_pack_that_are_none_are_refused(tmp_path, name, text):
    cfg = write_format(tmp_path / "set", "coco")
    data = build_data(cfg, 0)
    pack = Pack(tmp_path / "packed", data)
    pack.begin(cfg, 0)
    pack.write(0)
    pack.finish()
    (tmp_path / "packed" / name).write_text(text)
    found = dataclasses.replace(cfg, packed=str(tmp_path / "packed"))
    with pytest.raises(
        UserError, match=r"data\.packed .*(tools.pack has made|not complete|as it was written)"
    ):
        load_packed(found, 0, "boxes")


def test_images_that_cannot_be_read_count_as_missed_as_with_files(tmp_path):
    tiny_run(tmp_path)
    (tmp_path / "data/val/001.jpg").write_bytes(b"no image")
    arguments = tiny_run(tmp_path, run__output_dir=tmp_path / "files", run__max_bad_images=1)
    train(arguments)
    folder = packed(tmp_path, *arguments)
    train([*arguments, "--data.packed", str(folder), "--run.output_dir", str(tmp_path / "one")])
    assert without_times(tmp_path / "one") == without_times(tmp_path / "files")
