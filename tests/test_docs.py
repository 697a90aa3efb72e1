"""What documents quote and link is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("slurm/*.md")]
WRITTEN = {"docs/benchmarks_last.md"}
"""By `make bench`"""


def test_messages_that_troubleshooting_explains_are_those_of_the_code():
    rooms = [
        f
        for f in ROOT.rglob("*.py")
        if not {".venv", "tests", "runs"} & {*f.relative_to(ROOT).parts}
    ]
    code = re.sub(r'"\s+f?"', "", " ".join(f.read_text() for f in rooms))
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    quoted = [words for row in rows for words in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 10
    assert [words for words in quoted if words not in code] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_links_of_documents_lead_somewhere(document):
    text = document.read_text()
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert anchor in {
                re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles
            }, target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_files_that_documents_name_are_there(document):
    """In code: configurations, scripts and documents of this repository."""
    named = re.findall(
        r"`((?:configs|docs|slurm|accelerate_configs|benchmarks|tests)/[\w/.-]+\.\w+)`",
        document.read_text(),
    )
    assert [name for name in {*named} - WRITTEN if not (ROOT / name).exists()] == []
