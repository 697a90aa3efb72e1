"""Verdicts of frameworks side by side, as Markdown."""

from conformance.verdicts import Verdict

MARKS = {"holds": "**holds**", "does not hold": "does not hold"}


def table(results: dict[str, dict[str, Verdict]], titles: dict[str, str]) -> str:
    """Rows are promises, columns are frameworks.

    Args:
        results: framework -> experiment -> verdict.
        titles: experiment -> the promise in words.
    """
    lines = [row(["Promise", *results]), row(["---"] * (len(results) + 1))]
    for name, title in titles.items():
        cells = [cell(verdicts.get(name)) for verdicts in results.values()]
        lines.append(row([f"{title} (`{name}`)", *cells]))
    return "\n".join(lines) + "\n"


def cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not measured"
    return f"{MARKS.get(verdict.state, verdict.state)}: {verdict.figure.replace('|', '/')}"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
