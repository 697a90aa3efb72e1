"""What an address of a packed dataset may not have."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from settings.keys import DataConfig

LEAST_GB = 0.01
"""A few pieces for each process"""


def check_packed(data: DataConfig) -> Iterator[str]:
    """Problems of data.packed and its cache, one line each. What may be a secret is not repeated."""
    if data.packed_cache_gb < LEAST_GB:
        yield f"data.packed_cache_gb {data.packed_cache_gb}: must be {LEAST_GB} or more"
    if data.packed is None or "://" not in data.packed:
        return
    try:
        parts = urlsplit(data.packed)
        is_secret = bool(parts.password or (parts.username and parts.scheme.startswith("http")))
    except ValueError:
        yield "data.packed: is no address; write https://host/folder, s3://bucket/folder or hf://datasets/user/name"
        return
    if is_secret or parts.query or parts.fragment:
        yield (
            "data.packed: an address with a user, a password or a query (?...) would stand in the run's files; give it "
            "without, and credentials as the store's own library finds them (docs/scaling.md)"
        )
    if "::" in data.packed:
        yield "data.packed: is a chain of addresses (::); give the address of the folder itself"
