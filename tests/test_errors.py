import csv
import io

import pytest

from errors import csv_cell, markdown_text, printable, printable_lines, system_error

HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "a\nb\rc",
    "\ud800 alone",
    '=HYPERLINK("http://x")',
    "a|b<script>`x`</script>",
    "\u202egnp.exe",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_is_shown_on_one_line_and_commands_no_terminal(text):
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    assert printable_lines(f"{text}\nours").splitlines()[-1] == "ours"
    assert printable("plain é 漢字") == "plain é 漢字"
    assert len(printable("x" * 100, 10)) < 20


@pytest.mark.parametrize("text", HOSTILE)
def test_cells_of_csv_are_no_formulas(text):
    stream = io.StringIO()
    csv.writer(stream).writerow([csv_cell(text)])
    ((cell,),) = csv.reader(stream.getvalue().splitlines())
    assert cell[0] not in "=+-@\t\r"
    assert csv_cell("car") == "car"


@pytest.mark.parametrize("text", HOSTILE)
def test_cells_of_markdown_are_neither_markup_nor_html(text):
    shown = markdown_text(text)
    assert "<" not in shown
    assert "\n" not in shown
    assert "|" not in shown.replace("\\|", "")
    assert "`" not in shown.replace("\\`", "")
    assert markdown_text("license_plate 2") == "license_plate 2"


def test_words_of_the_system_in_other_errors_are_no_errors_of_the_system():
    """A fault of the code keeps its traceback."""
    assert system_error(ValueError("Invalid argument")) is None
    assert system_error(RuntimeError("layer: Invalid argument")) is None
    assert system_error(KeyError("No such file or directory")) is None
    assert "ulimit -n" in system_error(RuntimeError("Too many open files"))
    assert "ulimit -n" in system_error(OSError("Caught in worker\nOSError: Too many open files"))
    assert "make room" in system_error(OSError(28, "No space left on device"))
    assert system_error(OSError(5, "Input/output error")) is None
