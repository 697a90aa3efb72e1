"""Who pushes where, with the Hub's network mocked; uploads: test_push.py."""

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

import export.hub
from errors import UserError
from export.hub import resolve_repo_id
from settings.keys import HubConfig, RunConfig

RUN = RunConfig(output_dir="runs/plates")


class Hub:
    """Stands in for HfApi."""

    def __init__(self, error=None):
        self.error = error

    def __call__(self):
        return self

    def whoami(self):
        if self.error:
            raise self.error
        return {"name": "ada"}


@pytest.mark.parametrize(
    ("repo_id", "expected"),
    [(None, "ada/plates"), ("mine", "ada/mine"), ("team/x", "team/x")],
)
def test_repository_is_the_users_own_unless_named(monkeypatch, repo_id, expected):
    monkeypatch.setattr(export.hub, "HfApi", Hub())
    assert resolve_repo_id(HubConfig(push=True, repo_id=repo_id), RUN) == expected
    assert resolve_repo_id(HubConfig(), RUN) is None


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
