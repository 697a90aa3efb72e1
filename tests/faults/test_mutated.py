"""Thousands of broken files of a run: each is refused with one clear error, or read as it stands."""

import json
import random
import shutil

import pytest
from accelerate import Accelerator

from builders import tiny_run
from errors import UserError
from run.log import RunLog
from runs import train
from settings.checks import check_config
from settings.load import load_config
from training.checkpoint import Checkpoints
from training.manifest import MANIFEST, write_manifest
from training.shelf import read_config
from training.state import CONFIG, load_state

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
MUTANTS = 600
"""Of each file"""
PIECES = [
    *(b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"\r", b"\t", b"\x1b[2J", "\u2028".encode()),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b'"',
        b"'",
        b"- ",
        b"? ",
        b"|",
        b">",
        b"%YAML 1.1\n---\n",
    ),
    *(
        b"&a ",
        b"*a",
        b"&a [*a]",
        b"<<: *a",
        b"!!python/object/apply:os.system ['x']",
        b"!!binary x",
    ),
    *(b"NaN", b".nan", b".inf", b"1e999", b"-1", b"0x7f", b"1_000", b"null", b"true", b"9" * 5000),
    *(
        b"[" * 3000,
        b"{a: " * 3000,
        b"../../etc/passwd",
        b"https://user:secret@host/x",
        b"x" * 70_000,
    ),
    *(b"train:", b"run: {seed: x}", b"run:\n  seed: [1]\n", b"2001-01-01", b"12:30:45", b"=", b"~"),
]


def mutants(content, number, seed):
    """Random bytes changed, pieces cut, doubled, swapped or put in."""
    rng = random.Random(seed)
    for _ in range(number):
        mutant = bytearray(content)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            place = rng.randrange(len(mutant) + 1)
            end = min(len(mutant), place + rng.choice([1, 3, 20, 200]))
            what = rng.randrange(5)
            if what == 0 and mutant:
                mutant[min(place, len(mutant) - 1)] = rng.randrange(256)
            elif what == 1:
                del mutant[place:end]
            elif what == 2:
                mutant[place:place] = mutant[place:end]
            elif what == 3:
                mutant[place:end] = rng.choice(PIECES)
            else:
                lines = bytes(mutant).splitlines(keepends=True)
                rng.shuffle(lines)
                mutant = bytearray(b"".join(lines)) if rng.random() < 0.3 else mutant
                mutant[place:place] = rng.choice(PIECES)
        yield bytes(mutant)


@pytest.fixture
def folder(tmp_path):
    keys = {"train__checkpoint_every": 1, "train__keep_checkpoints": 3}
    train(tiny_run(tmp_path, **keys))
    return tmp_path / "run"


def storm(folder, tmp_path, number):
    """How many of each file were refused, of `number`."""
    return {
        "config.yaml": configurations(folder, tmp_path, number),
        CONFIG: checkpoints(folder, tmp_path, number, CONFIG),
        MANIFEST: checkpoints(folder, tmp_path, number, MANIFEST),
        "metrics.jsonl": lines(folder, number),
    }


def configurations(folder, tmp_path, number):
    """What is read is a whole configuration that passes its own checks."""
    refused = 0
    file = tmp_path / "mutant.yaml"
    for mutant in mutants((folder / "config.yaml").read_bytes(), number, 0):
        file.write_bytes(mutant)
        try:
            check_config(load_config(["--config", str(file)]))
        except UserError:
            refused += 1
    return refused


def checkpoints(folder, tmp_path, number, file):
    """Damage falls back to the checkpoint before; a configuration that was resealed is read or refused."""
    refused = 0
    work = tmp_path / "work"
    newest = work / "step-000003"
    original = (folder / "checkpoints/step-000003" / file).read_bytes()
    for mutant in mutants(original, number, 1):
        shutil.rmtree(work, ignore_errors=True)  # what is damaged was put aside
        shutil.copytree(folder / "checkpoints", work, symlinks=True)
        (newest / file).write_bytes(mutant)
        if file == CONFIG:
            write_manifest(newest)
        try:
            found, _ = Checkpoints(work, keep=3).newest_intact()
            read_config(found)
            assert load_state(found).step in (2, 3)
            assert file == CONFIG or (found.name == "step-000003") == (mutant == original)
            refused += found.name != "step-000003"
        except UserError:
            refused += 1
    shutil.rmtree(work)
    return refused


def lines(folder, number):
    """Lines of before the checkpoint that are whole stay as they are; the file is read by every line."""
    accelerator = Accelerator(cpu=True)
    cfg = load_config(["--config", str(folder / "config.yaml")])
    state = load_state(folder / "checkpoints/step-000002")
    file, dropped = folder / "metrics.jsonl", 0
    original = file.read_bytes()
    for mutant in mutants(original, number, 2):
        file.write_bytes(mutant)
        RunLog(accelerator, cfg, 3, state).close()
        rows = [json.loads(line) for line in file.read_bytes().splitlines()]
        assert all(row["step"] <= 3 for row in rows)
        kept = file.read_bytes().splitlines()
        whole = [line for line in original.splitlines() if json.loads(line)["step"] <= 2]
        assert [line for line in whole if line in mutant.splitlines()] == [
            line for line in whole if line in kept
        ]
        dropped += len(kept) < len(mutant.splitlines())
    file.write_bytes(original)
    return dropped


def test_a_few_mutated_files(folder, tmp_path):
    assert all(storm(folder, tmp_path, 25).values())


@pytest.mark.slow
def test_thousands_of_mutated_files(folder, tmp_path):
    refused = storm(folder, tmp_path, MUTANTS)
    assert all(count > MUTANTS / 3 for count in refused.values()), refused
