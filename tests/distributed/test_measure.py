from builders import launch


def test_every_metric_is_the_same_number_on_two_processes_and_on_one(tmp_path):
    result = launch([str(tmp_path)], 2, script="tests/distributed/measure_worker.py")
    assert result.returncode == 0, result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1"]
