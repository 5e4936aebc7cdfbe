"""What a step does on its way in and out: decisions, events, policies, keys, and several workflows side by side."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

import securemfg
from securemfg import Sensitivity
from securemfg.errors import AccessDenied, CatalogError, ConfigError, KeyUnavailable
from securemfg.workflow import Workflow, default_workflow, reset
from tests.parts.openbao import OpenBao, unique
from tests.parts.trail import CATALOG, actions, events, settings

CANARY = "canary-3d1f77aa"
SENSORS = ["production_sensor_data"]


# -- events


def test_started_names_the_decision_and_its_policy_and_finished_the_duration() -> None:
    settings(catalog=CATALOG)
    with securemfg.step("training", assets=SENSORS, role="MLResearcher") as step:
        assert step.audit("weld.counted", "line-2", kind="press", detail={"welds": 12}) is not None
    assert actions() == ["step.started", "weld.counted", "step.finished"]
    started, counted, finished = (event for event in events() if not event["action"].startswith("journal."))
    assert started["decision"]["allowed"] is True
    assert started["decision"]["role"] == "MLResearcher"
    assert started["policy_version"] == default_workflow().catalog.digest
    assert counted["resource"] == {"id": "line-2", "type": "press"}
    assert counted["detail"] == {"welds": 12}
    assert finished["outcome"] == "success"
    assert finished["detail"]["duration_us"] > 0


def test_every_event_of_a_step_carries_its_tags() -> None:
    settings('[audit]\nsite = "berlin"\nline = "press-2"\n', catalog=CATALOG)
    with securemfg.step("training", name="fit", assets=SENSORS, role="MLResearcher") as step:
        securemfg.audit.event("weld.seen")
    for event in events():
        if event["action"].startswith("journal."):
            continue
        assert event["stage"] == "training"
        assert event["step"] == "fit"
        assert event["sensitivity"] == "confidential"
        assert event["session"] == step.context.step_id
        assert (event["site"], event["line"]) == ("berlin", "press-2")
        assert event["actor"]["role"] == "MLResearcher"
        assert event["actor"]["auth_method"] == "asserted"
        assert event["retention_class"] == "audit"
    with securemfg.step("inference"):
        pass
    assert events("step.finished")[-1]["retention_class"] == "inference"


def test_failed_carries_the_class_and_never_the_text_of_an_exception() -> None:
    with pytest.raises(ZeroDivisionError):
        with securemfg.step("training"):
            raise ZeroDivisionError(f"recipe {CANARY}")
    (failed,) = events("step.failed")
    assert failed["reason"] == "ZeroDivisionError"
    assert failed["outcome"] == "failure"
    reset()
    for path in Path().rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


def test_an_exception_s_class_is_named_with_its_module() -> None:
    with pytest.raises(ConfigError):
        with securemfg.step("training"):
            raise ConfigError("x")
    assert events("step.failed")[0]["reason"] == "securemfg.errors.ConfigError"


def test_outside_any_step_an_event_is_kept_too() -> None:
    securemfg.audit.event("plant.opened", "berlin")
    (event,) = events("plant.")
    assert event["resource"] == {"id": "berlin"}
    assert "step" not in event


# -- decisions


def test_the_strictest_of_argument_and_assets_is_the_step_s_sensitivity() -> None:
    settings(catalog=CATALOG)

    def level(**given: object) -> Sensitivity:
        with securemfg.step("preparation", role="DataProtection", **given) as step:
            return step.sensitivity

    assert level() is Sensitivity.INTERNAL
    assert level(sensitivity="public") is Sensitivity.PUBLIC
    assert level(assets=["maintenance_calendar"], sensitivity="public") is Sensitivity.INTERNAL
    assert level(assets=["maintenance_calendar", "operator_feedback"], sensitivity="confidential") is Sensitivity.PII
    assert level(assets=["maintenance_calendar"], sensitivity=Sensitivity.IP_SENSITIVE) is Sensitivity.IP_SENSITIVE


def test_a_denied_step_is_audited_durably_and_its_body_never_runs() -> None:
    settings(catalog=CATALOG)
    ran = []

    @securemfg.step("training", assets=SENSORS, role="Service")
    def train() -> None:
        ran.append(1)

    with pytest.raises(AccessDenied, match=r"training refused: role 'Service' may not do 'training' .*only: inference"):
        train()
    assert ran == []
    assert actions() == ["access.denied"]
    (denied,) = events("access.denied")
    assert denied["outcome"] == "denied"
    assert denied["decision"]["allowed"] is False
    assert denied["resource"] == {"id": "production_sensor_data", "type": "asset"}
    assert denied["policy_version"] == default_workflow().catalog.digest
    assert denied["step"] == train.__qualname__


def test_in_observe_mode_a_denial_is_audited_and_the_step_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    settings('mode = "observe"\n', catalog=CATALOG)
    with securemfg.step("training", assets=SENSORS, role="Service"):
        pass
    assert actions() == ["settings.weakened", "access.denied", "step.started", "step.finished"]
    assert events("access.denied")[0]["detail"] == {"mode": "observe"}
    assert "weakened: mode = observe" in capsys.readouterr().err


def test_unknown_asset_names_the_nearest() -> None:
    settings(catalog=CATALOG)
    with pytest.raises(CatalogError, match="production_sensor_data"):
        with securemfg.step("training", assets=["production_sensors_data"]):
            pytest.fail("the body ran")
    assert actions() == []


def test_an_asset_without_a_catalog_is_an_error_that_says_how_to_set_one() -> None:
    with pytest.raises(CatalogError, match=r"no catalog is set: set 'catalog' .*no settings file found"):
        with securemfg.step("training", assets=["x"]):
            pytest.fail("the body ran")


def test_authorize_asks_for_the_role_of_the_step_and_audits_a_denial() -> None:
    settings(catalog=CATALOG)
    assert securemfg.authorize("inference", "production_sensor_data", role="Service").allowed
    with securemfg.step("training", assets=SENSORS, role="MLResearcher") as step:
        assert securemfg.authorize("evaluation", "production_sensor_data").allowed
        with pytest.raises(AccessDenied, match="export refused"):
            securemfg.authorize("export", "production_sensor_data")
    (denied,) = events("access.denied")
    assert denied["session"] == step.context.step_id
    assert denied["decision"]["action"] == "export"
    with pytest.raises(AccessDenied, match="none was given"):
        securemfg.authorize("inference", "production_sensor_data")


# -- credentials

FEATURES = """\
[vault]
address = "http://127.0.0.1:9"
auth = { method = "token", token_file = "token" }
[credentials]
features-db = { vault = "database/creds/trainer" }
model-bucket = { sts = "arn:aws:iam::123456789012:role/model-writer" }
archive = { sts = "arn:aws:iam::123456789012:role/archive" }
"""


def test_a_credential_that_the_step_does_not_declare_is_refused_with_the_nearest() -> None:
    settings(FEATURES)
    with securemfg.step("training", credentials=["features-db"]) as step:
        with pytest.raises(ConfigError, match="does not declare credential 'feature-db'.*did you mean 'features-db'"):
            step.credential("feature-db")


def test_a_credential_that_the_settings_do_not_have_is_refused_on_entering() -> None:
    settings(FEATURES)
    with pytest.raises(ConfigError, match=r"'feature-db' is not in the settings .*securemfg.toml.*'features-db'"):
        with securemfg.step("training", credentials=["feature-db"]):
            pytest.fail("the body ran")


def test_aws_needs_one_sts_credential_or_its_name() -> None:
    settings(FEATURES)
    with securemfg.step("training", credentials=["features-db"]) as step:
        with pytest.raises(ConfigError, match=r"step.aws\('s3'\) needs one STS credential and the step declares none"):
            step.aws("s3")
        with pytest.raises(ConfigError, match="'features-db' is not an STS credential that this step declares"):
            step.aws("s3", "features-db")
    with securemfg.step("training", credentials=["model-bucket", "archive"]) as step:
        with pytest.raises(ConfigError, match="declares model-bucket, archive"):
            step.aws("s3")


def test_secret_finds_no_such_credential_and_names_the_nearest() -> None:
    settings(FEATURES)
    with pytest.raises(ConfigError, match="did you mean 'features-db'"):
        securemfg.secret("features")


@pytest.mark.live
def test_aws_clients_work_on_the_step_s_short_lived_credential_which_ends_with_it(aws: str) -> None:
    role = "arn:aws:iam::123456789012:role/model-writer"
    settings(f'[credentials]\nmodel-bucket = {{ sts = "{role}", region = "eu-central-1" }}\n')
    with securemfg.step("training", role="MLResearcher", credentials=["model-bucket"]) as step:
        s3 = step.aws("s3")
        s3.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        assert "assumed-role/model-writer/securemfg-" in step.aws("sts").get_caller_identity()["Arn"]
    assert securemfg.aws_session(role_arn=role).client("s3").list_buckets()["Buckets"][0]["Name"] == "models"
    (leased, _) = events("credential.leased")
    assert leased["session"] == step.context.step_id
    assert leased["detail"]["source"] == "sts"
    reset()
    assert {event["resource"]["id"] for event in events("credential.revoked")} == {"model-bucket", role}


@pytest.mark.live
def test_secret_is_found_by_name_or_by_its_path_in_vault(openbao: OpenBao) -> None:
    path = f"secret/{unique('ai')}/inference"
    openbao.write(path, {"api_key": "k-1"})
    role = openbao.role(Path.cwd(), rules={path.replace("secret/", "secret/data/"): ["read"]})
    settings(
        f'[vault]\naddress = "{openbao.address}"\n'
        f'auth = {{ role_id = "{role.role_id}", secret_id_file = "{role.secret_id_file}" }}\n'
        f'[credentials]\ninference = {{ vault = "{path}" }}\n'
    )
    for name in ("inference", path, path.removeprefix("secret/")):
        assert securemfg.secret(name)["api_key"].reveal() == "k-1"
    assert len(events("credential.leased")) == 1


# -- keys and the embedded default


def test_the_embedded_default_makes_its_key_once_privately_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    workflow = default_workflow()
    (group,) = workflow.keys.for_assets(()).values()
    reset()
    default_workflow().keys.for_assets(())
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "no settings found: using the embedded default" in said[0]
    assert "securemfg keys backup" in said[0]
    key = Path(".securemfg/keys/default.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_bytes()) == 32
    assert stat.S_IMODE(Path(".securemfg").stat().st_mode) == 0o700
    assert Path(".securemfg/.gitignore").read_text() == "*\n"
    (created,) = events("key.created")
    assert created["resource"]["id"] == group[0].name


def test_an_empty_settings_file_is_a_choice_and_not_the_embedded_default() -> None:
    Path("securemfg.toml").write_text("")
    with pytest.raises(KeyUnavailable, match="is missing"):
        default_workflow().keys.for_assets(())
    assert not Path(".securemfg/keys/default.key").exists()


def test_with_settings_a_missing_key_is_never_made() -> None:
    settings('mode = "enforce"\n')
    with pytest.raises(KeyUnavailable, match="securemfg keys generate"):
        default_workflow().keys.for_assets(())
    assert not Path(".securemfg/keys/default.key").exists()


def test_assets_with_keys_of_their_own_are_wrapped_for_all_of_them(tmp_path: Path) -> None:
    from securemfg.encryption.keys import create_local_key

    names = {name: create_local_key(tmp_path / f"{name}.key").name for name in ("default", "operator_feedback")}
    settings(
        f'[keys]\ndefault = "local:{tmp_path}/default.key"\noperator_feedback = "local:{tmp_path}/operator_feedback.key"\n',
        catalog=CATALOG,
    )

    def wrapped(*assets: str) -> list[list[str]]:
        return [[key.name for key in group] for group in default_workflow().keys.for_assets(assets).values()]

    assert wrapped() == [[names["default"]]]
    assert wrapped("operator_feedback") == [[names["operator_feedback"]]]
    assert wrapped("production_sensor_data") == [[names["default"]]]
    assert wrapped("operator_feedback", "production_sensor_data") == [[names["operator_feedback"]], [names["default"]]]


# -- weakened and switched off

WEAK = """\
mode = "observe"
[tls]
floor = "1.2"
allow = [{ host = "loopback", reason = "same machine" }, { host = "plc-7", reason = "old controller" }]
[audit.on_failure]
confidential = "degrade"
"""


def test_every_weakening_is_audited_once_with_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    path = settings(WEAK)
    monkeypatch.setenv("SECUREMFG_ARTIFACTS__ENCRYPT_FROM", "confidential")
    for _ in range(3):
        with securemfg.step("training"):
            pass
    told = {e["resource"]["id"]: e["detail"] for e in events("settings.weakened")}
    assert len(events("settings.weakened")) == len(told)
    assert set(told) >= {"mode", "tls.floor", "tls.allow", "audit.on_failure.confidential", "artifacts.encrypt_from"}
    assert told["mode"] == {"value": "observe", "origin": str(path.absolute())}
    assert told["artifacts.encrypt_from"]["origin"] == "SECUREMFG_ARTIFACTS__ENCRYPT_FROM"


def test_concurrent_first_steps_tell_a_weakening_once() -> None:
    settings('mode = "observe"\n')
    together = threading.Barrier(8)
    workflow = default_workflow()

    def work() -> None:
        together.wait(20)
        with workflow.step("training"):
            pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(events("settings.weakened")) == 1
    assert len(events("step.finished")) == 8


@pytest.mark.parametrize("use", ["tls.client", "tls.enforce", "artifacts.activate"])
def test_a_weakening_is_audited_without_any_step(use: str) -> None:
    settings('mode = "observe"\n')
    match use:
        case "tls.client":
            securemfg.tls.client().close()
        case "tls.enforce":
            securemfg.tls.enforce()
            securemfg.tls.release()
        case _:
            securemfg.artifacts.activate()
            securemfg.artifacts.deactivate()
    assert [event["resource"]["id"] for event in events("settings.weakened")] == ["mode"]


def test_disabled_enforces_nothing_and_says_so_in_the_trail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from securemfg.transport import enforcement

    settings(catalog=CATALOG)
    monkeypatch.setenv("SECUREMFG_DISABLED", "1")
    with securemfg.step("training", assets=SENSORS, role="nobody", credentials=["not-there"]) as step:
        assert securemfg.current() is step
        assert not enforcement.active()
        assert not securemfg.artifacts.active()
        assert step.audit("weld.seen") is None
        assert not securemfg.authorize("training", "production_sensor_data", role="nobody").allowed
    assert actions() == ["settings.weakened", "access.denied"]
    (weakened,) = events("settings.weakened")
    assert weakened["resource"]["id"] == "SECUREMFG_DISABLED"
    assert events("access.denied")[0]["detail"] == {"mode": "disabled"}
    assert "nothing is enforced" in capsys.readouterr().err


def test_disabled_runs_the_body_even_where_no_trail_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECUREMFG_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("SECUREMFG_DISABLED", "1")
    with securemfg.step("training") as step:
        assert step.name == "training"


# -- several workflows


def test_workflows_side_by_side_keep_their_own_trails_and_settings(tmp_path: Path) -> None:
    first = Workflow.from_config(settings('[audit]\nsite = "berlin"\n', tmp_path / "berlin"))
    second = Workflow.from_config(settings('[audit]\nsite = "turin"\n', tmp_path / "turin"))
    with first.step("training", name="a") as a, second.step("training", name="b") as b:
        securemfg.audit.event("default.one")
        a.audit("mine")
        b.audit("mine")
    assert [(e["step"], e["site"]) for e in events("mine", tmp_path / "berlin/.securemfg")] == [("a", "berlin")]
    assert [(e["step"], e["site"]) for e in events("mine", tmp_path / "turin/.securemfg")] == [("b", "turin")]
    assert actions() == ["default.one"]
    assert actions(tmp_path / "berlin/.securemfg") == ["step.started", "mine", "step.finished"]


def test_one_function_serves_two_workflows_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @securemfg.step("training", assets=["a"])
    def train() -> Sensitivity:
        return securemfg.current().sensitivity

    for place, level in (("first", "confidential"), ("second", "pii")):
        catalog = f"data_assets:\n  - name: a\n    sensitivity: {level}\n"
        settings(folder=tmp_path / place, catalog=catalog)
        monkeypatch.chdir(tmp_path / place)
        assert train() is Sensitivity.parse(level)
        reset()


def test_from_config_takes_overrides_and_names_what_is_wrong(tmp_path: Path) -> None:
    path = settings('mode = "enforce"\n', tmp_path)
    assert not Workflow.from_config(path, overrides={"mode": "observe"}).config.enforcing
    with pytest.raises(ConfigError, match=r"unknown setting 'mood' \(argument\); did you mean 'mode'"):
        Workflow.from_config(path, overrides={"mood": "observe"})
    with pytest.raises(ConfigError, match="does not exist"):
        Workflow.from_config(tmp_path / "none.toml")


def test_default_workflow_is_one_and_reset_forgets_it() -> None:
    first = default_workflow()
    assert default_workflow() is first
    reset()
    assert default_workflow() is not first
    assert repr(first) == "<Workflow embedded default>"


def test_a_workflow_can_be_used_again_after_it_was_closed() -> None:
    with Workflow.from_config() as workflow, workflow.step("training"):
        pass
    with workflow.step("training"):
        pass
    workflow.close()
    assert len(events("step.finished")) == 2
    from securemfg.audit import verify

    found = verify(Path(".securemfg/journal"))
    assert found.ok
    assert found.tail == 0
    assert len(found.writers) == 2


# -- encrypted artifacts on and off


def test_a_step_keeps_artifacts_encrypted_whatever_explicit_pairs_did_before() -> None:
    securemfg.artifacts.activate()
    with securemfg.step("training"):
        pass
    securemfg.artifacts.deactivate()
    with securemfg.step("training"):
        assert securemfg.artifacts.active()


def test_an_unpaired_deactivate_does_not_switch_the_next_step_off() -> None:
    with securemfg.step("training"):
        securemfg.artifacts.deactivate()  # one too many: it takes the step's own away
    with securemfg.step("training"):
        assert securemfg.artifacts.active()


def test_closing_one_workflow_leaves_the_other_s_artifacts_encrypted(tmp_path: Path) -> None:
    first = Workflow.from_config(settings(folder=tmp_path / "first"))
    second = Workflow.from_config(settings(folder=tmp_path / "second"))
    with second.step("training"):
        with first.step("training"):
            pass
        first.close()
        assert securemfg.artifacts.active()
    second.close()
    assert not securemfg.artifacts.active()


def test_each_workflow_s_artifacts_get_its_own_keys_rules_and_trail(tmp_path: Path) -> None:
    from securemfg.artifacts.state import STATE
    from securemfg.encryption.keys import create_local_key

    made = {}
    for place, level in (("first", "internal"), ("second", "confidential")):
        path = settings(f'[keys]\ndefault = "local:key"\n[artifacts]\nencrypt_from = "{level}"\n', tmp_path / place)
        made[place] = (Workflow.from_config(path), create_local_key(tmp_path / place / "key").name)

    def seen() -> tuple[str, str, str]:
        protection = STATE.protection
        assert protection is not None
        protection.emit("artifact.encrypted", resource="model")
        ((writing,),) = protection.writing_keys().values()
        (reading,) = protection.reading_keys()
        return writing.name, reading.name, str(protection.encrypt_from)

    (first, first_key), (second, second_key) = made["first"], made["second"]
    with first.step("training"), second.step("training"):
        assert seen() == (second_key, second_key, "confidential")
    with second.step("training"), first.step("training"):
        assert seen() == (first_key, first_key, "internal")
    with second.step("training"):
        others: list[object] = []
        thread = threading.Thread(target=lambda: others.append(seen()))  # MLflow's own threads carry no step
        thread.start()
        thread.join(20)
        assert others == [(second_key, second_key, "confidential")]
    assert len(events("artifact.", tmp_path / "first/.securemfg")) == 1
    assert len(events("artifact.", tmp_path / "second/.securemfg")) == 2
