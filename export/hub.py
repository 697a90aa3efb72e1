"""Upload to the Hub: private unless asked otherwise; the token is never shown."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from errors import UserError
from settings.keys import HubConfig, RunConfig


def resolve_repo_id(cfg: HubConfig, run: RunConfig) -> str | None:
    """`user/name` of the repository to push to, if any; asks the Hub who is logged in.

    Called before training, so that a missing login does not show after it.

    Raises:
        UserError: without login or network.
    """
    if not cfg.push:
        return None
    try:
        user = HfApi().whoami()["name"]
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise UserError(
            "hub.push: no valid login on the Hub; run `hf auth login`, or set hub.push false"
        ) from error
    except Exception as error:  # the HTTP library's own errors, which have no stable name
        raise UserError(
            "hub.push: the Hub cannot be reached; set hub.push false and upload export/ later with "
            "`hf upload`"
        ) from error
    name = cfg.repo_id or run.name or Path(run.output_dir).name
    return name if "/" in name else f"{user}/{name}"


def push(folder: Path, repo_id: str, private: bool) -> str:
    """Upload an exported folder; returns the address of the repository.

    Raises:
        UserError: if the upload fails; the folder stays complete.
    """
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    except Exception as error:  # see above
        raise UserError(
            f"hub.push: the upload to {repo_id} failed ({type(error).__name__}); {folder} is complete: "
            f"`hf upload {repo_id} {folder}`"
        ) from error
    return f"https://huggingface.co/{repo_id}"
