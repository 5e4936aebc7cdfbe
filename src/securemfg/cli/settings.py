"""`securemfg init`, `config show`, `catalog validate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from securemfg.cli.output import Json, ends_well
from securemfg.errors import ConfigError

_SETTINGS = """\
# securemfg settings. Every one of them: docs/reference/settings.md; what is in force: securemfg config show
catalog = "data_flow.yaml"
mode = "enforce"

[keys]
default = "local:.securemfg/keys/default.key"
"""

_CATALOG = """\
# What data this project handles and how sensitive each is: public, internal, confidential, ip-sensitive or pii.
data_assets:
  - name: production_sensor_data
    sensitivity: confidential
"""


def add_to(root: typer.Typer) -> None:
    root.command("init")(init)
    config = typer.Typer(help="The settings in force.", no_args_is_help=True)
    config.command("show")(show)
    root.add_typer(config, name="config")
    catalog = typer.Typer(help="The data-flow catalog.", no_args_is_help=True)
    catalog.command("validate")(validate)
    root.add_typer(catalog, name="catalog")


def init(
    folder: Annotated[Path, typer.Argument(help="The project's folder.")] = Path(),
    *,
    backup: Annotated[Path | None, typer.Option("--backup", help="Copy the new key there.")] = None,
    no_backup: Annotated[
        bool, typer.Option("--no-backup", help="Decline a backup: losing the key loses the data.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Set up a project: securemfg.toml, data_flow.yaml and a local key. Existing files are kept."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.config import load
        from securemfg.encryption.keys import copy_local_key, create_local_key
        from securemfg.home import make_home
        from securemfg.workflow import Workflow

        if backup is not None and no_backup:
            raise ConfigError("--backup and --no-backup exclude each other")
        if backup is None and not no_backup and (as_json or not sys.stdin.isatty()):
            raise ConfigError("say what becomes of the key's backup: --backup PATH, or --no-backup to decline")
        made = _files(folder)
        config = load(folder)
        make_home(config.home)
        chosen = config.default_key
        key_path: Path | None = None
        if isinstance(chosen, str) and chosen.startswith("local:"):
            key_path = config.path(Path(chosen.removeprefix("local:")).expanduser())
        key = None
        if key_path is not None and not key_path.exists():
            key = create_local_key(key_path)
            made.append(str(key_path))
            with Workflow(config) as workflow:
                workflow.audit("key.created", resource=key.name, kind="local-key", detail={"path": str(key_path)})
        if key_path is not None:
            if backup is None and not no_backup and key is not None:
                speaker.note(f"Whoever loses {key_path} loses the data.")
                answer = typer.prompt("Back it up to (a path, best on another medium; empty to decline)", default="")
                backup = Path(answer).expanduser() if answer else None
            if backup is not None:
                made.append(str(copy_local_key(key_path, backup, origin="keys.default").path))
        if as_json:
            speaker.json({"made": made, "key": key.name if key else None, "backup": str(backup) if backup else None})
            return
        for one in made:
            speaker.say(f"made {one}")
        if not made:
            speaker.say("everything was there already; nothing was changed")
        elif backup is None and key is not None:
            speaker.note("no backup of the key: make one with 'securemfg keys backup PATH' before it protects anything")


def _files(folder: Path) -> list[str]:
    """Make what is missing of settings and catalog; the paths made. Raises ConfigError.

    Settings in pyproject.toml are settings: a securemfg.toml beside them would replace them.
    """
    from securemfg.config import load

    made: list[str] = []

    def make(name: str, text: str) -> None:
        path = folder / name
        if not path.exists():
            path.write_text(text, encoding="utf-8")
            made.append(str(path))

    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = load(folder).source
        if found is None or found.parent != folder.absolute():
            make("securemfg.toml", _SETTINGS)
        if load(folder).settings.catalog == folder.absolute() / "data_flow.yaml":
            make("data_flow.yaml", _CATALOG)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be set up: {error.strerror}; name a folder that you may write to"
        ) from error
    return made


def show(*, as_json: Json = False) -> None:
    """Every setting in force, with where its value came from."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.config import load

        config = load()
        rows = list(config.shown())
        weak = config.weakenings()
        if as_json:
            speaker.json({
                "source": config.source,
                "embedded_default": config.embedded,
                "settings": [{"setting": s, "value": v, "origin": o} for s, v, o in rows],
                "weakenings": weak,
            })  # fmt: skip
            return
        if config.embedded:
            speaker.note("no settings found: the embedded default serves (local key, local journal, no cloud)")
        speaker.table(("setting", "value", "from"), rows)
        for one in weak:
            speaker.note(f"weakened: {one.setting} = {one.value} ({one.origin}): {one.meaning}")


def validate(
    path: Annotated[Path | None, typer.Argument(help="The catalog. Built in: the one the settings name.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Check a data-flow catalog and list its assets."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.config import load
        from securemfg.governance.catalog import load_catalog

        origin = "argument"
        if path is None:
            config = load()
            path, origin = config.settings.catalog, config.origin("catalog")
        if path is None:
            raise ConfigError("no catalog is set: set 'catalog', or name the file")
        catalog = load_catalog(path, origin=origin)
        if as_json:
            assets = [{"name": asset.name, "sensitivity": asset.sensitivity} for asset in catalog.assets.values()]
            speaker.json({"path": path, "digest": catalog.digest, "assets": assets})
            return
        speaker.table(
            ("asset", "sensitivity", "roles"),
            [
                (a.name, a.sensitivity, "every role (none declared)" if a.roles is None else ", ".join(a.roles))
                for a in catalog.assets.values()
            ],
        )
        speaker.say(f"{path} is valid: {len(catalog.assets)} assets, policy version {catalog.digest[:12]}")
