import pytest

from rlrun.data import ring


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put 16 records under one checksum, so that little rings wrap often."""
    monkeypatch.setattr(ring, "CHUNK", 16)
