"""Files and environment become one frozen Config, and each value knows where it came from.

Precedence, high to low: argument, `SECUREMFG_*` (nesting `__`), `securemfg.toml`, `[tool.securemfg]` in pyproject.toml,
built-in. `[lock]` in /etc/securemfg/securemfg.toml can only be tightened by any of them. This is the only
module that reads settings.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from securemfg.errors import ConfigError, nearest
from securemfg.forking import own_environment
from securemfg.labels import Sensitivity
from securemfg.lock import check_lock
from securemfg.settings import LOOPBACK, FailPolicy, Mode, PlaintextReads, Settings, Tracking

__all__ = ["BUILT_IN", "LOCK_FILE", "Config", "Weakening", "load"]

LOCK_FILE: Final = Path("/etc/securemfg/securemfg.toml")
BUILT_IN: Final = "built-in"
_PREFIX: Final = "SECUREMFG_"
# Environment variables that are not settings: where things lie, the off switch, and what a parent hands its children.
_RESERVED: Final = frozenset({"HOME", "CONFIG", "DISABLED", "ACTIVE", "STEP"})
_PATHS: Final = (
    ("catalog",),
    ("vault", "ca_file"),
    ("vault", "auth", "secret_id_file"),
    ("vault", "auth", "token_file"),
    ("vault", "auth", "jwt_file"),
    ("tls", "ca_file"),
    ("artifacts", "staging"),
    ("dask", "ca_file"),
    ("dask", "cert_file"),
    ("dask", "key_file"),
)


@dataclass(frozen=True, kw_only=True)
class Weakening:
    """A setting that is looser than the built-in one: audited when it takes effect, and a finding."""

    setting: str
    value: str
    origin: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings in force, frozen. `origins` maps a dotted setting to where its value came from."""

    settings: Settings
    origins: Mapping[str, str]
    folder: Path  # what relative paths in the settings are relative to
    home: Path  # where local things lie: keys, journal, cache
    source: Path | None  # the settings file, or None
    disabled: bool = False
    environment: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def embedded(self) -> bool:
        """Whether no setting was given at all, so that the embedded default serves."""
        return self.source is None and not self.origins

    @property
    def enforcing(self) -> bool:
        return self.settings.mode is Mode.ENFORCE

    @property
    def plaintext_reads(self) -> PlaintextReads:
        chosen = self.settings.artifacts.plaintext_reads
        if chosen is not None:
            return chosen
        return PlaintextReads.REFUSE if self.enforcing else PlaintextReads.AUDIT

    @cached_property
    def default_key(self) -> str | tuple[str, ...]:
        """The key string(s) that artifacts are encrypted for when no asset names its own."""
        return self.settings.keys.get("default", f"local:{self.home / 'keys' / 'default.key'}")

    @property
    def read_suites(self) -> frozenset[int]:
        """The suites without key commitment that may be read: what reading functions take as `suites`."""
        return frozenset(int(suite, 16) for suite in self.settings.encryption.read_suites)

    def origin(self, setting: str) -> str:
        """Where the value of a dotted setting came from: it, the nearest table around it, or its own entries."""
        return _origin(self.origins, setting)

    def path(self, value: Path) -> Path:
        """A path from the settings, made absolute against the settings file's folder."""
        return value if value.is_absolute() else self.folder / value

    def for_children(self) -> dict[str, str]:
        """The variables with which another process finds the same settings, wherever it runs. Arguments stay behind."""
        told = {f"{_PREFIX}HOME": str(self.home)}
        if self.source is not None:
            both = str(self.folder / "pyproject.toml") in self.origins.values() and self.source.name == "securemfg.toml"
            told[f"{_PREFIX}CONFIG"] = str(self.folder if both else self.source)
        return told

    def shown(self) -> Iterator[tuple[str, str, str]]:
        """(setting, value, origin) for every value in force, in order. For people and auditors."""
        for setting, value in _flat(self.settings):
            yield setting, _text(value), self.origin(setting)
        yield "home", str(self.home), f"{_PREFIX}HOME" if f"{_PREFIX}HOME" in self.environment else BUILT_IN

    def weakenings(self) -> tuple[Weakening, ...]:
        """Every setting in force that lowers what the built-in ones protect (trust rule 6)."""
        return tuple(self._weakenings())

    def _weakenings(self) -> Iterator[Weakening]:
        s = self.settings

        def weaker(setting: str, value: object, meaning: str) -> Weakening:
            return Weakening(setting=setting, value=_text(value), origin=self.origin(setting), meaning=meaning)

        if self.disabled:
            yield Weakening(
                setting="SECUREMFG_DISABLED", value="1", origin="SECUREMFG_DISABLED", meaning="nothing is enforced"
            )
        if s.mode is Mode.OBSERVE:
            yield weaker("mode", s.mode, "refusals become audited warnings")
        if s.tls.floor != "1.3":
            yield weaker("tls.floor", s.tls.floor, "TLS 1.2 is accepted everywhere")
        for entry in s.tls.allow:
            if entry != LOOPBACK:
                what = "TLS 1.2" if entry.floor else "plain http"
                yield weaker("tls.allow", entry.host, f"{what} is allowed to {entry.host}: {entry.reason}")
        if s.artifacts.encrypt_from > Sensitivity.INTERNAL:
            yield weaker("artifacts.encrypt_from", s.artifacts.encrypt_from, "artifacts below it stay plaintext")
        if self.plaintext_reads is not PlaintextReads.REFUSE and self.enforcing:
            yield weaker("artifacts.plaintext_reads", self.plaintext_reads, "unprotected artifacts are loaded")
        tracking = s.artifacts.tracking
        if tracking is Tracking.ALLOW or (isinstance(tracking, dict) and Tracking.ALLOW in tracking.values()):
            yield weaker("artifacts.tracking", tracking, "params, tags and traces may stay plaintext")
        if s.encryption.read_suites:
            yield weaker(
                "encryption.read_suites",
                s.encryption.read_suites,
                "messages without key commitment are opened: other keys could open them to other plaintexts",
            )
        order = list(FailPolicy)
        built_in_audit = Settings().audit
        for level in Sensitivity:
            policy, built_in = s.audit.policy(level), built_in_audit.policy(level)
            if level in s.audit.on_failure and order.index(policy) < order.index(built_in):
                yield weaker(f"audit.on_failure.{level}", policy, f"work goes on with a weaker trail than {built_in}")


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    lock_file: Path = LOCK_FILE,
) -> Config:
    """Read the settings. `path` names a file (or a folder to search from); else the search starts at `folder`
    (the working folder) and goes up. `overrides` are arguments, by dotted name.

    Raises ConfigError naming the file, the key and the nearest known key.
    """
    environ = own_environment() if environment is None else dict(environment)
    start = Path(folder or Path.cwd())
    named = path if path is not None else environ.get(f"{_PREFIX}CONFIG")
    files = _named(Path(named)) if named is not None else _search(start)
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file in files:  # pyproject.toml first, securemfg.toml over it
        _merge(merged, origins, _read(file), str(file))
    _merge_environment(merged, origins, environ)
    for setting, value in (overrides or {}).items():
        _put(merged, origins, tuple(setting.split(".")), value, "argument")
    base = files[-1].parent if files else start
    settings = _validate(merged, origins)
    check_lock(settings, partial(_origin, origins), lock_file)
    config = Config(
        settings=_absolute(settings, base),
        origins=origins,
        folder=base,
        home=Path(environ.get(f"{_PREFIX}HOME") or base / ".securemfg").absolute(),
        source=files[-1] if files else None,
        disabled=_switch(environ),
        environment=environ,
    )
    _check_keys(config)
    return config


def _origin(origins: Mapping[str, str], setting: str) -> str:
    known = {name.replace("_", "-").lower(): origin for name, origin in origins.items()}  # ip_sensitive, ip-sensitive
    parts = setting.replace("_", "-").lower().split(".")
    for end in range(len(parts), 0, -1):
        found = known.get(".".join(parts[:end]))
        if found is not None:
            return found
    inside = [origin for name, origin in known.items() if name.startswith(".".join(parts) + ".")]
    return ", ".join(dict.fromkeys(inside)) or BUILT_IN


def _switch(environ: Mapping[str, str]) -> bool:
    value = environ.get(f"{_PREFIX}DISABLED", "").strip().lower()
    if value in {"", "0", "false", "no"}:
        return False
    if value in {"1", "true", "yes"}:
        return True
    raise ConfigError(f"SECUREMFG_DISABLED must be 1 or 0, got {value!r} (environment)")


def _named(path: Path) -> list[Path]:
    path = path.expanduser().absolute()
    if path.is_dir():
        return _search(path)
    if not path.is_file():
        raise ConfigError(f"settings file {path} does not exist: create it with 'securemfg init' or name another")
    return [path]


def _search(start: Path) -> list[Path]:
    """The settings files of the nearest folder that has any, lowest precedence first."""
    for folder in (start.absolute(), *start.absolute().parents):
        found = []
        pyproject = folder / "pyproject.toml"
        if pyproject.is_file() and _table(pyproject) is not None:
            found.append(pyproject)
        if (own := folder / "securemfg.toml").is_file():
            found.append(own)
        if found:
            return found
    return []


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}; check its owner and mode") from error


def _table(pyproject: Path) -> dict[str, Any] | None:
    try:
        if b"securemfg" not in pyproject.read_bytes():
            return None  # not ours; whether it is valid is not our business
    except OSError as error:  # it may hold settings: to go on without them would loosen what they tighten
        raise ConfigError(f"{pyproject} cannot be read: {error.strerror}; check its owner and mode") from error
    tools = _parse(pyproject).get("tool")
    table = tools.get("securemfg") if isinstance(tools, dict) else None
    if table is not None and not isinstance(table, dict):
        raise ConfigError(f"'tool.securemfg' must be a table, got {table!r} ({pyproject})")
    return table


def _read(file: Path) -> dict[str, Any]:
    return (_table(file) or {}) if file.name == "pyproject.toml" else _parse(file)


def _merge(
    into: dict[str, Any],
    origins: dict[str, str],
    table: Mapping[str, Any],
    origin: str,
    prefix: tuple[str, ...] = (),
) -> None:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            _merge(into, origins, value, origin, (*prefix, key))
        else:
            _put(into, origins, (*prefix, key), value, origin)


def _put(into: dict[str, Any], origins: dict[str, str], path: tuple[str, ...], value: Any, origin: str) -> None:
    if isinstance(value, Mapping) and value:
        _merge(into, origins, value, origin, path)
        return
    for end, key in enumerate(path[:-1], start=1):
        nested = into.setdefault(key, {})
        if not isinstance(nested, dict):  # a table takes a value's place, and the value's origin goes with it
            nested = into[key] = {}
        origins.pop(".".join(path[:end]), None)
        into = nested
    into[path[-1]] = value
    dotted = ".".join(path)
    for replaced in [name for name in origins if name.startswith(f"{dotted}.")]:
        del origins[replaced]
    origins[dotted] = origin


def _merge_environment(into: dict[str, Any], origins: dict[str, str], environ: Mapping[str, str]) -> None:
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX) or variable.removeprefix(_PREFIX) in _RESERVED:
            continue
        parts = tuple(part.lower() for part in variable.removeprefix(_PREFIX).split("__"))
        text = environ[variable]
        value: Any = text
        if text[:1] in {"{", "["}:
            try:
                value = json.loads(text)
            except ValueError as error:
                raise ConfigError(f"{variable} is not valid JSON: {error} (environment)") from error
        _put(into, origins, _spelled(parts, into), value, variable)


def _spelled(parts: tuple[str, ...], known: Mapping[str, Any]) -> tuple[str, ...]:
    """Environment names have no '-': take the spelling of a key that the files already use."""
    spelled = []
    here: Any = known
    for part in parts:
        names = {name.replace("-", "_").lower(): name for name in here} if isinstance(here, Mapping) else {}
        name = names.get(part, part)
        spelled.append(name)
        here = here.get(name) if isinstance(here, Mapping) else None
    return tuple(spelled)


def _validate(merged: dict[str, Any], origins: Mapping[str, str]) -> Settings:
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(
            _message(error.errors(include_url=False), merged, origins)
        ) from None  # its text repeats values


def _location(error: Mapping[str, Any], merged: Mapping[str, Any]) -> tuple[str, ...]:
    """Where in the settings `error` lies, without the names that pydantic gives to the branches of a union."""
    here: Any = merged
    found = []
    for part in error["loc"]:
        in_table = isinstance(here, Mapping) and part in here
        if in_table or (isinstance(here, Sequence) and isinstance(part, int) and part < len(here)):
            here = here[part]
        elif error["type"] != "missing":
            continue
        found.append(str(part))
    return tuple(found)


def _message(errors: Sequence[Mapping[str, Any]], merged: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    # a misspelled key first: the key that is then missing is only its echo
    errors = [error for error in errors if error["type"] == "extra_forbidden"] or errors
    at = _location(errors[0], merged)
    inside = [error for error in errors if _location(error, merged)[: len(at)] == at]
    first = max(inside, key=lambda error: len(_location(error, merged)))  # of a union's branches, the one that went in
    location = _location(first, merged)
    dotted = ".".join(location)
    origin = _origin(origins, dotted)
    if first["type"] == "extra_forbidden":
        hint = nearest(location[-1], _known(location[:-1]))
        return f"unknown setting {dotted!r} ({origin}){hint}"
    text = str(first["msg"]).removeprefix("Value error, ")
    if text.startswith("must be"):
        return f"{dotted!r} {text} ({origin})"
    return f"{dotted!r} is not valid: {text[:1].lower()}{text[1:]}, got {first.get('input')!r} ({origin})"


def _known(location: tuple[str, ...]) -> tuple[str, ...]:
    """The keys of the table at `location`, for the hint."""
    model: Any = Settings
    for part in location:
        fields = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}
        annotation = fields[part].annotation if part in fields else model
        model = _table_in(annotation)
    return tuple(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else ()


def _table_in(annotation: Any) -> Any:
    """The settings table inside an annotation such as `X | None`, `dict[str, X]` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _table_in(arg)) is not None), None)


def _absolute(settings: Settings, base: Path) -> Settings:
    for location in _PATHS:
        owner: Any = settings
        for part in location[:-1]:
            owner = getattr(owner, part)
        value = getattr(owner, location[-1])
        if value is not None and not value.is_absolute():
            settings = _replaced(settings, location, base / value)
    return settings


def _replaced(table: Any, location: tuple[str, ...], value: Any) -> Any:
    head, *rest = location
    new = _replaced(getattr(table, head), tuple(rest), value) if rest else value
    return table.model_copy(update={head: new})


def _check_keys(config: Config) -> None:
    for name, text in config.settings.keys.items():
        for key in (text,) if isinstance(text, str) else text:
            if ":" not in key:
                raise ConfigError(
                    f"'keys.{name}' must be like 'local:PATH', got {key!r} ({config.origin(f'keys.{name}')})"
                )


def _flat(table: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(table).model_fields:
        value = getattr(table, name)
        dotted = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{dotted}.")
        elif isinstance(value, dict) and value:
            for key, item in value.items():
                label = f"{dotted}.{_text(key)}"
                if isinstance(item, BaseModel):
                    yield from ((n, v) for n, v in _flat(item, f"{label}.") if v not in (None, {}))
                else:
                    yield label, item
        else:
            yield dotted, value


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
            if seconds >= size and seconds % size == 0:
                return f"{seconds / size:g}{unit}"
        return f"{seconds:g}s"
    if isinstance(value, BaseModel):
        return ", ".join(f"{k}={_text(v)}" for k, v in value if v is not None)
    if isinstance(value, tuple | list):
        return "; ".join(_text(item) for item in value) or "[]"
    if isinstance(value, dict):
        return ", ".join(f"{_text(k)}={_text(v)}" for k, v in value.items()) or "{}"
    return str(value)
