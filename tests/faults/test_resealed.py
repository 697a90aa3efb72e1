"""Checkpoints whose content was changed and whose manifest was made to fit: refused, or fallen back from."""

import copy
import json
import random
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from builders import save_backbone
from checkpoints import RNG, SMALL, make, state_of, take_step
from errors import UserError
from run.changes import check_changes, flat
from settings.keys import Config
from settings.walk import config_to_dict, harmless_keys
from training.checkpoint import Checkpoints
from training.manifest import MANIFEST, find_defect, write_manifest
from training.shelf import find_flaw, read_config
from training.state import (
    AVERAGE,
    CONFIG,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    checkpoint_tensors,
    load_average,
    load_model,
    load_optimizer,
    load_rng,
    load_state,
    trainable_tensors,
)

WRONG = [
    None,
    True,
    "5",
    -3,
    4.5,
    float("nan"),
    float("inf"),
    2**62,
    [],
    {},
    [1],
    {"a": 1},
    "x" * 20_000,
]
"""What no number, text, list or table of a checkpoint may be replaced by at once"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder with the checkpoints of steps 4 and 8, a function that makes detector and optimizer)."""
    root = tmp_path_factory.mktemp("resealed")
    backbone = save_backbone(root / "backbone")
    detector, optimizer = make(backbone)
    checkpoints = Checkpoints(root / "checkpoints", keep=5)
    for step in (4, 8):
        take_step(detector, optimizer)
        average = {n: t.detach().clone() for n, t in trainable_tensors(detector.model).items()}
        checkpoints.record(step / 10, step)
        tensors = checkpoint_tensors(detector.model, optimizer, average, RNG)
        checkpoints.save(tensors, state_of(step, step), Config(), wait=True)
        assert checkpoints.failure is None
    return checkpoints.folder, lambda: make(backbone)


def taken(folder, detector, optimizer):
    """What a resume does with a folder of checkpoints; the checkpoint that it took."""
    shelf = Checkpoints(folder, keep=5)
    found, _ = shelf.newest_intact()
    check_changes(read_config(found), Config(), found)
    state = load_state(found)
    if state.facts != state_of(1).facts:
        raise UserError("other facts")  # as run.resume compares those that matter
    load_model(found, detector.model)
    load_optimizer(found, detector.model, optimizer)
    load_rng(found, 0)
    load_average(found, detector.model)
    shelf.find_best(found, same_metric=True)
    return found


def places(value, path=()):
    """Paths to everything inside of nested tables and lists."""
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in inner:
        yield from places(item, (*path, key))


def changed(value, path, new):
    value = copy.deepcopy(value)
    if not path:
        return new
    place = value
    for key in path[:-1]:
        place = place[key]
    if new is changed:
        del place[path[-1]]
    else:
        place[path[-1]] = new
    return value


def json_mutations(content):
    for path in places(content):
        for new in [*WRONG, changed]:
            if path or new is not changed:
                yield f"{'.'.join(map(str, path))} = {str(new)[:20]}", changed(content, path, new)


def tensor_mutations(tensors):
    for name, tensor in tensors.items():
        rest = {n: t for n, t in tensors.items() if n != name}
        yield f"{name} gone", rest
        yield f"{name} named otherwise", {**rest, f"{name}x": tensor}
        yield f"{name} longer", {**tensors, name: torch.cat([tensor.flatten(), tensor.flatten()])}
        yield f"{name} empty", {**tensors, name: tensor.flatten()[:0].clone()}
        if tensor.is_floating_point():
            yield f"{name} int8", {**tensors, name: tensor.to(torch.int8)}
            yield f"{name} fp64", {**tensors, name: tensor.double()}
            yield f"{name} nan", {**tensors, name: torch.full_like(tensor, float("nan"))}
            yield f"{name} inf", {**tensors, name: torch.full_like(tensor, -float("inf"))}
        else:
            yield f"{name} float", {**tensors, name: tensor.float()}
        if name.startswith("exp_avg_sq/"):
            yield f"{name} negative", {**tensors, name: tensor - 1}


def bomb(levels):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def mutations(folder):
    """(description, file, bytes or tensors) of everything that is done to a checkpoint."""
    for file in (STATE, "state/best.json"):
        for what, content in json_mutations(json.loads((folder / file).read_text())):
            yield f"{file}: {what}", file, json.dumps(content).encode()
        yield f"{file}: nested", file, b"[" * 100_000
        yield f"{file}: no text", file, b"\xff\xfe"
    config = yaml.safe_load((folder / CONFIG).read_text())
    for what, content in json_mutations({k: config[k] for k in ("train", "eval", "data")}):
        yield (
            f"{CONFIG}: {what}",
            CONFIG,
            yaml.safe_dump(
                {**config, **content} if isinstance(content, dict) else content
            ).encode(),
        )
    for what, text in (
        ("bomb", bomb(12)),
        ("nested", "[" * 5000),
        ("large", "a: " + "x" * 2_000_000),
    ):
        yield f"{CONFIG}: {what}", CONFIG, text.encode()
    yield f"{CONFIG}: code", CONFIG, b"run: !!python/object/apply:os.system ['true']\n"
    for file in (WEIGHTS, AVERAGE, OPTIMIZER, "state/rng.safetensors"):
        for what, tensors in tensor_mutations(load_file(folder / file)):
            yield f"{file}: {what}", file, tensors
        yield f"{file}: cut", file, (folder / file).read_bytes()[:100]


def harmless(what):
    """Changes to what a run may write itself: no best yet, nothing unusual, another name."""
    _, _, change = what.partition(": ")
    return change in (" = None", "bad_images = []", "scaler = None") or change.startswith(
        "tracker_run"
    )


def storm(saved, tmp_path, chosen):
    """Apply mutations; (refused, fallen back from), and nothing else happens."""
    folder, fresh = saved
    detector, optimizer = fresh()
    counts = {"refused": 0, "fallen back": 0}
    for what, file, content in chosen:
        if harmless(what):
            continue
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work, symlinks=True)
        target = work / "step-000008" / file
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            save_file({n: t.contiguous() for n, t in content.items()}, target)
        write_manifest(work / "step-000008")
        assert find_defect(work / "step-000008") is None
        try:
            found = taken(work, detector, optimizer)
        except UserError:
            counts["refused"] += 1
        else:
            same = found.name == "step-000004"
            if not same and isinstance(content, bytes):
                same = _means_the_same(folder / "step-000008" / file, target)
            assert same, f"accepted: {what}"
            counts["fallen back"] += found.name == "step-000004"
    return counts


def _means_the_same(original, mutant):
    read = json.loads if original.suffix == ".json" else yaml.safe_load
    if original.name == "config.yaml":
        configs = [flat(read_config(file.parent.parent)) for file in (original, mutant)]
        deciding = set(configs[0]) - set(harmless_keys())
        default = flat(config_to_dict(Config()))  # what a key that is missing had
        return all(configs[0][key] == configs[1].get(key, default[key]) for key in deciding)
    contents = [read(file.read_text()) for file in (original, mutant)]
    if original.name == "state.json":  # a number that was not counted yet is 0
        contents = [{"stale_evaluations": 0, **content} for content in contents]
    return bool(contents[0] == contents[1])


def test_a_sample_of_resealed_checkpoints_is_never_taken(saved, tmp_path):
    chosen = random.Random(0).sample(list(mutations(saved[0] / "step-000008")), 60)
    assert sum(storm(saved, tmp_path, chosen).values()) > 40


@pytest.mark.slow
def test_no_resealed_checkpoint_is_ever_taken(saved, tmp_path):
    everything = list(mutations(saved[0] / "step-000008"))
    counts = storm(saved, tmp_path, everything)
    assert sum(counts.values()) >= 500, counts
    assert min(counts.values()) > 50, counts


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}", '{"files": {"a": 5}}', "\udcff", "5", "null"]
)
def test_broken_manifest_falls_back(saved, tmp_path, text):
    shutil.copytree(saved[0], tmp_path / "work", symlinks=True)
    newest = tmp_path / "work/step-000008"
    (newest / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert find_flaw(newest) is not None
    found, notes = Checkpoints(tmp_path / "work", keep=5).newest_intact()
    assert found.name == "step-000004"
    assert "step-000008 is damaged" in notes[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_saved_over_good_ones(tmp_path, value):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(SMALL, state_of(4), Config(), wait=True)
    bad = {**SMALL, WEIGHTS: {"w": torch.tensor([1.0, value])}}
    checkpoints.record(0.9, 8)
    checkpoints.save(bad, state_of(8, 8), Config(), wait=True)
    assert f"{WEIGHTS}: w is not finite. Lower optim.lr" in checkpoints.give_up()
    assert checkpoints.best is None
    assert checkpoints.names() == ["step-000004"]
