"""The command line as people and programs use it: output, files, and one exit code per kind of end."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import securemfg
from securemfg.cli import main
from securemfg.encryption import create_local_key
from tests.parts import until

CapSys = pytest.CaptureFixture[str]


def said(capsys: CapSys, *arguments: str, code: int = 0) -> str:
    """Run a command, expect its exit code, and return what it printed on standard output."""
    assert main(list(arguments)) == code, capsys.readouterr()
    return capsys.readouterr().out


def parsed(capsys: CapSys, *arguments: str, code: int = 0) -> Any:
    return json.loads(said(capsys, *arguments, "--json", code=code))


def a_project() -> None:
    assert main(["init", "--no-backup"]) == 0


# -- init and settings ------------------------------------------------------------------------------------------------


def test_init_makes_settings_catalog_and_a_private_key(capsys: CapSys) -> None:
    out = parsed(capsys, "init", "plant", "--no-backup")
    assert {Path(path).name for path in out["made"]} == {"securemfg.toml", "data_flow.yaml", "default.key"}
    key = Path("plant/.securemfg/keys/default.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path("plant/.securemfg").stat().st_mode) == 0o700
    assert Path("plant/.securemfg/.gitignore").read_text() == "*\n"


def test_init_backs_the_key_up_and_keeps_what_is_there(capsys: CapSys) -> None:
    Path("securemfg.toml").write_text("# mine\n")
    said(capsys, "init", "--backup", "safe.key")
    assert Path("securemfg.toml").read_text() == "# mine\n"
    assert Path("safe.key").read_bytes() == Path(".securemfg/keys/default.key").read_bytes()
    assert "already" in said(capsys, "init", "--no-backup")


def test_init_without_a_terminal_wants_the_backup_decided(capsys: CapSys) -> None:
    assert main(["init"]) == 2
    assert "--no-backup" in capsys.readouterr().err
    assert not Path("securemfg.toml").exists()
    assert main(["init", "--backup", "x", "--no-backup"]) == 2


def test_config_show_gives_every_value_its_origin(capsys: CapSys, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("securemfg.toml").write_text('mode = "observe"\n')
    monkeypatch.setenv("SECUREMFG_AUDIT__DEADLINE", "9s")
    shown = parsed(capsys, "config", "show")
    origins = {row["setting"]: (row["value"], row["origin"]) for row in shown["settings"]}
    assert origins["mode"] == ("observe", str(Path("securemfg.toml").absolute()))
    assert origins["audit.deadline"] == ("9s", "SECUREMFG_AUDIT__DEADLINE")
    assert origins["tls.floor"] == ("1.3", "built-in")
    assert [weak["setting"] for weak in shown["weakenings"]] == ["mode"]
    assert main(["config", "show"]) == 0
    assert "refusals become audited warnings" in capsys.readouterr().err.replace("\n", " ")


def test_unknown_setting_is_a_usage_error_that_names_the_nearest(capsys: CapSys) -> None:
    Path("securemfg.toml").write_text('[audit]\ndeadlin = "9s"\n')
    error = parsed(capsys, "config", "show", code=2)["error"]
    assert error["type"] == "ConfigError"
    assert "audit.deadlin" in error["message"]
    assert "did you mean 'deadline'?" in error["message"]


def test_catalog_is_validated_with_file_and_line(capsys: CapSys) -> None:
    Path("flow.yaml").write_text("data_assets:\n  - name: sensor\n    sensitivity: confidental\n")
    assert main(["catalog", "validate", "flow.yaml"]) == 2
    error = capsys.readouterr().err.replace("\n", " ")
    assert "flow.yaml:3" in error
    assert "'confidential'" in error
    Path("flow.yaml").write_text("data_assets:\n  - name: sensor\n    sensitivity: confidential\n")
    assert parsed(capsys, "catalog", "validate", "flow.yaml")["assets"] == [
        {"name": "sensor", "sensitivity": "confidential"}
    ]
    assert main(["catalog", "validate"]) == 2


# -- keys and files ---------------------------------------------------------------------------------------------------


def test_keys_are_generated_listed_backed_up_and_restored(capsys: CapSys) -> None:
    a_project()
    capsys.readouterr()
    made = parsed(capsys, "keys", "generate", "other.key")
    assert made["text"] == "local:other.key"
    assert main(["keys", "generate", "other.key"]) == 1  # never over another
    capsys.readouterr()
    (listed,) = parsed(capsys, "keys", "list")
    assert listed["state"] == "usable"
    copy = parsed(capsys, "keys", "backup", "copy.key")
    assert copy["key"] == listed["id"]
    Path(".securemfg/keys/default.key").unlink()
    assert "is missing" in parsed(capsys, "keys", "list")[0]["state"]
    assert parsed(capsys, "keys", "restore", "copy.key")["key"] == listed["id"]
    assert parsed(capsys, "keys", "list")[0]["state"] == "usable"


def test_a_file_is_encrypted_inspected_and_decrypted(capsys: CapSys) -> None:
    a_project()
    Path("recipe.csv").write_text("torque,41.5\n")
    capsys.readouterr()
    assert parsed(capsys, "encrypt", "recipe.csv")["done"][0]["target"] == "recipe.csv.esdk"
    assert b"torque" not in Path("recipe.csv.esdk").read_bytes()
    assert Path("recipe.csv").exists()  # the source stays
    (shown,) = parsed(capsys, "inspect", "recipe.csv.esdk")
    assert (shown["suite"], shown["plaintext_length"]) == (0x0478, 12)
    assert "0x0478" in said(capsys, "inspect", "recipe.csv.esdk")
    Path("recipe.csv").unlink()
    said(capsys, "decrypt", "recipe.csv.esdk")
    assert Path("recipe.csv").read_text() == "torque,41.5\n"


def test_an_existing_target_needs_force(capsys: CapSys) -> None:
    a_project()
    Path("a").write_text("new")
    Path("a.esdk").write_text("old")
    assert main(["encrypt", "a"]) == 1
    assert "--force" in capsys.readouterr().err.replace("\n", " ")
    assert Path("a.esdk").read_text() == "old"
    said(capsys, "encrypt", "a", "--force")
    assert Path("a.esdk").read_text(errors="replace") != "old"


def test_the_wrong_key_ends_with_1_and_writes_nothing(capsys: CapSys) -> None:
    for name in ("one", "two"):
        create_local_key(Path(f"keys/{name}.key"))
    Path("a").write_text("x")
    said(capsys, "encrypt", "a", "--key", "local:keys/one.key")
    error = parsed(capsys, "decrypt", "a.esdk", "-o", "b", "--key", "local:keys/two.key", code=1)["error"]
    assert error["type"] == "DecryptionError"
    assert not Path("b").exists()


def test_several_files_go_into_a_folder_and_one_that_fails_does_not_stop_the_rest(capsys: CapSys) -> None:
    a_project()
    for name in ("a", "c"):
        Path(name).write_text(name)
    capsys.readouterr()
    out = parsed(capsys, "encrypt", "a", "absent", "c", "-o", "out", code=1)
    assert [row["source"] for row in out["done"]] == ["a", "c"]
    assert [row["source"] for row in out["failed"]] == ["absent"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.esdk", "c.esdk"]


def test_a_target_that_cannot_be_guessed_is_asked_for(capsys: CapSys) -> None:
    a_project()
    Path("message").write_text("x")
    assert main(["decrypt", "message"]) == 2
    assert "-o" in capsys.readouterr().err


# -- audit and report -------------------------------------------------------------------------------------------------


@pytest.fixture
def trail() -> Path:
    """A journal with one finished step, sealed."""
    with securemfg.step("training", name="press", sensitivity="confidential") as step:
        step.audit("model.trained", resource="press-failure")
    securemfg.workflow.reset()  # type: ignore[attr-defined]
    return Path(".securemfg/journal")


def test_the_trail_is_shown_and_filtered(capsys: CapSys, trail: Path) -> None:
    assert "model.trained" in said(capsys, "audit", "show")
    lines = said(capsys, "audit", "show", "--json", "--action", "step.*").splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["step.started", "step.finished"]
    assert len(said(capsys, "audit", "show", "--json", "-n", "1").splitlines()) == 1
    assert said(capsys, "audit", "show", "--json", "--step", "other") == ""
    assert said(capsys, "audit", "show", "--json", "--since", "2999-01-01") == ""
    assert "model.trained" in said(capsys, "audit", "show", str(trail))


def test_an_intact_trail_verifies_and_a_changed_one_does_not(capsys: CapSys, trail: Path) -> None:
    good = parsed(capsys, "audit", "verify")
    assert (good["ok"], good["strength"], good["unsealed_tail"]) == (True, "signed on this host", 0)
    assert "intact" in said(capsys, "audit", "verify")
    (segment,) = trail.glob("*/*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b"press-failure", b"press-success"))
    bad = parsed(capsys, "audit", "verify", code=1)
    assert bad["ok"] is False
    assert bad["problems"][0]["kind"] == "changed"
    assert "NOT intact" in said(capsys, "audit", "verify", code=1)


def test_a_checkpoint_kept_elsewhere_anchors_the_trail(capsys: CapSys, trail: Path) -> None:
    note = said(capsys, "audit", "checkpoint")
    securemfg.workflow.reset()  # type: ignore[attr-defined]
    Path("elsewhere.note").write_text(note)
    found = parsed(capsys, "audit", "verify", "--anchor", "elsewhere.note")
    assert found["ok"]
    assert "anchored" in {writer["strength"] for writer in found["writers"]}
    made = parsed(capsys, "report", "-o", "out", "--anchor", "elsewhere.note")
    assert {row["control"]: row["state"] for row in made["rows"]}["SMFG-LOGINT"] == "pass"
    assert main(["report", "-o", "out", "--anchor", "absent.note"]) == 1


def test_no_journal_is_a_usage_error(capsys: CapSys) -> None:
    assert main(["audit", "show"]) == 2
    assert main(["audit", "verify", "nowhere"]) == 2


def test_the_trail_is_shipped_and_a_second_time_there_is_nothing_left(capsys: CapSys, trail: Path, aws: str) -> None:
    import boto3

    Path("securemfg.toml").write_text('[audit.cloudwatch]\nlog_group = "ai-workflow-logs"\nregion = "eu-central-1"\n')
    first = parsed(capsys, "audit", "ship")
    assert first["shipped"] >= 5
    assert first["pending"] == 0
    logs = boto3.client("logs")
    messages = [
        event["message"]
        for stream in logs.describe_log_streams(logGroupName="ai-workflow-logs")["logStreams"]
        for event in logs.get_log_events(
            logGroupName="ai-workflow-logs", logStreamName=stream["logStreamName"], startFromHead=True
        )["events"]
    ]
    assert any('"action":"model.trained"' in message for message in messages)


def test_shipping_without_an_address_or_with_nobody_there(
    capsys: CapSys, trail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["audit", "ship"]) == 2
    Path("securemfg.toml").write_text('[audit.cloudwatch]\nlog_group = "g"\nregion = "eu-central-1"\n')
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }.items():
        monkeypatch.setenv(name, value)
    securemfg.workflow.reset()  # type: ignore[attr-defined]
    capsys.readouterr()
    out = parsed(capsys, "audit", "ship", "--deadline", "1", code=3)
    assert out["pending"] >= 5


def test_following_ends_with_130_when_interrupted(trail: Path, aws: str) -> None:
    Path("securemfg.toml").write_text('[audit.cloudwatch]\nlog_group = "g"\nregion = "eu-central-1"\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "securemfg", "audit", "ship", "--follow"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )  # fmt: skip
    import boto3

    logs = boto3.client("logs")
    until(lambda: logs.describe_log_groups(logGroupNamePrefix="g")["logGroups"], what="the first delivery")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, (out, err)
    assert b"Traceback" not in err


def test_the_report_is_written_and_its_verdicts_told(capsys: CapSys, trail: Path) -> None:
    made = parsed(capsys, "report", "-o", "out")
    assert len(made["rows"]) == 18
    assert made["controls"]["fail"] == 0
    assert made["controls"]["pass"] >= 2
    assert Path("out/compliance-report.html").read_text().startswith("<!DOCTYPE html>")
    assert "SMFG-LOG" in Path("out/compliance-report.md").read_text()
    (segment,) = sorted(trail.glob("*/*.jsonl"))[:1]
    segment.write_bytes(segment.read_bytes().replace(b"press-failure", b"press-success"))
    assert main(["report", "-o", "out"]) == 1


# -- doctor, and the line itself --------------------------------------------------------------------------------------


def test_doctor_finds_a_healthy_project(capsys: CapSys) -> None:
    a_project()
    capsys.readouterr()
    results = parsed(capsys, "doctor")
    states = {(row["check"], row["state"]) for row in results}
    assert ("keys", "ok") in states
    assert ("mlflow plugin", "ok") in states
    assert ("vault", "not set") in states
    assert not any(state == "fail" for _, state in states)


def test_doctor_says_what_is_wrong(capsys: CapSys) -> None:
    Path("securemfg.toml").write_text(
        'mode = "observe"\ncatalog = "absent.yaml"\n'
        '[vault]\naddress = "https://127.0.0.1:9"\ntimeout = "1s"\nauth = { role_id = "r", secret_id_file = "sid" }\n'
    )
    Path("sid").write_text("x")
    Path("sid").chmod(0o600)
    results = parsed(capsys, "doctor", code=1)
    text = {(row["check"], row["state"]): row["text"] for row in results}
    assert "observe" in text["settings", "warn"]
    assert "absent.yaml" in text["catalog", "fail"]
    assert "default.key is missing" in text["keys", "fail"]
    assert "127.0.0.1:9" in text["vault", "fail"]


def test_doctor_asks_a_real_vault_and_sts_and_cloudwatch(capsys: CapSys, openbao: Any, aws: str) -> None:
    role = openbao.role(Path.cwd(), rules={"secret/data/*": ["read"]})
    Path("securemfg.toml").write_text(
        f'[vault]\naddress = "{openbao.address}"\n'
        f'auth = {{ role_id = "{role.role_id}", secret_id_file = "{role.secret_id_file}" }}\n'
        '[credentials]\nbucket = { sts = "arn:aws:iam::123456789012:role/writer" }\n'
        '[audit.cloudwatch]\nlog_group = "ai-workflow-logs"\nregion = "eu-central-1"\n'
    )
    text = {(row["check"], row["state"]): row["text"] for row in parsed(capsys, "doctor", code=1)}  # the key is missing
    assert "logged in by approle" in text["vault", "ok"]
    assert "arn:aws" in text["sts", "ok"]
    assert "ai-workflow-logs" in text["cloudwatch", "ok"]


def test_usage_errors_end_with_2_and_help_and_version_with_0(capsys: CapSys) -> None:
    assert main(["nosuch"]) == 2
    assert main(["encrypt"]) == 2
    assert main(["--version"]) == 0
    assert securemfg.__version__ in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "--install-completion" in capsys.readouterr().out


def test_colours_can_be_switched_off() -> None:
    code = "import sys; from securemfg.cli import main; sys.exit(main(sys.argv[1:]))"
    env = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    coloured = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, env=env, check=False)
    plain = subprocess.run(
        [sys.executable, "-c", code, "--no-color", "doctor"], capture_output=True, env=env, check=False
    )
    assert b"\x1b[32m" in coloured.stdout
    assert b"\x1b[32m" not in plain.stdout


def test_something_unexpected_ends_with_4(capsys: CapSys, monkeypatch: pytest.MonkeyPatch) -> None:
    from securemfg import config

    monkeypatch.setattr(config, "load", lambda *_, **__: 1 / 0)
    assert main(["config", "show"]) == 4
    assert "ZeroDivisionError" in capsys.readouterr().err
