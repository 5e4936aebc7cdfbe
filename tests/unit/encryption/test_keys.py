"""Keys: who may read them, what their text means, and which of them opens a message."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import pytest

from securemfg.encryption.keys import LocalKey, OpeningKey, RawAesKey, create_local_key, open_key, open_keys, unlock
from securemfg.encryption.message import EncryptedDataKey, parse_header
from securemfg.encryption.stream import decrypt_bytes, encrypt_bytes
from securemfg.errors import ConfigError, DecryptionError, EncryptionError, KeyUnavailable
from tests.parts import missing
from tests.unit.encryption.parts import Unreachable, a_key, folder_holds


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    return folder / "dev.key"


def write(path: Path, data: bytes = bytes(range(32)), mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_local_key_is_32_private_bytes_that_open_what_they_wrapped(place: Path) -> None:
    key = create_local_key(place)
    assert place.stat().st_mode & 0o777 == 0o600
    assert len(place.read_bytes()) == 32
    assert isinstance(key, OpeningKey)
    edk = key.wrap(bytes(32), {"a": "b"})
    assert key.matches(edk)
    assert LocalKey.open(place).unwrap(edk, {"a": "b"}) == bytes(32)


def test_missing_key_says_how_to_make_one_and_who_named_it(place: Path) -> None:
    with pytest.raises(KeyUnavailable, match=r"is missing: make one with 'securemfg keys generate'.*\(key from here\)"):
        LocalKey.open(place, origin="here")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_key_that_others_can_read_is_refused(place: Path, mode: int) -> None:
    with pytest.raises(KeyUnavailable, match=rf"can be read by others \(mode 0{mode:o}\): chmod 600"):
        LocalKey.open(write(place, mode=mode))


@pytest.mark.parametrize(("length", "found"), [(0, "0"), (31, "31"), (33, "more than 32"), (5000, "more than 32")])
def test_key_of_another_length_is_refused(place: Path, length: int, found: str) -> None:
    with pytest.raises(KeyUnavailable, match=f"holds {found} bytes, not 32"):
        LocalKey.open(write(place, bytes(length)))


def test_symbolic_link_is_not_followed(place: Path) -> None:
    link = place.with_name("link.key")
    link.symlink_to(write(place))
    with pytest.raises(KeyUnavailable, match="is a symbolic link"):
        LocalKey.open(link)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused_without_waiting(place: Path, make) -> None:
    make(place)
    with pytest.raises(KeyUnavailable, match="is not a regular file"):
        LocalKey.open(place)


def test_key_of_another_user_is_refused(place: Path) -> None:
    if os.geteuid() != 0:
        missing("root", "run as root, to give a file to another user")
    os.chown(write(place), 4242, -1)
    with pytest.raises(KeyUnavailable, match="belongs to uid 4242"):
        LocalKey.open(place)


def test_folder_of_another_user_is_refused(place: Path) -> None:
    if os.geteuid() != 0:
        missing("root", "run as root, to give a folder to another user")
    write(place)
    os.chown(place.parent, 4242, -1)
    with pytest.raises(KeyUnavailable, match="which belongs to uid 4242"):
        LocalKey.open(place)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_folder_that_others_may_write_is_refused_at_any_height(place: Path, mode: int) -> None:
    inner = place.parent / "inner"
    inner.mkdir(mode=0o700)
    key = write(inner / "dev.key")
    place.parent.chmod(mode)
    with pytest.raises(KeyUnavailable, match=f"lies in {place.parent}, which others may write"):
        LocalKey.open(key)


def test_folder_that_others_may_write_is_found_behind_a_linked_folder(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "keys").mkdir(parents=True, mode=0o700)
    shared.chmod(0o777)
    write(shared / "keys" / "dev.key")
    (tmp_path / "link").symlink_to(shared / "keys")
    with pytest.raises(KeyUnavailable, match=f"lies in {shared}, which others may write"):
        LocalKey.open(tmp_path / "link" / "dev.key")


def test_sticky_folder_is_accepted_because_nobody_can_replace_a_file_there(place: Path) -> None:
    write(place)
    place.parent.chmod(0o1777)
    assert LocalKey.open(place).path == place


def test_key_is_never_overwritten(place: Path) -> None:
    write(place)
    with pytest.raises(EncryptionError, match="exists already: a key is never overwritten"):
        create_local_key(place)
    assert place.read_bytes() == bytes(range(32))
    assert folder_holds(place.parent) == ["dev.key"]


def test_dangling_link_is_not_written_through(place: Path) -> None:
    place.symlink_to(place.with_name("elsewhere"))
    with pytest.raises(EncryptionError, match="exists already"):
        create_local_key(place)
    assert folder_holds(place.parent) == ["dev.key"]


def test_folders_made_for_a_key_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        create_local_key(tmp_path / "one" / "two" / "dev.key")
    finally:
        os.umask(before)
    assert [(tmp_path / part).stat().st_mode & 0o777 for part in ("one", "one/two")] == [0o700, 0o700]


def test_key_that_its_folder_would_spoil_is_not_left_behind(place: Path) -> None:
    place.parent.chmod(0o777)
    with pytest.raises(KeyUnavailable, match="others may write"):
        create_local_key(place)
    assert folder_holds(place.parent) == []


def test_key_below_a_file_is_an_encryption_error(place: Path) -> None:
    write(place)
    with pytest.raises(EncryptionError, match="cannot be written"):
        create_local_key(place / "more.key")


def test_key_id_depends_on_the_key_alone(place: Path) -> None:
    first = LocalKey.open(write(place))
    second = LocalKey.open(write(place.with_name("copy.key")))
    assert first.name == second.name == "429e6cf1fee0b20b"  # SHA-256("securemfg-key" + bytes 0 to 31)
    assert first.namespace == "securemfg"
    assert create_local_key(place.with_name("new.key")).name != first.name


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy])
def test_key_cannot_be_pickled_or_copied(place: Path, leak) -> None:
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        leak(LocalKey.open(write(place)))


def test_repr_names_the_key_and_hides_its_bytes() -> None:
    key = RawAesKey("tests", "one", b"canary-canary-canary-canary-8765")
    edk = key.wrap(b"data-key-data-key-data-key-12345", {})
    assert repr(key) == "RawAesKey(tests/one)"
    assert "canary" not in f"{vars(key)}"
    assert edk.ciphertext.hex() not in repr(edk)
    assert repr(edk.ciphertext)[2:-1] not in repr(edk)


def test_raw_key_of_another_length_is_refused() -> None:
    with pytest.raises(KeyUnavailable, match="has 16 bytes, not 32"):
        RawAesKey("tests", "short", bytes(16))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loca:dev.key", r"unknown kind of key 'loca' in 'loca:dev.key' \(pyproject.toml\); did you mean 'local'\?"),
        ("s3:dev.key", "unknown kind of key 's3'"),
        ("dev.key", "must be like 'local:PATH', got 'dev.key'"),
        ("local:", "must be like 'local:PATH', got 'local:'"),
        ("", "must be like 'local:PATH', got ''"),
    ],
)
def test_text_that_names_no_key_is_a_config_error(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        open_key(text, origin="pyproject.toml")


def test_relative_key_lies_beside_the_settings_and_home_is_expanded(place: Path, monkeypatch) -> None:
    write(place)
    assert isinstance(open_key("local:dev.key", folder=place.parent), LocalKey)
    monkeypatch.setenv("HOME", str(place.parent))
    assert isinstance(open_key("local:~/dev.key", folder=Path("/")), LocalKey)


def test_no_key_at_all_is_refused() -> None:
    with pytest.raises(KeyUnavailable, match="no key was given"):
        open_keys([])


def test_wrapped_key_matches_by_namespace_name_and_shape() -> None:
    key = a_key("one")
    edk = key.wrap(bytes(32), {})
    assert key.matches(edk)
    assert not a_key("two").matches(edk)
    assert not key.matches(EncryptedDataKey("other", edk.info, edk.ciphertext))
    assert not key.matches(EncryptedDataKey(edk.provider, edk.info + b"x", edk.ciphertext))
    assert not key.matches(EncryptedDataKey(edk.provider, edk.info[:-1], edk.ciphertext))


def test_wrapped_key_is_bound_to_its_context() -> None:
    key = a_key()
    edk = key.wrap(bytes(32), {"line": "7"})
    with pytest.raises(DecryptionError, match="does not open it"):
        key.unwrap(edk, {"line": "8"})


@pytest.mark.parametrize("ciphertext", [b"", b"x" * 15, b"x" * 48])
def test_wrapped_key_of_any_length_fails_typed(ciphertext: bytes) -> None:
    key = a_key()
    edk = key.wrap(bytes(32), {})
    with pytest.raises(DecryptionError):
        key.unwrap(EncryptedDataKey(edk.provider, edk.info, ciphertext), {})


def test_a_key_that_fails_does_not_stop_the_next() -> None:
    down, works = Unreachable("tests", "down", bytes(32)), a_key("works")
    message = encrypt_bytes(b"melt temperature", key=[down, works])
    assert decrypt_bytes(message, key=[down, works]) == b"melt temperature"
    assert decrypt_bytes(message, key=works) == b"melt temperature"


def test_two_keys_with_one_name_are_both_tried() -> None:
    wrong, right = a_key("same"), a_key("same")
    assert decrypt_bytes(encrypt_bytes(b"x", key=right), key=[wrong, right]) == b"x"


def test_message_nobody_opens_names_every_recipient_and_every_key_at_hand() -> None:
    down = Unreachable("tests", "down", bytes(32))
    message = encrypt_bytes(b"x", key=[a_key("first"), down, a_key("third")])
    with pytest.raises(DecryptionError) as refused:
        decrypt_bytes(message, key=[down, a_key("other")])
    text = str(refused.value)
    for part in (
        "tests/first: none of the keys at hand",
        "tests/down: the service of down does not answer",
        "tests/third: none of the keys at hand",
        "Keys at hand: Unreachable(tests/down), RawAesKey(tests/other)",
    ):
        assert part in text


def test_hostile_recipient_name_cannot_forge_log_lines_or_flood_them() -> None:
    hostile = RawAesKey("x\n\x1b[2Jroot logged in", "n" * 5000, bytes(32))
    message = encrypt_bytes(b"x", key=hostile)
    with pytest.raises(DecryptionError) as refused:
        unlock(parse_header(message), [a_key()])
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 600
