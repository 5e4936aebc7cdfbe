"""`securemfg artifacts`: what people and programs see, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Ran

Cli = Callable[..., Ran]
RUN = "0" * 31 + "1"


@pytest.fixture
def store(cli: Cli, tmp_path: Path) -> Path:
    assert cli("init", "--no-backup").code == 0
    folder = tmp_path / "store" / "7" / RUN / "artifacts"
    folder.mkdir(parents=True)
    (folder / "model.pkl").write_bytes(b"canary" * 100)
    (folder / "note.txt").write_bytes(b"canary")
    return tmp_path / "store"


def test_a_store_goes_from_plaintext_to_erased(cli: Cli, store: Path, tmp_path: Path) -> None:
    assert cli("artifacts", "verify", store).code == 1  # plaintext is a finding
    done = cli("artifacts", "encrypt", store, "--json")
    assert (done.code, done.json["done"], done.json["failed"]) == (0, 2, [])
    shown = cli("artifacts", "verify", store)
    assert (shown.code, f"verify {store}: 3 done (606 B), 0 skipped, 0 failed" in shown.out) == (0, True)
    assert cli("artifacts", "rewrap", store, "--all").out.startswith(f"rewrap {store}: 1 done")
    again = cli("artifacts", "reencrypt", store, "--retire")
    assert "destroyed 1 old run keys; 0 are still in use" in again.out
    assert cli("artifacts", "download", store, "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "7" / RUN / "artifacts" / "note.txt").read_bytes() == b"canary"
    gone = cli("artifacts", "erase", store / "7" / RUN, "--reason", "asked", "--yes", "--json")
    assert gone.code == 0
    (erased,) = gone.json["erased"]
    assert erased["gone"] is True
    assert {fate["state"] for fate in erased["fates"]} == {"done", "not provable"}
    refused = cli("artifacts", "verify", store, "--json")
    assert refused.code == 1
    assert all("erased on" in failure["reason"] for failure in refused.json["failed"])


def test_erasing_asks_and_does_nothing_unless_it_is_answered(cli: Cli, store: Path) -> None:
    cli("artifacts", "encrypt", store)
    unasked = cli("artifacts", "erase", store, "--reason", "asked")
    assert (unasked.code, "repeat it with --yes" in unasked.err) == (2, True)
    assert cli("artifacts", "verify", store).code == 0
    assert cli("artifacts", "erase", "--reason", "x").code == 2
    assert cli("artifacts", "erase", store, "--asset", "a", "--reason", "x").code == 2
    assert cli("artifacts", "erase", store).code == 2  # a reason is not optional


def test_erasing_where_there_is_nothing_says_so(cli: Cli, tmp_path: Path) -> None:
    cli("init", "--no-backup")
    (tmp_path / "empty").mkdir()
    ran = cli("artifacts", "erase", tmp_path / "empty", "--reason", "x", "--yes")
    assert (ran.code, "nothing to erase" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("verify", "nowhere"), 1, "does not exist"),
        (("verify", "gs://bucket/x"), 2, "is neither"),
        (("verify", "s3://"), 2, "names no bucket"),
        (("verify", ".", "--root", "4711"), 2, "--root must be like run:ID"),
        (("verify", ".", "--root", "run:a/b"), 2, "--root must be like run:ID"),
        (("verify", ".", "--dask", "tcp://127.0.0.1:1"), 2, "set ca_file, cert_file and key_file in [dask]"),
        (("encrypt", ".", "--asset", "nobody"), 2, "asset 'nobody'"),
    ],
)
def test_wrong_input_is_a_clear_error(cli: Cli, arguments: tuple[str, ...], code: int, says: str) -> None:
    cli("init", "--no-backup")
    ran = cli("artifacts", *arguments)
    assert ran.code == code, ran.err
    assert says in ran.err.replace("\n", " ")


def test_a_cluster_over_plain_tcp_is_refused(cli: Cli) -> None:
    cli("init", "--no-backup")
    for name in ("ca", "cert", "key"):
        Path(f"{name}.pem").write_text("")
    with Path("securemfg.toml").open("a") as file:
        file.write('\n[dask]\nca_file = "ca.pem"\ncert_file = "cert.pem"\nkey_file = "key.pem"\n')
    ran = cli("artifacts", "verify", ".", "--dask", "tcp://127.0.0.1:1")
    assert (ran.code, "over TLS only" in ran.err) == (3, True)


def test_many_failures_are_cut_for_people_and_whole_for_programs(cli: Cli, store: Path) -> None:
    folder = store / "7" / RUN / "artifacts"
    for number in range(30):
        (folder / f"{number}.txt").write_bytes(b"plain")
    people = cli("artifacts", "verify", store)
    assert "and 12 more: --json lists them all" in people.err
    assert len(cli("artifacts", "verify", store, "--json").json["failed"]) == 32
