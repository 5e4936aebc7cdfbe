"""`securemfg encrypt`, `decrypt`, `inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from securemfg.cli.output import Exit, Json, ends_well, size
from securemfg.errors import ConfigError, SecureMfgError

SUFFIX = ".esdk"

Paths = Annotated[list[Path], typer.Argument(help="Files.", show_default=False)]
Keys = Annotated[list[str] | None, typer.Option("--key", help="A key, like local:PATH; repeat for several.")]
Out = Annotated[Path | None, typer.Option("-o", "--output", help="Target file; a folder for several files.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing target.")]


def add_to(root: typer.Typer) -> None:
    root.command("encrypt")(encrypt)
    root.command("decrypt")(decrypt)
    root.command("inspect")(inspect)


def encrypt(paths: Paths, *, key: Keys = None, output: Out = None, force: Force = False, as_json: Json = False) -> None:
    """Encrypt files to PATH.esdk; the sources stay."""
    with ends_well(as_json=as_json):
        _each(paths, key, output, force=force, as_json=as_json, encrypting=True)


def decrypt(paths: Paths, *, key: Keys = None, output: Out = None, force: Force = False, as_json: Json = False) -> None:
    """Decrypt PATH.esdk to PATH; nothing is written unless all of it verifies."""
    with ends_well(as_json=as_json):
        _each(paths, key, output, force=force, as_json=as_json, encrypting=False)


def _each(
    paths: Sequence[Path],
    key: Sequence[str] | None,
    output: Path | None,
    *,
    force: bool,
    as_json: bool,
    encrypting: bool,
) -> None:
    from securemfg.cli.output import Speaker
    from securemfg.encryption.keys import Key
    from securemfg.encryption.stream import decrypt_file, encrypt_file
    from securemfg.workflow import default_workflow

    workflow = default_workflow()
    speaker = Speaker()
    keys: list[Key]
    if key:
        keys = [workflow.keys.open(text, origin="--key") for text in key]
    elif encrypting:
        keys = [one for group in workflow.keys.for_assets(()) for one in group]
    else:
        keys = list(workflow.keys.for_reading())
    action = encrypt_file if encrypting else decrypt_file
    done: list[dict[str, object]] = []
    failed: list[dict[str, str]] = []
    targets = _targets(paths, output, encrypting=encrypting)
    for path, target in zip(paths, targets, strict=True):
        try:
            message = action(path, target, key=keys, overwrite=force)
        except SecureMfgError as error:
            if len(paths) == 1:
                raise
            failed.append({"source": str(path), "error": str(error)})
            continue
        workflow.audit(
            "artifact.encrypted" if encrypting else "artifact.decrypted",
            resource=str(path),
            kind="file",
            detail={"bytes": message.plaintext_length, "suite": f"0x{message.suite:04x}", "key": message.recipients[0]},
        )
        done.append({"source": str(path), "target": str(target), "bytes": message.plaintext_length,
                     "recipients": list(message.recipients)})  # fmt: skip
    if as_json:
        speaker.json({"done": done, "failed": failed})
    else:
        for row in done:
            speaker.say(f"{row['source']} -> {row['target']} ({size(int(str(row['bytes'])))})")
        for failure in failed:
            speaker.note(f"failed: {failure['error']}")
    if failed:
        raise typer.Exit(int(Exit.FINDINGS))


def _targets(paths: Sequence[Path], output: Path | None, *, encrypting: bool) -> list[Path]:
    """Where each file goes, settled before the first is touched. Raises ConfigError."""
    targets = [_target(path, output, several=len(paths) > 1, encrypting=encrypting) for path in paths]
    seen: dict[Path, Path] = {}
    for path, target in zip(paths, targets, strict=True):
        other = seen.setdefault(target.absolute(), path)
        if other is not path:
            raise ConfigError(f"{other} and {path} would both become {target}: do them apart, with a target each")
    if output is not None and len(paths) > 1:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"-o {output} must be a folder for several files, and cannot be made: {error.strerror}"
            ) from error
    return targets


def _target(path: Path, output: Path | None, *, several: bool, encrypting: bool) -> Path:
    if encrypting:
        name = path.name + SUFFIX
    elif path.suffix == SUFFIX:
        name = path.name.removesuffix(SUFFIX)
    elif output is None or several:
        raise ConfigError(f"{path} does not end in {SUFFIX}: name the target with -o")
    else:
        name = path.name
    if output is None:
        return path.with_name(name)
    if several or output.is_dir():
        return output / name
    return output


def inspect(paths: Paths, *, as_json: Json = False) -> None:
    """What messages say of themselves, without any key. Nothing of it is verified."""
    with ends_well(as_json=as_json) as speaker:
        from securemfg.encryption.stream import inspect_file

        messages = [inspect_file(path) for path in paths]
        if as_json:
            speaker.json(messages)
            return
        for message in messages:
            context = ", ".join(f"{name}={value}" for name, value in sorted(message.context.items())) or "-"
            speaker.table(
                ("file", str(message.path)),
                [
                    ("format", "AWS Encryption SDK message format 2 (claimed, not verified)"),
                    ("suite", f"0x{message.suite:04x} AES-256-GCM, HKDF-SHA-512, key commitment"),
                    ("context", context),
                    ("recipients", ", ".join(message.recipients)),
                    (
                        "plaintext",
                        f"{message.plaintext_length} bytes in {message.frames} frames of {message.frame_length}",
                    ),
                    ("message", f"{message.message_length} bytes, id {message.message_id}"),
                ],
            )
