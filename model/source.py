"""A model named by Hub id or folder becomes a local folder of safetensors and JSON files."""

import contextlib
import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging

from disk import ROOT
from errors import UserError
from model.necks.necked_backbone import NECKED

UNGATED = "facebook/dinov2-base"
"""A backbone that anyone may download (Apache-2.0)"""
FILES = ["*.json", "*.safetensors"]
"""No pickles: loading a model must not run code"""
LOCAL = (".", "/", "~", "runs/")
"""Names that begin so are folders, and the Hub is not asked for them"""
GATED = ("facebook/dinov3",)
"""Backbones whose licence has to be accepted begin so"""
MOST_NAMED = 6
"""Folders beside one that is missing"""
OWN_MODELS = (
    *("linear_segmenter", "plain_mask_decoder"),
    *(necked.config_class.model_type for necked in NECKED.values()),
)
"""Architectures that this project adds to those of transformers"""
SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
"""How every model is loaded: no code that lies beside it, no pickles"""


def local_folder(name: str, revision: str | None, key: str) -> Path:
    """Folder with the files of `name`, downloaded if it is a Hub id that is not cached.

    Args:
        name: folder (also relative to the repository) or Hub id.
        key: configuration key that holds `name`, for messages.

    Raises:
        UserError: if there is no such folder or model, it is gated, or the Hub is out of reach.
    """
    if is_local_folder(name):
        own = Path(name).expanduser()
        folder = own if own.is_dir() else ROOT / name
        refuse_own_code(folder, key)
        return folder
    if name.startswith(LOCAL) or name.count("/") > 1 or Path(name).exists():
        raise UserError(f"{key} {name}: {no_folder(name)}")
    try:
        folder = _download(name, revision, key)
    except UserError as error:
        first, told = name.partition("/")[0], no_folder(name)
        if told.endswith("?"):
            raise UserError(f"{key} {name}: {told}") from error
        if first == name or not is_local_folder(first):
            raise
        hub = str(error).removeprefix(f"{key} {name}: ")
        raise UserError(f"{key} {name}: {told}. As a model of the Hub: {hub}") from error
    refuse_own_code(folder, key)
    return folder


def no_folder(name: str) -> str:
    """What is said of a folder that is not there: which is meant perhaps, or what else is beside it."""
    place = Path(name).expanduser()
    if place.exists():
        return "is a file; name the folder that it is in"
    there = next(parent for parent in place.parents if parent.is_dir())
    missing, *rest = place.relative_to(there).parts
    beside = [path.name for path in there.iterdir() if path.is_dir() and path.name[0] != "."]
    for near in difflib.get_close_matches(missing, beside, n=MOST_NAMED, cutoff=0.6):
        meant = there.joinpath(near, *rest)
        if meant.is_dir():
            exported = meant / "export"
            return f"no such folder - did you mean {exported if exported.is_dir() else meant}?"
    told = "no such folder" + (f": there is no {there / missing}" if rest else "")
    if there.name in ("", "..") or not beside:
        return told
    shown = ", ".join(sorted(beside)[:MOST_NAMED])
    return f"{told}; {there} has {shown}{', ...' if beside[MOST_NAMED:] else ''}"


def refuse_own_code(folder: Path, key: str) -> None:
    """
    Raises:
        UserError: if a config there asks for code that lies beside it (`auto_map`); it is never run.
    """
    for file in sorted(folder.glob("*.json")):
        if file.exists() and not file.is_file():
            raise UserError(f"{key}: {file} is no file")  # a pipe would be waited for
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue  # whoever needs the file says what is wrong with it
        if not isinstance(content, dict) or content.get("model_type") in OWN_MODELS:
            continue  # the class is the one here, and not the copy that lies beside it
        if content.get("auto_map"):
            raise UserError(
                f"{key}: {file} asks for code of its own (auto_map), and code that comes with a model is "
                "never run here; take a model of an architecture that transformers has, or delete the "
                "entry if it is one"
            )


def is_local_folder(name: str) -> bool:
    """Whether `name` is a folder here, seen from the working directory or from the repository."""
    return Path(name).expanduser().is_dir() or (ROOT / name).is_dir()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back transformers' own report of a load."""
    previous = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(previous)


def _download(name: str, revision: str | None, key: str) -> Path:
    page = f"https://huggingface.co/{name}"
    instead = ""
    if key == "model.init_from":
        instead = (
            "; without network: configs/coco_small.yaml, whose backbone comes with this repository"
        )
    if key == "model.backbone":
        instead = f"; {UNGATED} needs no licence, and street/backbone comes with this repository"
    licence = name.startswith(GATED)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except GatedRepoError as error:
        raise UserError(
            f"{key} {name}: access is gated. Accept the licence at {page}, log in with "
            f"`hf auth login`, and start again{instead}"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{key}_revision {revision}: {name} has no such revision, see {page}"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{key} {name}: neither a folder here nor a model on the Hub that this login can see "
            f"({page}); a private one needs `hf auth login`"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            reason = f"the Hub refuses access ({status}); accept the licence at {page} and log in"
        else:
            reason = (
                f"not in the local cache, and the Hub cannot be reached; fetch it on a machine "
                f"with network by `hf download {name}` ({'licence page' if licence else 'its page'}: {page})"
            )
            if key == "model.backbone" and not licence:
                instead = "; street/backbone comes with this repository"
        raise UserError(f"{key} {name}: {reason}{instead}") from error
