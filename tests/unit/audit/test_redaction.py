from __future__ import annotations

import json

import pytest

from securemfg.audit.events import body, encode
from securemfg.audit.redaction import REDACTED, scrub_text, sensitive_key
from tests.unit.audit.parts import TAGS

CANARIES = {
    "aws access key id": "AKIA" + "IOSFODNN7EXAMPLE",
    "aws secret key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "vault token": "hvs." + "CAESIJ1234567890abcdefghijklmnop",
    "old vault token": "s." + "abcdefghijklmnopqrstuvwx",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "github token": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "private key": "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIE\n-----END EC PRIVATE KEY-----",
    "email": "jane.doe@plant.example",
}


@pytest.mark.parametrize("canary", CANARIES.values(), ids=CANARIES)
@pytest.mark.parametrize("where", ["reason", "detail", "nested", "list"])
def test_the_shape_of_a_secret_is_hidden_in_free_text_before_hashing(canary, where):
    text = f"it failed with {canary} in hand"
    arguments = {
        "reason": {"reason": text},
        "detail": {"detail": {"note": text}},
        "nested": {"detail": {"more": {"note": text}}},
        "list": {"detail": {"more": [text]}},
    }[where]
    data = encode(body(TAGS, "a", **arguments)).decode()
    assert canary not in data
    assert canary[:12] not in data
    assert "MHcCAQEEIE" not in data
    assert "it failed with" in data
    assert json.loads(data)["redactions"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Authorization: Bearer abcdef1234567890", "Authorization"),
        ("postgres://user:hunter2@db.plant/x", "db.plant/x"),
        ("password=hunter2 for x", "for x"),
        ("PASSWORD : hunter2", "PASSWORD"),
        ('{"api_key": "hunter2"}', "api_key"),
        ("client_secret=hunter2&a=b", "a=b"),
    ],
)
def test_a_named_or_embedded_secret_is_hidden_and_the_rest_is_kept(text, kept):
    shown = scrub_text(text)
    assert "hunter2" not in shown
    assert "abcdef1234567890" not in shown
    assert kept in shown


def test_userinfo_in_a_resource_is_hidden_but_an_address_of_a_person_is_what_was_acted_on():
    record = body(TAGS, "a", resource="https://user:hunter2@registry.plant/models")
    assert record["resource"]["id"] == f"https://{REDACTED}@registry.plant/models"
    assert record["redactions"] == ["resource.id"]
    assert body(TAGS, "a", resource="jane.doe@plant.example")["resource"]["id"] == "jane.doe@plant.example"
    assert REDACTED in body(TAGS, "a", reason="jane.doe@plant.example")["reason"]


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "db_password",
        "dbPassword",
        "PASSWORD",
        "token",
        "accessToken",
        "secret",
        "client_secret",
        "secret_id",
        "Authorization",
        "api_key",
        "apiKey",
        "X-Api-Key",
        "private_key",
        "aws_secret_access_key",
        "cookie",
        "set-cookie",
        "dataKey",
    ],
)
def test_a_key_that_names_a_secret_hides_its_value(key):
    assert sensitive_key(key)
    record = body(TAGS, "a", detail={key: "hunter2", "nested": {key: 12345}})
    assert "hunter2" not in str(record)
    assert "12345" not in str(record)
    assert record["redactions"] == sorted([f"detail.{key}", f"detail.nested.{key}"])


@pytest.mark.parametrize(
    "key",
    [
        "key",
        "bytes",
        "suite",
        "frames",
        "token_count",
        "max_tokens",
        "secret_name",
        "password_file",
        "monkey",
        "pinned",
        "credential",
        "auth_method",
    ],
)
def test_a_harmless_key_is_kept(key):
    assert not sensitive_key(key)


@pytest.mark.parametrize(
    "text",
    [
        "TLSv1.3",
        "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "models/press-failure/v12/model.pkl",
        "the certificate of 10.0.0.7:443 expired 3 days ago",
        "s3://plant-models/press-failure/1.0/weights.bin",
    ],
)
def test_ordinary_text_is_left_as_it_is(text):
    assert scrub_text(text) == text


@pytest.mark.timeout(60)  # a quadratic search would take hours
def test_hostile_text_is_searched_in_linear_time():
    for text in (
        "A" * 200_000,
        "://" + "a" * 200_000,
        "a@" * 100_000,
        "password" * 30_000,
        "-----BEGIN PRIVATE KEY-----" * 5000,
        "eyJ" * 60_000,
    ):
        scrub_text(text)


def test_no_half_of_a_secret_is_left_at_the_cut():
    for before in range(8150, 8195):
        assert "hvs.CAES" not in scrub_text("x " * (before // 2) + CANARIES["vault token"] + " y" * 5000)
