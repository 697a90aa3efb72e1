"""What differs between runs: in configuration, data and result.

`python -m tools.compare runs/a runs/b --html comparison.html`

The page has their curves over each other. Runs that still train, or that were stopped, are compared by what they have; a run
without any number yet is left out.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from disk import refuse_unwritable
from errors import UserError, ending_with_one_line, printable, refusing

MOST_RUNS = 8


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line asks for.

    Raises:
        UserError: for what cannot be.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the curves")
    args = parser.parse_args(argv)
    if len(args.runs) > MOST_RUNS:
        raise UserError(f"{len(args.runs)} runs: at most {MOST_RUNS} can be told from each other")
    if len({run.resolve() for run in args.runs}) < max(2, len(args.runs)):
        raise UserError("name two or more different run folders")
    refuse_unwritable("--html", args.html)
    return args


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = arguments(sys.argv[1:])

from report.comparison import comparison, write_comparison
from report.page import refuse_lost_page
from report.run_record import NoResultsError, RunRecord, read_run


def main(argv: Sequence[str]) -> None:
    """Compare what a command line asks for; see `compare`."""
    compare(arguments(argv))


def compare(args: argparse.Namespace) -> None:
    """Print what differs, and write the page if it is wanted.

    Raises:
        UserError: if a folder is no run's, none has results, or the page cannot be written.
    """
    if args.html:
        refuse_lost_page("--html", args.html)
    runs = list(_with_results(args.runs))
    damaged = f"{', '.join(str(run.folder) for run in runs)}: one of them has another content than a run writes"
    with refusing(damaged):
        lines = list(comparison(runs).lines())
    print("\n".join(lines))
    if args.html:
        with refusing(damaged):
            try:
                write_comparison(args.html, runs)
            except OSError as error:
                raise UserError(
                    f"--html {args.html}: cannot be written: {error.strerror}"
                ) from error
        print(f"\ncurves over each other: {args.html}")


def _with_results(folders: Sequence[Path]) -> Iterator[RunRecord]:
    """The runs; those without results are left out with a line.

    Raises:
        UserError: if a folder is no run's, or none has results.
    """
    missing: list[NoResultsError] = []
    for folder in folders:
        try:
            yield read_run(folder)
        except NoResultsError as error:
            missing.append(error)
            print(f"left out: {printable(str(error))}")
    if len(missing) == len(folders):
        raise UserError("none of these runs has results yet; wait for their first logged steps")
    if len(missing) == len(folders) - 1:
        print("one run alone has results; it is shown by itself")
    if missing:
        print()


if __name__ == "__main__":
    with ending_with_one_line():
        compare(GIVEN)
