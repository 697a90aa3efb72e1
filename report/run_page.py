"""report.html: a run on one page."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from evaluation.curves import worth_recommending
from evaluation.metrics import TOTALS
from report import page
from report.run_charts import run_charts
from report.run_record import RunRecord, flat
from settings.keys import Config
from settings.walk import config_to_dict

PAGE = "report.html"
SHOWN_FIRST = ("AP", "AP50", "mIoU", "pixel_accuracy", "PQ")
MOST_CLASSES = 100
PATHS = ("run.output_dir", "data.path", "data.cache_folder")


def write_run_page(run: RunRecord, told: str | None = None) -> None:
    """Write report.html into the run folder.

    Args:
        told: stands out above the numbers.

    Raises:
        OSError: if it cannot be written.
    """
    page.write_page(run.folder / PAGE, f"{run.name} - training report", _parts(run, told))


def _parts(run: RunRecord, told: str | None) -> Iterator[str]:
    yield page.heading(run.name, list(_facts(run)))
    if told:
        yield page.notice(told)
    yield page.tiles(dict(_numbers(run)))
    yield page.section("Curves", page.charts(run_charts(run)))
    shown = run.shown_evaluation()
    if shown is not None:
        row, _ = shown
        folder = run.evaluation_folder(row)
        yield page.section(f"Classes at step {row['step']}", _classes(folder))
        what = "mistakes, worst images first, from the score on that the picture names (worst.json names all of them)"
        yield page.section("Worst validation images", page.picture(folder / "worst.png", what))
        what = (
            "the same images after every evaluation: labels at the left, predictions at the right"
        )
        yield page.section("Predictions", page.picture(folder / "predictions.png", what))
    samples = sorted((run.folder / "samples").glob("step-*.png"))
    first = [page.picture(file, "a batch as the model got it") for file in samples[:1]]
    labels = page.picture(run.folder / "samples" / "labels.png", "the labels of both splits")
    yield page.section("Training data", labels, *first)
    yield page.section("Configuration", _changed(run), *_everything(run))


def _facts(run: RunRecord) -> Iterator[str]:
    """Lines on what was trained on what."""
    config, facts = run.config, run.facts
    origin = config.get("model.backbone") or config.get("model.init_from")
    yield f"{config.get('model.head')} on {origin}, {config.get('model.task')}"
    names = facts.get("labels") or []
    told = ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
    yield (
        f"{facts.get('train_images')} training and {facts.get('val_images')} validation images of "
        f"{config.get('data.path') or config.get('data.source')}; {len(names)} class(es): {told}"
    )
    if run.steps:
        last = run.steps[-1]
        yield f"{last['step']} steps of {config.get('train.global_batch_size')} images on {facts.get('device')}"


def _numbers(run: RunRecord) -> Iterator[tuple[str, str]]:
    """The best evaluation's numbers, for tiles."""
    best = run.best
    if best is None:
        return
    for name in [n for n in TOTALS if n in SHOWN_FIRST and f"eval/{n}" in best]:
        yield name.replace("_", " "), number(best[f"eval/{name}"])
    if best.get("eval/F1") is not None:
        yield "best F1, IoU 0.5", number(best["eval/F1"])
    values = {name: best.get(f"eval/{name}") for name in ("F1", "threshold")}
    if (threshold := worth_recommending(values)) is not None:
        yield "recommended threshold", number(threshold, 2)
    yield "best step", str(best["step"])


def number(value: Any, digits: int = 3) -> str:
    """`0.123`, `-` for none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.{digits}f}" if isinstance(value, float) else "-"


def _classes(folder: Path) -> str:
    from report.evaluation import read_metrics

    metrics = read_metrics(folder)
    if metrics is None:
        return ""
    rows: Mapping[str, Mapping[str, Any]] = metrics["per_class"]
    columns = list(next(iter(rows.values()), {}))
    if not columns:
        return ""
    order = sorted(rows.items(), key=lambda item: item[1][columns[0]] or 0.0)[:MOST_CLASSES]
    more = f"the worst {MOST_CLASSES} of {len(rows)}" if len(rows) > MOST_CLASSES else ""
    cells = [[name, *(number(value) for value in row.values())] for name, row in order]
    return (f'<p class="soft">{more}</p>' if more else "") + page.table(["class", *columns], cells)


def _changed(run: RunRecord) -> str:
    """Keys that are not as they are by default."""
    default = dict(flat(config_to_dict(Config())))
    rows = [
        [key, value, default.get(key)]
        for key, value in run.config.items()
        if key not in PATHS and value != default.get(key)
    ]
    return page.table(["key", "value", "default"], rows)


def _everything(run: RunRecord) -> Iterator[str]:
    yield page.details("all keys", yaml.safe_dump(dict(run.config), sort_keys=False, width=100))
    yield page.details(
        "versions and fingerprints", yaml.safe_dump(dict(run.facts), sort_keys=False)
    )
