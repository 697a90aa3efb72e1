"""Parts of a job that several processes share, which need not know of each other."""

import argparse


def share(text: str) -> tuple[int, int]:
    """The type of an argument K/N: the K-th of N parts, counted from 1.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    number, slash, jobs = text.partition("/")
    if not (slash and number.isdecimal() and jobs.isdecimal() and 1 <= int(number) <= int(jobs)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give for example 1/8")
    return int(number), int(jobs)
