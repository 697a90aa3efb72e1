import re

from builders import launch


def test_preflight_ends_in_time_when_a_rank_is_silent():
    result = launch([], 2, script="tests/distributed/unreachable_worker.py")
    match = re.search(r"after (\d+\.\d) s: the 2 processes do not reach each other", result.stdout)
    assert match, result.stdout + result.stderr
    assert "waiting until the 2 processes reach each other: 2 of 2 s" in result.stdout
    assert 1.5 < float(match[1]) < 6
