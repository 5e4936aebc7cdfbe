"""`securemfg doctor` against real servers: TLS endpoints of every kind, and logins that it must not use up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parts.openbao import OpenBao, free_port
from tests.parts.tls import Pki, pki  # noqa: F401  # a fixture
from tests.parts.trail import settings


def states(ran, check: str) -> list[tuple[str, str]]:
    return [(row["state"], row["text"]) for row in ran.json if row["check"] == check]


def test_a_tls_13_server_is_ok_and_its_certificate_s_days_are_told(cli, pki: Pki) -> None:  # noqa: F811
    settings(f'[tls]\nca_file = "{pki.ca.ca_file}"\n[keys]\n')
    cli("keys", "generate", ".securemfg/keys/default.key")
    with pki.server() as server:
        endpoint = server.url.removeprefix("https://")
        ran = cli("doctor", endpoint, "--json")
    ((state, text),) = states(ran, "tls")
    assert state == "ok"
    assert text.startswith(f"{endpoint}: TLSv1.3, ")
    assert "certificate valid for " in text
    assert ran.code == 0, ran.out


def test_servers_that_fall_short_fail_with_their_reason(cli, pki: Pki) -> None:  # noqa: F811
    settings(f'[tls]\nca_file = "{pki.ca.ca_file}"\n')
    with pki.server(tls12=True) as old, pki.server(pki.expired) as expired:
        places = [server.url.removeprefix("https://") for server in (old, expired)]
        nobody = f"127.0.0.1:{free_port()}"
        ran = cli("doctor", *places, nobody, "--json")
    assert ran.code == 1
    found = states(ran, "tls")
    assert [state for state, _ in found] == ["fail"] * 3
    assert "1.2" in found[0][1] or "1.3" in found[0][1]
    assert "expired" in found[1][1]
    assert found[2][1].startswith(nobody)


@pytest.mark.parametrize("endpoint", ["plant.internal:https", ":443", "plant.internal:70000"])
def test_what_is_no_endpoint_fails_with_how_to_write_one(cli, endpoint: str) -> None:
    ran = cli("doctor", endpoint, "--json")
    assert ran.code == 1
    assert states(ran, f"tls {endpoint}") == [("fail", f"{endpoint!r} must be HOST or HOST:PORT")]


def test_the_embedded_default_is_healthy_and_says_what_is_not_set(cli) -> None:
    ran = cli("doctor", "--json")
    assert ran.code == 0, ran.out
    assert states(ran, "settings") == [("ok", "none found: the embedded default serves")]
    assert {row["check"] for row in ran.json if row["state"] == "not set"} >= {"catalog", "vault", "sts", "cloudwatch"}
    assert not Path(".securemfg/keys/default.key").exists()  # a look makes no key
    assert "embedded default serves" in " ".join(cli("doctor").out.split())


PARALLEL = "parallel path, several threads for a large file (it releases the GIL)"
ONE_WORKER = "one worker per file (older than 50, it holds the GIL: upgrade for speed)"


def test_it_says_which_path_encryption_takes_with_the_cryptography_at_hand(cli) -> None:
    import cryptography

    ((state, text),) = states(cli("doctor", "--json"), "encryption")
    path = PARALLEL if int(cryptography.__version__.split(".")[0]) >= 50 else ONE_WORKER
    assert (state, text.split("; ")[0]) == ("ok", f"cryptography {cryptography.__version__}: {path}")


@pytest.mark.parametrize(("version", "path"), [("43.0.3", ONE_WORKER), ("49.0.0", ONE_WORKER), ("50.0.2", PARALLEL)])
def test_the_release_of_cryptography_decides_which_path_it_says(
    cli, monkeypatch: pytest.MonkeyPatch, version: str, path: str
) -> None:
    import cryptography

    from securemfg.encryption import frames

    monkeypatch.setattr(cryptography, "__version__", version)
    monkeypatch.setattr(frames, "cryptography_version", version)
    frames.parallel.cache_clear()
    try:
        ((state, text),) = states(cli("doctor", "--json"), "encryption")
    finally:
        frames.parallel.cache_clear()
    assert (state, text.split("; ")[0]) == ("ok", f"cryptography {version}: {path}")


@pytest.mark.live
def test_a_vault_behind_its_own_authority_is_reached_by_vault_ca_file(cli, openbao_tls: OpenBao) -> None:
    role = openbao_tls.role(Path.cwd())
    settings(
        f'[vault]\naddress = "{openbao_tls.tls_address}"\nca_file = "{openbao_tls.ca_file}"\n'
        f'auth = {{ role_id = "{role.role_id}", secret_id_file = "{role.secret_id_file}" }}\n'
    )
    (tls, login) = states(cli("doctor", "--json"), "vault")
    assert tls[0] == "ok", tls
    assert "TLSv1.3" in tls[1]
    assert login[0] == "ok", login
    assert "policies default" in login[1]


@pytest.mark.live
def test_a_wrapped_secret_id_is_left_for_the_workflow(cli, openbao: OpenBao) -> None:
    role = openbao.role(Path.cwd(), wrapped="60s")
    auth = f'role_id = "{role.role_id}", secret_id_file = "{role.secret_id_file}", secret_id_wrapped = true'
    settings(f'[vault]\naddress = "{openbao.address}"\nauth = {{ {auth} }}\n')
    ((state, text),) = states(cli("doctor", "--json"), "vault")
    assert state == "ok"
    assert "was not tried, because it opens only once" in text
    assert openbao.client(role.secret_id_file.read_text().strip()).sys.unwrap()["data"]["secret_id"]


@pytest.mark.live
def test_a_login_that_vault_refuses_and_a_vault_that_is_away_fail_with_the_reason(cli, openbao: OpenBao) -> None:
    role = openbao.role(Path.cwd())
    role.secret_id_file.write_text("of another role")

    def at(address: str) -> list[tuple[str, str]]:
        settings(
            f'[vault]\naddress = "{address}"\ntimeout = "500ms"\n'
            f'auth = {{ role_id = "{role.role_id}", secret_id_file = "{role.secret_id_file}" }}\n'
        )
        ran = cli("doctor", "--json")
        assert ran.code == 1
        return states(ran, "vault")

    ((state, why),) = at(openbao.address)
    assert (state, "Vault refused the secret id" in why) == ("fail", True)
    ((state, why),) = at(f"http://127.0.0.1:{free_port()}")
    assert (state, "check that it runs, is unsealed and can be reached" in why) == ("fail", True)


@pytest.mark.live
def test_the_doctor_logs_out_of_vault_again(cli, openbao: OpenBao) -> None:
    role = openbao.role(Path.cwd(), token_ttl="60s")
    settings(
        f'[vault]\naddress = "{openbao.address}"\n'
        f'auth = {{ role_id = "{role.role_id}", secret_id_file = "{role.secret_id_file}" }}\n'
    )

    def tokens() -> set[str]:
        return set(openbao.api("LIST", "auth/token/accessors")["data"]["keys"])

    before = tokens()
    ((state, _),) = states(cli("doctor", "--json"), "vault")
    assert state == "ok"
    assert tokens() <= before


@pytest.mark.live
def test_cloudwatch_says_how_long_it_keeps_events_or_why_it_cannot_be_asked(
    cli, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    logs = boto3.client("logs")

    def said(group: str, more: str = "") -> tuple[str, str]:
        settings(f'[audit.cloudwatch]\nlog_group = "{group}"\nregion = "eu-central-1"\n{more}')
        (found,) = states(cli("doctor", "--json"), "cloudwatch")
        return found

    logs.create_log_group(logGroupName="plant-of-others")
    state, why = said("plant", "create = false\n")
    assert state == "fail"  # a prefix is not the name
    assert "the log group 'plant' is not there" in why
    state, why = said("new")
    assert state == "ok"
    assert why in {
        "log group new is not there yet: the first shipment makes it, keeping events for ever",
        "log group new keeps events for ever",  # the call before left an event, and it was shipped first
    }
    logs.create_log_group(logGroupName="plant")
    assert said("plant") == ("ok", "log group plant keeps events for ever")
    logs.put_retention_policy(logGroupName="plant", retentionInDays=365)
    assert said("plant") == ("ok", "log group plant keeps events 365 days")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    state, why = said("plant")
    assert state == "fail"
    assert "CloudWatch Logs could not be asked about 'plant'" in why


@pytest.mark.live
def test_sts_says_who_we_are_or_that_we_are_nobody(cli, aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings('[credentials]\nbucket = { sts = "arn:aws:iam::123456789012:role/writer", region = "eu-central-1" }\n')
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    ((state, text),) = states(cli("doctor", "--json"), "sts")
    assert state == "ok", text
    assert text.startswith("this is arn:aws:sts::123456789012:")
    assert text.endswith("roles to assume: bucket")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    ((state, text),) = states(cli("doctor", "--json"), "sts")
    assert state == "fail"
    assert "needs an AWS identity to start from" in text
