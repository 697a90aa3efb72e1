"""Experiments on what goes wrong: weights that do not fit, kills, broken images, exports."""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from conformance.dataset import coco, with_masks
from conformance.launch import Bench, Job, Seen, call, resumed
from conformance.sameness import LOOKING, two
from conformance.verdicts import NotMeasured, Verdict, apart, column, finished, judged

STEPS = 6
"""Of runs that are interrupted, with a checkpoint after each second one; an epoch is five steps and a quarter"""
EPOCH = 6
"""Steps of an epoch where a checkpoint is written at its end alone, and such runs take three of them"""
KINDS: tuple[dict[str, bool], ...] = ({}, {"augment": True, "dropout": True})
"""Of resumed runs"""
KILLS = 3
"""Moments of saving at which a run is killed"""


def weights(bench: Bench) -> Verdict:
    """A checkpoint that misses a convolution of its backbone, and one with a matrix of its head misnamed."""
    told, refused = [], True
    finished(bench.run(bench.job())[1], 3)  # whole, it is trained on
    for how in ("missing", "misnamed"):
        made = bench.adapter.damaged(bench.model(), bench.folder / f"model {how}", how)
        if made is None:
            return Verdict("not offered", "no checkpoint of the user's own can be given")
        model, name = made
        _, seen = bench.run(bench.job(model=model))
        trained = bool(seen.steps)
        named = name in seen.output
        word = "names it" if named else "does not name it"
        what = "backbone's tensor" if how == "missing" else "head's tensor"
        told.append(f"{what} {how}: {'trains' if trained else 'refused'}, {word}")
        refused &= not trained and named
    return judged(refused, "; ".join(told))


@dataclass(frozen=True)
class Course:
    """A run of which the second checkpoint is the one before the last."""

    job: Job
    saves: int
    """Steps from one checkpoint to the next"""

    @property
    def steps(self) -> int:
        return 3 * self.saves

    def whole(self, bench: Bench) -> Seen:
        return finished(bench.run(self.job, saving_after=2 * self.saves)[1], self.steps)

    def interrupted(self, bench: Bench, name: str) -> Path:
        """The run's folder, killed two steps after its first checkpoint."""
        out, seen = bench.run(self.job, kill_at_step=self.saves + 2)
        if seen.status != -signal.SIGKILL:
            raise NotMeasured(f"the run did not come to step {self.saves + 2}: {seen.says()}")
        return bench.copied(out, name)

    def begun(self, seen: Seen) -> int:
        """The step after which a resumed run has begun."""
        return self.steps - len(seen.steps)


def course(bench: Bench, **keys: bool) -> Course:
    if bench.adapter.saves_steps:
        return Course(bench.job(steps=STEPS, checkpoint_every=2, **keys), 2)
    return Course(bench.job(steps=None, epochs=3, **keys), EPOCH)


def resume(bench: Bench) -> Verdict:
    """Killed in the middle of an epoch and started again: the steps after it against an undisturbed run's.

    Bit by bit: loss, images and weights of each step. Without augmentation and dropout, and with both.
    """
    told, good = [], True
    for keys in KINDS:
        taken = course(bench, **keys)
        whole = taken.whole(bench)
        out = taken.interrupted(bench, f"resumed{len(keys)}")
        seen = bench.go_on(resumed(taken.job), out)
        begun = taken.begun(seen)
        words = [f"began after step {begun} of {taken.steps}"]
        if seen.status != 0:
            words.append(seen.says())
        same = seen.status == 0 and taken.saves <= begun < taken.saves + 2
        if same:
            for what in ("weights", "images"):
                equal = column(seen, what) == column(whole, what, begun)
                words.append(f"{what} {'equal' if equal else 'differ'}")
                same &= equal
            loss = apart(column(seen, "loss"), column(whole, "loss", begun))
            words.append(f"loss {loss:.1e} apart")
        told.append(f"{'with augmentation and dropout' if keys else 'plain'}: {', '.join(words)}")
        good &= same
    if not bench.adapter.saves_steps:
        return Verdict(
            "not offered", f"checkpoints at epochs' ends alone; from there {'; '.join(told)}"
        )
    return judged(good, "; ".join(told))


def resume_elsewhere(bench: Bench) -> Verdict:
    """Killed on one process and started again on two with the same batch: against an undisturbed run."""
    two(bench)  # without a resume, they can train
    taken = course(bench)
    whole = taken.whole(bench)
    out = taken.interrupted(bench, "elsewhere")
    seen = bench.go_on(resumed(taken.job, processes=2, micro_batch=2), out)
    begun = taken.begun(seen)
    if not taken.saves <= begun < taken.saves + 2:
        return judged(False, f"began after step {begun} of {taken.steps}: {seen.says()}")
    images = column(seen, "images") == column(whole, "images", begun)
    loss = apart(column(seen, "loss"), column(whole, "loss", begun))
    figure = f"images {'equal' if images else 'differ'}, loss {loss:.1e} apart"
    return judged(images and loss < 1e-3, figure)


def killed_saving(bench: Bench) -> Verdict:
    """Killed while the second checkpoint is written, beside an intact first one, and started again."""
    taken = course(bench)
    moments = taken.whole(bench).moments
    if not moments:
        raise NotMeasured("no moment of saving was seen")
    told, good = [], 0
    for moment in chosen(moments):
        out = bench.folder / f"killed at {moment['number']}"
        asks = {"saving_after": 2 * taken.saves, "kill_at_moment": moment["number"]}
        seen = bench.go_on(taken.job, out, **asks)
        if seen.status != -signal.SIGKILL:
            raise NotMeasured(f"moment {moment['number']} did not come again")
        again = bench.go_on(resumed(taken.job), out)
        begun = taken.begun(again)
        if again.status == 0 and taken.saves <= begun < 2 * taken.saves + 2:
            good += 1
        else:
            what = f"{moment['what']} {Path(moment['place']).name}"
            told.append(
                f"{what}: {f'began after step {begun}' if again.status == 0 else again.says()}"
            )
        shutil.rmtree(out)
    figure = f"{good} of {len(chosen(moments))} kills (of {len(moments)} moments) survived"
    return judged(not told, "; ".join([figure, *told]))


def chosen(moments: list[dict]) -> list[dict]:
    """The first and the last file half written, and the last moment of all."""
    halves = [moment for moment in moments if "half" in moment["what"]]
    picked = [*halves[:1], *halves[-1:], *moments[-1:], *moments[:1]]
    by_number = {moment["number"]: moment for moment in picked}
    return list(by_number.values())[:KILLS]


def broken_image(bench: Bench) -> Verdict:
    """One of the training images was cut in its middle, and all are trained on."""
    _, seen = bench.run(bench.job(dataset=bench.dataset(broken=True), steps=STEPS))
    named = "train006" in seen.output
    steps = len(seen.steps)
    word = "named" if named else "not named"
    if seen.status == 0:
        return judged(named, f"trained to the end, {word}")
    figure = f"ended after {steps} steps, {word}: {seen.says()}"
    return judged(named and steps == 0, figure)


def export(bench: Bench) -> Verdict:
    """The last AP in the log, and the AP by pycocotools of what was exported, loaded as documented."""
    job = bench.job(**LOOKING)
    out, seen = bench.run(job)
    finished(seen)
    logged = bench.adapter.logged_ap(out)
    if logged is None:
        return Verdict("not offered", "no AP is logged")
    boxes = bench.folder / "boxes.json"
    boxes.unlink(missing_ok=True)
    again = [bench.adapter.python, *bench.adapter.reload(out), str(job.dataset), str(boxes)]
    status, output = call(again, bench.environment(), bench.folder)
    if status != 0:
        return judged(False, f"it cannot be loaded: {Seen(status, output).says()}")
    ap = average_precision(job.dataset, json.loads(boxes.read_text()))
    told = f"AP {logged:.4f} logged, {ap:.4f} of the export"
    if max(logged, ap) == 0:
        raise NotMeasured(f"{told}: this model finds nothing")
    return judged(abs(logged - ap) < 1e-3, told)


def average_precision(dataset: Path, boxes: list[dict]) -> float:
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        kind = "segm" if boxes and "segmentation" in boxes[0] else "bbox"
        content = coco(dataset, "val")
        truth.dataset = with_masks(content) if kind == "segm" else content
        truth.createIndex()
        scoring = COCOeval(truth, truth.loadRes(boxes), kind)
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return float(scoring.stats[0])
