"""A Credential shows its field names and nothing else."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import UTC, datetime

import orjson
import pytest

from securemfg._secret import Secret
from securemfg.credentials.grant import Credential, Grant, Wanted
from securemfg.settings import CredentialSettings

CANARY = "canary-51c2"


@pytest.fixture
def credential() -> Credential:
    return Credential(
        "features-db",
        {"username": Secret("trainer"), "password": Secret(CANARY)},
        expires=datetime(2026, 11, 5, 8, tzinfo=UTC),
        lease_id=f"database/creds/{CANARY}",
    )


def test_credential_is_a_mapping_of_secrets(credential: Credential) -> None:
    assert credential["password"].reveal() == CANARY
    assert sorted(credential) == ["password", "username"]
    assert len(credential) == 2
    assert credential.get("port") is None
    assert credential.name == "features-db"


def test_text_of_a_credential_shows_field_names_only(credential: Credential) -> None:
    assert repr(credential) == "<Credential 'features-db': username, password, expires 2026-11-05T08:00:00Z>"
    for text in (repr(credential), str(credential), f"{credential}", str(dict(credential)), str(credential.lease_id)):
        assert CANARY not in text


@pytest.mark.parametrize(
    "leak",
    [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, orjson.dumps, vars, lambda c: json.dumps(dict(c))],
)
def test_credential_refuses_pickle_copy_json_and_vars(credential: Credential, leak) -> None:
    with pytest.raises(TypeError) as refused:
        leak(credential)
    assert CANARY not in str(refused.value)


def test_credential_cannot_be_changed(credential: Credential) -> None:
    with pytest.raises(AttributeError):
        credential.name = "other"
    with pytest.raises(AttributeError):
        del credential._name
    with pytest.raises(TypeError):
        credential["password"] = Secret("other")


def test_unknown_field_names_the_nearest(credential: Credential) -> None:
    with pytest.raises(KeyError, match="did you mean 'password'"):
        credential["pasword"]


def test_grant_shows_no_values() -> None:
    grant = Grant(values={"password": Secret(CANARY)}, ttl=60, lease_id=CANARY)
    assert CANARY not in repr(grant)


def test_life_is_the_shorter_of_lease_and_parent_token() -> None:
    assert Grant(values={}, ttl=3600, parent_ttl=20).life == 20
    assert Grant(values={}, ttl=30, parent_ttl=3600).life == 30
    assert Grant(values={}, ttl=None).life == float("inf")


def test_wanted_tells_kind_and_target() -> None:
    wanted = Wanted(name="model-bucket", settings=CredentialSettings(sts="arn:aws:iam::123456789012:role/writer"))
    assert (wanted.kind, wanted.target) == ("sts", "arn:aws:iam::123456789012:role/writer")
