"""How ranks end together."""

from types import SimpleNamespace

import pytest

from errors import UserError
from run.together import ending_together


@pytest.mark.parametrize(
    ("rank", "others", "raised"),
    [
        (0, None, UserError),  # what another rank says as well is said by the first
        (1, "UserError no room", SystemExit),
        (1, "UserError no such file", UserError),
    ],
)
def test_ranks_end_together_and_each_error_is_told_once(monkeypatch, rank, others, raised):
    def gathered(own):
        told = [others, others]
        told[rank] = own[0]
        return told

    monkeypatch.setattr("run.together.gather_object", gathered)

    def work():
        with ending_together(SimpleNamespace(process_index=rank)):
            raise UserError("no room")

    with pytest.raises(raised):
        work()


def test_a_rank_that_succeeds_ends_with_one_that_fails(monkeypatch):
    monkeypatch.setattr("run.together.gather_object", lambda own: [*own, "UserError no room"])
    with pytest.raises(SystemExit), ending_together(SimpleNamespace(process_index=0)):
        pass
