"""How ranks end together."""

import pytest

from errors import UserError
from run.together import ending_together


@pytest.mark.parametrize("own", [True, False])
def test_a_rank_that_fails_ends_the_others_too(monkeypatch, own):
    monkeypatch.setattr("run.together.any_rank", lambda _, flag: True)

    def work():
        with ending_together(None):
            if own:
                raise UserError("no room")

    with pytest.raises(UserError if own else SystemExit):
        work()
