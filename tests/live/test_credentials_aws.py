"""STS and Secrets Manager. moto ignores conditions and never expires a session: exact requests go through Stubber."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from botocore.stub import Stubber

from securemfg.credentials.broker import Broker
from securemfg.credentials.grant import Wanted
from securemfg.credentials.secrets_manager import SecretsManagerSource
from securemfg.credentials.sts import StsSource, assumed_session, session, session_name
from securemfg.errors import ConfigError, CredentialDenied, CredentialError
from securemfg.settings import CredentialSettings
from tests.parts import until
from tests.unit.credentials.doubles import Clock, Events

pytestmark = pytest.mark.live

ROLE = "arn:aws:iam::123456789012:role/model-writer"
CANARY = "canary-secret-key-canary-secret-key-0001"


def wanted(**settings: object) -> Wanted:
    holder = settings.pop("holder", "0190-step")
    tags = settings.pop("tags_of_step", {})
    return Wanted(
        name="model-bucket",
        settings=CredentialSettings(sts=ROLE, **settings),
        holder=holder,
        tags=tags,
        origin="/plant/securemfg.toml",
    )


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubber]:
    made = boto3.session.Session().client(
        "sts", region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="y"
    )
    with Stubber(made) as stubber:
        yield stubber


def reply(number: int = 1, life: float = 900, ahead: timedelta = timedelta()) -> dict[str, object]:
    """What STS answers when its clock is `ahead` of ours."""
    now = datetime.now(UTC) + ahead
    return {
        "ResponseMetadata": {"HTTPHeaders": {"date": format_datetime(now, usegmt=True)}},
        "Credentials": {
            "AccessKeyId": f"ASIAEXAMPLE0000000{number}",
            "SecretAccessKey": CANARY,
            "SessionToken": f"token-{number}",
            "Expiration": now + timedelta(seconds=life),
        },
    }


def test_session_is_asked_for_with_its_tags_name_policy_and_external_id(stub: Stubber) -> None:
    policy = {"Version": "2012-10-17", "Statement": []}
    stub.add_response(
        "assume_role",
        reply(),
        {
            "RoleArn": ROLE,
            "RoleSessionName": "securemfg-0190-step-a-b",
            "DurationSeconds": 1800,
            "ExternalId": "plant-7",
            "Policy": json.dumps(policy, separators=(",", ":")),
            "Tags": [{"Key": "Role", "Value": "DataEngineer"}, {"Key": "Stage", "Value": "training"}],
        },
    )
    grant = StsSource(lambda _: stub.client).lease(
        wanted(
            ttl="30m",
            tags={"Role": "DataEngineer"},
            tags_of_step={"Stage": "training", "Role": "Administrator"},  # a claim: the settings' tag stands
            policy=json.dumps(policy, indent=4),
            external_id="plant-7",
            holder="0190-step a/b",
        )
    )
    stub.assert_no_pending_responses()
    assert grant.values["secret_access_key"].reveal() == CANARY
    assert grant.ttl is not None
    assert 890 < grant.ttl < 902, "the server's expiry, not the 30 minutes asked for"
    assert grant.revoke is None
    assert grant.ends is not None
    assert grant.ends.startswith("STS sessions end by themselves at 20")


@pytest.mark.parametrize("hours", [-3, 3])
def test_wrong_clock_on_this_machine_does_not_change_the_life(stub: Stubber, hours: int) -> None:
    stub.add_response("assume_role", reply(life=600, ahead=timedelta(hours=hours)))
    grant = StsSource(lambda _: stub.client).lease(wanted())
    assert grant.ttl is not None
    assert 590 < grant.ttl < 602


def test_session_lives_15_minutes_when_no_setting_says_more(stub: Stubber) -> None:
    expected = {"RoleArn": ROLE, "RoleSessionName": "securemfg-0190-step", "DurationSeconds": 900}
    stub.add_response("assume_role", reply(), expected)
    StsSource(lambda _: stub.client).lease(wanted())
    stub.assert_no_pending_responses()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ttl": "14m"}, r"'credentials.model-bucket.ttl' must be from 15m to 12h.*/plant/securemfg.toml"),
        ({"ttl": "13h"}, "from 15m to 12h"),
        ({"policy": "{"}, "is not valid JSON"),
        ({"policy": json.dumps({"Statement": "x" * 2048})}, "a session policy may have 2048"),
        ({"tags": {f"k{n}": "v" for n in range(51)}}, "51 of them, AWS takes 50"),
        ({"tags": {"k" * 129: "v"}}, "must be 1 to 128 characters"),
        ({"tags": {"Role": "v" * 257}}, "up to 256"),
        ({"tags": {"Role": "a;b"}}, "of letters, digits"),
    ],
)
def test_what_aws_would_not_take_is_a_setting_s_error(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StsSource(lambda _: pytest.fail("nothing is sent")).lease(wanted(**settings))


def test_policy_of_exactly_2048_characters_is_sent(stub: Stubber) -> None:
    text = json.dumps({"Statement": ""}, separators=(",", ":"))
    policy = text.replace('""', '"' + "x" * (2048 - len(text)) + '"')
    assert len(policy) == 2048
    stub.add_response("assume_role", reply())
    StsSource(lambda _: stub.client).lease(wanted(policy=policy))


@pytest.mark.parametrize("holder", ["x", "a" * 200, "step ü/\n", ""])
def test_session_name_is_what_sts_takes(holder: str) -> None:
    import re

    assert re.fullmatch(r"[\w+=,.@-]{2,64}", session_name(holder), re.ASCII)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("AccessDenied", CredentialDenied, f"refused the role '{ROLE}' .*AccessDenied: .*trust policy"),
        ("ExpiredToken", CredentialDenied, "own AWS credentials have expired"),
        ("InvalidClientTokenId", CredentialDenied, "own AWS credentials are not valid"),
        ("SignatureDoesNotMatch", CredentialDenied, "clock"),
        ("PackedPolicyTooLarge", CredentialDenied, "PackedPolicyTooLarge"),
        ("Throttling", CredentialError, "could not give .*Throttling"),
        ("ServiceUnavailable", CredentialError, "could not give"),
    ],
)
def test_refusal_of_aws_is_told_in_our_words(stub: Stubber, code: str, error: type, message: str) -> None:
    stub.add_client_error("assume_role", code, "said the service")
    with pytest.raises(CredentialError, match=message) as refused:
        StsSource(lambda _: stub.client).lease(wanted())
    assert type(refused.value) is error
    assert isinstance(refused.value.__cause__, ClientError)


def test_no_identity_and_no_network_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(CredentialDenied, match="the process has none"):
        StsSource().lease(wanted(region="eu-central-1"))

    class Unreachable:
        def assume_role(self, **_: object) -> None:
            raise EndpointConnectionError(endpoint_url="https://sts.eu-central-1.amazonaws.com")

    with pytest.raises(CredentialError, match="could not be reached") as refused:
        StsSource(lambda _: Unreachable()).lease(wanted())
    assert not isinstance(refused.value, CredentialDenied)


# -- over moto


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(aws: str, events: Events, clock: Clock) -> Iterator[Broker]:
    made = Broker(
        {
            "model-bucket": CredentialSettings(sts=ROLE, tags={"Role": "DataEngineer"}, region="eu-central-1"),
            "features-db": CredentialSettings(secrets_manager="plant/features-db"),
            "license": CredentialSettings(secrets_manager="plant/license"),
            "absent": CredentialSettings(secrets_manager="plant/absent"),
        },
        sources={"sts": StsSource, "secrets_manager": SecretsManagerSource},
        emit=events,
        clock=clock,
    )
    yield made
    made.close()


def test_clients_of_a_session_outlive_the_lease(broker: Broker, clock: Clock, events: Events) -> None:
    lease = broker.acquire("model-bucket", "step")
    made = session(lease)
    assert made.region_name == "eu-central-1"
    sts, s3 = made.client("sts"), made.client("s3")
    first = made.get_credentials().get_frozen_credentials()
    assert first.access_key.startswith("ASIA")
    assert sts.get_caller_identity()["Arn"].startswith("arn:aws:sts::123456789012:assumed-role/model-writer/")
    for _ in range(20):  # botocore's own refreshing class would ask STS on each of these: 900 s is inside its margin
        s3.list_buckets()
    assert events.actions() == ["credential.leased"]
    clock.forward(880)
    s3.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    second = made.get_credentials().get_frozen_credentials()
    assert second.access_key != first.access_key
    until(lambda: events.of("credential.renewed"))


def test_session_shows_no_values(broker: Broker) -> None:
    made = session(broker.acquire("model-bucket", "step"))
    credentials = made.get_credentials()
    secret = credentials.secret_key
    assert len(secret) > 20
    assert secret not in repr(credentials) + repr(vars(credentials)) + repr(made)


def test_expired_session_is_replaced_for_the_next_call(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    made = session(broker.acquire("model-bucket", "step"))
    client = made.client("s3")
    before = made.get_credentials().get_frozen_credentials().access_key
    with Stubber(client) as stubber:
        stubber.add_client_error(
            "list_buckets", "ExpiredToken", "The security token included in the request is expired"
        )
        with pytest.raises(ClientError):
            client.list_buckets()
    assert made.get_credentials().get_frozen_credentials().access_key != before


def test_sts_leases_are_dropped_with_their_end(broker: Broker, events: Events) -> None:
    broker.acquire("model-bucket", "step")
    broker.close()
    (event,) = events.of("credential.revoked")
    assert event["outcome"] == "success"
    assert event["reason"].startswith("dropped: STS sessions end by themselves at ")
    assert broker.leased()[0].state == "dropped"


def test_credential_that_is_no_aws_session_says_so(broker: Broker) -> None:
    boto3.client("secretsmanager").create_secret(Name="plant/license", SecretString="XYZ")
    made = session(broker.acquire("license", "step"), region="eu-central-1")
    with pytest.raises(CredentialDenied, match="it is not an AWS session"):
        made.client("s3").list_buckets()


def test_assumed_session_needs_no_setting(broker: Broker) -> None:
    other = "arn:aws:iam::123456789012:role/reader"
    made = assumed_session(broker, other, region="eu-central-1")
    assert ":assumed-role/reader/" in made.client("sts").get_caller_identity()["Arn"]
    assert other in {summary.target for summary in broker.leased()}


def test_secrets_manager_gives_fields_or_one_value(broker: Broker) -> None:
    manager = boto3.client("secretsmanager")
    manager.create_secret(Name="plant/features-db", SecretString=json.dumps({"username": "u", "port": 5432}))
    manager.create_secret(Name="plant/license", SecretBinary=b"\x00\x01")
    found = broker.acquire("features-db", "step").credential()
    assert {name: value.reveal() for name, value in found.items()} == {"username": "u", "port": "5432"}
    assert broker.acquire("license", "step").credential()["value"].reveal() == "AAE="
    with pytest.raises(CredentialDenied, match=r"refused the secret 'plant/absent'.*ResourceNotFoundException"):
        broker.acquire("absent", "step")
