"""Vault's side, on a real OpenBao: logins, KV v2, policies, dead tokens, renewal, and nothing ambient."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from securemfg.credentials.broker import Broker
from securemfg.credentials.grant import Grant, Wanted
from securemfg.credentials.vault import VaultSource
from securemfg.credentials.vault_client import VaultClient
from securemfg.credentials.vault_session import session as strict_session
from securemfg.errors import ConfigError, CredentialDenied, CredentialError
from securemfg.settings import CredentialSettings, VaultAuth, VaultSettings
from tests.parts import until
from tests.parts.openbao import OpenBao, Role, unique
from tests.unit.credentials.doubles import Events

pytestmark = pytest.mark.live

CANARY = "canary-ai-inference-90ab"
ORIGIN = "/plant/securemfg.toml"


@pytest.fixture
def path(openbao: OpenBao) -> str:
    """A KV v2 path with a canary in it."""
    made = f"secret/{unique('ai')}/inference"
    openbao.write(made, {"api_key": CANARY, "limit": 5})
    return made


def rules(path: str) -> dict[str, list[str]]:
    mount, _, inner = path.partition("/")
    return {f"{mount}/data/{inner}": ["read"]}


def client(address: str, auth: VaultAuth, **more: object) -> VaultClient:
    settings = VaultSettings(address=address, auth=auth, timeout=timedelta(seconds=5))
    return VaultClient(settings, origin=lambda _: ORIGIN, **more)


def approle(role: Role, **more: object) -> VaultAuth:
    return VaultAuth(role_id=role.role_id, secret_id_file=role.secret_id_file, **more)


def read(vault: VaultClient, path: str) -> Grant:
    wanted = Wanted(name="inference", settings=CredentialSettings(vault=path), origin=ORIGIN)
    return VaultSource(vault).lease(wanted)


@pytest.fixture
def vault(openbao: OpenBao, path: str, tmp_path: Path) -> Iterator[VaultClient]:
    made = client(openbao.address, approle(openbao.role(tmp_path, rules=rules(path), token_ttl="60s")))
    yield made
    made.close()


class Count:
    """A session that counts the requests to each path."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self):
        made = strict_session()
        made.hooks["response"].append(lambda reply, **_: self.paths.append(reply.request.path_url))
        return made

    def times(self, part: str) -> int:
        return sum(part in path for path in self.paths)


def test_approle_reads_kv_v2(vault: VaultClient, path: str) -> None:
    grant = read(vault, path)
    assert {name: value.reveal() for name, value in grant.values.items()} == {"api_key": CANARY, "limit": "5"}
    assert grant.ttl is None
    assert grant.revoke is None


def test_missing_path_and_missing_engine_say_so(openbao: OpenBao, tmp_path: Path) -> None:
    role = openbao.role(tmp_path, rules={"secret/data/*": ["read"]})
    vault = client(openbao.address, approle(role))
    with pytest.raises(CredentialDenied, match=r"nothing at 'secret/none' .*/plant/securemfg.toml"):
        read(vault, "secret/none")
    openbao.write("secret/gone", {"x": "y"})
    openbao.api("DELETE", "secret/data/gone")
    with pytest.raises(CredentialDenied, match="latest version of 'secret/gone' in Vault is deleted"):
        read(vault, "secret/gone")
    with pytest.raises(CredentialDenied, match="nowhere/at/all"):
        read(vault, "nowhere/at/all")


def test_wrapped_secret_id_opens_once_and_serves_later_logins(openbao: OpenBao, path: str, tmp_path: Path) -> None:
    role = openbao.role(tmp_path, rules=rules(path), wrapped="60s")
    count = Count()
    vault = client(openbao.address, approle(role, secret_id_wrapped=True), session=count)
    read(vault, path)
    openbao.api("POST", "auth/token/revoke", {"token": vault._token.value.reveal()})
    read(vault, path)
    assert count.times("wrapping/unwrap") == 1
    assert count.times("approle/login") == 2


def test_wrapping_token_opened_by_somebody_else_is_told_as_that(openbao: OpenBao, path: str, tmp_path: Path) -> None:
    role = openbao.role(tmp_path, rules=rules(path), wrapped="60s")
    openbao.client(role.secret_id_file.read_text().strip()).sys.unwrap()
    count = Count()
    vault = client(openbao.address, approle(role, secret_id_wrapped=True), session=count)
    for _ in range(3):
        with pytest.raises(CredentialDenied, match=r"somebody else has opened it already.*look into who"):
            read(vault, path)
    assert len(count.paths) == 1


def test_wrapping_token_of_another_origin_is_refused_unopened(openbao: OpenBao, path: str, tmp_path: Path) -> None:
    role = openbao.role(tmp_path, rules=rules(path))
    swapped = openbao.api("POST", "sys/wrapping/wrap", {"secret_id": "attacker's"}, wrap="60s")
    role.secret_id_file.write_text(swapped["wrap_info"]["token"])
    count = Count()
    vault = client(openbao.address, approle(role, secret_id_wrapped=True), session=count)
    with pytest.raises(CredentialDenied, match="was made at 'sys/wrapping/wrap'"):
        read(vault, path)
    assert count.times("unwrap") == 0


def test_exhausted_secret_id_costs_one_login_attempt_until_a_new_one_is_delivered(
    openbao: OpenBao, path: str, tmp_path: Path
) -> None:
    role = openbao.role(tmp_path, rules=rules(path), secret_id_num_uses=1)
    other = client(openbao.address, approle(role))
    read(other, path)
    count = Count()
    vault = client(openbao.address, approle(role), session=count)
    for _ in range(5):
        with pytest.raises(
            CredentialDenied, match=rf"secret id from {role.secret_id_file} \({ORIGIN}\).*deliver a new"
        ):
            read(vault, path)
    assert count.times("login") == 1
    fresh = openbao.api("POST", f"auth/approle/role/{role.name}/secret-id", {})["data"]["secret_id"]
    role.secret_id_file.write_text(fresh)
    assert read(vault, path).values["api_key"].reveal() == CANARY
    other.close()
    vault.close()


def test_policy_denial_is_not_repeated_and_costs_one_lookup(openbao: OpenBao, path: str, tmp_path: Path) -> None:
    role = openbao.role(tmp_path, rules={"secret/data/elsewhere": ["read"]})
    count = Count()
    vault = client(openbao.address, approle(role), session=count)
    for _ in range(3):
        with pytest.raises(CredentialDenied, match=r"policy does not allow GET 'secret/data/.*give the right"):
            read(vault, path)
    assert count.times("lookup-self") == 1
    assert count.times("login") == 1
    assert count.times("secret/data/") == 3


def test_revoked_token_costs_one_new_login_and_no_failure(openbao: OpenBao, path: str, tmp_path: Path) -> None:
    role = openbao.role(tmp_path, rules=rules(path))
    count = Count()
    vault = client(openbao.address, approle(role), session=count)
    read(vault, path)
    openbao.api("POST", "auth/token/revoke", {"token": vault._token.value.reveal()})
    assert read(vault, path).values["api_key"].reveal() == CANARY
    assert count.times("login") == 2
    assert count.times("lookup-self") == 1


def test_short_token_is_renewed_over_several_of_its_lives(openbao: OpenBao, path: str, tmp_path: Path) -> None:
    role = openbao.role(tmp_path, rules=rules(path), token_ttl="2s", token_max_ttl="60s")
    count = Count()
    vault = client(openbao.address, approle(role), session=count)
    reads = 0

    def renewed_twice() -> bool:
        nonlocal reads
        assert read(vault, path).values["api_key"].reveal() == CANARY
        reads += 1
        return count.times("renew-self") >= 3

    until(renewed_twice)
    assert count.times("login") == 1
    assert reads > 20
    vault.close()


def test_token_at_its_maximum_is_replaced_by_a_new_login(openbao: OpenBao, path: str, tmp_path: Path) -> None:
    role = openbao.role(tmp_path, rules=rules(path), token_ttl="2s", token_max_ttl="3s")
    count = Count()
    vault = client(openbao.address, approle(role), session=count)

    def replaced() -> bool:
        assert read(vault, path).values["api_key"].reveal() == CANARY
        return count.times("login") >= 3

    until(replaced)
    vault.close()


def test_close_revokes_the_token_and_a_token_from_a_file_is_left(
    openbao: OpenBao, path: str, tmp_path: Path, vault: VaultClient
) -> None:
    read(vault, path)
    ours = openbao.client().auth.token.lookup(vault._token.value.reveal())["data"]["accessor"]
    vault.close()
    assert openbao.lookup(ours) is None

    given = openbao.api("POST", "auth/token/create", {"policies": [openbao.policy(rules(path))]})["auth"]
    file = tmp_path / "token"
    file.write_text(given["client_token"])
    theirs = client(openbao.address, VaultAuth(method="token", token_file=file))
    assert read(theirs, path).values["api_key"].reveal() == CANARY
    theirs.close()
    assert openbao.lookup(given["accessor"]) is not None


def test_dead_token_in_a_file_is_refused_once(openbao: OpenBao, path: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s.never-made")
    count = Count()
    vault = client(openbao.address, VaultAuth(method="token", token_file=file), session=count)
    for _ in range(3):
        with pytest.raises(CredentialDenied, match=rf"token in {file} .*expired or was revoked"):
            read(vault, path)
    assert len(count.paths) == 1


def test_ambient_token_address_and_certificate_are_ignored(
    openbao: OpenBao, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", openbao.root_token)
    monkeypatch.setenv("VAULT_ADDR", openbao.address)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY")
    (Path(os.environ["HOME"]) / ".vault-token").write_text(openbao.root_token)
    role = openbao.role(tmp_path, rules={"secret/data/elsewhere": ["read"]})
    vault = client(openbao.address, approle(role))
    with pytest.raises(CredentialDenied, match="policy does not allow"):
        read(vault, path)
    vault.close()
    nowhere = VaultClient(VaultSettings(auth=approle(role)), origin=lambda name: f"settings {name}")
    with pytest.raises(ConfigError, match=r"set 'vault.address'"):
        read(nowhere, path)


def test_client_hides_its_token_and_refuses_pickle(vault: VaultClient, path: str) -> None:
    read(vault, path)
    token = vault._token.value.reveal()
    assert token not in repr(vault) + repr(vars(vault)) + repr(vault._token)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(vault)


def test_request_serves_other_rooms(openbao: OpenBao, tmp_path: Path) -> None:
    mount = unique("transit")
    openbao.api("POST", f"sys/mounts/{mount}", {"type": "transit"})
    openbao.api("POST", f"{mount}/keys/ai", {})
    role = openbao.role(tmp_path, rules={f"{mount}/datakey/plaintext/ai": ["update"]})
    vault = client(openbao.address, approle(role))
    reply = vault.request("post", f"{mount}/datakey/plaintext/ai", {}, what="a data key")
    assert reply["data"]["ciphertext"].startswith("vault:v1:")
    with pytest.raises(CredentialDenied, match="needed for a rotation"):
        vault.request("post", f"{mount}/keys/ai/rotate", {}, what="a rotation")
    vault.close()


def test_tls_13_with_the_named_authority_only(openbao_tls: OpenBao, tmp_path: Path) -> None:
    openbao_tls.write("secret/tls", {"api_key": CANARY})
    role = openbao_tls.role(tmp_path, rules=rules("secret/tls"))
    good = VaultSettings(
        address=openbao_tls.tls_address, ca_file=openbao_tls.ca_file, auth=approle(role), timeout=timedelta(seconds=5)
    )
    vault = VaultClient(good)
    assert read(vault, "secret/tls").values["api_key"].reveal() == CANARY
    vault.close()
    unknown = VaultClient(good.model_copy(update={"ca_file": None}), origin=lambda name: f"settings {name}")
    with pytest.raises(
        CredentialError, match=r"TLS to Vault .*unable to get local issuer certificate.*settings vault.ca_file"
    ):
        read(unknown, "secret/tls")


def test_kubernetes_and_jwt_logins_send_role_and_token(openbao: OpenBao, path: str, tmp_path: Path) -> None:
    now = int(time.time())
    key, jwt = _signed_jwt({"sub": "trainer", "aud": "vault", "iat": now, "nbf": now - 5, "exp": now + 300})
    mount = unique("jwt")
    openbao.api("POST", f"sys/auth/{mount}", {"type": "jwt"})
    openbao.api("POST", f"auth/{mount}/config", {"jwt_validation_pubkeys": [key]})
    openbao.api(
        "POST",
        f"auth/{mount}/role/trainer",
        {
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": ["vault"],
            "token_policies": [openbao.policy(rules(path))],
        },
    )
    file = tmp_path / "jwt"
    file.write_text(jwt)
    vault = client(openbao.address, VaultAuth(method="jwt", mount=mount, role="trainer", jwt_file=file))
    assert read(vault, path).values["api_key"].reveal() == CANARY
    vault.close()
    stranger = client(openbao.address, VaultAuth(method="jwt", mount=mount, role="stranger", jwt_file=file))
    with pytest.raises(CredentialDenied, match=r"refused the JWT .* for role 'stranger'"):
        read(stranger, path)


def _signed_jwt(claims: dict[str, object]) -> tuple[str, str]:
    import base64

    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    key = ed25519.Ed25519PrivateKey.generate()
    body = f"{encoded(json.dumps({'alg': 'EdDSA', 'typ': 'JWT'}).encode())}.{encoded(json.dumps(claims).encode())}"
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return public.decode(), f"{body}.{encoded(key.sign(body.encode()))}"


def test_canary_is_in_no_event_of_a_whole_life(openbao: OpenBao, path: str, tmp_path: Path) -> None:
    events = Events()
    role = openbao.role(tmp_path, rules=rules(path))
    vault = client(openbao.address, approle(role))
    broker = Broker(
        {"inference": CredentialSettings(vault=path), "other": CredentialSettings(vault="secret/forbidden")},
        sources={"vault": lambda: VaultSource(vault)},
        emit=events,
    )
    token_and_values = [CANARY, role.secret_id_file.read_text().strip()]
    assert broker.acquire("inference", "step").credential()["api_key"].reveal() == CANARY
    token_and_values.append(vault._token.value.reveal())
    with pytest.raises(CredentialDenied):
        broker.acquire("other", "step")
    broker.close()
    assert events.actions() == ["credential.leased", "credential.denied", "credential.revoked"]
    assert events.of("credential.revoked")[0]["reason"].startswith("dropped: a value read from Vault has no lease")
    for canary in token_and_values:
        assert canary not in repr(events.kept)
