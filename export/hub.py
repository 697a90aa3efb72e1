"""Upload to the Hub: private unless asked otherwise; the token is never shown."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import _http

from errors import UserError
from settings.keys import HubConfig, RunConfig

T = TypeVar("T")
SILENCE_S = 120.0
"""A server that says nothing for so long is given up; huggingface_hub would wait for ever"""
WAITS_S = (2.0, 15.0, 60.0)
"""Between attempts to make a repository, where another one may help"""
LONGEST_WAIT_S = 300.0
"""Of those that a server asks for"""
BUSY = (408, 429, 500, 502, 503, 504)
REFUSED = {
    401: "the login is not valid; run `hf auth login`",
    403: "this login may not write there; take a token with the right to write, or another hub.repo_id",
    404: "this login does not see it",
    409: "something else of that name is there",
    413: "it is larger than the Hub takes",
}
"""Statuses that another attempt does not change, and what to do"""


def resolve_repo_id(cfg: HubConfig, run: RunConfig) -> str | None:
    """`user/name` of the repository to push to, if any; asks the Hub who is logged in.

    Called before training, so that a missing login does not show after it.

    Raises:
        UserError: without login or network.
    """
    if not cfg.push:
        return None
    try:
        user = _api().whoami()["name"]
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise UserError(
            "hub.push: no valid login on the Hub; run `hf auth login`, or set hub.push false"
        ) from error
    except Exception as error:  # the HTTP library's own errors, which have no stable name
        raise UserError(
            "hub.push: the Hub cannot be reached; set hub.push false and upload export/ later with "
            "`python -m tools.export RUN --push`"
        ) from error
    name = cfg.repo_id or run.name or Path(run.output_dir).name
    return name if "/" in name else f"{user}/{name}"


def push(
    folder: Path, repo_id: str, private: bool, again: str, message: str = "Upload the model"
) -> str:
    """Upload an exported folder; returns the address of the repository.

    What passes by itself (a busy server, a lost connection) is tried again; the files appear there in one commit,
    or not at all.

    Args:
        again: the command that repeats it.

    Raises:
        UserError: if the upload fails; the folder stays complete.
    """
    api = _api()
    try:
        _patiently(lambda: _create(api, repo_id, private))
        # which tries again by itself: five times what a busy server or silence ends
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except UserError:
        raise
    except Exception as error:  # see above
        raise UserError(
            f"hub.push: the upload to {repo_id} failed ({reason(error)}); {folder} is complete, and this tries "
            f"again: {again}"
        ) from error
    return f"{api.endpoint}/{repo_id}"


def _create(api: HfApi, repo_id: str, private: bool) -> None:
    """The repository, unless it is there.

    Raises:
        UserError: if it is there and public, and a private one is wanted.
    """
    try:
        there = api.repo_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return
    if private and not there.private:
        raise UserError(
            f"hub.push: {repo_id} is there and public; set hub.private false to upload to it all the same, or choose "
            "another hub.repo_id"
        )


def _patiently(action: Callable[[], T]) -> T:
    """What `action` gives, in one of several attempts.

    Raises:
        Exception: of the last one, or of the first that no further one would mend.
    """
    for wait in WAITS_S:
        try:
            return action()
        except (UserError, LocalTokenNotFoundError):
            raise
        except Exception as error:
            response = getattr(error, "response", None)
            status = getattr(response, "status_code", None)
            if status is not None and status not in BUSY:
                raise
            asked = getattr(response, "headers", {}).get("Retry-After", "")
            seconds = min(float(asked), LONGEST_WAIT_S) if asked.isdecimal() else wait
            time.sleep(seconds)
    return action()


def reason(error: Exception) -> str:
    """Why an upload failed, without anything of the request: it may hold the token."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"{status}: {REFUSED.get(status, 'the Hub is busy or out of order; wait a little')}"
    if any(kind.__name__ == "TimeoutException" for kind in type(error).__mro__):
        return f"no answer for {SILENCE_S:g} s"
    return type(error).__name__


def _api() -> HfApi:
    """Of huggingface_hub, whose requests end when a server goes silent."""
    set_client_factory(_client)
    return HfApi()


def _client() -> Any:
    client = _http.default_client_factory()
    client.timeout = SILENCE_S
    return client
