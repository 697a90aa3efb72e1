"""Runs beside each other, of which some have little to show."""

import json

import pytest

from errors import UserError
from report.charts import lines
from report.comparison import comparison, write_comparison
from report.run_charts import known
from report.run_record import RunRecord
from tools import compare


def write_run(folder, rows, **config):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "config.yaml").write_text(json.dumps(config))
    if rows is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text)
    return str(folder)


def losses(*steps):
    return [{"step": step, "train/loss": 1.0, "time/images_per_s": 9.0} for step in steps]


def test_a_run_without_numbers_is_left_out_with_a_line(tmp_path, capsys):
    good = [write_run(tmp_path / name, losses(10, 20)) for name in "ab"]
    begun = write_run(tmp_path / "c", None)
    compare.main([*good, begun])
    told = capsys.readouterr().out
    assert f"left out: {begun}: has no results yet (metrics.jsonl is missing)" in told
    assert "The configuration is the same" in told


def test_one_run_with_numbers_is_shown_by_itself(tmp_path, capsys):
    given = [write_run(tmp_path / "a", losses(10, 20)), write_run(tmp_path / "c", None)]
    page = tmp_path / "page.html"
    compare.main([*given, "--html", str(page)])
    told = capsys.readouterr().out
    assert "one run alone has results" in told
    assert "training loss" in told
    assert "is the same" not in told + page.read_text()


def test_runs_without_any_number_are_refused(tmp_path):
    given = [write_run(tmp_path / name, None) for name in "ab"]
    with pytest.raises(UserError, match="none of these runs has results yet"):
        compare.main(given)
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="c: is no run folder"):
        compare.main([*given, str(tmp_path / "c")])


def record(tmp_path, steps, **config):
    return RunRecord(tmp_path, config, {}, losses(*steps), [])


def test_arguments_of_the_head_are_told_as_far_as_they_differ(tmp_path):
    args = {"num_queries": 8, "d_model": 128}
    runs = [
        record(tmp_path, [1], **{"model.head_args": own})
        for own in (args, {**args, "num_queries": 50}, {"d_model": 128})
    ]
    assert comparison(runs).config == [["model.head_args.num_queries", "8", "50", "-"]]


@pytest.mark.parametrize(
    ("steps", "drawn"),
    [
        ((20, 40, 60, 63), [20, 40, 60]),
        ((20, 40, 60), [20, 40, 60]),
        ((20, 30), [20, 30]),
        ((20, 23, 43), [20, 23, 43]),
    ],
)
def test_a_last_point_of_few_steps_is_not_drawn(tmp_path, steps, drawn):
    assert known(record(tmp_path, steps), "train/loss")[0] == drawn


@pytest.mark.parametrize(
    ("lengths", "title"),
    [
        ((10, 10), ">Training loss<"),
        ((60, 60), ">Training loss, smoothed<"),
        ((60, 10), ">Training loss, that of long runs smoothed<"),
    ],
)
def test_a_curve_is_called_smoothed_if_it_is(tmp_path, lengths, title):
    runs = [record(tmp_path / str(n), range(1, num + 1)) for n, num in enumerate(lengths)]
    write_comparison(tmp_path / "page.html", runs)
    assert title in (tmp_path / "page.html").read_text()


def test_zeros_alone_have_an_axis_from_zero():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    lines(axes, "AP75", {"a": ([1, 2], [0.0, 0.0])}, marks=True)
    assert axes.get_ylim() == (0, 1)
