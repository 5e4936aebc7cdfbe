"""Sealed texts: they open where they belong, with their key, whole; and nowhere else."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securemfg.artifacts.sealing import Form, Subject, is_sealed, seal, take_apart, unseal
from securemfg.encryption import RawAesKey
from securemfg.encryption.run_key import RunKey, create_run_key
from securemfg.errors import DecryptionError

OURS = RawAesKey("tests", "test", bytes(range(32)))
SUBJECT = Subject("param", "0" * 32, "alloy")


def key() -> tuple[RunKey, bytes]:
    return create_run_key({"default": [OURS]}, {"securemfg:kind": "run"})


RUN_KEY, RECORD = key()


@given(st.text())
def test_a_value_comes_back_as_it_was(value: str) -> None:
    text = seal(value, SUBJECT, RUN_KEY)
    assert re.fullmatch(r"securemfg:1:[A-Za-z0-9_-]+", text)
    assert is_sealed(text)
    sealed = take_apart(text)
    assert (sealed.form, sealed.key_id, sealed.record) == (Form.ROOTED, RUN_KEY.key_id, b"")
    assert unseal(sealed, SUBJECT, RUN_KEY) == value


def test_a_lone_surrogate_comes_back_too() -> None:
    assert unseal(take_apart(seal("\ud800", SUBJECT, RUN_KEY)), SUBJECT, RUN_KEY) == "\ud800"


def test_the_value_is_not_in_the_text_and_no_two_texts_are_equal() -> None:
    texts = {seal("4140 steel", SUBJECT, RUN_KEY) for _ in range(3)}
    assert len(texts) == 3
    assert not any("steel" in text for text in texts)


@pytest.mark.parametrize("changed", [{"kind": "tag"}, {"id": "1" * 32}, {"name": "grade"}])
def test_a_value_moved_to_another_object_kind_or_name_does_not_open(changed: dict[str, str]) -> None:
    sealed = take_apart(seal("41.5", SUBJECT, RUN_KEY))
    with pytest.raises(DecryptionError, match="moved or swapped"):
        unseal(sealed, replace(SUBJECT, **changed), RUN_KEY)


def test_another_run_key_does_not_open_it() -> None:
    other, _ = key()
    with pytest.raises(DecryptionError):
        unseal(take_apart(seal("41.5", SUBJECT, RUN_KEY)), SUBJECT, other)


def test_no_change_of_a_character_goes_unnoticed() -> None:
    text = seal("41.5", SUBJECT, RUN_KEY)
    for at in range(len("securemfg:1:"), len(text) - 1, 3):
        changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises(DecryptionError):
            unseal(take_apart(changed), SUBJECT, RUN_KEY)


def test_a_cut_text_does_not_open() -> None:
    for text in (seal("41.5", SUBJECT, RUN_KEY), seal("41.5", SUBJECT, RUN_KEY, record=RECORD)):
        for length in range(len("securemfg:1:") + 1, len(text), 7):
            with pytest.raises(DecryptionError):
                unseal(take_apart(text[:length]), SUBJECT, RUN_KEY)


def test_a_carried_value_brings_its_record() -> None:
    sealed = take_apart(seal("41.5", SUBJECT, RUN_KEY, record=RECORD))
    assert (sealed.form, sealed.key_id, sealed.record) == (Form.CARRIED, RUN_KEY.key_id, RECORD)
    assert unseal(sealed, SUBJECT, RUN_KEY) == "41.5"


def test_a_path_is_told_from_a_value() -> None:
    assert take_apart(seal("x", SUBJECT, RUN_KEY, stored=True)).form is Form.STORED


@pytest.mark.parametrize(
    "text",
    ["", "41.5", "securemfg:", "securemfg:1:", "securemfg:4:AAAA", "securemfg:1:AA==", "securemfg:1:AA AA", None, 7],
)
def test_other_texts_are_not_taken_for_sealed_ones(text: object) -> None:
    assert not is_sealed(text)


@pytest.mark.parametrize(
    "text", ["plain", "securemfg:1:AAAA", "securemfg:1:A", "securemfg:2:AAAA", "securemfg:2:_____w"]
)
def test_what_only_looks_sealed_is_refused(text: str) -> None:
    with pytest.raises(DecryptionError):
        unseal(take_apart(text), SUBJECT, RUN_KEY)


def test_a_short_value_fits_into_mlflows_smallest_limit_for_params() -> None:
    assert len(seal("0.001", Subject("param", "0" * 32, "learning_rate"), RUN_KEY)) <= 500
