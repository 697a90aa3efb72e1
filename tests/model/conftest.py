import pytest

from donors import write_donor


@pytest.fixture(scope="session")
def donors(tmp_path_factory):
    """The folder of a head's donor, which tests do not change."""
    root = tmp_path_factory.mktemp("donors")
    return lambda head: root / head if (root / head).exists() else write_donor(root / head, head)
