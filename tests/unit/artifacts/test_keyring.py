"""Opened run keys are kept briefly, boundedly, and never across a fork."""

from __future__ import annotations

import os
from typing import Any

import pytest

from securemfg.artifacts import keyring
from securemfg.artifacts.keyring import Keyring
from securemfg.artifacts.location import Root
from securemfg.artifacts.protection import Protection
from securemfg.encryption import RawAesKey
from securemfg.encryption.run_key import create_run_key
from securemfg.labels import Sensitivity
from securemfg.settings import PlaintextReads
from tests.parts import until

KEY = RawAesKey("tests", "test", bytes(range(32)))
ROOT = Root("/store/7/run/artifacts", "run", "0" * 32)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """Records in memory, and how often each was asked for."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.asked: list[str] = []

    def put_record(self, root: Root, path: str, data: bytes) -> None:
        self.records[path] = data

    def get_record(self, root: Root, path: str) -> bytes:
        self.asked.append(path)
        return self.records[path]

    def add(self) -> str:
        key, record = create_run_key({"default": [KEY]}, ROOT.binding)
        self.records[key.record] = record
        return key.key_id


def rules(**more: Any) -> Protection:
    return Protection(
        writing_keys=lambda: {"default": (KEY,)},
        keys_for=lambda _assets: {"default": (KEY,)},
        group=lambda name: (name, (KEY,)),
        open_key=lambda _text: KEY,
        reading_keys=lambda: (KEY,),
        sensitivity=lambda: Sensitivity.INTERNAL,
        encrypt_from=Sensitivity.INTERNAL,
        plaintext_reads=PlaintextReads.REFUSE,
        plaintext_origin="built-in",
        emit=lambda *_args, **_fields: None,
        **more,
    )


def test_an_opened_key_is_asked_for_again_after_five_minutes_at_the_latest() -> None:
    clock, store = Clock(), Store()
    ring, mine, key_id = Keyring(clock), rules(), store.add()
    for _ in range(3):
        ring.for_reading(key_id, ROOT, store, mine)
    assert len(store.asked) == 1
    clock.now += 299
    ring.for_reading(key_id, ROOT, store, mine)
    assert len(store.asked) == 1
    clock.now += 1
    ring.for_reading(key_id, ROOT, store, mine)
    assert len(store.asked) == 2


def test_what_is_no_longer_read_leaves_memory_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "_LIFETIME", 0.05)
    store, ring = Store(), Keyring()
    ring.for_reading(store.add(), ROOT, store, rules())
    until(lambda: not ring._reading and ring._timer is None, what="the key's end")


def test_at_most_so_many_keys_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "_KEPT", 3)
    store, ring, mine = Store(), Keyring(), rules()
    ids = [store.add() for _ in range(5)]
    for key_id in ids:
        ring.for_reading(key_id, ROOT, store, mine)
    assert [place[1] for place in ring._reading] == ids[2:]


def test_a_fork_starts_with_no_keys() -> None:
    store, ring, mine = Store(), Keyring(), rules()
    ring.for_reading(store.add(), ROOT, store, mine)
    ring.for_writing(ROOT, store, mine)
    child = os.fork()
    if child == 0:
        os._exit(0 if not ring._reading and not ring._writing else 1)
    assert os.waitpid(child, 0)[1] == 0
    ring.clear()


def test_clearing_leaves_nothing() -> None:
    store, ring, mine = Store(), Keyring(), rules()
    ring.for_reading(store.add(), ROOT, store, mine)
    ring.for_writing(ROOT, store, mine)
    ring.clear()
    assert (len(ring._reading), len(ring._writing), ring._timer) == (0, 0, None)


def test_a_key_that_is_to_be_retired_is_not_written_with() -> None:
    store, ring, mine = Store(), Keyring(), rules()
    first = ring.for_writing(ROOT, store, mine)
    assert ring.for_writing(ROOT, store, mine) is first
    second = ring.for_writing(ROOT, store, mine, but={first.key_id})
    assert second.key_id != first.key_id
    assert ring.for_writing(ROOT, store, mine, but={first.key_id}) is second
