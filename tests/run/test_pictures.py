"""What a run leaves for people to look at: charts, pages, pictures, and what is said of two runs."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import run.samples
from builders import tiny_run, write_coco
from errors import UserError
from report.run_charts import _terms, run_charts
from report.run_record import RunRecord, read_run
from runs import train
from tools import check_data, compare

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Folder of a run with pictures, long enough to find something."""
    folder = tmp_path_factory.mktemp("shown")
    keys = {"train__steps": 30, "train__evaluate_every": 15, "run__seed": 1, "optim__lr": 4e-3}
    keys |= {"optim__schedule": "constant", "optim__max_grad_norm": 1.0}
    train(tiny_run(folder, run__pictures=True, **keys))
    return folder / "run"


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_export_has_the_threshold_of_the_best_evaluation(shown):
    best = metrics_of(shown / "eval" / (shown / "checkpoints/best").readlink().name)
    recommended = json.loads((shown / "export/permafrost.json").read_text())
    assert recommended == {"threshold": best["threshold"]}
    assert 0 < best["threshold"] < 1
    assert 0 < best["F1"] <= 1


def test_evaluation_has_curves_and_mistakes(shown):
    folder = shown / "eval/step-000030"
    curves, metrics = json.loads((folder / "curves.json").read_text()), metrics_of(folder)
    at = curves["thresholds"].index(metrics["threshold"])
    assert curves["mean"]["F1"][at] == pytest.approx(metrics["F1"], abs=1e-4)
    area = np.mean(curves["mean"]["precision_at_recall"])
    assert area == pytest.approx(metrics["AP50"], abs=1e-4)
    confusion = np.array(curves["confusion"])
    assert confusion[0].sum() == 5  # the objects of the validation images
    rows = [line.split(",") for line in (folder / "confusion.csv").read_text().splitlines()]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == confusion.tolist()
    worst = json.loads((folder / "worst.json").read_text())
    mistakes = [row["mistakes"] for row in worst]
    assert mistakes == sorted(mistakes, reverse=True)
    assert "class1" in worst[0]["what"]


def test_charts_are_drawn_beside_training(shown):
    with Image.open(shown / "results.png") as image:
        assert min(image.size) > 500
    with Image.open(shown / "samples/labels.png") as image:
        assert min(image.size) > 500
    names = [name for name, _ in run_charts(read_run(shown))]
    assert names == ["loss", "terms", "lr", "average", "pr", "thresholds", "confusion"]
    assert "warning" not in (shown / "train.log").read_text()


def test_terms_of_the_last_layer_come_before_their_parts(tmp_path):
    names = ("bbox", "bbox_dn", "bbox_dn_pre", "bbox_enc", "fgl", "giou", "giou_dn", "mal", "mal_0")
    row = {"step": 1, **{f"train/loss_{name}": 1.0 for name in names}}
    run = RunRecord(tmp_path, {}, {}, [row], [])
    shown = [key.removeprefix("train/loss_") for key in _terms(run)]
    assert shown == ["bbox", "fgl", "giou", "mal", "bbox_dn", "bbox_dn_pre"]


def fetched(page):
    """What a browser would ask others for."""
    found = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']([^"']*)""", page)
    found += re.findall(r"url\(([^)]*)\)", page) + re.findall(r"@import|<script|<link[^>]*>", page)
    return [
        text
        for text in found
        if not text.startswith(("data:", "#", '<link rel="icon" href="data:'))
    ]


def test_page_of_a_run_stands_alone(shown):
    page = (shown / "report.html").read_text()
    assert fetched(page) == []
    assert page.count("<svg") == 7
    assert page.count("data:image/jpeg;base64,") == 4  # worst, predictions, labels, a batch
    best = read_run(shown).best
    assert f"<b>{best['eval/AP50']:.3f}</b>" in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_a_run_without_pictures_has_no_charts(tmp_path):
    train(tiny_run(tmp_path, train__steps=2))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert not names & {"results.png", "report.html"}
    assert [path.name for path in (tmp_path / "run/samples").iterdir()] == ["step-000001-0.png"]


def test_samples_are_few_whatever_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(run.samples, "MOST_PICTURES", 3)
    keys = {"run__draw_batches": 1000, "train__micro_batch_size": 2}
    train(tiny_run(tmp_path, train__steps=4, **keys))
    names = sorted(path.name for path in (tmp_path / "run/samples").iterdir())
    assert names == ["step-000001-0.png", "step-000001-1.png", "step-000002-0.png"]
    told = (tmp_path / "run/train.log").read_text()
    assert told.count("samples/ has 3 pictures now") == 1
    assert run.samples.MOST_PICTURES < 150


def test_comparison_says_what_differs(shown, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(shown, other, symlinks=True)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["optim"]["lr"] = 0.5
    del config["train"]["patience"]  # as of before it was a key
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    rows = (other / "metrics.jsonl").read_text().replace('"eval/AP50": 0', '"eval/AP50": 9')
    (other / "metrics.jsonl").write_text(rows + '{"step": 31, "trai')  # torn by a kill
    page = tmp_path / "page.html"
    compare.main([str(shown), str(other), "--html", str(page)])
    told = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.strip()}
    assert rows["optim.lr"] == ["0.004", "0.5"]
    assert float(rows["AP50"][0]) + 9 == pytest.approx(float(rows["AP50"][1]), abs=1e-3)
    assert "train.patience" not in told
    assert "train.steps" not in told
    assert "The data is the same" in told
    assert "Code and packages are the same" in told
    text = page.read_text()
    assert fetched(text) == []
    assert text.count("<svg") >= 5


def test_comparison_shows_the_best_and_the_last_evaluation_with_their_steps(
    shown, tmp_path, capsys
):
    other = tmp_path / "other"
    shutil.copytree(shown, other, symlinks=True)
    rows = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["step"] <= 28]
    for row in kept:
        row |= {"eval/AP": 0.9} if "eval/AP" in row else {}
    kept.insert(-1, {"step": 20, "eval/AP": 0.5})  # worse, and steps are logged after it
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    page = tmp_path / "page.html"
    compare.main([str(shown), str(other), "--html", str(page)])
    tables = {
        part.splitlines()[0]: {words[0]: words[1:] for words in map(str.split, part.splitlines())}
        for part in capsys.readouterr().out.split("\n\n")
    }
    best, last = tables["Best evaluation"], tables["Last evaluation"]
    assert (best["step"][1], best["AP"][1]) == ("15", "0.9")
    assert (last["step"][1], last["AP"][1]) == ("20", "0.5")
    assert last["step"][0] == "30"
    assert best["by"] == ["AP", "AP"]
    assert tables["Last logged step"]["step"] == ["30", "28"]
    assert page.read_text().count("Last evaluation") == 1


def test_comparison_refuses_what_is_no_run(shown, tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        compare.main([str(shown), str(tmp_path)])
    with pytest.raises(UserError, match="two or more different"):
        compare.main([str(shown), str(shown)])
    mine, other = tmp_path / "mine.html", shutil.copytree(shown, tmp_path / "b", symlinks=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="no earlier page"):
        compare.main([str(shown), str(other), "--html", str(mine)])
    assert mine.read_text() == "mine"
    for facts in ('{"labels": 3}', '{"code": "x"}', "[" * 200_000):
        (other / "run.json").write_text(facts)
        with pytest.raises(UserError, match=r"another content than a run writes|cannot be read"):
            compare.main([str(shown), str(other)])
    shutil.copy(shown / "run.json", other)
    for curves in other.glob("eval/*/curves.json"):
        curves.write_text('{"mean": 3}')
    with pytest.raises(UserError, match="another content than a run writes"):
        compare.main([str(shown), str(other), "--html", str(tmp_path / "page.html")])


def test_page_of_a_dataset_stands_alone(tmp_path, capsys):
    data = write_coco(tmp_path / "a <b> & c", 8)
    file = data / "annotations/train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [90, 10, 30, 20]  # partly outside
    content["categories"][0]["name"] = "<script>alert(1)</script>"
    file.write_text(json.dumps(content))
    page = tmp_path / "page.html"
    given = ["--data.source", "coco", "--data.path", str(data), "--data.val_fraction", "0.5"]
    check_data.main([*given, "--workers", "1", "--html", str(page)])
    text = page.read_text()
    assert fetched(text) == []
    assert text.count("<svg") == 6
    assert 'class="notice fair">DEFECTS' in text
    assert text.count("<i style=") == 1  # a patch of colour for each class
    assert "</i>&lt;script&gt;" in text
    assert "a &lt;b&gt; &amp; c" in text
    check_data.main([*given, "--workers", "1", "--html", str(page)])  # its own page is replaced
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(UserError, match="no earlier page"):
        check_data.main([*given, "--html", str(tmp_path / "mine.html")])
