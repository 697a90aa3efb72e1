"""What is said of a model that cannot be had."""

import pytest

from errors import UserError
from model.source import local_folder


def refused(name, key="--model"):
    with pytest.raises(UserError) as error:
        local_folder(name, None, key)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("runs/nucle12", "no such folder - did you mean runs/nuclei12/export?"),
        ("runs/nuclei12/exprt", "no such folder - did you mean runs/nuclei12/export?"),
        ("runs/other", "no such folder; runs has nuclei12, plates"),
        ("ruins/plates", "no such folder - did you mean runs/plates?"),
        ("./ruins/other", "no such folder: there is no ruins"),
        ("own/modl", "no such folder - did you mean own/model?"),
        ("runs/plates/weights", "is a file; name the folder that it is in"),
    ],
)
def test_a_mistyped_folder_is_no_model_of_the_hub(tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/nuclei12/export", "runs/plates", "own/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs/plates/weights").write_text("x")
    assert refused(name).endswith(told)
    assert "hf download" in refused("somebody/plates")


def test_a_folder_of_a_first_part_that_is_there_may_be_a_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "facebook/other").mkdir(parents=True)
    said = refused("facebook/dinov3-x", "model.backbone")
    assert "no such folder; facebook has other. As a model of the Hub: not in the local" in said
    assert "licence page" in said


def test_a_backbone_without_a_licence_to_accept_is_not_said_to_need_one():
    said = refused("facebook/dinov2-small", "model.backbone")
    assert "licence" not in said
    assert "hf download facebook/dinov2-small" in said
