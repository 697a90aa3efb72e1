"""Panoptic quality against segments that are compared one by one, as sets of pixels."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from data.masks import encode, mask_column
from data.objects import Objects
from data.record import Record
from data.schema import Split
from data.taxonomy import Taxonomy, with_background, with_stuff
from evaluation.panoptic import panoptic_metrics
from evaluation.predictions import NOTHING, Predictions

FOUR = Taxonomy(("person", "car", "sky", "road"), (0, 1, 2, 3), stuff=(2, 3))
PERSON, CAR, SKY, ROAD = range(4)
SIZE = (16, 20)


@dataclass(frozen=True)
class Picture:
    """A number for every pixel, 0 where there is nothing, and the class of every number."""

    numbers: np.ndarray
    classes: dict[int, int]
    crowds: frozenset[int] = field(default=frozenset())

    def each(self):
        """Pixels of every number, as sets."""
        pixels = {number: set() for number in [0, *self.classes]}
        for place, number in enumerate(self.numbers.ravel().tolist()):
            pixels[number].add(place)
        return pixels

    def objects(self):
        """As a table with masks; stuff may be several objects."""
        planes = [self.numbers == number for number in self.classes]
        return Objects(
            np.zeros((len(planes), 4)),
            np.array(list(self.classes.values()), dtype=np.int64),
            areas=np.array([float(plane.sum()) for plane in planes]),
            iscrowd=np.array([number in self.crowds for number in self.classes], dtype=bool),
            masks=mask_column([encode(plane) for plane in planes]),
        )


def tidy(numbers, classes, crowds=()):
    """A picture of the numbers that are there, with one segment for each class of stuff."""
    numbers, first = numbers.copy(), {}
    for number in np.unique(numbers[numbers > 0]).tolist():
        kind = classes[number]
        if kind in FOUR.stuff:
            numbers[numbers == number] = first.setdefault(kind, number)
    there = np.unique(numbers[numbers > 0]).tolist()
    return Picture(numbers, {n: classes[n] for n in there}, frozenset(crowds) & {*there})


def random_pair(seed, with_crowds):
    """A true picture, and one that is found: moved, with other classes, and with further segments."""
    rng = np.random.default_rng(seed)
    numbers = np.zeros(SIZE, int)
    for _ in range(14):
        y, x, height, width = rng.integers([-3, -3, 2, 2], [14, 18, 12, 14])
        numbers[max(y, 0) : y + height, max(x, 0) : x + width] = rng.integers(0, 8)
    classes = {number: int(rng.integers(0, 4)) for number in range(1, 12)}
    crowds = {}
    for number in range(1, 8):
        if with_crowds and classes[number] not in FOUR.stuff and rng.random() < 0.5:
            crowds.setdefault(classes[number], number)  # one of a class at most, as in COCO
    guess = np.roll(numbers, rng.integers(-2, 3, 2), axis=(0, 1))
    for number in range(8, 11):
        y, x = rng.integers(0, 14, 2)
        guess[y : y + rng.integers(1, 7), x : x + rng.integers(1, 7)] = number
    guess[guess == rng.integers(0, 12)] = 0
    others = {n: int(rng.integers(0, 4)) if rng.random() < 0.2 else c for n, c in classes.items()}
    return tidy(numbers, classes, crowds.values()), tidy(guess, others)


def counted(truth, guess):
    """{class: [sum of IoU, same, extra, missed]} as the paper says it, segment by segment."""
    counts = {kind: [0.0, 0, 0, 0] for kind in range(4)}
    true, found = truth.each(), guess.each()
    unknown = true[0]
    single = {n: kind for n, kind in truth.classes.items() if n not in truth.crowds}
    pairs = {}
    for n, kind in single.items():
        for m, other in guess.classes.items():
            iou = len(true[n] & found[m]) / len(true[n] | (found[m] - unknown))
            if kind == other and iou > 0.5:
                pairs[n] = m
                counts[kind][0] += iou
                counts[kind][1] += 1
    for n, kind in single.items():
        counts[kind][3] += n not in pairs
    for m, kind in guess.classes.items():
        own = [true[n] for n in truth.crowds if truth.classes[n] == kind]
        excused = found[m] & unknown.union(*own)
        counts[kind][2] += m not in pairs.values() and len(excused) * 2 <= len(found[m])
    return counts


def split_of(truths, unreadable=()):
    records = [
        Record(i, f"{i}.jpg", *t.numbers.shape[::-1], t.objects(), unreadable=i in unreadable)
        for i, t in enumerate(truths)
    ]
    return Split(records, [], {}, dense=True)


def measured(truths, guesses, taxonomy=FOUR, missing=()):
    found = Objects.of_images([guess.objects() for guess in guesses])
    predictions = Predictions(found, np.array(missing, dtype=np.int64))
    return panoptic_metrics(split_of(truths, missing), predictions, taxonomy)


def quality(counts):
    """(PQ, SQ, RQ) of summed counts; None where there is nothing to measure."""
    shared, same, extra, missed = counts
    total = same + extra / 2 + missed / 2
    return None if not total else (shared / total, shared / same if same else 0.0, same / total)


def mean(values):
    known = [value for value in values if value is not None]
    return pytest.approx(np.mean(known)) if known else None


@pytest.mark.parametrize("with_crowds", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_metrics_are_those_of_segments_compared_one_by_one(seed, with_crowds):
    pairs = [random_pair(100 * seed + image, with_crowds) for image in range(4)]
    truths, guesses = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    missing = [3] if seed % 2 else []
    for place in missing:
        guesses[place] = Picture(np.zeros(SIZE, int), {})
    each = [counted(truth, guess) for truth, guess in zip(truths, guesses, strict=True)]
    sums = [np.sum([own[kind] for own in each], axis=0) for kind in range(4)]
    metrics = measured(truths, guesses, missing=missing)
    expected = [quality(own) for own in sums]
    for place, name in enumerate(("PQ", "SQ", "RQ")):
        assert metrics[name] == mean([own and own[place] for own in expected])
    assert metrics["PQ_things"] == mean([own and own[0] for own in expected[:2]])
    assert metrics["PQ_stuff"] == mean([own and own[0] for own in expected[2:]])
    assert metrics["missing_images"] == len(missing)
    for kind, name in enumerate(FOUR.names):
        own = metrics["per_class"][name]
        assert own["segments"] == sums[kind][1] + sums[kind][3]
        found = tuple(own[n] for n in ("PQ", "SQ", "RQ"))
        assert found == ((None,) * 3 if expected[kind] is None else pytest.approx(expected[kind]))


LETTERS = {"p": PERSON, "q": PERSON, "c": CAR, "s": SKY, "t": SKY, "r": ROAD}
"""Segments by their classes; capitals are crowds, and a point is nothing"""


def row(text):
    """A picture of one row, a letter for each pixel."""
    numbers = np.array([[0 if letter == "." else ord(letter) for letter in text]])
    there = sorted(set(text) - {"."})
    classes = {ord(letter): LETTERS[letter.lower()] for letter in there}
    return Picture(numbers, classes, frozenset(ord(n) for n in there if n.isupper()))


BY_HAND = {
    "into a crowd of its class": ("ppppPPPPss", "ppppppppss", {PERSON: 0, SKY: 1}),
    "into another crowd": ("ppppCC..ss", "ppppppppss", {PERSON: 4 / 6, SKY: 1}),
    "perfect": ("ppqqccssrr", "ppqqccssrr", {PERSON: 1, CAR: 1, SKY: 1, ROAD: 1}),
    "shifted": ("ppppssssss", "sppppsssss", {PERSON: 3 / 5, SKY: 5 / 7}),
    "shifted by half": ("ppppssssss", "ssppppssss", {PERSON: 0, SKY: 0}),
    "a pixel less": ("ppppssssss", "ppp.ssssss", {PERSON: 3 / 4, SKY: 1}),
    "classes swapped": ("pppppccccc", "cccccppppp", {PERSON: 0, CAR: 0}),
    "one more": ("ppppssssss", "ppppssssqq", {PERSON: 1 / 1.5, SKY: 4 / 6}),
    "one missed": ("ppppqqqqss", "pppp....ss", {PERSON: 1 / 1.5, SKY: 1}),
    "two in one": ("ppppqqqqss", "ppppppppss", {PERSON: 0, SKY: 1}),
    "one in two": ("ppppppppss", "pppppqqqss", {PERSON: 5 / 8 / 1.5, SKY: 1}),
    "numbers swapped": ("ppppqqqqss", "qqqqppppss", {PERSON: 1, SKY: 1}),
    "stuff in two parts": ("sspppprrtt", "ttpppprrss", {PERSON: 1, SKY: 1, ROAD: 1}),
    "nothing found": ("ppppss....", "..........", {PERSON: 0, SKY: 0}),
    "nothing known": ("..........", "ppppccssrr", {}),
    "one on unknown pixels": ("pppp......", "ppppqqqqcc", {PERSON: 1}),
    "one half on unknown pixels": ("ppppss....", "ppppqqqq..", {PERSON: 1 / 1.5, SKY: 0}),
    "one that goes on into unknown pixels": ("ppp.......", "pppppppp..", {PERSON: 1}),
    "on a crowd of its class": ("ppppPPPPss", "ppppqqqqss", {PERSON: 1, SKY: 1}),
    "on a crowd and unknown pixels": ("ppppPP..ss", "ppppqqqqss", {PERSON: 1, SKY: 1}),
    "half on a crowd": ("ppppPPssss", "ppppqqqqss", {PERSON: 1 / 1.5, SKY: 0}),
    "on a crowd of another class": ("ppppCCCCss", "ppppqqqqss", {PERSON: 1 / 1.5, SKY: 1}),
    "on another crowd and unknown pixels": ("ppppCC..ss", "ppppqqqqss", {PERSON: 1 / 1.5, SKY: 1}),
    "crowd that is not found": ("ppppPPPPss", "pppp....ss", {PERSON: 1, SKY: 1}),
    "crowd alone": ("CCCCCCCCss", "........ss", {SKY: 1}),
}
"""Truth, prediction, PQ of the classes that are there or were found"""


@pytest.mark.parametrize("case", BY_HAND)
def test_quality_by_hand(case):
    truth, guess, expected = BY_HAND[case]
    metrics = measured([row(truth)], [row(guess)])
    found = [metrics["per_class"][name]["PQ"] for name in FOUR.names]
    assert found == [pytest.approx(expected[c]) if c in expected else None for c in range(4)]
    things, stuff = ([v for c, v in expected.items() if (c in FOUR.stuff) == s] for s in (0, 1))
    assert metrics["PQ"] == mean(expected.values())
    assert (metrics["PQ_things"], metrics["PQ_stuff"]) == (mean(things), mean(stuff))


@pytest.mark.parametrize("case", BY_HAND)
def test_what_is_compared_with_above_agrees_with_what_was_counted_by_hand(case):
    truth, guess, expected = BY_HAND[case]
    counts = counted(joined(row(truth)), joined(row(guess)))
    found = {c: quality(own)[0] for c, own in counts.items() if quality(own)}
    assert found == pytest.approx(expected)


def joined(picture):
    return tidy(picture.numbers, picture.classes, picture.crowds)


def test_the_same_over_many_images_is_counted_before_it_is_divided():
    """Two persons found of three, with IoU 1 and 3/4, and one that is none: not a mean of images."""
    truths = [row("ppppss"), row("ppppqq")]
    metrics = measured(truths, [row("ppppqs"), row("ppp...")])
    assert metrics["per_class"]["person"] == {
        "PQ": pytest.approx((1 + 3 / 4) / (2 + 1 / 2 + 1 / 2)),
        "SQ": pytest.approx((1 + 3 / 4) / 2),
        "RQ": pytest.approx(2 / 3),
        "segments": 3,
    }
    assert metrics["per_class"]["car"] == {"PQ": None, "SQ": None, "RQ": None, "segments": 0}


def test_image_that_could_not_be_read_counts_as_missed():
    truth = row("ppppss")
    metrics = measured([truth, truth], [truth, row("......")], missing=[1])
    assert metrics["missing_images"] == 1
    assert metrics["PQ"] == metrics["RQ"] == pytest.approx(1 / 1.5)
    assert metrics["SQ"] == 1


def test_missing_image_of_unknown_size_takes_no_part():
    truth = row("ppppss")
    metrics = measured([truth, row("p")], [truth, row(".")], missing=[1])
    assert metrics["PQ"] == 1
    assert metrics["per_class"]["person"]["segments"] == 1


def test_split_on_which_nothing_is_predicted():
    metrics = panoptic_metrics(split_of([row("ppppss")] * 2), Predictions(NOTHING), FOUR)
    assert metrics["PQ"] == metrics["SQ"] == metrics["RQ"] == 0
    assert metrics["per_class"]["sky"]["segments"] == 2


BACKGROUND = {"bbppbb": (1, 1), "bbbpbb": (0, 4 / 5), "bbpp..": (1, 0)}
"""PQ of person and background: b is background, as p is in the middle of the truth"""


@pytest.mark.parametrize("guess", BACKGROUND)
def test_background_is_one_segment_where_nothing_is_annotated(guess):
    taxonomy = with_stuff(with_background(Taxonomy(("person",), (0,)), "rest"), (), ())
    assert taxonomy.stuff == (taxonomy.background,) == (0,)
    found = Picture(np.array([[".bp".index(letter) for letter in guess]]), {1: 0, 2: 1})
    truth = Picture(np.array([[0, 0, 1, 1, 0, 0]]), {1: 1})
    metrics = measured([truth], [found], taxonomy)
    assert (metrics["PQ_things"], metrics["PQ_stuff"]) == pytest.approx(BACKGROUND[guess])


def test_background_goes_around_crowds():
    taxonomy = with_stuff(with_background(Taxonomy(("person",), (0,)), "rest"), (), ())
    truth = Picture(np.array([[0, 0, 1, 1, 2, 2]]), {1: 1, 2: 1}, frozenset([2]))
    found = Picture(np.array([[1, 1, 2, 2, 3, 3]]), {1: 0, 2: 1, 3: 1})
    assert measured([truth], [found], taxonomy)["PQ"] == 1
