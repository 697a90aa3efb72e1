from builders import launch


def test_sums_maxima_and_flags_are_agreed_in_one_collective():
    result = launch([], 2, script="tests/distributed/agree_worker.py")
    assert result.returncode == 0, result.stderr
    assert "rank 0 agrees" in result.stdout
    assert "rank 1 agrees" in result.stdout
