"""`securemfg keys`: make, list, back up and restore local keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from securemfg.cli.output import Json, ends_well
from securemfg.errors import ConfigError


def add_to(root: typer.Typer) -> None:
    group = typer.Typer(help="Make, list, back up and restore keys.", no_args_is_help=True)
    group.command("generate")(generate)
    group.command("list")(list_keys)
    group.command("backup")(backup)
    group.command("restore")(restore)
    root.add_typer(group, name="keys")


def generate(
    path: Annotated[Path, typer.Argument(help="Where the new key goes; it must not exist.")],
    *,
    as_json: Json = False,
) -> None:
    """Make a new local key: 32 random bytes in a file that only you can read."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.encryption.keys import create_local_key

        key = create_local_key(path)
        _audited("key.created", key.name, path)
        if as_json:
            speaker.json({"key": key.name, "path": str(path.absolute()), "text": f"local:{path}"})
        else:
            speaker.say(f'made key {key.name} in {path}\nuse it as "local:{path}"')
            speaker.note(
                f"Whoever loses this file loses the data: keep a copy elsewhere with "
                f"'securemfg keys backup --key local:{path} FILE'."
            )


def list_keys(*, as_json: Json = False) -> None:
    """The keys that the settings name, and whether each can be used here."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.workflow import default_workflow

        rows: list[dict[str, Any]] = [
            {
                "name": one.name,
                "key": one.text,
                "origin": one.origin,
                "id": getattr(one.key, "name", None),
                "state": one.problem or "usable",
            }
            for one in default_workflow().keys.named()
        ]
        if as_json:
            speaker.json(rows)
        else:
            speaker.table(("name", "id", "key", "from", "state"),
                          [(r["name"], r["id"], r["key"], r["origin"], r["state"]) for r in rows])  # fmt: skip


def backup(
    target: Annotated[Path, typer.Argument(help="Where the copy goes, best on another medium; it must not exist.")],
    *,
    key: Annotated[str | None, typer.Option("--key", help="The key, like local:PATH. Built in: keys.default.")] = None,
    as_json: Json = False,
) -> None:
    """Copy a local key to a safe place. The copy opens everything the key opens: guard it as well."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.encryption.keys import copy_local_key

        copied = copy_local_key(_local_path(key), target, origin="--key" if key else "keys.default")
        _audited("key.backed_up", copied.name, copied.path)
        if as_json:
            speaker.json({"key": copied.name, "path": str(copied.path.absolute())})
        else:
            speaker.say(f"copied key {copied.name} to {copied.path}, and read it back")


def restore(
    source: Annotated[Path, typer.Argument(help="The backup.")],
    *,
    target: Annotated[Path | None, typer.Option("--to", help="Where the key belongs. Built in: keys.default.")] = None,
    as_json: Json = False,
) -> None:
    """Put a backed-up local key back where the settings expect it. An existing key is never overwritten."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.encryption.keys import copy_local_key

        key = copy_local_key(source, target or _local_path(None), origin="the backup")
        _audited("key.restored", key.name, key.path)
        if as_json:
            speaker.json({"key": key.name, "path": str(key.path.absolute())})
        else:
            speaker.say(f"restored key {key.name} to {key.path}")


def _local_path(key: str | None) -> Path:
    from securemfg.config import load

    config = load()
    text = key or config.default_key
    if not isinstance(text, str) or not text.startswith("local:"):
        raise ConfigError(
            f"only local keys are copied as files, and this one is {text!r}: name one with --key local:PATH"
        )
    path = Path(text.removeprefix("local:")).expanduser()
    return path if path.is_absolute() or key else config.folder / path


def _audited(action: str, name: str, path: Path) -> None:
    from securemfg.workflow import default_workflow

    default_workflow().audit(action, resource=name, kind="local-key", detail={"path": str(path)})
