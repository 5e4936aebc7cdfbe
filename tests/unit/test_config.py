"""Settings: where each value comes from, what is refused and how it is said, and what the machine's lock allows."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from securemfg.config import BUILT_IN, Config, load
from securemfg.errors import ConfigError
from securemfg.labels import Sensitivity, Stage
from securemfg.settings import FailPolicy, Mode, PlaintextReads, Tracking, duration, retention_class

Load = Callable[..., Config]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "plant"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(here: Path) -> Load:
    """Load settings from texts: securemfg.toml, pyproject.toml, the lock, the environment, arguments."""

    def loaded(own: str | None = None, *, pyproject: str | None = None, lock: str | None = None, **more) -> Config:
        for name, text in (("securemfg.toml", own), ("pyproject.toml", pyproject), ("lock.toml", lock)):
            if text is not None:
                (here / name).write_text(text)
        return load(
            folder=here,
            environment=more.get("env", {}),
            overrides=more.get("overrides"),
            lock_file=here / "lock.toml",
        )

    return loaded


# -- precedence and origins -------------------------------------------------------------------------------------------


def test_argument_beats_environment_beats_own_file_beats_pyproject_beats_built_in(settings: Load, here: Path) -> None:
    layers = [
        ({}, "5s", BUILT_IN),
        ({"pyproject": '[tool.securemfg.audit]\ndeadline = "6s"'}, "6s", str(here / "pyproject.toml")),
        ({"own": '[audit]\ndeadline = "7s"'}, "7s", str(here / "securemfg.toml")),
        ({"env": {"SECUREMFG_AUDIT__DEADLINE": "8s"}}, "8s", "SECUREMFG_AUDIT__DEADLINE"),
        ({"overrides": {"audit.deadline": "9s"}}, "9s", "argument"),
    ]
    given: dict[str, object] = {}
    for layer, expected, origin in layers:
        given |= layer
        config = settings(**given)
        assert config.settings.audit.deadline == duration(expected)
        assert config.origin("audit.deadline") == origin
        assert ("audit.deadline", expected, origin) in list(config.shown())


def test_files_are_merged_key_by_key_and_each_key_keeps_its_origin(settings: Load, here: Path) -> None:
    config = settings(
        '[credentials.db]\nttl = "15m"',
        pyproject='[tool.securemfg.credentials.db]\nvault = "database/creds/db"\nttl = "1h"',
    )
    credential = config.settings.credentials["db"]
    assert (credential.vault, credential.ttl) == ("database/creds/db", timedelta(minutes=15))
    assert config.origin("credentials.db.vault") == str(here / "pyproject.toml")
    assert config.origin("credentials.db.ttl") == str(here / "securemfg.toml")
    assert config.source == here / "securemfg.toml"


def test_table_that_replaces_a_value_replaces_its_origin_too(settings: Load, here: Path) -> None:
    config = settings('[artifacts.tracking]\npii = "allow"', pyproject='[tool.securemfg.artifacts]\ntracking = "seal"')
    assert config.settings.artifacts.tracking == {Sensitivity.PII: Tracking.ALLOW}
    assert config.origin("artifacts.tracking") == str(here / "securemfg.toml")
    assert config.origin("artifacts.tracking.pii") == str(here / "securemfg.toml")


def test_value_that_replaces_a_table_replaces_its_origins_too(settings: Load, here: Path) -> None:
    config = settings('artifacts.tracking = "seal"', pyproject='[tool.securemfg.artifacts.tracking]\npii = "allow"')
    assert config.settings.artifacts.tracking is Tracking.SEAL
    assert set(config.origins) == {"artifacts.tracking"}
    assert config.origin("artifacts.tracking.pii") == str(here / "securemfg.toml")


def test_origin_is_found_however_a_level_is_written(settings: Load, here: Path) -> None:
    config = settings('[audit.on_failure]\nip_sensitive = "degrade"')
    assert config.origin("audit.on_failure.ip-sensitive") == str(here / "securemfg.toml")
    assert config.origin("audit.on_failure.pii") == BUILT_IN


def test_settings_are_found_in_a_folder_above_and_the_nearest_counts(settings: Load, here: Path) -> None:
    settings('mode = "observe"')
    below = here / "a" / "b"
    below.mkdir(parents=True)
    assert load(folder=below, environment={}, lock_file=here / "none").folder == here
    (here / "a" / "pyproject.toml").write_text('[tool.securemfg]\ncatalog = "flow.yaml"')
    config = load(folder=below, environment={}, lock_file=here / "none")
    assert (config.settings.mode, config.folder) == (Mode.ENFORCE, here / "a")


def test_pyproject_of_somebody_else_is_passed_by_even_when_it_is_broken(settings: Load, here: Path) -> None:
    settings('mode = "observe"')
    below = here / "vendored"
    below.mkdir()
    for text in ('[project]\nname = "x"', "not = = toml", '[project]\ndependencies = ["securemfg"]'):
        (below / "pyproject.toml").write_text(text)
        assert load(folder=below, environment={}, lock_file=here / "none").folder == here


def test_named_file_or_folder_is_taken_instead_of_the_search(settings: Load, here: Path, tmp_path: Path) -> None:
    settings('mode = "observe"')
    other = tmp_path / "other.toml"
    other.write_text('catalog = "flow.yaml"')
    for named in (
        load(other, folder=here, environment={}, lock_file=here / "none"),
        load(folder=here, environment={"SECUREMFG_CONFIG": str(other)}, lock_file=here / "none"),
    ):
        assert (named.settings.mode, named.source, named.folder) == (Mode.ENFORCE, other, tmp_path)
    assert load(here, folder=tmp_path, environment={}, lock_file=here / "none").settings.mode is Mode.OBSERVE
    with pytest.raises(ConfigError, match=r"none.toml does not exist: create it with 'securemfg init'"):
        load(tmp_path / "none.toml", environment={}, lock_file=here / "none")


def test_frozen_config_cannot_be_changed(settings: Load) -> None:
    config = settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.disabled = True  # type: ignore[misc]
    with pytest.raises(Exception, match="frozen"):
        config.settings.mode = Mode.OBSERVE


def test_repr_does_not_show_the_environment(settings: Load) -> None:
    assert "canary" not in repr(settings(env={"DB_PASSWORD": "canary"}))


# -- environment ------------------------------------------------------------------------------------------------------


def test_environment_takes_the_files_spelling_of_names_with_dashes(settings: Load) -> None:
    config = settings(
        '[credentials.features-db]\nvault = "database/creds/x"\n[keys]\nPress-Data = "local:a"',
        env={
            "SECUREMFG_CREDENTIALS__FEATURES_DB__TTL": "15m",
            "SECUREMFG_KEYS__PRESS_DATA": "local:b",
            "SECUREMFG_KEYS__DEFAULT": "local:c",
        },
    )
    assert config.settings.credentials["features-db"].ttl == timedelta(minutes=15)
    assert config.settings.keys == {"Press-Data": "local:b", "default": "local:c"}
    assert config.origin("keys.Press-Data") == "SECUREMFG_KEYS__PRESS_DATA"


def test_environment_may_hold_json(settings: Load) -> None:
    config = settings(
        env={
            "SECUREMFG_TLS__ALLOW": '[{"host": "plc", "port": 80, "reason": "old controller"}]',
            "SECUREMFG_KEYS__DEFAULT": '["local:a", "local:b"]',
            "SECUREMFG_AUDIT__ON_FAILURE": '{"internal": "block"}',
        }
    )
    assert [(entry.host, entry.port) for entry in config.settings.tls.allow] == [("plc", 80)]
    assert config.default_key == ("local:a", "local:b")
    assert config.settings.audit.policy(Sensitivity.INTERNAL) is FailPolicy.BLOCK
    assert config.origin("audit.on_failure.internal") == "SECUREMFG_AUDIT__ON_FAILURE"
    with pytest.raises(ConfigError, match=r"SECUREMFG_TLS__ALLOW is not valid JSON: .* \(environment\)"):
        settings(env={"SECUREMFG_TLS__ALLOW": '[{"host":'})


def test_variables_that_are_no_settings_are_left_alone(settings: Load) -> None:
    config = settings(env={"SECUREMFG_ACTIVE": "1", "SECUREMFG_STEP": "x", "PATH": "/bin", "MODE": "observe"})
    assert config.settings.mode is Mode.ENFORCE
    assert config.embedded


@pytest.mark.parametrize(("value", "off"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("no", False)])
def test_off_switch_is_one_or_zero(settings: Load, value: str, off: bool) -> None:
    config = settings(env={"SECUREMFG_DISABLED": value})
    assert config.disabled is off
    assert [w.setting for w in config.weakenings()] == (["SECUREMFG_DISABLED"] if off else [])


def test_off_switch_that_is_unclear_is_refused_not_guessed(settings: Load) -> None:
    with pytest.raises(ConfigError, match=r"SECUREMFG_DISABLED must be 1 or 0, got 'off' \(environment\)"):
        settings(env={"SECUREMFG_DISABLED": "off"})


# -- the embedded default, folders and paths --------------------------------------------------------------------------


def test_embedded_default_serves_only_when_nothing_was_set(settings: Load, here: Path) -> None:
    assert settings().embedded
    assert not settings(env={"SECUREMFG_MODE": "enforce"}).embedded
    assert not settings(overrides={"mode": "enforce"}).embedded
    assert not settings("").embedded  # a settings file, if an empty one


def test_home_lies_beside_the_settings_or_where_the_environment_says(settings: Load, here: Path) -> None:
    assert settings().home == here / ".securemfg"
    config = settings(env={"SECUREMFG_HOME": "/srv/securemfg"})
    assert config.home == Path("/srv/securemfg")
    assert ("home", "/srv/securemfg", "SECUREMFG_HOME") in list(config.shown())
    assert config.default_key == "local:/srv/securemfg/keys/default.key"


def test_relative_paths_are_relative_to_the_settings_file(settings: Load, here: Path, monkeypatch) -> None:
    text = (
        'catalog = "flow.yaml"\ntls.ca_file = "/etc/ca.pem"\nartifacts.staging = "tmp"\n'
        'vault = { ca_file = "ca.pem", auth = { secret_id_file = "wrapped", token_file = "t", jwt_file = "j" } }'
    )
    settings(text)
    below = here / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    found = load(environment={}, lock_file=here / "none").settings
    assert found.catalog == here / "flow.yaml"
    assert found.tls.ca_file == Path("/etc/ca.pem")
    assert found.artifacts.staging == here / "tmp"
    assert found.vault.ca_file == here / "ca.pem"
    assert found.vault.auth.secret_id_file == here / "wrapped"
    assert (found.vault.auth.token_file, found.vault.auth.jwt_file) == (here / "t", here / "j")


def test_plaintext_reads_follow_the_mode_unless_they_are_set(settings: Load) -> None:
    assert settings().plaintext_reads is PlaintextReads.REFUSE
    assert settings('mode = "observe"').plaintext_reads is PlaintextReads.AUDIT
    assert settings('mode = "observe"\nartifacts.plaintext_reads = "refuse"').plaintext_reads is PlaintextReads.REFUSE


# -- values and refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("10s", 10), ("15m", 900), ("1.5h", 5400), ("90d", 7776000), (" 2 d ", 172800)],
)
def test_durations_are_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)
    assert duration(timedelta(seconds=seconds)).total_seconds() == seconds


@pytest.mark.parametrize("value", ["15", "", "m", "-5m", "15 minutes", "1w", "5m m", 15, 1.5, None, True])
def test_anything_else_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="must be like '15m' or '90d', got"):
        duration(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('modee = "observe"', r"unknown setting 'modee' \(FILE\); did you mean 'mode'\?"),
        ('[vault.auth]\nmethd = "jwt"', r"unknown setting 'vault.auth.methd' \(FILE\); did you mean 'method'\?"),
        ('[credentials.x]\nvalt = "a"', r"unknown setting 'credentials.x.valt' \(FILE\); did you mean 'vault'\?"),
        (
            '[[tls.allow]]\nhots = "a"\nreason = "why"',
            r"unknown setting 'tls.allow.0.hots' \(FILE\); did you mean 'host'\?",
        ),
        ('mode = "enforced"', r"'mode' is not valid: input should be 'enforce' or 'observe', got 'enforced' \(FILE\)"),
        ('tls.floor = "1.1"', r"'tls.floor' is not valid: input should be '1.3' or '1.2', got '1.1' \(FILE\)"),
        ('artifacts.tracking = "x"', r"'artifacts.tracking' is not valid: input should be 'seal'.* \(FILE\)"),
        ('[artifacts.tracking]\npii = "x"', r"'artifacts.tracking.pii' is not valid: .* got 'x' \(FILE\)"),
        ('[audit.on_failure]\npi = "block"', r"'audit.on_failure.pi' is not valid: .* or 'pii', got 'pi' \(FILE\)"),
        ("[audit]\ncheckpoint_events = 0", r"'audit.checkpoint_events' is not valid: .* 1, got 0 \(FILE\)"),
        ('[audit.retention]\naudit = "3x"', r"'audit.retention.audit' must be like '15m' or '90d', got '3x' \(FILE\)"),
        ("[keys]\ndefault = 5", r"'keys.default' is not valid: input should be a valid string, got 5 \(FILE\)"),
        ('[keys]\ndefault = ["local:a", 5]', r"'keys.default.1' is not valid: .* got 5 \(FILE\)"),
        ('[keys]\npress = "dev.key"', r"'keys.press' must be like 'local:PATH', got 'dev.key' \(FILE\)"),
        ('[keys]\npress = ["local:a", "b"]', r"'keys.press' must be like 'local:PATH', got 'b' \(FILE\)"),
        ('[credentials.x]\nttl = "1h"', "needs exactly one of vault, sts, secrets_manager; has none"),
        ('[credentials.x]\nvault = "a"\nsts = "b"', "needs exactly one of .*; has vault, sts"),
        ('[[tls.allow]]\nhost = "plc"', r"'tls.allow.0.reason' is not valid: field required"),
        ('[[tls.allow]]\nhost = "plc"\nreason = ""', r"'tls.allow.0.reason' is not valid"),
        (
            '[[tls.allow]]\nhost = "plc"\nreason = "old"\nexpires = "soon"',
            r"'tls.allow.0.expires' must be a date like '2027-01-31', got 'soon' \(FILE\)",
        ),
        ('[[tls.allow]]\nhost = "plc"\nreason = "old"\nfloor = "1.1"', r"'tls.allow.0.floor' is not valid"),
        ("credentials = 3", r"'credentials' is not valid: .* got 3 \(FILE\)"),
        ("mode = = 1", r"FILE is not valid TOML: .*line 1"),
    ],
)
def test_wrong_setting_names_the_key_the_file_and_what_would_do(
    settings: Load, here: Path, text: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says.replace("FILE", str(here / "securemfg.toml"))):
        settings(text)


def test_wrong_setting_in_the_environment_names_the_variable(settings: Load) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'modee' \(SECUREMFG_MODEE\); did you mean 'mode'\?"):
        settings(env={"SECUREMFG_MODEE": "observe"})
    with pytest.raises(ConfigError, match=r"'audit.deadline' must be like .*\(SECUREMFG_AUDIT__DEADLINE\)"):
        settings(env={"SECUREMFG_AUDIT__DEADLINE": "soon"})
    with pytest.raises(ConfigError, match=r"'mode' is not valid: .*\(argument\)"):
        settings(overrides={"mode": "off"})


def test_file_that_cannot_be_read_is_refused_not_skipped(settings: Load, here: Path, monkeypatch) -> None:
    settings(pyproject="[tool.securemfg]\n")
    monkeypatch.setattr(Path, "read_bytes", lambda path: os.open("/proc/self/mem/none", os.O_RDONLY))
    with pytest.raises(ConfigError, match=r"pyproject.toml cannot be read: .*check its owner and mode"):
        settings()


def test_settings_that_are_no_table_or_no_text_are_refused(settings: Load, here: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tool.securemfg' must be a table, got 'x' \(.*pyproject.toml\)"):
        settings(pyproject='[tool]\nsecuremfg = "x"')
    (here / "pyproject.toml").unlink()
    (here / "securemfg.toml").write_bytes(b'mode = "\xff"')
    with pytest.raises(ConfigError, match="securemfg.toml is not valid TOML"):
        load(folder=here, environment={}, lock_file=here / "none")


def test_exception_may_end_on_a_date_of_toml_or_of_text(settings: Load) -> None:
    for written in ("2027-01-31", '"2027-01-31"'):
        config = settings(f'[[tls.allow]]\nhost = "plc"\nreason = "old"\nexpires = {written}')
        assert config.settings.tls.allow[0].expires == "2027-01-31"


def test_fail_policy_holds_from_its_level_up_and_naming_one_does_not_loosen_another(settings: Load) -> None:
    policies = [FailPolicy.DEGRADE, FailPolicy.DEGRADE, FailPolicy.BLOCK, FailPolicy.BLOCK, FailPolicy.FAIL_CLOSED]
    assert [settings().settings.audit.policy(level) for level in Sensitivity] == policies
    named = settings('[audit.on_failure]\npii = "fail_closed"').settings.audit
    assert [named.policy(level) for level in Sensitivity] == policies
    stricter = settings('[audit.on_failure]\nip-sensitive = "fail_closed"').settings.audit
    assert stricter.policy(Sensitivity.CONFIDENTIAL) is FailPolicy.BLOCK
    assert stricter.policy(Sensitivity.IP_SENSITIVE) is FailPolicy.FAIL_CLOSED


def test_retention_has_a_class_for_inference_and_one_for_the_rest() -> None:
    assert [retention_class(stage) for stage in (Stage.INFERENCE, Stage.TRAINING, None)] == [
        "inference", "audit", "audit"
    ]  # fmt: skip


# -- weakenings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ('mode = "observe"', "mode", "observe"),
        ('tls.floor = "1.2"', "tls.floor", "1.2"),
        ('[[tls.allow]]\nhost = "plc"\nreason = "old controller"', "tls.allow", "plc"),
        ('[[tls.allow]]\nhost = "loopback"\nreason = "same machine"\nport = 80', "tls.allow", "loopback"),
        ('artifacts.encrypt_from = "confidential"', "artifacts.encrypt_from", "confidential"),
        ('artifacts.plaintext_reads = "allow"', "artifacts.plaintext_reads", "allow"),
        ('artifacts.tracking = "allow"', "artifacts.tracking", "allow"),
        ('[artifacts.tracking]\ninternal = "allow"', "artifacts.tracking", "internal=allow"),
        ('[audit.on_failure]\npii = "block"', "audit.on_failure.pii", "block"),
        ('[audit.on_failure]\nip_sensitive = "degrade"', "audit.on_failure.ip-sensitive", "degrade"),
    ],
)
def test_every_weakening_is_listed_with_its_origin(
    settings: Load, here: Path, text: str, setting: str, value: str
) -> None:
    (weakening,) = settings(text).weakenings()
    assert (weakening.setting, weakening.value) == (setting, value)
    assert weakening.origin == str(here / "securemfg.toml")
    assert weakening.meaning


def test_built_in_and_tighter_settings_weaken_nothing(settings: Load) -> None:
    assert settings().weakenings() == ()
    tighter = 'tls.allow = []\nartifacts.encrypt_from = "public"\n[audit.on_failure]\ninternal = "fail_closed"'
    assert settings(tighter).weakenings() == ()


# -- the lock ---------------------------------------------------------------------------------------------------------

PLC = '{ host = "plc", reason = "old", port = 80, expires = "2027-01-31" }'
LOOPBACK = '{ host = "loopback", reason = "same machine" }'
OLD = '{ host = "plc", reason = "old", floor = "1.2" }'
HTTP = '{ host = "plc", reason = "old" }'
LOCKS = [  # the lock, what is set, then the setting, the value and the limit that the message names
    ('mode = "enforce"', 'mode = "observe"', "mode", "observe", "enforce"),
    ('tls.floor = "1.3"', 'tls.floor = "1.2"', "tls.floor", "1.2", "1.3"),
    (f"tls.allow = [{LOOPBACK}]", f"tls.allow = [{PLC}]", "tls.allow", "plc", "loopback"),
    (f"tls.allow = [{PLC}]", f"tls.allow = [{PLC.replace('80', '81')}]", "tls.allow", "plc", "plc"),
    (f"tls.allow = [{PLC}]", f"tls.allow = [{PLC.replace(', port = 80', '')}]", "tls.allow", "plc", "plc"),
    (f"tls.allow = [{PLC}]", f"tls.allow = [{PLC.replace('01-31', '02-01')}]", "tls.allow", "plc", "plc"),
    (f"tls.allow = [{OLD}]", f"tls.allow = [{HTTP}]", "tls.allow", "plc", "plc"),
    ('@.encrypt_from = "internal"', '@.encrypt_from = "pii"', "@.encrypt_from", "pii", "internal"),
    ('@.plaintext_reads = "refuse"', '@.plaintext_reads = "audit"', "@.plaintext_reads", "audit", "refuse"),
    ('@.plaintext_reads = "audit"', '@.plaintext_reads = "allow"', "@.plaintext_reads", "allow", "audit"),
    ('@.tracking = "seal"', '@.tracking = "redact"', "@.tracking", "redact", "seal"),
    ('@.tracking = "redact"', '@.tracking = { pii = "seal", internal = "allow" }', "@.tracking", "allow", "redact"),
    ('on.pii = "fail_closed"', 'on.pii = "degrade"', "on.pii", "degrade", "fail_closed"),
    ('on.internal = "block"', 'on.internal = "degrade"', "on.internal", "degrade", "block"),
    ('on.confidential = "block"', 'on.ip_sensitive = "degrade"', "on.ip-sensitive", "degrade", "block"),
]


def spelled(text: str) -> str:
    return text.replace("@.", "artifacts.").replace("on.", "audit.on_failure.")


@pytest.mark.parametrize(("limit", "looser", "setting", "mine", "theirs"), LOCKS)
def test_setting_looser_than_the_lock_is_refused_and_both_files_are_named(
    settings: Load, here: Path, limit: str, looser: str, setting: str, mine: str, theirs: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(spelled(looser), lock=f"lock.{spelled(limit)}")
    text = str(refused.value)
    assert text.startswith(
        f"'{spelled(setting)}' = '{mine}' ({here / 'securemfg.toml'}) is looser than the lock's '{theirs}"
    )
    assert f"({here / 'lock.toml'}): set it at least as tight" in text


@pytest.mark.parametrize(
    ("limit", "given"),
    [
        ('mode = "observe"', 'mode = "enforce"'),
        ('tls.floor = "1.2"', 'tls.floor = "1.3"'),
        ('artifacts.encrypt_from = "confidential"', 'artifacts.encrypt_from = "public"'),
        ('artifacts.plaintext_reads = "audit"', 'artifacts.plaintext_reads = "refuse"'),
        ('artifacts.tracking = "redact"', 'artifacts.tracking = "seal"'),
        ('artifacts.tracking = "seal"', "artifacts.tracking = {}"),
        ('audit.on_failure.internal = "degrade"', 'audit.on_failure.internal = "fail_closed"'),
        (f"tls.allow = [{PLC}]", "tls.allow = []"),
        (f"tls.allow = [{PLC}]", f"tls.allow = [{PLC}]"),
        (f"tls.allow = [{PLC}]", 'tls.allow = [{ host = "PLC", reason = "other", port = 80, expires = "2026-12-31" }]'),
        ("tls.allow = [{ host = 'plc', reason = 'old' }]", f"tls.allow = [{PLC}]"),
    ],
)
def test_setting_as_tight_as_the_lock_or_tighter_is_taken(settings: Load, limit: str, given: str) -> None:
    assert settings(given, lock=f"lock.{limit}")


def test_lock_holds_against_environment_argument_and_built_in(settings: Load) -> None:
    lock = '[lock]\nmode = "enforce"\nartifacts.encrypt_from = "internal"'
    assert settings(lock=lock).embedded
    with pytest.raises(ConfigError, match=r"'mode' = 'observe' \(SECUREMFG_MODE\) is looser"):
        settings(lock=lock, env={"SECUREMFG_MODE": "observe"})
    with pytest.raises(ConfigError, match=r"'artifacts.encrypt_from' = 'pii' \(argument\) is looser"):
        settings(lock=lock, overrides={"artifacts.encrypt_from": "pii"})
    with pytest.raises(ConfigError, match=r"'tls.allow' = 'loopback' \(built-in\) is looser than the lock's 'none'"):
        settings(lock="[lock]\ntls.allow = []")


def test_locked_plaintext_reads_also_rule_out_observe_which_would_allow_them(settings: Load) -> None:
    with pytest.raises(ConfigError, match="'artifacts.plaintext_reads' = 'audit'"):
        settings('mode = "observe"', lock='lock.artifacts.plaintext_reads = "refuse"')


@pytest.mark.parametrize(
    ("lock", "says"),
    [
        ("lock = = 1", r"the lock .*lock.toml is not valid TOML"),
        ('[lok]\nmode = "enforce"', r"unknown table 'lok' \(.*lock.toml\); did you mean 'lock'\?"),
        ('[lock]\nmodee = "enforce"', r"\[lock\] cannot hold 'modee' \(.*lock.toml\); did you mean 'mode'\?"),
        ('[lock]\ncatalog = "x"', r"\[lock\] cannot hold 'catalog'"),
        (
            '[lock.artifacts.tracking]\npii = "seal"',
            r"\[lock\] cannot hold 'artifacts.tracking.pii'.*artifacts.tracking",
        ),
        ('[lock]\nmode = "x"', r"\[lock\] 'mode' is not valid: .*lock.toml"),
        ("lock = 1", r"\[lock\] is not valid: .*lock.toml"),
    ],
)
def test_lock_that_is_not_understood_is_never_taken_for_no_lock(settings: Load, lock: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings(lock=lock)


def test_lock_that_cannot_be_read_is_never_taken_for_no_lock(settings: Load, here: Path) -> None:
    (here / "lock.toml").mkdir()
    with pytest.raises(ConfigError, match=r"the lock .*lock.toml cannot be read: .*check its mode"):
        settings()
    (here / "lock.toml").rmdir()
    (here / "lock.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"the lock .*lock.toml cannot be read"):
        settings()


def test_without_a_lock_file_there_is_no_lock(settings: Load, here: Path) -> None:
    (here / "file").touch()
    assert load(folder=here, environment={}, lock_file=here / "file" / "below").embedded
    assert settings('mode = "observe"').settings.mode is Mode.OBSERVE


def test_lock_holds_the_suites_that_may_be_read(settings: Load) -> None:
    lock = '[lock.encryption]\nread_suites = ["0x0378"]'
    assert settings('[encryption]\nread_suites = ["0x0378"]', lock=lock).read_suites == {0x0378}
    with pytest.raises(ConfigError, match="'encryption.read_suites' = '0x0178'.*looser than the lock's '0x0378'"):
        settings('[encryption]\nread_suites = ["0x0378", "0x0178"]', lock=lock)
    with pytest.raises(ConfigError, match="looser than the lock's 'none'"):
        settings('[encryption]\nread_suites = ["0x0378"]', lock="[lock.encryption]\nread_suites = []")


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ('signers = ["ed25519:/plant.pem", "ed25519:mine.pem"]', "ed25519:mine.pem"),
        ('signer = "ed25519:mine.key"', "signer ed25519:mine.key"),  # it would pin its own public half
        ("", "signer of this project"),
    ],
)
def test_lock_holds_whose_signatures_count(settings: Load, own: str, named: str) -> None:
    lock = '[lock.artifacts]\nsigners = ["ed25519:/plant.pem", "aws-kms:arn:aws:kms:eu-central-1:123456789012:key/a"]'
    with pytest.raises(ConfigError, match=r"is looser than the lock's 'ed25519:/plant.pem, aws-kms:") as caught:
        settings(f"[artifacts]\n{own}", lock=lock)
    assert f"'artifacts.signers' = {named!r}" in str(caught.value)
    tight = settings('[artifacts]\nsigner = "ed25519:mine.key"\nsigners = ["ed25519:/plant.pem"]', lock=lock)
    assert tight.settings.artifacts.signers == ("ed25519:/plant.pem",)
