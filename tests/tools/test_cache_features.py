"""Features are stored beforehand, by one job or by many."""

import pytest
from accelerate.state import AcceleratorState

from builders import tiny_run
from errors import UserError
from tools import cache_features

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def store(folder, tmp_path, *options):
    arguments = tiny_run(
        tmp_path, data__cache_features=3, data__cache_folder=folder, run__output_dir=folder
    )
    cache_features.main([*arguments, *options])
    AcceleratorState._reset_state(reset_partial_state=True)
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.safetensors")}


def test_shares_of_many_jobs_are_what_one_makes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data.feed.features.SHARD_IMAGES", 4)
    one = store(tmp_path / "one", tmp_path)
    assert len(one) == 8
    first = store(tmp_path / "many", tmp_path, "--share", "1/2")
    assert "(share 1 of 2)" in capsys.readouterr().out
    both = store(tmp_path / "many", tmp_path, "--share", "2/2")
    assert 0 < len(first) < len(both)
    assert both == one


@pytest.mark.parametrize("share", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_shares_that_are_none_are_refused(share, capsys):
    with pytest.raises(SystemExit):
        cache_features.main(["--share", share])
    assert "is no share" in capsys.readouterr().err


def test_nothing_to_store_is_an_error():
    with pytest.raises(UserError, match="nothing to store"):
        cache_features.main(["--data.cache_features", "0"])
