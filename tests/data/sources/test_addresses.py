import fsspec
import pytest

from data.sources.addresses import ARCHIVES, own_address


@pytest.fixture
def local(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    (root / "a.jpg").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"s")
    (root / "link.jpg").symlink_to(tmp_path / "secret")
    return root


@pytest.mark.parametrize(
    "address",
    [
        "hf://datasets/someone/plates/train/a.jpg",
        "hf://datasets/someone/plates@0123abc/a.jpg",
        "zip://inner/a.jpg::hf://datasets/someone/plates/images.zip",
        "gzip://a.jpg::tar://b.gz::hf://datasets/someone/plates@main/c.tar",
    ],
)
def test_files_of_the_datasets_own_repository_are_read(address):
    assert own_address(address, "someone/plates")


@pytest.mark.parametrize(
    "address",
    [
        "/etc/hostname",
        "file:///etc/hostname",
        "/etc/hostname::hf://datasets/someone/plates/a",
        "file:///etc/hostname::hf://datasets/someone/plates/a",
        "zip://a::/etc/hostname",
        "zip://a::/etc/hostname::hf://datasets/someone/plates/a",
        "hf://datasets/someone/plates/../other/a.jpg",
        "hf://datasets/someone/plates2/a.jpg",
        "hf://datasets/other/plates/a.jpg",
        "hf://someone/model/a.jpg",
        "hf://datasets/someone/plates@main/../../other/x",
        "hf://spaces/someone/plates/a",
        "hf://datasets/someone/plates",
        "HF://datasets/someone/plates/a.jpg",
        "",
        "::",
    ],
)
def test_what_leads_elsewhere_is_not(address):
    assert not own_address(address, "someone/plates")


def test_a_local_dataset_reads_its_own_files_alone(local):
    assert own_address(str(local / "a.jpg"), str(local))
    assert own_address(f"file://{local}/a.jpg", str(local))
    assert own_address(f"zip://x.jpg::{local}/a.zip", str(local))
    for address in (
        str(local.parent / "secret"),
        f"{local}/../secret",
        f"{local}/link.jpg",
        f"file://{local}/link.jpg",
        f"{local}2/a.jpg",
        f"hf://datasets/{local}/a.jpg",
        "hf://datasets/someone/plates/a.jpg",
    ):
        assert not own_address(address, str(local)), address


@pytest.mark.parametrize("protocol", sorted(fsspec.available_protocols()))
def test_no_other_protocol_is_followed(local, protocol):
    """Whatever fsspec knows here: as the file itself, and before it in a chain."""
    inner = f"{protocol}://{local}/a.jpg"
    if protocol not in ("file", "hf"):
        assert not own_address(inner, str(local))
        assert not own_address(f"{protocol}://x", "someone/plates")
    if protocol not in ARCHIVES:
        assert not own_address(f"{inner}::{local}/a.jpg", str(local))
        assert not own_address(f"{inner}::hf://datasets/someone/plates/a", "someone/plates")
