"""Annotation files broken in every way a generator thinks of: one clear error, or a dataset."""

import copy
import json
import resource
import signal
import time
from xml.etree import ElementTree

import numpy as np
import pytest

from data.build import check_findings, read_data
from data.findings import Findings
from errors import UserError
from formats import write_format

SEED = 7
CASES = 2000
"""Per format"""
TIME_LIMIT_S = 10
MEMORY_LIMIT_BYTES = 500_000_000
"""That all the cases of a format may add to the process"""

ODD = [
    *(None, True, False, 0, -1, 1, 1.5, 1e308, -1e308, 2**63, -(2**63), 10**400, 10**18),
    *(float("nan"), float("inf"), "", "x", "1", "-1", "nan", "\0", "\ud800", "../../x", "/etc/x"),
    *("²", "٣", "a" * 10_000, [], {}, [[]], [None], {"": None}, {"id": 1}, [1, 2, 3, 4], [0.1] * 8),
    *([1, 2, "3", 4], [[1, 2, 3, 4]] * 3, {"size": [9, 9], "counts": [3, 9]}),
    *({"size": [1, 2**62], "counts": "0" * 50}, {"size": [4, 4], "counts": "\x7fz"}),
]
WORDS = [b"nan", b"-", b"1e999", b"0x1", b"&a", b"*a", b"<<: ", b"!!python/object:os.system", b"\0"]
WORDS += [
    b"\xff\xfe",
    b"]]>",
    b"<![CDATA[",
    b"<!ENTITY a SYSTEM 'file:///etc/passwd'>",
    b"\r",
    b"/",
]
WORDS += [b"\xe2\x80\xa8", b"<object>", b"</object>", b"[", b"{", b'"', b": ", b"- ", b"9" * 5000]

TEXTS = ["", " ", "nan", "inf", "-1", "0", "1e999", "9" * 400, "six", "../../x", "/etc/x", "\u0663"]
TEXTS += ["a" * 5000, "1 2", "0x10", "1_0", "car", "plate", "train_000.jpg"]

FILES = {
    "coco": ["annotations/train.json", "annotations/val.json"],
    "imagefolder": ["train/metadata.jsonl", "categories.json"],
    "voc": ["Annotations/train_002.xml", "ImageSets/Main/train.txt"],
    "voc folders": ["train/002.xml", "val/000.xml"],
    "yolo": ["labels/train/002.txt", "data.yaml"],
}


class TooSlow(BaseException):
    """Nothing may take it for a broken file."""


def nodes(value):
    """All (container, key) pairs of a tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from nodes(item)


def swap_values(content, rng):
    """Other types in one to three places of a JSON file; of one line, if it has many."""
    lines = content.decode().splitlines()
    number = int(rng.integers(len(lines)))
    tree = {"": json.loads(lines[number])}
    for _ in range(rng.integers(1, 4)):
        places = list(nodes(tree))
        container, key = places[rng.integers(len(places))]
        action = rng.integers(4)
        if action == 0 and isinstance(container, dict) and key != "":
            del container[key]
        elif action == 1:
            container[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
        elif action == 2:
            other, other_key = places[rng.integers(len(places))]
            container[key] = copy.deepcopy(other[other_key])
        else:
            container[key] = [container[key]] * int(rng.integers(0, 5))
    lines[number] = json.dumps(tree[""])
    return "\n".join(lines).encode()


def flip(content, rng):
    out = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        out[rng.integers(len(out))] = rng.integers(256)
    return bytes(out)


def cut(content, rng):
    first, second = sorted(int(v) for v in rng.integers(0, len(content) + 1, 2))
    return content[:second] if rng.integers(2) else content[:first] + content[second:]


def repeat(content, rng):
    first, second = sorted(int(v) for v in rng.integers(0, len(content) + 1, 2))
    return content[:second] + content[first:second] * int(rng.integers(1, 9)) + content[second:]


def insert(content, rng):
    place = int(rng.integers(len(content) + 1))
    return content[:place] + WORDS[rng.integers(len(WORDS))] + content[place:]


def nest(content, rng):
    place = int(rng.integers(len(content) + 1))
    opening = [b"[", b"{", b'{"a":', b"<a>", b"- ", b"? ", b"(", b"!"][rng.integers(8)]
    return content[:place] + opening * int(rng.choice([3, 200, 5000, 100_000])) + content[place:]


def replace_number(content, rng):
    words = content.split(b" ")
    values = [b"nan", b"-1", b"1e400", b"", b"0", b"99999999999999999999", b"1_0", b"\xd9\xa3"]
    words[rng.integers(len(words))] = values[rng.integers(len(values))]
    return b" ".join(words)


def swap_elements(content, rng):
    """Other texts, and elements gone, twice or elsewhere, in a file that stays well-formed XML."""
    root = ElementTree.fromstring(content)
    for _ in range(rng.integers(1, 4)):
        elements = list(root.iter())
        element = elements[rng.integers(len(elements))]
        action = rng.integers(4)
        if action == 0:
            element.clear()
        elif action == 1:
            element.text = TEXTS[rng.integers(len(TEXTS))]
        elif action == 2:
            element.append(copy.deepcopy(elements[rng.integers(len(elements))]))
        else:
            element.tag = elements[rng.integers(len(elements))].tag
    return ElementTree.tostring(root)


def mutated(file, content, rng):
    """The content after one to three mutations."""
    if file.endswith((".json", ".jsonl")) and rng.integers(2):
        return swap_values(content, rng)
    if file.endswith(".xml") and rng.integers(2):
        return swap_elements(content, rng)
    for _ in range(rng.integers(1, 4)):
        mutations = [flip, cut, repeat, insert, replace_number]
        if rng.integers(20) == 0:
            mutations = [nest]
        content = mutations[rng.integers(len(mutations))](content, rng) or b" "
    return content


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_broken_annotation_files_are_an_error_or_a_dataset(tmp_path, name):
    def too_slow(*_):
        raise TooSlow(f"longer than {TIME_LIMIT_S} s")

    cfg = write_format(tmp_path, name)
    intact = {file: (tmp_path / file).read_bytes() for file in FILES[name]}
    outcomes = {"dataset": 0, "refused": 0}
    longest, before = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, too_slow)
    try:
        for case in range(CASES):
            rng = np.random.default_rng([SEED, case])
            file = FILES[name][case % 2]
            (tmp_path / file).write_bytes(mutated(file, intact[file], rng))
            start = time.perf_counter()
            signal.alarm(TIME_LIMIT_S)
            try:
                findings = Findings()
                read_data(cfg, 0, findings)
                outcomes["dataset"] += 1
                check_findings(findings, strict=True, max_bad_images=0)
            except UserError as error:
                str(error).encode()  # it can be printed
                outcomes["refused"] += 1
            except Exception as error:
                raise AssertionError(f"{name}, case {case}, {file}") from error
            finally:
                signal.alarm(0)
                longest = max(longest, time.perf_counter() - start)
            (tmp_path / file).write_bytes(intact[file])
    finally:
        signal.signal(signal.SIGALRM, handler)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{name}: {outcomes}, longest {longest:.2f} s, {grown / 1e6:.0f} MB more")
    assert grown < MEMORY_LIMIT_BYTES
    assert min(outcomes.values()) > CASES / 20
