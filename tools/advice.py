"""What a dataset asks of a configuration, before a backbone is there: for `tools.check_data` and `tools.start`."""

import dataclasses
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from data.build import read_data
from data.check.advice import Advice, Head, advise, sized
from data.dataset import Data
from data.findings import Findings
from data.guesses import mending_keys
from errors import UserError, refusing
from model.heads.registry import get_family
from model.source import local_folder
from settings.keys import Config
from settings.tasks import LABELS
from settings.written import commented_yaml, set_keys, with_values, write_new


def head_of(cfg: Config) -> Head:
    """What is known of a configured head without its backbone."""
    model = cfg.model
    assert model.head is not None
    family, args = get_family(model.head), model.head_args
    if model.init_from is not None and model.backbone is None:
        folder = local_folder(model.init_from, model.init_from_revision, "model.init_from")
        with refusing(f"model.init_from {model.init_from}"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        queries = getattr(config, "num_queries", None)
        return Head(model.head, args.get("num_queries", queries), whole=True)
    queries = args.get("num_queries", family.defaults.get("num_queries"))
    if queries is None and model.head != "linear":
        kind: Any = family.config_class
        queries = getattr(kind(), "num_queries", None)
    few = family.few_steps if model.init_from is None else 0
    usable = queries if isinstance(queries, int) else None
    return Head(model.head, usable, few, family.few_steps_source)


def fitted(cfg: Config) -> Config:
    """With the fit of images that the head needs, where the configuration does not say."""
    size = cfg.data.image_size
    if size.fit is not None or cfg.model.head is None:
        return cfg
    size = dataclasses.replace(size, fit=get_family(cfg.model.head).fit)
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, image_size=size))


def mended(cfg: Config, findings: Findings) -> tuple[Config, dict[str, Any]]:
    """The configuration with the keys that guesses name (never one that has a risk), and these."""
    keys = mending_keys(findings)
    changed = {key.removeprefix("data."): value for key, value in keys.items()}
    return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, **changed)), keys


def advice_of(cfg: Config, data: Data) -> list[Advice]:
    """What of a configuration does not fit the data."""
    return advise(sized(fitted(cfg), data), data, head_of(cfg))


def write_advised(cfg: Config, data: Data, file: Path) -> None:
    """Write the configuration that follows from the data.

    Raises:
        UserError: if the file is there, or the data cannot be used as the findings say.
    """
    mending, keys = mended(cfg, data.findings)
    if keys:
        data = read_data(mending.data, cfg.run.seed, Findings(), LABELS[cfg.model.task])
    comments = dict.fromkeys(keys, "guessed from the annotations")
    values = dict(keys)
    for advice in advice_of(mending, data):
        values |= advice.keys
        comments |= dict.fromkeys([*advice.keys][:1], advice.text)
    if "train.steps" in values:
        values["optim.warmup_steps"] = min(
            cfg.optim.warmup_steps, max(1, values["train.steps"] // 10)
        )
    text = commented_yaml(
        with_values(set_keys(cfg), values),
        comments,
        f"What tools.check_data advises for {cfg.data.path}: the configuration that was given, with "
        f"{len(values)} other values.",
    )
    write_new(file, text, "--advise")


def refuse_existing(file: Path | None) -> None:
    """
    Raises:
        UserError: if `file` is there.
    """
    if file is not None and file.exists():
        raise UserError(f"--advise {file}: is there already; name another file")
