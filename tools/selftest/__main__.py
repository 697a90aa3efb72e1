"""Does what the project promises hold on this machine? Two minutes, with a tiny model and synthetic scenes.

python -m tools.selftest                      one process
accelerate launch -m tools.selftest           all GPUs of this machine
torchrun --nproc_per_node 2 -m tools.selftest two processes on a CPU
sbatch slurm/selftest.sbatch                  nodes of a cluster

Each line says what holds, what does not (by how much, what it means, what to set), and what cannot be told here. The
exit status is 0 if nothing was found broken, otherwise 1. Whoever reports a problem pastes the output.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, ending_with_one_line


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for.

    Raises:
        UserError: for a file that cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.selftest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", metavar="FILE", help="write the report there as well")
    parser.add_argument(
        "--quick", action="store_true", help="without whole runs in child processes"
    )
    args = parser.parse_args(argv)
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UserError(f"--json {args.json}: there is no such folder")
    if args.json and Path(args.json).is_dir():
        raise UserError(f"--json {args.json}: is a folder; give a file")
    return args


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = arguments(sys.argv[1:])

import gc
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

from disk import write_whole
from run.build import start_processes
from run.together import on_main, told_by_main
from tools.selftest import lives
from tools.selftest.machine import all_reduce, data_workers, machine
from tools.selftest.report import Line, Report, Verdict
from tools.selftest.snapshot import snapshot_under_load
from tools.selftest.steps import BOUNDS, IN_ALL_PRECISIONS, benches, configured, exactness

Found = Callable[[], Sequence[Line]]


class SelfTest:
    """Asks all questions, one after the other, and says each answer as soon as it is there."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.lines: list[Line] = []
        self._begun = time.perf_counter()

    def ask(self, name: str, question: Found) -> None:
        """Collective: called on every rank. One or more lines by all processes.

        Raises:
            UserError: if it fails on one of several processes: the others may wait for what never comes.
        """
        try:
            lines = question()
        except Exception as error:  # that it fails is an answer; the other questions remain
            lines = [_failed(name, error)]
            if self.accelerator.num_processes > 1:
                raise UserError(f"process {self.accelerator.process_index}: {lines[0]}") from error
        self._say(lines)

    def ask_main(self, name: str, question: Found) -> None:
        """Collective: called on every rank. Lines by the main process, for which the others wait."""

        def answer() -> None:
            try:
                self._say(question())
            except Exception as error:  # as above
                self._say([_failed(name, error)])

        on_main(self.accelerator, answer)

    def report(self, facts: dict) -> Report:
        """What was found."""
        return Report(facts, self.lines, round(time.perf_counter() - self._begun, 1))

    def _say(self, lines: Sequence[Line]) -> None:
        self.lines += lines
        if self.accelerator.is_main_process:
            print("\n".join(map(str, lines)), flush=True)


def _failed(name: str, error: Exception) -> Line:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return Line(
        name, Verdict.BROKEN, f"{type(error).__name__}: {text}", "report this, with this output"
    )


def main(argv: Sequence[str]) -> int:
    """Test what a command line asks for; see `run_all`."""
    return run_all(arguments(argv))


def run_all(args: argparse.Namespace) -> int:
    """Collective: called on every rank. The whole self-test; its exit status."""
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # children and folders are left by nobody
    accelerator = start_processes(configured(IN_ALL_PRECISIONS[0], world=1))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    test = SelfTest(accelerator)
    facts = machine(accelerator)
    if accelerator.is_main_process:
        for name, value in facts.items():
            print(f"     {name:<22} {value}", flush=True)
    world, device = accelerator.num_processes, accelerator.device
    test.ask("all-reduce", partial(all_reduce, accelerator))
    for precision in BOUNDS:
        test.ask(f"step, {precision}", partial(exactness, precision, world, device))
    with tempfile.TemporaryDirectory(prefix="selftest-") as name:
        folder = Path(name)
        on_one_head(test, folder, world)
        if not args.quick:
            test.ask_main("whole runs", partial(whole_runs, folder, device))
    report = test.report(facts)
    if accelerator.is_main_process:
        print(f"\n{report.summary()}")
        if args.json:
            write_whole(Path(args.json), report.json())
    status = told_by_main(accelerator, lambda: 0 if report.holds else 1)
    gc.collect()  # torch can hang for ever where DDP outlives its process group
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return status


def on_one_head(test: SelfTest, folder: Path, world: int) -> None:
    """Collective: called on every rank. What is asked of one detector, which is gone afterwards."""
    for _, bench in benches("no", IN_ALL_PRECISIONS[:1], world):
        test.ask_main("data workers", partial(data_workers, bench))
        test.ask_main("snapshot under load", partial(snapshot_under_load, bench, folder))


def whole_runs(folder: Path, device: torch.device) -> list[Line]:
    """What child processes show, in runs of their own."""
    whole, recipe = folder / "whole", lives.recipe(device)
    output = lives.undisturbed(whole, *recipe)
    return [
        lives.kill_and_resume(folder / "killed", whole, *recipe),
        lives.export_as_logged(whole),
        *lives.where_time_goes(output),
    ]


if __name__ == "__main__":
    with ending_with_one_line():
        sys.exit(run_all(GIVEN))
