"""Where the time of a step goes (`run.profile`): some steps measured part by part, and a trace of one more.

Outside of these steps nothing is wrapped and nothing measured.
"""

import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from data.batch import Batch
from devices import wait_for
from disk import write_whole
from errors import UserError
from report import step_times
from report.step_times import Seconds, Setting, advice, table
from run.build import Run
from run.feature_cache import refuse_lookers
from settings.keys import PROFILE_WARM_UP
from training.meter import StepMeter

FOLDER = "profile"


@dataclass
class Span:
    """Once that a part of a step was run."""

    part: str
    start: Any
    outer: "Span | None"
    end: Any = None


class Clock:
    """Marks on a device's time line: events on CUDA, where work waits in a queue, the wall clock elsewhere."""

    def __init__(self, device: torch.device):
        self.device = device
        self.kind = "events on the GPU's time line" if device.type == "cuda" else "wall clock"

    def mark(self) -> Any:
        """Now, on the time line."""
        if self.device.type != "cuda":
            wait_for(self.device)
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        """Until all marks are reached."""
        wait_for(self.device)

    def seconds(self, start: Any, end: Any) -> float:
        """Between two marks that are reached."""
        if self.device.type != "cuda":
            return float(end - start)
        return float(start.elapsed_time(end)) / 1000


class StepProfile:
    """Measures steps of `train`; does nothing without `run.profile`."""

    def __init__(self, run: Run, meter: StepMeter):
        """
        Args:
            meter: by which the loop takes its batches.
        """
        self.run = run
        self.meter = meter
        self.clock = Clock(run.accelerator.device)
        self._wanted = run.cfg.run.profile or 0
        self._done = 0
        """Steps since the start, warm-up among them"""
        self._steps: list[Seconds] = []
        self._spans: list[Span] = []
        self._inner: list[Span] = []
        self._wrapped = contextlib.ExitStack()
        self._trace: Any = None
        left = run.num_steps - run.state.step
        if self._wanted and left <= PROFILE_WARM_UP + self._wanted:
            run.log.say(
                f"note: run.profile {self._wanted}: only {left} step(s) are left, none is measured"
            )
            self._wanted = 0

    def begin(self) -> None:
        """A step begins."""
        if not self._wanted or self._done < PROFILE_WARM_UP:
            return
        self._wrapped.close()  # of a step that was skipped
        self._spans, self._inner = [], []
        self._wrapped = contextlib.ExitStack()
        for owner, name, value in self._replacements():
            self._wrapped.enter_context(replaced(owner, name, value))
        if self._trace is not None:
            self._trace.stop()
        if self._done == PROFILE_WARM_UP + self._wanted and self.run.accelerator.is_main_process:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells the console of each start
            self._trace = torch.profiler.profile()
            self._trace.start()
        self._start = self.clock.mark()

    def end(self) -> None:
        """Collective: called on every rank. The step that was begun is done."""
        if not self._wanted:
            return
        self._done += 1
        if self._done <= PROFILE_WARM_UP:
            return
        end = self.clock.mark()
        self.clock.wait()
        self._wrapped.close()
        measured = self._done - PROFILE_WARM_UP
        if measured <= self._wanted:
            self._steps.append(parts(self.clock, self._start, end, self._spans))
        if measured == self._wanted:
            self._tell(gather_object([medians(self._steps)]))
        if measured > self._wanted:
            self._wanted = 0
            self._write_trace()
        if measured >= self._wanted:
            self.meter.restart()

    def _replacements(self) -> Iterator[tuple[Any, str, Any]]:
        """(owner, name, what stands there during a step) of every part."""
        run, trainable = self.run, self.run.detector.trainable
        yield self.meter, "next_step", self._loading(self.meter.next_step)
        yield trainable, "criterion", TimedCriterion(self._timed, trainable.criterion)
        calls: list[tuple[str, Any, str]] = [
            (step_times.AGREE, run.accelerator, "gather"),
            (step_times.BACKBONE, run.detector.backbone_module, "forward"),
            (step_times.HEAD, trainable, "forward"),
            (step_times.BACKWARD, run.accelerator, "backward"),
            (step_times.OPTIMIZER, run.accelerator, "clip_grad_norm_"),
            (step_times.OPTIMIZER, run.optimizer, "step"),
            (step_times.OPTIMIZER, run.optimizer, "zero_grad"),
            (step_times.OPTIMIZER, run.ema, "update"),
        ]
        encoder = encoder_of(run.detector.model, run.detector.backbone_module)
        if encoder is not None:
            calls.append((step_times.ENCODER, encoder, "forward"))
        for part, owner, name in calls:
            yield owner, name, self._timed(part, getattr(owner, name))

    def _loading(self, load: Callable[..., list[Batch]]) -> Callable[..., list[Batch]]:
        """As `load`; the batches that it gives measure their way to the device."""
        timed = self._timed(step_times.WAIT, load)

        def loaded(*args: Any) -> list[Batch]:
            batches = timed(*args)
            for batch in batches:
                setattr(batch, "to", self._timed(step_times.COPY, batch.to))  # noqa: B010
            return batches

        return loaded

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def measured(*args: Any, **kwargs: Any) -> Any:
            span = Span(part, self.clock.mark(), self._inner[-1] if self._inner else None)
            self._spans.append(span)
            self._inner.append(span)
            try:
                with torch.profiler.record_function(part):
                    return call(*args, **kwargs)
            finally:
                self._inner.pop()
                span.end = self.clock.mark()

        return measured

    def _tell(self, ranks: Sequence[Seconds]) -> None:
        """Write the table, and say it. On the main rank alone."""
        run = self.run
        if not run.accelerator.is_main_process:
            return
        setting = Setting(
            run.cfg,
            functools.cache(lambda: can_store(run)),
            run.detector.strides,
            int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )
        told = advice(ranks, setting)
        batch = f"{run.cfg.train.global_batch_size} images on {len(ranks)} process(es)"
        lines = [
            f"profile     medians of {len(self._steps)} steps up to {run.state.step}, {batch}; {self.clock.kind}",
            *table(ranks),
            *([f"advice: {told}"] if told else []),
        ]
        for line in lines:
            run.log.say(line)
        self._write("summary.txt", lambda file: write_whole(file, "\n".join([*lines, ""])))

    def _write_trace(self) -> None:
        if self._trace is None:
            return
        self._trace.stop()
        self._write("trace.json.gz", lambda file: self._trace.export_chrome_trace(str(file)))
        self._trace = None
        where = self.run.folder / FOLDER / "trace.json.gz"
        self.run.log.say(f"profile     {where}: step {self.run.state.step}, for ui.perfetto.dev")

    def _write(self, name: str, write: Callable[[Any], None]) -> None:
        """Write a file of the profile; without it training goes on."""
        try:
            (self.run.folder / FOLDER).mkdir(exist_ok=True)
            write(self.run.folder / FOLDER / name)
        except OSError as error:
            self.run.log.say(f"warning: {FOLDER}/{name} could not be written: {error}")


class TimedCriterion:
    """A criterion whose calls are measured."""

    def __init__(self, timed: Callable[..., Callable[..., Any]], criterion: Any):
        self.counts = criterion.counts
        self._call = timed(step_times.LOSS, criterion.__call__)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside the block, `owner` has this attribute of its own."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def parts(clock: Clock, start: Any, end: Any, spans: Sequence[Span]) -> Seconds:
    """Seconds of each part without the parts inside of it, but the head's with its encoder."""
    found = dict.fromkeys((step_times.WAIT, step_times.AGREE, step_times.OPTIMIZER), 0.0)
    for span in spans:
        seconds = clock.seconds(span.start, span.end)
        found[span.part] = found.get(span.part, 0.0) + seconds
        if span.outer is not None and span.part != step_times.ENCODER:
            found[span.outer.part] -= seconds
    found[step_times.STEP] = clock.seconds(start, end)
    inside = sum(
        s for part, s in found.items() if part not in (step_times.STEP, step_times.ENCODER)
    )
    return {**found, step_times.REST: found[step_times.STEP] - inside}


def medians(steps: Sequence[Seconds]) -> Seconds:
    """Of each part over steps."""
    return {part: statistics.median(step[part] for step in steps) for part in steps[0]}


def encoder_of(model: nn.Module, backbone: nn.Module) -> nn.Module | None:
    """The head's encoder: the outermost module of that name, but those of the backbone."""
    inside = set(backbone.modules())
    named = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "encoder" and module not in inside
    ]
    return min(named, key=lambda each: each[:2])[2] if named else None


def can_store(run: Run) -> bool:
    """Whether data.cache_features would be allowed, and is not set."""
    if run.cfg.model.freeze != "all" or run.features is not None:
        return False
    trainable = run.detector.trainable
    was_training = trainable.training
    trainable.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            refuse_lookers(run.detector, run.accelerator.device)
    except UserError:
        return False
    finally:
        trainable.train(was_training)
    return True
