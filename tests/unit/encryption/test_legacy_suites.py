"""Suites without key commitment: read when a setting names them, as the official SDK writes them; refused otherwise."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from securemfg.config import Config, load
from securemfg.encryption import legacy
from securemfg.encryption.aws_kms import AwsKmsKey
from securemfg.encryption.keys import RawAesKey
from securemfg.encryption.layout import verify_signature
from securemfg.encryption.message import EncryptedDataKey, MessageKey, parse_header, suite_name
from securemfg.encryption.pipes import decrypt_stream
from securemfg.encryption.ranges import open_message, open_range, reencrypt_file
from securemfg.encryption.stream import decrypt_bytes, decrypt_file, inspect_file, verify_file
from securemfg.errors import ConfigError, DecryptionError, EncryptionError
from securemfg.settings import COMMITTED_SUITES, UNCOMMITTED_SUITES
from tests.parts import missing
from tests.unit.encryption.parts import DataKey, a_key, folder_holds
from tests.unit.encryption.test_official_sdk import client, keyring

try:
    from aws_encryption_sdk.identifiers import Algorithm
except ImportError:
    Algorithm = None

KEY = a_key("plant")
OTHER = a_key("other")
FRAME = 128  # bytes; the official SDK takes multiples of 128
CONTEXT = {"anlage": "Müller-Werk", "line": "7"}
ALL = [int(text, 16) for text in UNCOMMITTED_SUITES]
SIGNED = [0x0214, 0x0346, 0x0378]
each_suite = pytest.mark.parametrize("suite", ALL, ids=UNCOMMITTED_SUITES)
each_signed_suite = pytest.mark.parametrize("suite", SIGNED, ids=[f"0x{suite:04x}" for suite in SIGNED])
framed_and_not = pytest.mark.parametrize("frame_length", [FRAME, 0], ids=["framed", "without frames"])


@pytest.fixture(autouse=True)
def _official() -> None:
    if Algorithm is None:
        missing("the official SDK", "pip install 'aws-encryption-sdk[MPL]'")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


class Plant:
    """One wrapping key, as the official SDK's raw AES keyring and as a key of this package."""

    def __init__(self) -> None:
        key = os.urandom(32)
        self.key = RawAesKey("plant", "line-7", key)
        self.ring = keyring("plant", "line-7", key)

    def written(self, suite: int, plaintext: bytes, frame_length: int = FRAME) -> bytes:
        message, _ = client("FORBID_ENCRYPT_ALLOW_DECRYPT").encrypt(
            source=plaintext,
            keyring=self.ring,
            encryption_context=CONTEXT,
            algorithm=Algorithm.get_by_id(suite),
            frame_length=frame_length,
        )
        return bytes(message)


@pytest.fixture(scope="module")
def plant() -> Plant:
    if Algorithm is None:
        missing("the official SDK", "pip install 'aws-encryption-sdk[MPL]'")
    return Plant()


def signature_of(message: bytes) -> int:
    """Where a signed message's signature starts."""
    starts = range(len(message) - 106, len(message) - 2)
    return next(at for at in starts if int.from_bytes(message[at : at + 2]) == len(message) - at - 2)


# -- what is read -----------------------------------------------------------------------------------------------------


@each_suite
@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 5 * FRAME + 3])
@framed_and_not
def test_named_suite_is_read_as_the_official_sdk_wrote_it(
    plant: Plant, folder: Path, suite: int, size: int, frame_length: int
) -> None:
    plaintext = os.urandom(size)
    message = plant.written(suite, plaintext, frame_length)
    assert message[:4] == b"\x01\x80" + suite.to_bytes(2)
    assert decrypt_bytes(message, key=plant.key, context=CONTEXT, suites=[suite]) == plaintext

    source = folder / "x.esdk"
    source.write_bytes(message)
    read = decrypt_file(source, folder / "x", key=plant.key, context=CONTEXT, suites={suite})
    assert (folder / "x").read_bytes() == plaintext
    assert (read.suite, read.version, read.frame_length, read.plaintext_length) == (suite, 1, frame_length, size)
    assert len(read.message_id) == 32  # hex of 16 bytes
    assert verify_file(source, key=plant.key, suites=[suite]).plaintext_length == size
    out = io.BytesIO()
    decrypt_stream(io.BytesIO(message), out, key=plant.key, context=CONTEXT, suites=[suite])
    assert out.getvalue() == plaintext


def test_header_iv_is_taken_from_the_message() -> None:
    """The official SDK writes zeros; the format leaves it to the writer."""
    data_key, message_id, iv = b"d" * 32, b"i" * 16, b"random bytes"
    body = b"\x01\x80\x00\x78" + message_id + bytes(2) + b"\x00\x01" + bytes(6) + struct.pack(">BIBI", 1, 0, 12, 0)
    plain = AESGCM(data_key)
    aad = message_id + b"AWSKMSEncryptionClient Single Block" + struct.pack(">IQ", 1, 3)
    whole = body + iv + plain.encrypt(iv, b"", body) + bytes(12) + struct.pack(">Q", 3)
    whole += plain.encrypt(bytes(12), b"abc", aad)
    assert decrypt_bytes(whole, key=DataKey(data_key), suites=[0x0078]) == b"abc"


@pytest.mark.parametrize("suite", [suite for suite in ALL if suite not in SIGNED], ids=hex)
def test_parts_of_a_named_suite_are_read_and_it_is_encrypted_again_with_commitment(
    plant: Plant, folder: Path, suite: int
) -> None:
    plaintext = os.urandom(5 * FRAME + 3)
    source = folder / "x.esdk"
    source.write_bytes(plant.written(suite, plaintext))
    assert open_range(source, FRAME - 2, 5, key=plant.key, suites=[suite]) == plaintext[FRAME - 2 : FRAME + 3]
    with open_message(source, key=plant.key, suites=[suite]) as file:
        assert file.read() == plaintext
    assert reencrypt_file(source, source, key=plant.key, new_key=KEY, suites=[suite]).suite == 0x0478
    assert decrypt_bytes(source.read_bytes(), key=KEY, context=CONTEXT) == plaintext


@each_suite
def test_inspect_names_a_suite_without_the_setting(plant: Plant, folder: Path, suite: int) -> None:
    (folder / "x.esdk").write_bytes(plant.written(suite, b"x" * 300))
    claimed = inspect_file(folder / "x.esdk")
    assert (claimed.suite, claimed.version, claimed.plaintext_length, claimed.frames) == (suite, 1, 300, 3)
    algorithm = Algorithm.get_by_id(suite)
    assert f"AES-{algorithm.data_key_len * 8}-GCM" in claimed.suite_name
    assert ("ECDSA" in claimed.suite_name) == (suite in SIGNED)
    assert "no key commitment" in claimed.suite_name
    assert claimed.recipients == ("plant/line-7",)
    assert {name: claimed.context[name] for name in CONTEXT} == CONTEXT


def test_suites_with_commitment_have_names_too() -> None:
    assert suite_name(0x0478) == "AES-256-GCM, HKDF-SHA-512, key commitment"
    assert suite_name(0x0578) == "AES-256-GCM, HKDF-SHA-512, key commitment, ECDSA P-384"


def test_settings_and_code_know_the_same_suites_and_the_official_sdk_no_others() -> None:
    assert set(ALL) == set(legacy.SUITES)
    official = {f"0x{algorithm.algorithm_id:04x}" for algorithm in Algorithm}
    assert official == {*UNCOMMITTED_SUITES, *COMMITTED_SUITES}


# -- what is refused --------------------------------------------------------------------------------------------------

Read = Callable[[Path, Any, list[int]], object]
READERS: dict[str, Read] = {
    "decrypt_bytes": lambda path, key, suites: decrypt_bytes(path.read_bytes(), key=key, suites=suites),
    "decrypt_file": lambda path, key, suites: decrypt_file(path, path.with_name("out"), key=key, suites=suites),
    "decrypt_stream": lambda path, key, suites: decrypt_stream(path.open("rb"), Refusing(), key=key, suites=suites),
    "verify_file": lambda path, key, suites: verify_file(path, key=key, suites=suites),
    "open_message": lambda path, key, suites: open_message(path, key=key, suites=suites),
    "open_range": lambda path, key, suites: open_range(path, 0, 1, key=key, suites=suites),
    "reencrypt_file": lambda path, key, suites: reencrypt_file(
        path, path.with_name("out"), key=key, new_key=KEY, suites=suites
    ),
}


class Refusing:
    """A target that must get nothing."""

    def write(self, data: object, /) -> int:
        raise AssertionError("plaintext was given out")


@pytest.mark.parametrize("reader", READERS)
@each_suite
def test_suite_that_no_setting_names_is_refused_with_reason_and_remedy(
    plant: Plant, folder: Path, suite: int, reader: str
) -> None:
    source = folder / "x.esdk"
    source.write_bytes(plant.written(suite, b"x" * 300))
    for suites in ([], [other for other in ALL if other != suite], [0x0478, 0x0578]):
        with pytest.raises(DecryptionError) as refused:
            READERS[reader](source, plant.key, suites)
        said = str(refused.value)
        assert f"algorithm suite 0x{suite:04x} of version 1 has no key commitment" in said
        assert "could open to different plaintexts under different keys" in said
        assert f'[tool.securemfg.encryption] read_suites = ["0x{suite:04x}"]' in said
        assert "encrypt it again" in said
    assert folder_holds(folder) == ["x.esdk"]


@each_suite
@framed_and_not
def test_every_changed_byte_and_every_cut_is_refused(plant: Plant, suite: int, frame_length: int) -> None:
    message = plant.written(suite, bytes(range(FRAME + 20)), frame_length)
    for at in range(len(message)):
        changed = bytearray(message)
        changed[at] ^= 1 << at % 8
        with pytest.raises(DecryptionError):
            decrypt_bytes(bytes(changed), key=plant.key, suites=ALL)
        with pytest.raises(DecryptionError):
            decrypt_bytes(message[:at], key=plant.key, suites=ALL)
    for extra in (b"\0", bytes(2), b"\0\x01x", message):
        with pytest.raises(DecryptionError):
            decrypt_bytes(message + extra, key=plant.key, suites=ALL)


@each_suite
def test_header_of_one_suite_opens_as_no_other(plant: Plant, suite: int) -> None:
    message = plant.written(suite, b"x" * 300)
    for other in ALL:
        if other != suite:
            with pytest.raises(DecryptionError):
                decrypt_bytes(message[:2] + other.to_bytes(2) + message[4:], key=plant.key, suites=ALL)


@each_signed_suite
@framed_and_not
@pytest.mark.parametrize("wrong", ["missing", "empty", "another's"])
def test_frames_are_held_back_until_the_signature_has_been_verified(
    plant: Plant, folder: Path, suite: int, frame_length: int, wrong: str
) -> None:
    message, other = (plant.written(suite, b"x" * 300, frame_length) for _ in range(2))
    body = message[: signature_of(message)]
    forged = body + {"missing": b"", "empty": b"\0\0", "another's": other[signature_of(other) :]}[wrong]
    source = folder / "x.esdk"
    source.write_bytes(forged)
    (folder / "out").write_bytes(b"old")
    for reader in ("decrypt_bytes", "decrypt_file", "decrypt_stream", "verify_file"):
        with pytest.raises(DecryptionError, match="signature"):
            READERS[reader](source, plant.key, ALL)
    assert (folder / "out").read_bytes() == b"old"
    assert folder_holds(folder) == ["out", "x.esdk"]


@each_signed_suite
@framed_and_not
def test_parts_of_a_signed_message_are_not_given_out(plant: Plant, folder: Path, suite: int, frame_length: int) -> None:
    source = folder / "x.esdk"
    source.write_bytes(plant.written(suite, b"x" * 300, frame_length))
    for reader in ("open_message", "open_range", "reencrypt_file"):
        with pytest.raises(DecryptionError, match="signed or has no frames"):
            READERS[reader](source, plant.key, ALL)
    assert folder_holds(folder) == ["x.esdk"]


def test_signature_by_a_key_on_another_curve_is_refused(plant: Plant) -> None:
    small, large = (plant.written(suite, b"x") for suite in (0x0214, 0x0378))
    header = parse_header(small, ALL)
    key = parse_header(large, ALL).context["aws-crypto-public-key"]
    other = dataclasses.replace(header, context={"aws-crypto-public-key": key})
    with pytest.raises(DecryptionError, match="is no P-256 key"):
        verify_signature(other, b"", 0, lambda offset, count: b"")


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (1, 0x81, "not an encrypted message"),
        (1, 0x00, "not an encrypted message"),
        (0, 0x02, "not read in version 2"),
        (0, 0x03, "not an encrypted message"),
        (-5, 0, "claims IVs of 0 bytes, not 12"),
        (-5, 16, "claims IVs of 16 bytes, not 12"),
        (-9, 1, "reserved bytes are 01000000, not zero"),
        (-6, 255, "reserved bytes are 000000ff, not zero"),
        (-10, 3, "content type 3 is neither"),
        (-4, 255, "frame length 4278190208 is not between"),
    ],
)
def test_version_1_header_with_a_wrong_field_says_which(plant: Plant, at: int, value: int, says: str) -> None:
    message = bytearray(plant.written(0x0178, b"x"))
    end = len(parse_header(bytes(message), ALL).body)
    message[at if at >= 0 else end + at] = value
    with pytest.raises(DecryptionError, match=says):
        decrypt_bytes(bytes(message), key=plant.key, suites=ALL)


@pytest.mark.parametrize(("version", "suite"), [(1, 0x0478), (1, 0x0578), (1, 0x0678), (2, 0x0178), (2, 0x0014)])
def test_suite_of_the_other_version_is_refused_even_when_it_is_named(version: int, suite: int) -> None:
    start = b"\x01\x80" if version == 1 else b"\x02"
    says = "is none of version 1" if version == 1 else "is not read in version 2"
    with pytest.raises(DecryptionError, match=f"0x{suite:04x} {says}"):
        parse_header(start + suite.to_bytes(2) + bytes(300), [*ALL, 0x0478, 0x0578, 0x0678])


@each_suite
def test_suite_without_commitment_is_never_written(suite: int) -> None:
    key = MessageKey(bytes(legacy.SUITES[suite].key_length), bytes(16), suite)
    with pytest.raises(EncryptionError, match=f"0x{suite:04x} is not written: only 0x0478 is"):
        key.header({}, [EncryptedDataKey("tests", b"name", b"wrapped")], 16)


@each_suite
def test_data_key_that_does_not_fit_the_suite_is_refused(suite: int) -> None:
    expected = legacy.SUITES[suite].key_length
    for length in {0, 15, 16, 24, 32, 33} - {expected}:
        with pytest.raises(DecryptionError, match=f"data key has {length} bytes, not {expected}"):
            MessageKey(bytes(length), bytes(16), suite)


def test_wrong_key_opens_no_message_without_commitment(plant: Plant) -> None:
    message = plant.written(0x0014, b"x")
    with pytest.raises(DecryptionError, match="no key at hand opens"):
        decrypt_bytes(message, key=OTHER, suites=ALL)
    with pytest.raises(DecryptionError, match="header was changed: its tag does not verify"):
        MessageKey.open(parse_header(message, ALL), bytes(16))


def test_kms_opens_data_keys_of_32_bytes_and_says_so_of_others(aws: str) -> None:
    import boto3
    from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
    from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
    from aws_cryptographic_material_providers.mpl.models import CreateAwsKmsKeyringInput

    kms = boto3.client("kms")
    arn = kms.create_key()["KeyMetadata"]["Arn"]
    providers = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    ring = providers.create_aws_kms_keyring(CreateAwsKmsKeyringInput(kms_key_id=arn, kms_client=kms))
    for suite, length in ((0x0178, 32), (0x0114, 16), (0x0346, 24)):
        message, _ = client("FORBID_ENCRYPT_ALLOW_DECRYPT").encrypt(
            source=b"x", keyring=ring, algorithm=Algorithm.get_by_id(suite)
        )
        if length == 32:
            assert decrypt_bytes(message, key=AwsKmsKey(arn), suites=ALL) == b"x"
        else:
            with pytest.raises(DecryptionError, match=f"a data key of {length} bytes for {arn}, not 32"):
                decrypt_bytes(message, key=AwsKmsKey(arn), suites=ALL)


# -- the setting ------------------------------------------------------------------------------------------------------


def settings(folder: Path, text: str = "", environment: dict[str, str] | None = None) -> Config:
    (folder / "securemfg.toml").write_text(text)
    return load(environment=environment or {}, folder=folder, lock_file=folder / "none")


def test_setting_names_suites_and_is_a_weakening_with_its_origin(plant: Plant, folder: Path) -> None:
    config = settings(folder, '[encryption]\nread_suites = ["0x0378", "0x0014", "0x0378"]')
    assert config.read_suites == {0x0378, 0x0014}
    assert decrypt_bytes(plant.written(0x0014, b"x"), key=plant.key, suites=config.read_suites) == b"x"
    (weak,) = config.weakenings()
    assert (weak.setting, weak.origin) == ("encryption.read_suites", str(folder / "securemfg.toml"))
    assert "0x0378; 0x0014" in weak.value
    assert "key commitment" in weak.meaning


def test_setting_comes_from_the_environment_as_json(folder: Path) -> None:
    config = settings(folder, environment={"SECUREMFG_ENCRYPTION__READ_SUITES": json.dumps(["0x0178"])})
    assert config.read_suites == {0x0178}
    assert config.weakenings()[0].origin == "SECUREMFG_ENCRYPTION__READ_SUITES"


@pytest.mark.parametrize("text", ["", "[encryption]\nread_suites = []"])
def test_without_a_name_no_suite_is_read_and_nothing_is_weakened(plant: Plant, folder: Path, text: str) -> None:
    config = settings(folder, text)
    assert config.read_suites == frozenset()
    assert config.weakenings() == ()
    with pytest.raises(DecryptionError, match="no key commitment"):
        decrypt_bytes(plant.written(0x0178, b"x"), key=plant.key, suites=config.read_suites)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('["0x0478"]', "must not name 0x0478: it commits to its key and is always read"),
        ('["0x0378", "0x0578"]', "must not name 0x0578"),
        ('["0x0679"]', "must be a suite's id as text, got '0x0679'"),
        ('["0x378"]', "got '0x378'"),
        ('["0378"]', "got '0378'"),
        ('[" 0x0378"]', "got ' 0x0378'"),
        ('["*"]', "got '*'"),
        ("[0x0378]", "must be a suite's id as text, got 888"),
        ('[["0x0378"]]', r"must be a suite's id as text, got \['0x0378'\]"),
        ('"0x0378"', r"must be a list like \['0x0378'\], got '0x0378'"),
        ("true", "must be a list like"),
    ],
)
def test_setting_that_names_no_such_suite_is_refused_and_names_those_there_are(
    folder: Path, value: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        settings(folder, f"[encryption]\nread_suites = {value}")
    assert "'encryption.read_suites" in str(refused.value)
    assert str(folder / "securemfg.toml") in str(refused.value)
    if "list" not in says:
        assert all(suite in str(refused.value) for suite in UNCOMMITTED_SUITES)


def test_misspelled_setting_names_the_nearest(folder: Path) -> None:
    with pytest.raises(ConfigError, match="read_suites"):
        settings(folder, '[encryption]\nread_suite = ["0x0378"]')
