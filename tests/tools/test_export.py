"""Exports of runs and checkpoints, and the report of what each artefact is worth."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard

import tools.export
from builders import tiny_run
from errors import UserError
from export.onnx_graph import Session
from export.parity import CHECKPOINT, ONNX, TRANSFORMERS, differences
from painted import NAMES, write_folders
from runs import train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps with a checkpoint of each, of which the first was not evaluated."""
    folder = tmp_path_factory.mktemp("trained")
    keys = {"train__evaluate_every": 2, "train__checkpoint_every": 1, "train__keep_checkpoints": 9}
    train(tiny_run(folder, train__ema_decay=0.5, **keys))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy that may be changed."""
    shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy/run"


def report_of(folder):
    return json.loads((folder / "parity.json").read_text())


def test_a_run_that_was_stopped_is_exported_as_it_would_have_been(run, capsys):
    before = (run / "export/model.safetensors").read_bytes()
    shutil.rmtree(run / "export")
    (run / "DONE").unlink()
    assert tools.export.main([str(run)]) == run / "export"
    assert (run / "export/model.safetensors").read_bytes() == before
    report = report_of(run / "export")
    best = json.loads((run / "checkpoints/best/state/best.json").read_text())["step"]
    logged = json.loads((run / f"eval/step-{best:06d}/metrics.json").read_text())
    assert report["artefacts"][CHECKPOINT]["AR_100"] == logged["AR_100"]
    assert report["artefacts"][TRANSFORMERS]["AR_100"] == pytest.approx(logged["AR_100"], abs=1e-3)
    assert report["passed"]
    assert report["images"] == 5
    assert "AP on 5 validation image(s): checkpoint" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_told_before_the_work(run):
    with pytest.raises(UserError, match="--out /proc/nothing: cannot be written"):
        tools.export.configuration([str(run), "--out", "/proc/nothing/x"])


def test_a_checkpoint_that_was_not_evaluated_is_evaluated_now(run):
    assert not (run / "eval/step-000001").exists()
    out = tools.export.main([str(run / "checkpoints/step-000001"), "--images", "3"])
    assert out == run / "export-step-000001"
    assert report_of(out)["images"] == 3
    assert "These weights were not evaluated." in (out / "README.md").read_text()
    out = tools.export.main([str(run / "checkpoints/step-000001")])
    card = ModelCard.load(out / "README.md")
    assert {r.metric_type for r in card.data.eval_results} >= {"AP", "AR_100"}
    assert "1 optimizer steps" in card.content


def test_without_its_dataset_a_checkpoint_is_exported_unmeasured(run, tmp_path):
    shutil.move(tmp_path / "copy/data", tmp_path / "copy/moved")
    words = [str(run), "--out", str(tmp_path / "out")]
    gone = ["--data.path", str(tmp_path / "copy/data")]
    with pytest.raises(UserError, match="--without_data"):
        tools.export.main([*words, *gone])
    assert not (tmp_path / "out").exists()
    tools.export.main([*words, *gone, "--without_data"])
    one, other = (folder / "model.safetensors" for folder in (run / "export", tmp_path / "out"))
    assert one.read_bytes() == other.read_bytes()
    assert not (tmp_path / "out/parity.json").exists()
    tools.export.main([*words, "--data.path", str(tmp_path / "copy/moved")])
    assert report_of(tmp_path / "out")["passed"]


def test_another_dataset_is_refused(run, tmp_path):
    file = tmp_path / "copy/data/annotations/val.json"
    content = json.loads(file.read_text())
    content["annotations"].pop()
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="not the one that the run was trained"):
        tools.export.main([str(run), "--data.path", str(tmp_path / "copy/data")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}/eval"], "neither a run folder with checkpoints nor a checkpoint"),
        (["{run}", "--out", "{run}/eval"], "is there, and no export"),
        (["{run}", "--images", "0"], "--images 0"),
        (["{run}", "--nonsense.key", "1"], "unknown configuration keys"),
    ],
)
def test_calls_that_cannot_be(run, words, message):
    with pytest.raises(UserError, match=message):
        tools.export.main([word.format(run=run) for word in words])


def test_the_newest_checkpoint_is_that_of_the_latest_step(tmp_path):
    for step in ("000002", "999999", "1000000"):
        config = tmp_path / f"checkpoints/step-{step}" / tools.export.CONFIG
        config.parent.mkdir(parents=True)
        config.write_text("")
    assert tools.export.chosen(tmp_path)[0].name == "step-1000000"


def test_models_that_were_not_exported_here_stay(run, tmp_path):
    """Though they look alike."""
    out = tmp_path / "downloaded"
    shutil.copytree(run / "export", out)
    (out / "README.md").write_text("---\ntags: [other]\n---\n# Not by permafrost\n- permafrost\n")
    with pytest.raises(UserError, match="is there, and no export"):
        tools.export.main([str(run), "--out", str(out), "--without_data"])
    (out / "README.md").unlink()
    with pytest.raises(UserError, match="is there, and no export"):
        tools.export.main([str(run), "--out", str(out), "--without_data"])


@pytest.mark.slow
def test_an_artefact_that_is_worse_is_not_exported(tmp_path, monkeypatch):
    """Measured on a model that has learnt something; the graph is real, and then gives other numbers."""
    write_folders(tmp_path / "data")
    own = {"labels": json.dumps(NAMES), "source": "label_maps"}
    keys = {f"data__{key}": value for key, value in own.items()}
    train(tiny_run(tmp_path, "linear", **keys, train__steps=60, optim__lr=0.01))
    out = tools.export.main([str(tmp_path / "run"), "--onnx"])
    artefacts = report_of(out)["artefacts"]
    assert artefacts[CHECKPOINT]["mIoU"] > 0.3
    assert artefacts[ONNX]["mIoU"] == pytest.approx(artefacts[CHECKPOINT]["mIoU"], abs=1e-4)
    assert artefacts[TRANSFORMERS]["mIoU"] == pytest.approx(artefacts[CHECKPOINT]["mIoU"], abs=1e-4)
    assert (out / "onnx/model.onnx").stat().st_size > 1000
    before = (out / "parity.json").read_bytes()
    real, calls = Session.outputs, []

    def wrong(self, pixels, mask):
        calls.append(1)
        found = real(self, pixels, mask)
        if len(calls) > 1:  # after the check on noise
            found.logits = -found.logits
        return found

    monkeypatch.setattr(Session, "outputs", wrong)
    with pytest.raises(UserError, match="mIoU is .* by onnxruntime and .* here"):
        tools.export.main([str(tmp_path / "run"), "--onnx"])
    assert (out / "parity.json").read_bytes() == before
    assert not list((tmp_path / "run").glob(".writing-*"))


def test_a_tenth_of_a_point_is_the_limit():
    def report(theirs):
        artefacts = {CHECKPOINT: {"AP": 0.5}, TRANSFORMERS: {"AP": 0.4991}, ONNX: {"AP": theirs}}
        return {"metric": "AP", "artefacts": artefacts}

    assert not differences(report(0.5009))
    assert differences(report(0.5011)) == ["AP is 0.5011 by onnxruntime and 0.5000 here"]
    assert len(differences(report(None))) == 1
