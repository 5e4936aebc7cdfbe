"""Files, folders and patterns on the command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from securemfg.cli.paths import Found
from securemfg.cli.sharing import share
from securemfg.encryption import create_local_key, encrypt_bytes, encrypt_file, inspect_file, verify_file
from securemfg.errors import KeyUnavailable
from tests.parts import until
from tests.parts.trail import events, settings
from tests.unit.cli.running import FRAME, KEY, below, tree


@pytest.fixture(autouse=True)
def project(cli: Callable[..., Any]) -> None:
    assert cli("init", "--no-backup").code == 0


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_encrypted_beside_its_files_and_decrypted_back(cli) -> None:
    tree(a="A", sub__b="B", sub__deep__c="")
    ran = cli("encrypt", "data", "--json")
    assert ran.code == 0, ran.err
    assert {row["target"] for row in ran.json["done"]} == {"data/a.esdk", "data/sub/b.esdk", "data/sub/deep/c.esdk"}
    for name in ("a", "sub/b", "sub/deep/c"):
        Path("data", name).unlink()
    assert cli("decrypt", "data").code == 0
    assert Path("data/sub/b").read_text() == "B"
    assert Path("data/sub/deep/c").read_bytes() == b""
    assert len(events("artifact.encrypted")) == len(events("artifact.decrypted")) == 3


def test_with_an_output_folder_the_same_tree_lies_below_it(cli) -> None:
    tree(a="A", sub__b="B")
    assert cli("encrypt", "data", "-o", "out/sealed").code == 0
    assert below("out/sealed") == {"a.esdk", "sub/b.esdk"}
    assert below("data") == {"a", "sub/b"}
    assert cli("decrypt", "out/sealed", "-o", "plain").code == 0
    assert below("plain") == {"a", "sub/b"}


def test_what_is_a_message_already_is_skipped_and_said(cli) -> None:
    tree(a="A")
    cli("encrypt", "data")
    tree(b="B")
    ran = cli("encrypt", "data", "--force", "--json")
    assert ran.code == 0
    assert [row["source"] for row in ran.json["done"]] == ["data/a", "data/b"]
    assert ran.json["skipped"] == [{"source": "data/a.esdk", "why": "a message already"}]
    assert not Path("data/a.esdk.esdk").exists()
    assert "skipped data/a.esdk: a message already" in cli("encrypt", "data", "--force").err
    (Path("data") / "fake.esdk").write_text("only its name")  # what counts is what it is
    assert "data/fake.esdk.esdk" in {row["target"] for row in cli("encrypt", "data", "--force", "--json").json["done"]}


def test_one_message_named_by_itself_is_an_error_not_a_quiet_success(cli) -> None:
    tree(a="A")
    cli("encrypt", "data/a")
    ran = cli("encrypt", "data/a.esdk", "--json")
    assert ran.code == 1
    assert "already" in ran.json["error"]["message"]
    assert cli("encrypt", "data/a", "data/a.esdk", "--force").code == 0  # what a shell makes of data/*


def test_many_skipped_files_are_told_in_a_few_lines(cli) -> None:
    tree(**{f"f{number}": "x" for number in range(15)})
    cli("encrypt", "data", "-o", "out")
    ran = cli("encrypt", "out")
    assert ran.code == 0
    assert ran.err.count("a message already") == 11
    assert "skipped 5 more" in ran.err


def test_links_that_leave_the_tree_and_own_folders_are_skipped_and_said(cli) -> None:
    tree(a="A", _x="")
    Path("outside").mkdir()
    Path("outside/secret").write_text("s")
    Path("data/.securemfg/keys").mkdir(parents=True)
    Path("data/.securemfg/keys/record.esdk").write_text("r")
    for name, to in {"file": "../outside/secret", "folder": "../outside", "inside": "a", "gone": "nowhere"}.items():
        Path("data", name).symlink_to(to)
    Path("data/circle").symlink_to(".")
    os.mkfifo("data/pipe")
    for where in ("data", "data/**"):
        ran = cli("encrypt", where, "-o", "out", "--force", "--json")
        assert ran.code == 0, ran.err
        assert {row["source"] for row in ran.json["done"]} == {"data/a", "data/_x", "data/inside"}
        why = {row["source"].removeprefix("data/"): row["why"] for row in ran.json["skipped"]}
        assert why["file"] == why["folder"] == "a link that leaves the tree"
        assert why["gone"] == "a link to nothing"
        assert why["pipe"] == "not a regular file"
    assert below("out") == {"a.esdk", "_x.esdk", "inside.esdk"}
    ran = cli("decrypt", "data", "--json")  # a record of keys is not to become a plain key
    assert ran.json["done"] == []
    assert {"source": "data/.securemfg", "why": "securemfg's own folder"} in ran.json["skipped"]
    assert "nothing to encrypt" in cli("encrypt", "data/.securemfg/keys").err


def test_existing_targets_are_refused_one_by_one_and_the_others_go_on(cli) -> None:
    tree(a="A", b="B")
    Path("data/a.esdk").write_text("mine")
    ran = cli("encrypt", "data/a", "data/b", "--json")
    assert ran.code == 1
    assert [row["source"] for row in ran.json["done"]] == ["data/b"]
    assert "--force" in ran.json["failed"][0]["error"]
    assert Path("data/a.esdk").read_text() == "mine"
    assert cli("encrypt", "data/a", "--force").code == 0
    assert inspect_file("data/a.esdk").plaintext_length == 1


def test_a_target_that_would_replace_a_source_is_refused_before_anything_is_touched(cli) -> None:
    tree(a="A")
    Path("data/a.esdk").write_text("not a message, so a source too")
    ran = cli("encrypt", "data", "--force", "--json")
    assert ran.code == 2
    assert "replace data/a.esdk, a source" in ran.json["error"]["message"]
    assert below("data") == {"a", "a.esdk"}


def test_one_bad_message_in_a_folder_is_refused_and_audited_and_the_rest_is_done(cli) -> None:
    tree(a="A", b="B")
    cli("encrypt", "data", "-o", "out")
    damaged = bytearray(Path("out/a.esdk").read_bytes())
    damaged[-1] ^= 1
    Path("out/a.esdk").write_bytes(damaged)
    ran = cli("decrypt", "out", "--json")
    assert ran.code == 1
    assert [row["target"] for row in ran.json["done"]] == ["out/b"]
    assert not Path("out/a").exists()
    (refused,) = events("artifact.refused")
    assert refused["resource"] == {"type": "file", "id": "out/a.esdk"}
    assert refused["outcome"] == "failure"


def test_a_name_that_is_no_utf8_or_steers_a_terminal_is_done_and_shown_as_escapes(cli) -> None:
    Path("data").mkdir()
    name = b"data/\xff\x1b[31mred"
    with open(name, "wb") as file:
        file.write(b"x")
    ran = cli("encrypt", "data", "-o", "out")
    assert ran.code == 0, ran.err
    assert "\x1b" not in ran.out
    assert r"\x1b[31mred" in ran.out
    assert os.listdir(b"out") == [b"\xff\x1b[31mred.esdk"]
    assert cli("decrypt", "out", "--json").json["done"][0]["bytes"] == 1


def test_a_context_that_steers_a_terminal_is_shown_as_escapes(cli) -> None:
    Path("a.esdk").write_bytes(encrypt_bytes(b"x", key=KEY, context={"note": "\x1b]0;gotcha\x07[red]"}))
    out = cli("inspect", "a.esdk").out
    assert "\x1b" not in out
    assert r"\x1b]0;gotcha\x07[red]" in out


# -- patterns ---------------------------------------------------------------------------------------------------------


def test_patterns_find_files_at_every_depth_and_keep_their_tree(cli) -> None:
    tree(**{"m.bin": "1", "run1__m.bin": "2", "run1__deep__m.bin": "3", "run1__n.txt": "4", ".hidden__m.bin": "5"})
    assert cli("encrypt", "data/**/*.bin", "-o", "deep").code == 0
    assert below("deep") == {"m.bin.esdk", "run1/m.bin.esdk", "run1/deep/m.bin.esdk"}
    assert cli("encrypt", "data/run?/*.t[xy]t", "-o", "flat").code == 0
    assert below("flat") == {"run1/n.txt.esdk"}
    assert cli("encrypt", "data/run*", "-o", "folders").code == 0
    assert below("folders") == {"run1/m.bin.esdk", "run1/n.txt.esdk", "run1/deep/m.bin.esdk"}
    assert cli("decrypt", "deep/**", "-o", "plain").code == 0
    assert below("plain") == {"m.bin", "run1/m.bin", "run1/deep/m.bin"}


def test_a_pattern_that_matches_nothing_is_a_usage_error(cli) -> None:
    tree(a="A")
    for verb in ("encrypt", "decrypt", "inspect"):
        ran = cli(verb, "data/*.none", "--json")
        assert ran.code == 2
        assert "data/*.none" in ran.json["error"]["message"]
    assert cli("decrypt", "data/*").code == 2  # nothing there ends in .esdk


def test_a_file_whose_name_has_the_characters_of_a_pattern_is_that_file(cli) -> None:
    Path("m[1].bin").write_text("x")
    Path("m1.bin").write_text("y")
    assert [row["source"] for row in cli("encrypt", "m[1].bin", "--json").json["done"]] == ["m[1].bin"]


def test_a_file_found_twice_is_done_once(cli) -> None:
    tree(a="A", b="B")
    assert len(cli("encrypt", "data", "data/*", "data/a", "--json").json["done"]) == 2


# -- keys and context -------------------------------------------------------------------------------------------------


def test_context_is_bound_and_then_required(cli) -> None:
    tree(a="A")
    assert cli("encrypt", "data/a", "--context", "line=7", "--context", "unit=a=b").code == 0
    assert inspect_file("data/a.esdk").context == {"line": "7", "unit": "a=b"}
    assert cli("decrypt", "data/a.esdk", "-o", "b", "--context", "line=7").code == 0
    ran = cli("decrypt", "data/a.esdk", "-o", "c", "--context", "line=8", "--json")
    assert (ran.code, ran.json["error"]["type"]) == (1, "DecryptionError")
    assert not Path("c").exists()
    assert len(events("artifact.refused")) == 1


@pytest.mark.parametrize("pairs", [["line"], ["=7"], ["line=7", "line=8"]])
def test_a_malformed_context_is_a_usage_error(cli, pairs: list[str]) -> None:
    tree(a="A")
    assert cli("encrypt", "data/a", *(word for pair in pairs for word in ("--context", pair))).code == 2
    assert below("data") == {"a"}


def test_a_typed_key_is_looked_for_where_one_is_and_not_where_the_settings_are(cli, monkeypatch) -> None:
    create_local_key(Path("below/mine.key"))
    monkeypatch.chdir("below")
    Path("a").write_text("x")
    assert cli("encrypt", "a", "--key", "local:mine.key").code == 0
    assert cli("decrypt", "a.esdk", "-o", "b", "--key", "local:../below/mine.key").code == 0


def test_a_key_that_cannot_be_used_stops_the_call_with_one_answer(cli) -> None:
    tree(a="A", b="B")
    ran = cli("encrypt", "data", "--key", "local:none.key", "-o", "out", "--json")
    assert (ran.code, ran.json["error"]["type"]) == (2, "KeyUnavailable")
    assert not Path("out").exists()


def test_a_key_service_out_of_reach_is_exit_3_and_stops_the_rest(cli, monkeypatch) -> None:
    tree(a="A", b="B")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    key = "aws-kms:arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
    ran = cli("encrypt", "data", "--key", key, "--workers", "1", "--json")
    assert ran.code == 3, ran.err
    assert ran.json["error"]["exit"] == 3
    assert ran.json["done"] == ran.json["failed"] == []


@pytest.mark.live
def test_a_folder_goes_through_kms_and_back_under_enforced_tls(cli, aws: str) -> None:
    import boto3

    arn = boto3.client("kms", region_name="eu-central-1").create_key()["KeyMetadata"]["Arn"]
    settings(f'[keys]\ndefault = "aws-kms:{arn}"\n')
    tree(a="A", b="B")
    assert cli("encrypt", "data", "-o", "out").code == 0
    assert events("tls.exception_used")  # the simulator is on loopback: enforcement saw it
    ran = cli("decrypt", "out", "-o", "plain", "--json")
    assert ran.code == 0, ran.out
    assert {row["recipients"][0] for row in ran.json["done"]} == {f"aws-kms/{arn}"}


def test_many_files_are_done_by_several_workers_whole_and_in_order(cli) -> None:
    tree(**{f"f{number:03}": "x" * number for number in range(60)})
    Path("data/large").write_bytes(os.urandom(5 * FRAME))
    ran = cli("encrypt", "data", "-o", "out", "--workers", "4", "--json")
    assert ran.code == 0
    sources = [row["source"] for row in ran.json["done"]]
    assert sources == sorted(sources)
    assert len(sources) == 61
    assert all(verify_file(row["target"], key=KEY).plaintext_length == row["bytes"] for row in ran.json["done"])
    assert len(events("artifact.encrypted")) == 61
    assert cli("encrypt", "data", "--workers", "0").code == 2


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a terminal's program has it: what runs in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_work_in_hand_is_finished_after_an_interrupt_and_no_more_is_begun() -> None:
    done: list[str] = []

    def one(found: Found, _target: Path) -> None:
        if not done:
            os.kill(os.getpid(), signal.SIGINT)
            until(lambda: signal.getsignal(signal.SIGINT) is signal.default_int_handler, what="the first interrupt")
        done.append(found.source.name)

    pairs = [(Found(Path(name), Path(name), named=True), Path("x")) for name in "abcdef"]
    with pytest.raises(KeyboardInterrupt):
        share(one, pairs, 1)
    assert done == ["a"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failure_ends_the_work_once_what_is_in_hand_is_done() -> None:
    done: list[str] = []

    def one(found: Found, _target: Path) -> None:
        done.append(found.source.name)
        raise KeyUnavailable("gone")

    pairs = [(Found(Path(name), Path(name), named=True), Path("x")) for name in "abcdef"]
    with pytest.raises(KeyUnavailable):
        share(one, pairs, 1)
    assert len(done) < len(pairs)


# -- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_lists_a_folder_a_row_each_without_any_key(cli) -> None:
    tree(a="A", sub__b="BB")
    cli("encrypt", "data", "--context", "line=7", "-o", "out")
    Path("out/readme.txt").write_text("plain")
    Path("out/cut.esdk").write_bytes(Path("out/a.esdk").read_bytes()[:99])
    Path(".securemfg/keys/default.key").unlink()
    ran = cli("inspect", "out")
    assert ran.code == 0
    lines = {line.split()[0]: line for line in ran.out.splitlines()}
    assert "0x0478" in lines["out/sub/b.esdk"]
    assert "line=7" in lines["out/a.esdk"]
    assert "not a message" in lines["out/readme.txt"]
    rows = {row["path"]: row for row in cli("inspect", "out", "--json").json}
    assert rows["out/sub/b.esdk"]["plaintext_length"] == 2
    assert "not a message" in rows["out/readme.txt"]["problem"]
    assert "not a message" in rows["out/cut.esdk"]["problem"]


def test_inspect_fails_for_a_file_named_by_itself_that_is_no_message(cli) -> None:
    tree(a="A", b="B")
    cli("encrypt", "data/a")
    assert cli("inspect", "data/b").code == 1
    ran = cli("inspect", "data/a.esdk", "data/b", "--json")
    assert ran.code == 1
    assert [row.get("plaintext_length") for row in ran.json] == [1, None]
    assert cli("inspect", "data/*").code == 0


def test_inspect_shows_format_suite_context_recipients_and_sizes(cli) -> None:
    create_local_key(Path("keys/two.key"))
    Path("a").write_bytes(bytes(FRAME + 1))
    message = encrypt_file("a", "a.esdk", key=[KEY, "local:keys/two.key"], context={"line": "7"})
    out = cli("inspect", "a.esdk").out
    for words in (
        "message format 2",
        "0x0478",
        "line=7",
        *message.recipients,
        f"{FRAME + 1} bytes in 2 frames of 1.0 MiB",
        f"{message.message_length} bytes",
        message.message_id,
    ):
        assert words in out
