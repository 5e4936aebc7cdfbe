"""`securemfg keys`: make, list, back up and restore keys."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from securemfg.cli.output import Exit, Json, Speaker, encodable, ends_well
from securemfg.cli.paths import key_here
from securemfg.errors import ConfigError, EncryptionError, SecureMfgError

if TYPE_CHECKING:
    from securemfg.config import Config
    from securemfg.encryption.configured import NamedKey
    from securemfg.encryption.keys import LocalKey

_LOCAL: Final = "local:"
_ID: Final = re.compile(r"(?:securemfg/)?([0-9a-f]{16})")
_BITS: Final = 4096


class Kind(StrEnum):
    LOCAL = "local"
    RSA = "rsa"


def add_to(root: typer.Typer) -> None:
    group = typer.Typer(help="Make, list, back up and restore keys.", no_args_is_help=True)
    group.command("generate")(generate)
    group.command("list")(list_keys)
    group.command("backup")(backup)
    group.command("restore")(restore)
    root.add_typer(group, name="keys")


# -- generate ---------------------------------------------------------------------------------------------------------


def generate(
    path: Annotated[Path, typer.Argument(help="Where the new key goes; it must not exist.")],
    *,
    kind: Annotated[
        Kind, typer.Option("--kind", help="local: 32 secret bytes. rsa: a pair for escrow, whose public half writes.")
    ] = Kind.LOCAL,
    bits: Annotated[
        int | None, typer.Option("--bits", min=3072, max=16384, help="Of an RSA key. Built in: 4096.")
    ] = None,
    backup: Annotated[Path | None, typer.Option("--backup", help="Copy the new local key there.")] = None,
    as_json: Json = False,
) -> None:
    """Make a new key, in a file that only you can read. On a terminal it asks for a place for a backup."""
    with ends_well(as_json=as_json) as speaker:
        if kind is Kind.RSA:
            if backup is not None:
                raise ConfigError(
                    "--backup is for local keys: the private half of an RSA pair is itself what you put away"
                )
            _generate_pair(path, bits or _BITS, speaker, as_json=as_json)
            return
        if bits is not None:
            raise ConfigError("--bits is for --kind rsa: a local key has always 256")
        _generate_local(path, backup, speaker, as_json=as_json)


def _generate_local(path: Path, backup: Path | None, speaker: Speaker, *, as_json: bool) -> None:
    from securemfg.encryption.keys import copy_local_key, create_local_key

    if backup is not None and backup.absolute() == path.absolute():
        raise ConfigError(f"--backup {backup} is the key's own place: name another medium")
    if backup is not None and backup.exists() and not backup.is_dir():
        raise ConfigError(f"--backup {backup} exists already: a key is never overwritten; no key was made")
    key = create_local_key(path)
    _audited("key.created", key.name, path)
    if not as_json:
        speaker.say(f'made key {key.name} in {path}\nuse it as "local:{path}"')
    copied = None
    try:
        if backup is not None:
            copied = copy_local_key(path, backup, origin=str(path))
        elif not as_json and sys.stdin is not None and sys.stdin.isatty():
            copied = _offered(path, speaker)
    except SecureMfgError as error:
        raise type(error)(f"the key in {path} was made, but has no backup: {error}") from error
    if copied is not None:
        _audited("key.backed_up", key.name, copied.path)
    if as_json:
        made: dict[str, Any] = {"key": key.name, "kind": Kind.LOCAL, "path": path.absolute(), "text": f"local:{path}"}
        speaker.json({**made, "backup": copied and copied.path.absolute()})
    elif copied is not None:
        speaker.say(f"copied it to {copied.path}, and read it back")
    if copied is None:
        speaker.note(
            f"Whoever loses {path} loses the data: keep a copy elsewhere with "
            f"'securemfg keys backup --key local:{path} FILE'."
        )


def _offered(path: Path, speaker: Speaker) -> LocalKey | None:
    """The backup that a person at the terminal chose, or None."""
    from securemfg.encryption.keys import copy_local_key

    speaker.note(f"Whoever loses {path} loses the data.")
    while True:
        answer = typer.prompt("Back it up to (a path, best on another medium; empty to decline)", default="")
        if not answer:
            return None
        try:
            return copy_local_key(path, Path(answer).expanduser(), origin=str(path))
        except EncryptionError as error:
            speaker.note(str(error))


def _generate_pair(path: Path, bits: int, speaker: Speaker, *, as_json: bool) -> None:
    from securemfg.encryption.keys import create_rsa_pair

    public = path.with_name(path.name.removesuffix(".pem") + ".pub.pem")
    key = create_rsa_pair(path, public, bits=bits)
    _audited("key.created", key.name, path, kind="rsa-key")
    if as_json:
        made: dict[str, Any] = {"key": key.name, "kind": Kind.RSA, "bits": bits, "path": path.absolute()}
        speaker.json({**made, "public": public.absolute(), "text": f"rsa:{public}", "backup": None})
    else:
        speaker.say(f"made RSA key {key.name} of {bits} bits: private half {path}, public half {public}")
        speaker.say(f'encrypt for it as "rsa:{public}", beside your other keys')
    speaker.note(
        f"Move {path} offline (two media, in a safe) and remove it here. It opens everything encrypted for the public "
        f"half, and whoever loses it loses that way back."
    )


# -- list -------------------------------------------------------------------------------------------------------------


def list_keys(
    *,
    key: Annotated[str | None, typer.Option("--key", help="One more key to look at, like rsa:PATH.pem.")] = None,
    as_json: Json = False,
) -> None:
    """The keys that the settings name, and what each can do here. No service is asked."""
    with ends_well(as_json=as_json) as speaker:
        rows = _listed(key)
        if as_json:
            speaker.json(rows)
            return
        speaker.table(
            ("name", "kind", "id", "can", "state", "from", "key"),
            [
                (r["name"], r["kind"], r["id"], r["can"], "NOT usable" if r["problem"] else r["state"], r["origin"],
                 r["key"])
                for r in rows
            ],
        )  # fmt: skip
        for row in rows:
            if row["problem"]:
                speaker.note(f"{row['name']}: {row['problem']}")


def _listed(extra: str | None) -> list[dict[str, Any]]:
    from securemfg.encryption.configured import NamedKey
    from securemfg.workflow import default_workflow

    keys = default_workflow().keys
    named = list(keys.named())
    if extra is not None:
        opened, problem = None, None
        try:
            opened = keys.open(key_here(extra), origin="--key")
        except ConfigError:
            raise  # it names no key at all
        except SecureMfgError as error:
            problem = str(error)
        named.append(NamedKey(name="-", text=extra, origin="--key", key=opened, problem=problem))
    return [_row(one) for one in named]


def _row(one: NamedKey) -> dict[str, Any]:
    from securemfg.encryption.keys import OpeningKey

    reads = isinstance(one.key, OpeningKey)
    recipient = str(getattr(one.key, "recipient", ""))
    remote = getattr(one.key, "remote", False)
    return {
        "name": one.name,
        "key": one.text,
        "kind": one.text.partition(":")[0],
        "origin": one.origin,
        "id": getattr(one.key, "name", recipient.partition("/")[2]) if one.key is not None else None,
        "writes": one.key is not None,
        "reads": reads,
        "can": "-" if one.key is None else "write and read" if reads else "write only",
        "state": one.problem or ("not asked" if remote else "usable"),
        "problem": one.problem,
    }


# -- backup and restore -----------------------------------------------------------------------------------------------


def backup(
    target: Annotated[
        Path, typer.Argument(help="Where the copy goes, best on another medium: a new file, or a folder for all keys.")
    ],
    *,
    key: Annotated[str | None, typer.Option("--key", help="The key, like local:PATH. Built in: keys.default.")] = None,
    as_json: Json = False,
) -> None:
    """Copy local keys to a safe place: into a folder, all that the settings name. A copy opens what the key opens."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.config import load
        from securemfg.encryption.keys import copy_local_key

        config = load()
        if key is None and target.is_dir():
            _backup_all(config, target, speaker, as_json=as_json)
            return
        source = _local_path(key, config)
        copied = copy_local_key(source, target, origin="--key" if key else config.origin("keys.default"))
        _audited("key.backed_up", copied.name, copied.path)
        others = [text for text in _local_keys(config) if not key and config.path(_path(text)) != source]
        if as_json:
            speaker.json({"key": copied.name, "path": copied.path.absolute(), "others": others})
            return
        speaker.say(f"copied key {copied.name} to {copied.path}, and read it back")
        for text in others:
            speaker.note(f"not copied: {text}, which the settings name too; name a folder to copy all")


def _backup_all(config: Config, folder: Path, speaker: Speaker, *, as_json: bool) -> None:
    """Each local key of the settings to FOLDER/ID.key; what is there already and is that key stays."""
    from securemfg.encryption.keys import LocalKey, copy_local_key

    local = _local_keys(config)
    if not local:
        raise ConfigError("no local key is in the settings: keys of a service are backed up there")
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for text, origin in local.items():
        try:
            source = config.path(_path(text))
            key = LocalKey.open(source, origin=origin)
            place = folder / f"{key.name}.key"
            there = place.exists() and LocalKey.open(place, origin="the backup").name == key.name
            if not there:
                copy_local_key(source, folder, origin=origin)
                _audited("key.backed_up", key.name, place)
        except SecureMfgError as error:
            failed.append({"key": text, "error": str(error)})
            continue
        done.append({"key": key.name, "text": text, "path": place.absolute(), "copied": not there})
    if as_json:
        speaker.json({"done": done, "failed": failed})
    else:
        for row in done:
            how = "copied, and read back" if row["copied"] else "there already"
            speaker.say(f"key {row['key']} ({row['text']}) in {row['path']}: {how}")
        for one in failed:
            speaker.note(f"failed: {one['error']}")
    if failed:
        raise typer.Exit(int(Exit.FINDINGS))


def restore(
    source: Annotated[Path, typer.Argument(help="The backup; or a folder of backups, with --expect.")],
    *,
    target: Annotated[Path | None, typer.Option("--to", help="Where the key belongs. Built in: keys.default.")] = None,
    expect: Annotated[
        str | None, typer.Option("--expect", help="The key's id, as 'inspect' and 'keys list' show it; else refused.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a backed-up local key back where the settings expect it. An existing key is never overwritten."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.config import load
        from securemfg.encryption.keys import LocalKey, copy_local_key

        wanted = _id(expect)
        if source.is_dir():
            if wanted is None:
                raise ConfigError(f"{source} is a folder: name the backup in it, or the key's id with --expect")
            source = source / f"{wanted}.key"
        found = LocalKey.open(source, origin="the backup").name
        said = wanted or _recorded(source)
        if said not in {None, found}:
            by = "--expect" if wanted else "its file name"
            raise EncryptionError(
                f"{source} holds key {found}, not {said} ({by}): nothing was restored; look for the right backup"
            )
        key = copy_local_key(source, target or _local_path(None, load()), origin="the backup")
        _audited("key.restored", key.name, key.path)
        if as_json:
            speaker.json({"key": key.name, "path": key.path.absolute()})
        else:
            speaker.say(f"restored key {key.name} to {key.path}")


def _id(text: str | None) -> str | None:
    if text is None:
        return None
    match = _ID.fullmatch(text.lower())
    if match is None:
        raise ConfigError(f"--expect must be a local key's id, 16 hexadecimal digits, got {text!r}")
    return match[1]


def _recorded(backup: Path) -> str | None:
    """The id that a backup was named by, as `keys backup FOLDER` does."""
    match = _ID.fullmatch(backup.stem)
    return match[1] if match and backup.suffix == ".key" else None


def _path(text: str) -> Path:
    return Path(text.removeprefix(_LOCAL)).expanduser()


def _texts(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


def _local_keys(config: Config) -> dict[str, str]:
    """The local keys of the settings, the default ones first, each with its origin."""
    found: dict[str, str] = {}
    for name, value in {"default": config.default_key, **config.settings.keys}.items():
        for text in _texts(value):
            if text.startswith(_LOCAL):
                found.setdefault(text, config.origin(f"keys.{name}"))
    return found


def _local_path(key: str | None, config: Config) -> Path:
    if key is not None:
        if not key.startswith(_LOCAL):
            raise ConfigError(f"only local keys are copied as files, and this one is {key!r}: use --key local:PATH")
        return _path(key)
    local = [text for text in _texts(config.default_key) if text.startswith(_LOCAL)]
    if len(local) != 1:
        raise ConfigError(
            f"keys.default names {len(local) or 'no'} local keys ({', '.join(_texts(config.default_key))}), and only "
            f"those are copied as files: say which with --key local:PATH or --to PATH"
        )
    return config.path(_path(local[0]))


def _audited(action: str, name: str, path: Path, kind: str = "local-key") -> None:
    from securemfg.workflow import default_workflow

    default_workflow().audit(action, resource=name, kind=kind, detail={"path": encodable(str(path))})
