"""Keys on the command line: made once, listed with what they can do, copied and put back, never overwritten."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from securemfg.encryption import create_local_key
from tests.parts.trail import events, settings

ASSETS = """\
[keys]
default = ["local:keys/one.key", "rsa:escrow.pub.pem"]
operator_feedback = "local:keys/two.key"
sensor = "aws-kms:arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
"""


def mode(path: str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def flat(text: str) -> str:
    return " ".join(text.split())


# -- generate


def test_a_generated_key_is_private_and_warns_a_script_of_its_loss(cli) -> None:
    ran = cli("keys", "generate", "deep/er/a.key")
    assert ran.code == 0, ran.err
    assert len(Path("deep/er/a.key").read_bytes()) == 32
    assert (mode("deep/er/a.key"), mode("deep"), mode("deep/er")) == (0o600, 0o700, 0o700)
    assert "loses the data" in ran.err
    assert 'use it as "local:deep/er/a.key"' in ran.out
    made = cli("keys", "generate", "b.key", "--json")
    assert made.json["backup"] is None
    assert made.json["text"] == "local:b.key"
    assert "loses the data" in made.err
    assert len(events("key.created")) == 2


def test_a_key_is_backed_up_as_it_is_made(cli) -> None:
    ran = cli("keys", "generate", "a.key", "--backup", "safe/a.key", "--json")
    assert ran.code == 0, ran.err
    assert Path("safe/a.key").read_bytes() == Path("a.key").read_bytes()
    assert ran.json["backup"] == str(Path("safe/a.key").absolute())
    assert ran.err == ""
    assert [event["action"] for event in events("key.")] == ["key.created", "key.backed_up"]


def test_a_backup_that_cannot_be_made_is_noticed_before_the_key_is_made(cli) -> None:
    Path("taken").write_text("mine")
    assert cli("keys", "generate", "a.key", "--backup", "taken").code == 2
    assert cli("keys", "generate", "a.key", "--backup", "./a.key").code == 2
    assert not Path("a.key").exists()
    Path("file").write_text("")
    ran = cli("keys", "generate", "a.key", "--backup", "file/below")
    assert ran.code == 1
    assert "a.key was made, but has no backup" in flat(ran.err)
    assert Path("taken").read_text() == "mine"


def test_a_key_is_never_generated_over_another(cli) -> None:
    create_local_key(Path("a.key"))
    before = Path("a.key").read_bytes()
    assert cli("keys", "generate", "a.key").code == 1
    assert Path("a.key").read_bytes() == before


@pytest.mark.parametrize(("answers", "copy"), [("taken\nmine.key\n", "mine.key"), ("\n", None)])
def test_a_person_is_asked_for_a_place_until_one_is_free_or_declined(answers: str, copy: str | None) -> None:
    Path("taken").write_text("x")
    parent, child = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "securemfg", "keys", "generate", "a.key"],
        stdin=child,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        os.close(child)
        os.write(parent, answers.encode())
        assert process.stdout is not None
        said = process.stdout.read().decode()
    os.close(parent)
    assert process.returncode == 0, said
    assert "loses the data" in flat(said)
    assert Path("taken").read_text() == "x"
    if copy is None:
        assert "keys backup --key local:a.key" in flat(said)
        assert len(events("key.backed_up")) == 0
    else:
        assert Path(copy).read_bytes() == Path("a.key").read_bytes()


def test_an_rsa_pair_writes_with_its_public_half_and_reads_with_the_other(cli) -> None:
    ran = cli("keys", "generate", "escrow.pem", "--kind", "rsa", "--bits", "3072", "--json")
    assert ran.code == 0, ran.err
    assert "offline" in ran.err
    assert (mode("escrow.pem"), mode("escrow.pub.pem")) == (0o600, 0o644)
    private = Path("escrow.pem").read_bytes()
    assert private.startswith(b"-----BEGIN PRIVATE KEY-----")
    loaded = serialization.load_pem_private_key(private, password=None)
    assert isinstance(loaded, rsa.RSAPrivateKey)
    assert loaded.key_size == 3072
    assert b"PRIVATE" not in Path("escrow.pub.pem").read_bytes()
    assert ran.json["text"] == "rsa:escrow.pub.pem"
    Path("a").write_text("x")
    assert cli("encrypt", "a", "--key", ran.json["text"]).code == 0
    assert cli("decrypt", "a.esdk", "-o", "b", "--key", "rsa:escrow.pub.pem").code == 1
    assert cli("decrypt", "a.esdk", "-o", "b", "--key", "rsa:escrow.pem").code == 0
    (event,) = events("key.created")
    assert event["resource"] == {"type": "rsa-key", "id": ran.json["key"]}


def test_an_rsa_key_has_4096_bits_unless_told(cli) -> None:
    ran = cli("keys", "generate", "escrow", "--kind", "rsa")
    assert ran.code == 0, ran.err
    assert "4096 bits" in ran.out
    assert "escrow.pub.pem" in ran.out


@pytest.mark.parametrize("taken", ["escrow.pem", "escrow.pub.pem"])
def test_of_an_rsa_pair_both_halves_are_made_or_none(cli, taken: str) -> None:
    Path(taken).write_text("mine")
    assert cli("keys", "generate", "escrow.pem", "--kind", "rsa", "--bits", "3072").code == 1
    assert [path.name for path in Path().glob("escrow*")] == [taken]
    assert Path(taken).read_text() == "mine"


def test_an_rsa_key_where_others_may_write_is_refused_and_gone(cli) -> None:
    Path("open").mkdir()
    Path("open").chmod(0o777)
    assert cli("keys", "generate", "open/escrow.pem", "--kind", "rsa", "--bits", "3072").code == 2
    assert list(Path("open").iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [["--kind", "rsa", "--bits", "2048"], ["--bits", "4096"], ["--kind", "rsa", "--backup", "b"], ["--kind", "aes"]],
)
def test_options_that_do_not_go_together_are_usage_errors(cli, options: list[str]) -> None:
    assert cli("keys", "generate", "a.key", *options).code == 2
    assert not Path("a.key").exists()


# -- list


def test_keys_are_listed_with_kind_id_state_origin_and_what_they_can_do(cli) -> None:
    key = create_local_key(Path("keys/one.key"))
    cli("keys", "generate", "escrow.pem", "--kind", "rsa", "--bits", "3072")
    settings(ASSETS)
    rows = {(row["name"], row["kind"]): row for row in cli("keys", "list", "--json").json}
    local = rows["default", "local"]
    assert (local["id"], local["state"], local["can"]) == (key.name, "usable", "write and read")
    assert local["origin"].endswith("securemfg.toml")
    assert (rows["default", "rsa"]["writes"], rows["default", "rsa"]["reads"]) == (True, False)
    assert "is missing" in rows["operator_feedback", "local"]["state"]
    assert rows["sensor", "aws-kms"]["state"] == "not asked"
    assert rows["sensor", "aws-kms"]["id"].endswith("key/00000000-0000-0000-0000-000000000000")
    ran = cli("keys", "list")
    assert ran.code == 0
    assert "write only" in ran.out
    assert "NOT usable" in ran.out
    assert "two.key is missing" in flat(ran.err)


def test_one_more_key_can_be_looked_at(cli) -> None:
    settings('[keys]\ndefault = "local:keys/one.key"\n')
    cli("keys", "generate", "escrow.pem", "--kind", "rsa", "--bits", "3072")
    extra = cli("keys", "list", "--key", "rsa:escrow.pem", "--json").json[-1]
    assert (extra["name"], extra["origin"], extra["can"]) == ("-", "--key", "write and read")
    Path("escrow.pem").chmod(0o644)
    assert "can be read by others" in cli("keys", "list", "--key", "rsa:escrow.pem", "--json").json[-1]["problem"]
    assert cli("keys", "list", "--key", "nonsense").code == 2


# -- backup and restore


def test_a_key_goes_and_comes_back(cli) -> None:
    cli("init", "--no-backup")
    key = Path(".securemfg/keys/default.key")
    before = key.read_bytes()
    Path("a").write_text("x")
    cli("encrypt", "a")
    assert cli("keys", "backup", "medium/copy.key").code == 0
    key.unlink()
    assert cli("decrypt", "a.esdk", "-o", "b").code == 2
    (recipient,) = cli("inspect", "a.esdk", "--json").json[0]["recipients"]
    assert cli("keys", "restore", "medium/copy.key", "--expect", recipient).code == 0
    assert key.read_bytes() == before
    assert mode(str(key)) == 0o600
    assert cli("decrypt", "a.esdk", "-o", "b").code == 0
    assert [event["action"] for event in events("key.")][1:] == ["key.backed_up", "key.restored"]


def test_neither_a_backup_nor_a_restore_overwrites_a_key(cli) -> None:
    cli("init", "--no-backup")
    create_local_key(Path("other.key"))
    before = Path("other.key").read_bytes(), Path(".securemfg/keys/default.key").read_bytes()
    assert cli("keys", "backup", "other.key").code == 1
    assert cli("keys", "restore", "other.key").code == 1
    assert cli("keys", "restore", "other.key", "--force").code == 2  # there is no such thing
    assert (Path("other.key").read_bytes(), Path(".securemfg/keys/default.key").read_bytes()) == before


def test_the_wrong_backup_is_refused_by_the_expected_id_and_by_its_own_name(cli) -> None:
    one, two = create_local_key(Path("one.key")), create_local_key(Path("two.key"))
    settings('[keys]\ndefault = "local:back.key"\n')
    ran = cli("keys", "restore", "two.key", "--expect", one.name, "--json")
    assert ran.code == 1
    assert f"holds key {two.name}, not {one.name}" in ran.json["error"]["message"]
    Path("two.key").rename(f"{one.name}.key")
    assert cli("keys", "restore", f"{one.name}.key").code == 1
    assert cli("keys", "restore", "one.key", "--expect", "short").code == 2
    assert not Path("back.key").exists()
    assert cli("keys", "restore", "one.key", "--expect", f"securemfg/{one.name}").code == 0
    assert cli("keys", "restore", "absent.key", "--to", "x.key").code == 2


def test_all_local_keys_go_into_a_folder_and_each_comes_back_by_its_id(cli) -> None:
    one, two = create_local_key(Path("keys/one.key")), create_local_key(Path("keys/two.key"))
    settings(ASSETS)
    Path("medium").mkdir()
    ran = cli("keys", "backup", "medium", "--json")
    assert ran.code == 0, ran.out
    assert {path.name for path in Path("medium").iterdir()} == {f"{one.name}.key", f"{two.name}.key"}
    again = cli("keys", "backup", "medium", "--json")
    assert [row["copied"] for row in again.json["done"]] == [False, False]
    Path("keys/two.key").unlink()
    missing = cli("keys", "backup", "medium", "--json")
    assert missing.code == 1
    assert [row["key"] for row in missing.json["failed"]] == ["local:keys/two.key"]
    assert cli("keys", "restore", "medium").code == 2
    assert cli("keys", "restore", "medium", "--expect", two.name, "--to", "keys/two.key").code == 0
    assert cli("keys", "list", "--json").json[2]["id"] == two.name


def test_a_folder_that_holds_another_key_by_that_name_is_said_and_left_alone(cli) -> None:
    one = create_local_key(Path("keys/one.key"))
    settings('[keys]\ndefault = "local:keys/one.key"\n')
    create_local_key(Path(f"medium/{one.name}.key"))
    before = Path(f"medium/{one.name}.key").read_bytes()
    ran = cli("keys", "backup", "medium")
    assert ran.code == 1
    assert "exists already" in flat(ran.err)
    assert Path(f"medium/{one.name}.key").read_bytes() == before


def test_a_backup_of_one_key_names_the_others_of_the_settings(cli) -> None:
    create_local_key(Path("keys/one.key"))
    create_local_key(Path("keys/two.key"))
    settings(ASSETS)
    ran = cli("keys", "backup", "copy.key")
    assert ran.code == 0, ran.err
    assert "not copied: local:keys/two.key" in flat(ran.err)
    assert cli("keys", "backup", "second.key", "--key", "local:keys/two.key").err == ""


def test_keys_of_a_service_are_not_copied(cli) -> None:
    settings('[keys]\ndefault = "vault-transit:transit/plant"\n')
    Path("medium").mkdir()
    for target in ("medium", "copy.key"):
        ran = cli("keys", "backup", target)
        assert ran.code == 2
    assert "copied as files" in flat(ran.err)
    assert cli("keys", "backup", "copy.key", "--key", "rsa:x.pem").code == 2


# -- completion


def completed(words: str) -> list[str]:
    env = os.environ | {
        "_SECUREMFG_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    ran = subprocess.run([sys.executable, "-m", "securemfg"], env=env, capture_output=True, text=True, check=False)
    return ran.stdout.split()


def test_a_shell_completes_verbs_and_options() -> None:
    assert completed("securemfg keys ") == ["generate", "list", "backup", "restore"]
    assert "encrypt" in completed("securemfg enc")
    assert completed("securemfg keys generate --ki") == ["--kind"]
    assert set(completed("securemfg keys generate --kind ")) == {"local", "rsa"}


def test_completion_is_shown_and_installed_in_the_home_folder() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "securemfg", "--show-completion", "bash"], capture_output=True, text=True, check=False
    )
    assert "complete -o default -F _securemfg_completion securemfg" in shown.stdout
    ran = subprocess.run(
        [sys.executable, "-m", "securemfg", "--install-completion", "bash"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert list(Path(os.environ["HOME"]).rglob("securemfg.sh"))
