"""The upload, with the Hub's network mocked."""

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

import export.hub
from errors import UserError
from export.hub import push, resolve_repo_id
from settings.keys import HubConfig, RunConfig

RUN = RunConfig(output_dir="runs/plates")


class Hub:
    """Stands in for HfApi and remembers its calls."""

    def __init__(self, error=None):
        self.error, self.calls = error, []

    def __call__(self):
        return self

    def whoami(self):
        if self.error:
            raise self.error
        return {"name": "ada"}

    def create_repo(self, repo_id, **rest):
        self.calls.append(("create", repo_id, rest))
        if self.error:
            raise self.error

    def upload_folder(self, repo_id, folder_path):
        self.calls.append(("upload", repo_id, folder_path))


@pytest.mark.parametrize(
    ("repo_id", "expected"),
    [(None, "ada/plates"), ("mine", "ada/mine"), ("team/x", "team/x")],
)
def test_repository_is_the_users_own_unless_named(monkeypatch, repo_id, expected):
    monkeypatch.setattr(export.hub, "HfApi", Hub())
    assert resolve_repo_id(HubConfig(push=True, repo_id=repo_id), RUN) == expected
    assert resolve_repo_id(HubConfig(), RUN) is None


def test_upload_is_private_by_default(monkeypatch, tmp_path):
    hub = Hub()
    monkeypatch.setattr(export.hub, "HfApi", hub)
    address = push(tmp_path, "ada/plates", HubConfig().private)
    assert address == "https://huggingface.co/ada/plates"
    assert hub.calls == [
        ("create", "ada/plates", {"private": True, "exist_ok": True}),
        ("upload", "ada/plates", tmp_path),
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalTokenNotFoundError("no token"), "no valid login"),
        (ConnectionError("hf_secret is unreachable"), "the Hub cannot be reached"),
    ],
)
def test_missing_login_and_network_are_said_before_training(monkeypatch, error, message):
    monkeypatch.setattr(export.hub, "HfApi", Hub(error))
    with pytest.raises(UserError, match=message) as raised:
        resolve_repo_id(HubConfig(push=True), RUN)
    assert "hf_secret" not in str(raised.value)


def test_failed_upload_says_that_the_export_is_complete(monkeypatch, tmp_path):
    monkeypatch.setattr(export.hub, "HfApi", Hub(ConnectionError("hf_secret")))
    with pytest.raises(UserError, match="is complete: `hf upload ada/x") as raised:
        push(tmp_path, "ada/x", True)
    assert "hf_secret" not in str(raised.value)
