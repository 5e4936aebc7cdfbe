"""docs/format.md says what the code does: its Python script opens our files, its numbers and names are the code's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from securemfg.artifacts.location import KIND, PATH, ROOT
from securemfg.encryption import frames, keys, message, records, run_key
from securemfg.encryption.keys import create_local_key
from securemfg.encryption.message import Geometry, parse_header
from securemfg.encryption.run_key import create_run_key
from securemfg.encryption.stream import encrypt_bytes
from tests.vectors import official
from tests.vectors.page import PAGE, snippet

BINDING = {KIND: "run", ROOT: "0123456789abcdef0123456789abcdef"}


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level."""
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def leave(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the page's script."""
    Path("exit.py").write_text(snippet("python"))
    command = [sys.executable, "exit.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("groups", [("default",), ("default", "operator_feedback"), ("a", "b", "c")])
def test_python_script_opens_a_record_of_any_depth_and_then_an_artifact(groups: tuple[str, ...]) -> None:
    official.needed()
    local = {name: create_local_key(Path(f"{name}.key")) for name in groups}
    run, record = create_run_key({name: [key] for name, key in local.items()}, BINDING)
    weights = os.urandom((1 << 20) + 5)
    Path("record.esdk").write_bytes(record)
    Path("artifact.esdk").write_bytes(encrypt_bytes(weights, key=run, context={**BINDING, PATH: "model/weights.bin"}))
    done = leave("record.esdk", "artifact.esdk", "weights.bin", *(key.path for key in local.values()))
    assert done.returncode == 0, done.stderr
    assert Path("weights.bin").read_bytes() == weights
    assert done.stdout.split() == ["run", BINDING[ROOT], "model/weights.bin"]


def test_python_script_refuses_an_artifact_of_another_root() -> None:
    official.needed()
    local = create_local_key(Path("local.key"))
    run, record = create_run_key({"default": [local]}, BINDING)
    Path("record.esdk").write_bytes(record)
    moved = {**BINDING, ROOT: "f" * 32, PATH: "model/weights.bin"}
    Path("artifact.esdk").write_bytes(encrypt_bytes(b"weights", key=run, context=moved))
    done = leave("record.esdk", "artifact.esdk", "weights.bin", local.path)
    assert (done.returncode, "of different roots" in done.stderr) == (1, True)
    assert not Path("weights.bin").exists()


def test_limits_are_the_code_s() -> None:
    rows = dict(re.findall(r"^\| ([\w' ]+) \| ([\d,]+)(?: bytes)? \|", section("Limits and refusals"), re.MULTILINE))
    assert {name: int(value.replace(",", "")) for name, value in rows.items()} == {
        "recipients": message.MAX_RECIPIENTS,
        "header": message.MAX_HEADER,
        "serialized context": 0xFFFF,
        "frame length": message.MAX_FRAME_LENGTH,
        "sequence numbers": message.MAX_FRAMES,
        "body without frames": message.MAX_UNFRAMED,
        "record": records.MAX_RECORD,
        "layers of a record": len(run_key._DEPTHS),
        "recipients asked of a service": keys.MAX_REMOTE,
        "data keys under one run key": run_key.MAX_WRAPS,
    }
    assert f"{message.FRAME_LENGTH:,} bytes of plaintext" in section("The message as written")


def test_every_context_pair_that_is_written_is_on_the_page() -> None:
    listed = set(re.findall(r"^\| `(securemfg:[\w-]+)` \|", section("Context pairs"), re.MULTILINE))
    local = create_local_key(Path("local.key"))
    run, record = create_run_key({"default": [local]}, BINDING)
    artifact = encrypt_bytes(b"weights", key=run, context={**BINDING, PATH: "model/weights.bin"})
    assert {*parse_header(record).context, *parse_header(artifact).context} == listed


def test_every_kind_of_key_and_its_provider_is_on_the_page() -> None:
    from securemfg.encryption import aws_kms, rsa_oaep, vault_transit

    rows = re.findall(r"^\| `?([\w-]+)(?::\S+?`| key) \| `([\w-]+)` \|", section("Recipients"), re.MULTILINE)
    assert dict(rows) == {
        "local": keys.LOCAL_PROVIDER,
        "run": run_key.RUN_PROVIDER,
        "aws-kms": aws_kms.PROVIDER,
        "vault-transit": vault_transit.PROVIDER,
        "rsa": rsa_oaep.PROVIDER,
    }
    assert set(keys.SCHEMES) == {name for name, _ in rows} - {"run"}


@pytest.mark.parametrize("length", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 7])
def test_length_of_a_message_is_the_page_s_formula(tmp_path: Path, length: int) -> None:
    assert "`h + 32 * f + 40 + n`" in PAGE
    _, header = frames.new_message([create_local_key(tmp_path / "local.key")], {}, message.FRAME_LENGTH)
    regular = max(0, -(-length // message.FRAME_LENGTH) - 1)
    assert Geometry.plan(header, length).message_length == header.length + 32 * regular + 40 + length
