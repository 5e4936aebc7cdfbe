from __future__ import annotations

import pytest

from securemfg.transport import observation
from tests.parts.tls import pki, trail  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def counts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports are used again: the counts of an earlier test would be taken for this one's."""
    monkeypatch.setattr(observation, "_seen", {})
    monkeypatch.setattr(observation, "_snapshot", None)
