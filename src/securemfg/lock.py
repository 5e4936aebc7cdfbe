"""The machine's lock: `[lock]` in /etc/securemfg/securemfg.toml sets limits that settings below it can only tighten."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final, TypeAlias

from pydantic import ValidationError

from securemfg.errors import ConfigError, nearest
from securemfg.labels import Sensitivity
from securemfg.settings import AllowEntry, FailPolicy, Mode, PlaintextReads, Settings, Tracking

Origin: TypeAlias = Callable[[str], str]


def _order(*loose_to_tight: object) -> Callable[[Any], int]:
    return loose_to_tight.index


def _reads(settings: Settings) -> PlaintextReads:
    default = PlaintextReads.REFUSE if settings.mode is Mode.ENFORCE else PlaintextReads.AUDIT
    return settings.artifacts.plaintext_reads or default


def _tracking(settings: Settings) -> Tracking:
    value = settings.artifacts.tracking
    return min(value.values(), key=_TRACKING.index, default=Tracking.SEAL) if isinstance(value, dict) else value


_TRACKING: Final = (Tracking.ALLOW, Tracking.REDACT, Tracking.SEAL)

# setting -> (its value in force, how tight a value is)
_LOCKABLE: Final[Mapping[str, tuple[Callable[[Settings], Any], Callable[[Any], int]]]] = {
    "mode": (lambda s: s.mode, _order(Mode.OBSERVE, Mode.ENFORCE)),
    "tls.floor": (lambda s: s.tls.floor, _order("1.2", "1.3")),
    "artifacts.encrypt_from": (lambda s: s.artifacts.encrypt_from, lambda level: -level.rank),
    "artifacts.plaintext_reads": (
        _reads,
        _order(PlaintextReads.ALLOW, PlaintextReads.AUDIT, PlaintextReads.REFUSE),
    ),
    "artifacts.tracking": (_tracking, _order(*_TRACKING)),
}


def check_lock(settings: Settings, origin: Origin, lock_file: Path) -> None:
    """Raise ConfigError when a setting in force is looser than the lock. No file, no lock.

    `origin` says where the value of a dotted setting came from.
    """
    try:
        text = lock_file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, UnicodeDecodeError) as error:  # a lock that cannot be read must not be taken for no lock
        raise ConfigError(f"the lock {lock_file} cannot be read: {error}; check its mode") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the lock {lock_file} is not valid TOML: {error}") from error
    for name in document:
        if name != "lock":  # a misspelled [lock] must not be taken for no lock
            raise ConfigError(f"unknown table {name!r} ({lock_file}){nearest(name, ['lock'])}")
    table = document.get("lock", {})
    try:
        limit = Settings.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        dotted = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise _unknown(dotted, lock_file) from None
        what = f"[lock] {dotted!r}" if dotted else "[lock]"
        raise ConfigError(f"{what} is not valid: {first['msg']} ({lock_file})") from None
    for setting in _named(table):
        if setting in _LOCKABLE:
            value_of, tightness = _LOCKABLE[setting]
            if tightness(value_of(settings)) < tightness(value_of(limit)):
                raise _looser(setting, value_of(settings), origin(setting), value_of(limit), lock_file)
        elif setting == "tls.allow":
            extra = [e for e in settings.tls.allow if not any(_covers(wide, e) for wide in limit.tls.allow)]
            if extra:
                raise _looser(setting, extra[0].host, origin(setting), _hosts(limit), lock_file)
        elif setting == "encryption.read_suites":
            more = [suite for suite in settings.encryption.read_suites if suite not in limit.encryption.read_suites]
            if more:
                shown = ", ".join(limit.encryption.read_suites) or "none"
                raise _looser(setting, more[0], origin(setting), shown, lock_file)
        elif setting == "artifacts.signers":
            pinned = settings.artifacts.signers or (f"signer {settings.artifacts.signer or 'of this project'}",)
            others = [key for key in pinned if key not in limit.artifacts.signers]
            if others:
                shown = ", ".join(limit.artifacts.signers) or "none"
                raise _looser(setting, others[0], origin(setting), shown, lock_file)
        elif setting.startswith("audit.on_failure."):
            level = Sensitivity.parse(setting.rsplit(".", 1)[1])
            theirs = limit.audit.on_failure[level]
            for held in (one for one in Sensitivity if one >= level):  # a lock too holds from its level up
                mine = settings.audit.policy(held)
                if list(FailPolicy).index(mine) < list(FailPolicy).index(theirs):
                    name = f"audit.on_failure.{held}"
                    raise _looser(name, mine, origin(name), theirs, lock_file)
        else:
            raise _unknown(setting, lock_file)


def _unknown(setting: str, lock_file: Path) -> ConfigError:
    known = (*_LOCKABLE, "tls.allow", "encryption.read_suites", "artifacts.signers", "audit.on_failure")
    return ConfigError(f"[lock] cannot hold {setting!r} ({lock_file}){nearest(setting, known)}")


def _covers(limit: AllowEntry, entry: AllowEntry) -> bool:
    """Whether `entry` allows nothing that `limit` does not. The reason is free."""
    ends = None if limit.expires is None else date.fromisoformat(limit.expires)
    return (
        (limit.host.lower(), limit.floor) == (entry.host.lower(), entry.floor)
        and limit.port in {None, entry.port}
        and (ends is None or (entry.expires is not None and date.fromisoformat(entry.expires) <= ends))
    )


def _hosts(limit: Settings) -> str:
    return ", ".join(entry.host for entry in limit.tls.allow) or "none"


def _looser(setting: str, value: object, origin: str, limit: object, lock_file: Path) -> ConfigError:
    return ConfigError(
        f"'{setting}' = {str(value)!r} ({origin}) is looser than the lock's {str(limit)!r} ({lock_file}): "
        "set it at least as tight"
    )


def _named(table: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
    """The dotted names of every value in `table`."""
    names: list[str] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            names += _named(value, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names
