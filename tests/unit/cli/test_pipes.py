"""Pipes, terminals and interrupts: the real command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from securemfg.encryption import verify_file
from tests.parts import until
from tests.parts.trail import events
from tests.unit.cli.running import COMMAND, FRAME, KEY, on_terminal, piped, started, tree


@pytest.fixture(autouse=True)
def project(cli: Callable[..., Any]) -> None:
    assert cli("init", "--no-backup").code == 0


# -- pipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, FRAME, 3 * FRAME + 5])
def test_a_pipe_is_encrypted_and_decrypted(size: int) -> None:
    data = os.urandom(size)
    sealed = piped("encrypt", "-", "--context", "line=7", given=data)
    assert (sealed.returncode, sealed.stderr) == (0, b"")
    Path("kept.esdk").write_bytes(sealed.stdout)
    assert verify_file("kept.esdk", key=KEY, context={"line": "7"}).plaintext_length == size
    opened = piped("decrypt", "-", "--context", "line=7", given=sealed.stdout)
    assert (opened.returncode, opened.stdout, opened.stderr) == (0, data, b"")
    assert [event["resource"]["id"] for event in events("artifact.")] == ["-", "-"]


def test_one_file_goes_to_standard_output() -> None:
    data = os.urandom(2 * FRAME + 1)
    Path("a").write_bytes(data)
    Path("a.esdk").write_bytes(piped("encrypt", "a", "-o", "-").stdout)
    assert piped("decrypt", "a.esdk", "-o", "-").stdout == data
    assert piped("encrypt", "-", "-o", "-", given=b"x").stdout[:1] == b"\x02"


def test_a_pipe_goes_to_a_file_whole_or_not_at_all(cli) -> None:
    ran = piped("encrypt", "-", "-o", "new.esdk", "--json", given=b"abc")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["done"][0]["target"] == "new.esdk"
    assert Path("new.esdk").stat().st_mode & 0o777 == 0o600
    assert piped("encrypt", "-", "-o", "new.esdk", given=b"other").returncode == 1
    assert verify_file("new.esdk", key=KEY).plaintext_length == 3
    assert piped("encrypt", "-", "-o", "new.esdk", "--force", given=b"other").returncode == 0
    sealed = Path("new.esdk").read_bytes()
    assert piped("decrypt", "-", "-o", "plain", given=sealed[:-1]).returncode == 1
    assert piped("decrypt", "-", "-o", "plain", given=sealed[:-1] + bytes([sealed[-1] ^ 1])).returncode == 1
    assert not Path("plain").exists()
    assert len(events("artifact.refused")) == 2
    assert piped("decrypt", "-", "-o", "plain", given=sealed).returncode == 0
    assert Path("plain").read_bytes() == b"other"


def test_nothing_of_a_damaged_message_reaches_standard_output(cli) -> None:
    Path("a").write_bytes(bytes(3 * FRAME))
    cli("encrypt", "a")
    damaged = bytearray(Path("a.esdk").read_bytes())
    damaged[-1] ^= 1
    Path("a.esdk").write_bytes(damaged)
    for ran in (piped("decrypt", "-", given=bytes(damaged)), piped("decrypt", "a.esdk", "-o", "-")):
        assert (ran.returncode, ran.stdout) == (1, b"")
    assert b"a.esdk" in ran.stderr
    assert [event["resource"]["id"] for event in events("artifact.refused")] == ["-", "a.esdk"]


@pytest.mark.parametrize(
    "arguments",
    [["-", "a"], ["a", "a2", "-o", "-"], ["data", "-o", "-"], ["-", "-o", "data"], ["-", "--json"], ["a", "-o", "-", "--json"]],
)  # fmt: skip
def test_a_pipe_for_more_than_one_message_is_a_usage_error(arguments: list[str]) -> None:
    tree(a="A")
    for name in ("a", "a2"):
        Path(name).write_text("x")
    ran = piped("encrypt", *arguments, given=b"x")
    assert ran.returncode == 2, ran.stderr
    assert b"\x02\x04" not in ran.stdout


@pytest.mark.parametrize("arguments", [["encrypt", "-"], ["decrypt", "a.esdk", "-o", "-"]])
def test_bytes_do_not_reach_a_terminal_unless_one_insists(cli, arguments: list[str]) -> None:
    Path("a").write_text("torque")
    cli("encrypt", "a")
    code, said = on_terminal(arguments, "stdout")
    assert (code, said) == (2, b"")
    code, said = on_terminal([*arguments, "--force"], "stdout")
    assert code == 0
    assert said


def test_a_dash_in_a_folder_is_a_file(cli) -> None:
    Path("-").write_text("x")
    assert cli("encrypt", "./-").code == 0
    assert Path("-.esdk").exists()


def test_a_pipe_that_does_not_wait_loses_nothing() -> None:
    data = os.urandom(4 * FRAME)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # as some parents hand it on
    got = bytearray()

    def read() -> None:
        while more := os.read(reader, 1 << 16):
            got.extend(more)

    thread = threading.Thread(target=read)
    with subprocess.Popen([*COMMAND, "encrypt", "-"], stdin=subprocess.PIPE, stdout=writer) as process:
        os.close(writer)
        thread.start()
        process.communicate(data, timeout=60)
    thread.join()
    os.close(reader)
    assert process.returncode == 0
    assert piped("decrypt", "-", given=bytes(got)).stdout == data


def test_a_reader_that_has_enough_ends_it_quietly_and_the_trail_says_what_went_out(cli) -> None:
    Path("a").write_bytes(bytes(3 * FRAME))
    cli("encrypt", "a")
    command = " ".join(COMMAND)
    ran = subprocess.run(
        ["bash", "-c", f"{command} decrypt a.esdk -o - | head -c 5; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, bytes(5), b"")
    (event,) = events("artifact.decrypted")
    assert event["outcome"] == "failure"
    assert "in part" in event["reason"]
    assert 0 < event["detail"]["bytes"] < 3 * FRAME


def test_a_full_target_is_an_error_and_not_a_short_message() -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [*COMMAND, "encrypt", "-"], input=bytes(FRAME), stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert ran.returncode == 1
    assert b"cannot be written" in ran.stderr


def test_a_closed_standard_input_is_a_usage_error() -> None:
    ran = subprocess.run(
        ["bash", "-c", f"{' '.join(COMMAND)} encrypt - <&-"], capture_output=True, timeout=60, check=False
    )
    assert ran.returncode == 2
    assert b"standard input is closed" in ran.stderr


def test_inspect_takes_a_pipe_and_a_redirected_file() -> None:
    sealed = piped("encrypt", "-", given=bytes(2 * FRAME)).stdout
    Path("kept").write_bytes(sealed)
    (shown,) = json.loads(piped("inspect", "-", "--json", given=sealed).stdout)
    with open("kept", "rb") as file:
        redirected = subprocess.run([*COMMAND, "inspect", "-", "--json"], stdin=file, capture_output=True, check=True)
    assert json.loads(redirected.stdout) == [shown]
    assert (shown["plaintext_length"], shown["message_length"]) == (2 * FRAME, len(sealed))
    assert piped("inspect", "-", given=b"no message").returncode == 1
    assert piped("inspect", "-", given=b"").returncode == 1


# -- interruption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_interrupt_leaves_whole_files_only_and_says_how_many(form: list[str]) -> None:
    tree(**{f"f{number:04}": "x" for number in range(4000)})
    process = started("encrypt", "data", "-o", "out", "--workers", "2", *form)
    until(lambda: Path("out").is_dir() and any(Path("out").iterdir()), what="the first file")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    made = sorted(Path("out").iterdir())
    assert 0 < len(made) < 4000
    assert all(verify_file(path, key=KEY).plaintext_length == 1 for path in made)
    assert b"Traceback" not in err
    assert len(events("artifact.encrypted")) == len(made)
    if form:
        said = json.loads(out)
        assert said["interrupted"] is True
        assert len(said["done"]) == len(made)
    else:
        assert f"{len(made)} of 4000 files done" in err.decode()


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_interrupted_pipe_leaves_no_file(form: list[str]) -> None:
    process = started("encrypt", "-", "-o", "sealed", *form, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(bytes(3 * FRAME))  # more than a pipe holds: it is in the middle of it
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out)["interrupted"] if form else err == b"interrupted\n"
    assert {path.name for path in Path().iterdir()} == {".securemfg", "securemfg.toml", "data_flow.yaml"}


# -- what people see --------------------------------------------------------------------------------------------------


def test_long_work_shows_a_bar_to_a_person_only() -> None:
    tree(**{f"f{number}": "x" for number in range(60)})
    code, said = on_terminal(["encrypt", "data", "--force"], "stderr")
    assert code == 0
    assert "━".encode() in said
    assert b"60/60" in said
    assert b"\x1b[38" in said or b"\x1b[3" in said
    for option in (["--json"], []):
        ran = piped("encrypt", "data", "--force", *option)
        assert "━".encode() not in ran.stderr
    _, silent = on_terminal(["encrypt", "data", "--force", "--json"], "stderr")
    assert silent == b""


def test_the_bar_has_no_colours_when_they_are_declined() -> None:
    tree(**{f"f{number}": "x" for number in range(60)})
    for arguments, environment in ((["encrypt", "data"], {"NO_COLOR": "1"}), (["--no-color", "encrypt", "data"], {})):
        _, said = on_terminal([*arguments, "-o", f"out{len(environment)}"], "stderr", **environment)
        assert b"60/60" in said
        assert b"\x1b[3" not in said


# -- suites without key commitment ------------------------------------------------------------------------------------


def test_a_suite_that_the_settings_name_is_read_from_files_and_pipes_and_no_other() -> None:
    from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
    from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
    from aws_cryptographic_material_providers.mpl.models import AesWrappingAlg, CreateRawAesKeyringInput
    from aws_encryption_sdk import CommitmentPolicy, EncryptionSDKClient
    from aws_encryption_sdk.identifiers import Algorithm

    from securemfg.encryption.keys import LocalKey

    path = Path(".securemfg/keys/default.key")
    keyring = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig()).create_raw_aes_keyring(
        CreateRawAesKeyringInput(
            key_namespace="securemfg",
            key_name=LocalKey.open(path).name,
            wrapping_key=path.read_bytes(),
            wrapping_alg=AesWrappingAlg.ALG_AES256_GCM_IV12_TAG16,
        )
    )
    sealed, _ = EncryptionSDKClient(commitment_policy=CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT).encrypt(
        source=b"old", keyring=keyring, algorithm=Algorithm.AES_256_GCM_IV12_TAG16_HKDF_SHA256
    )
    Path("old.esdk").write_bytes(sealed)
    assert piped("decrypt", "old.esdk").returncode == 1
    assert b"message format 1" in piped("inspect", "old.esdk").stdout
    text = Path("securemfg.toml").read_text()
    Path("securemfg.toml").write_text(text + '\n[encryption]\nread_suites = ["0x0178"]\n')
    assert piped("decrypt", "-", given=sealed).stdout == b"old"
    assert piped("decrypt", "old.esdk", "-o", "-").stdout == b"old"
    ran = piped("decrypt", "old.esdk")
    assert ran.returncode == 0, ran.stderr
    assert Path("old").read_bytes() == b"old"
    assert b"weakened" in ran.stderr
    assert events("settings.weakened")
