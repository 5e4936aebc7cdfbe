"""What a resolver was told of a logged model holds once, and only right after."""

from __future__ import annotations

from securemfg.artifacts.registration import Told


def test_an_answer_holds_for_one_download() -> None:
    told = Told()
    told.add("m-1", {"securemfg.manifest": "sha256:1"})
    assert told.take() == {"m-1": {"securemfg.manifest": "sha256:1"}}
    assert told.take() == {}


def test_an_old_answer_holds_for_none() -> None:
    now = [100.0]
    told = Told(clock=lambda: now[0])
    told.add("m-1", {"securemfg.manifest": "sha256:1"})
    now[0] += 5.0
    assert told.take() == {}
