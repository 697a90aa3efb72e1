import json

import pytest

import tools.evaluate
from builders import tiny_run
from errors import UserError
from runs import train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_report_replaces_an_earlier_one_and_nothing_else(tmp_path):
    """A report's folder is written anew as a whole: what is no report must not be in it."""
    train(tiny_run(tmp_path))
    run = tmp_path / "run"
    arguments = ["--model", str(run / "export"), "--config", str(run / "config.yaml"), "--out"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for place in (run, run / "export"):
        with pytest.raises(UserError, match="no part of an earlier report"):
            tools.evaluate.main([*arguments, str(place)])
    with pytest.raises(UserError, match="is a file"):
        tools.evaluate.main([*arguments, str(run / "config.yaml")])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    for _ in range(2):
        metrics = tools.evaluate.main([*arguments, str(tmp_path / "report")])
        assert json.loads((tmp_path / "report/metrics.json").read_text()) == metrics
