"""The official AWS Encryption SDK reads what is written here, and the other way round: the users' exit.

The exit needs nothing of this package: a record opens with the key's file, what was in the record opens the artifacts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from securemfg.encryption.keys import LocalKey, create_local_key
from securemfg.encryption.message import parse_header
from securemfg.encryption.run_key import create_run_key
from securemfg.encryption.stream import decrypt_bytes, decrypt_file, encrypt_bytes, encrypt_file, inspect_file
from securemfg.errors import DecryptionError
from tests.parts import missing
from tests.unit.encryption.parts import FRAME

try:
    import aws_encryption_sdk
    from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
    from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
    from aws_cryptographic_material_providers.mpl.models import AesWrappingAlg, CreateRawAesKeyringInput
    from aws_encryption_sdk.identifiers import Algorithm, CommitmentPolicy
except ImportError:
    aws_encryption_sdk = None

SIZES = [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME + 1]
CONTEXT = {"anlage": "Müller-Werk", "größe": "7", "温度": "℃", "a": ""}


@pytest.fixture(autouse=True)
def _official() -> None:
    if aws_encryption_sdk is None:
        missing("the official SDK", "pip install 'aws-encryption-sdk[MPL]'")


def keyring(namespace: str, name: str, key: bytes) -> Any:
    providers = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    return providers.create_raw_aes_keyring(
        CreateRawAesKeyringInput(
            key_namespace=namespace,
            key_name=name,
            wrapping_key=key,
            wrapping_alg=AesWrappingAlg.ALG_AES256_GCM_IV12_TAG16,
        )
    )


def client(policy: str = "REQUIRE_ENCRYPT_REQUIRE_DECRYPT") -> Any:
    return aws_encryption_sdk.EncryptionSDKClient(commitment_policy=getattr(CommitmentPolicy, policy))


def opened(message: bytes, ring: Any) -> tuple[bytes, dict[str, str]]:
    plaintext, header = client().decrypt(source=message, keyring=ring)
    return plaintext, header.encryption_context


def written(
    plaintext: bytes, ring: Any, frame_length: int, context: dict[str, str], suite: str = "COMMIT_KEY"
) -> bytes:
    message, _ = client().encrypt(
        source=plaintext,
        keyring=ring,
        encryption_context=context,
        algorithm=getattr(Algorithm, f"AES_256_GCM_HKDF_SHA512_{suite}"),
        frame_length=frame_length,
    )
    return message


@pytest.fixture
def local(tmp_path: Path) -> LocalKey:
    return create_local_key(tmp_path / "dev.key")


@pytest.fixture
def ring(local: LocalKey) -> Any:
    return keyring("securemfg", local.name, local.path.read_bytes())


@pytest.mark.parametrize("size", SIZES)
def test_official_sdk_reads_our_files(tmp_path: Path, local: LocalKey, ring: Any, size: int) -> None:
    plaintext = os.urandom(size)
    (tmp_path / "x").write_bytes(plaintext)
    encrypt_file(tmp_path / "x", tmp_path / "x.esdk", key=local, context=CONTEXT)
    assert opened((tmp_path / "x.esdk").read_bytes(), ring) == (plaintext, CONTEXT)
    assert opened(encrypt_bytes(plaintext, key=local, context=CONTEXT), ring) == (plaintext, CONTEXT)


@pytest.mark.parametrize("frame_length", [4096, FRAME])
@pytest.mark.parametrize("size", [*SIZES, 4095, 4096, 4097])
def test_we_read_what_the_official_sdk_writes(
    tmp_path: Path, local: LocalKey, ring: Any, size: int, frame_length: int
) -> None:
    plaintext = os.urandom(size)
    message = written(plaintext, ring, frame_length, CONTEXT)
    assert decrypt_bytes(message, key=local, context=CONTEXT) == plaintext
    (tmp_path / "x.esdk").write_bytes(message)
    assert decrypt_file(tmp_path / "x.esdk", tmp_path / "x", key=local).frame_length == frame_length
    assert (tmp_path / "x").read_bytes() == plaintext


@pytest.mark.parametrize("context", [{}, {"a": "b"}, {"z": "1", "ä": "2", "Z": "3", "𝄞": "4", "\ue000": "5"}])
def test_contexts_are_serialized_alike(local: LocalKey, ring: Any, context: dict[str, str]) -> None:
    assert opened(encrypt_bytes(b"x", key=local, context=context), ring) == (b"x", context)
    assert decrypt_bytes(written(b"x", ring, 4096, context), key=local, context=context) == b"x"


def test_official_sdk_opens_a_message_of_several_recipients(tmp_path: Path, local: LocalKey, ring: Any) -> None:
    other = create_local_key(tmp_path / "other.key")
    message = encrypt_bytes(b"x", key=[other, local])
    assert opened(message, ring)[0] == b"x"
    assert opened(message, keyring("securemfg", other.name, other.path.read_bytes()))[0] == b"x"


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 20_000])
def test_signed_messages_of_the_official_sdk_are_read(local: LocalKey, ring: Any, tmp_path: Path, size: int) -> None:
    plaintext = os.urandom(size)
    message = written(plaintext, ring, 4096, {"plant": "7"}, suite="COMMIT_KEY_ECDSA_P384")
    assert decrypt_bytes(message, key=local, context={"plant": "7"}) == plaintext
    (tmp_path / "x.esdk").write_bytes(message)
    assert decrypt_file(tmp_path / "x.esdk", tmp_path / "x", key=local).plaintext_length == size
    assert (tmp_path / "x").read_bytes() == plaintext
    assert inspect_file(tmp_path / "x.esdk").plaintext_length == size


@pytest.mark.parametrize("suite", ["COMMIT_KEY", "COMMIT_KEY_ECDSA_P384"])
@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_messages_without_frames_of_the_official_sdk_are_read(
    local: LocalKey, ring: Any, tmp_path: Path, size: int, suite: str
) -> None:
    plaintext = os.urandom(size)
    message = written(plaintext, ring, 0, {"plant": "7"}, suite=suite)
    assert decrypt_bytes(message, key=local) == plaintext
    (tmp_path / "x.esdk").write_bytes(message)
    decrypt_file(tmp_path / "x.esdk", tmp_path / "x", key=local)
    assert (tmp_path / "x").read_bytes() == plaintext
    for place in (-1, len(message) // 2):
        changed = bytearray(message)
        changed[place] ^= 1
        with pytest.raises(DecryptionError):
            decrypt_bytes(bytes(changed), key=local)


SIGNED = "COMMIT_KEY_ECDSA_P384"


@pytest.mark.parametrize(
    ("frame_length", "suite"),
    [(128, SIGNED), (0, "COMMIT_KEY"), (0, SIGNED)],
    ids=["signed", "without frames", "signed without frames"],
)
def test_changed_cut_or_longer_messages_of_other_kinds_are_refused(
    local: LocalKey, ring: Any, tmp_path: Path, frame_length: int, suite: str
) -> None:
    message = written(bytes(range(150)), ring, frame_length, {"plant": "7"}, suite=suite)
    for at in range(len(message)):
        changed = bytearray(message)
        changed[at] ^= 1 << at % 8
        with pytest.raises(DecryptionError):
            decrypt_bytes(bytes(changed), key=local)
        with pytest.raises(DecryptionError):
            decrypt_bytes(message[:at], key=local)
    for extra in (b"\0", bytes(2), b"\0\x01x", message):
        with pytest.raises(DecryptionError):
            decrypt_bytes(message + extra, key=local)
    (tmp_path / "x.esdk").write_bytes(message[:-1] + bytes([message[-1] ^ 1]))
    with pytest.raises(DecryptionError):
        decrypt_file(tmp_path / "x.esdk", tmp_path / "x", key=local)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("frame_length", [128, 0])
def test_signature_that_is_missing_or_of_another_message_is_refused(
    local: LocalKey, ring: Any, frame_length: int
) -> None:
    def split(message: bytes) -> tuple[bytes, bytes]:
        starts = range(len(message) - 106, len(message) - 2)
        at = next(at for at in starts if int.from_bytes(message[at : at + 2]) == len(message) - at - 2)
        return message[:at], message[at:]

    body, signature = split(written(b"x" * 150, ring, frame_length, {}, suite=SIGNED))
    _, other = split(written(b"x" * 150, ring, frame_length, {}, suite=SIGNED))
    assert decrypt_bytes(body + signature, key=local) == b"x" * 150
    for wrong in (b"", b"\0\0", other):
        with pytest.raises(DecryptionError):
            decrypt_bytes(body + wrong, key=local)


def test_a_body_without_frames_that_is_too_large_is_refused_before_it_is_read(local: LocalKey, ring: Any) -> None:
    message = bytearray(written(b"x", ring, 0, {}))
    at = parse_header(bytes(message)).length + 12
    message[at : at + 8] = (1 << 40).to_bytes(8)
    with pytest.raises(DecryptionError, match="encrypt it again with frames"):
        decrypt_bytes(bytes(message), key=local)


def test_suite_without_commitment_is_refused(local: LocalKey, ring: Any) -> None:
    message, _ = client("FORBID_ENCRYPT_ALLOW_DECRYPT").encrypt(
        source=b"x", keyring=ring, algorithm=Algorithm.AES_256_GCM_IV12_TAG16_HKDF_SHA256
    )
    with pytest.raises(DecryptionError, match="version 1 has no key commitment"):
        decrypt_bytes(message, key=local)


def test_exit_path_of_a_run_key_needs_only_the_official_sdk(tmp_path: Path, local: LocalKey, ring: Any) -> None:
    run, record = create_run_key({"default": [local]}, {"securemfg:kind": "run", "securemfg:root": "4711"})
    plaintext = os.urandom(FRAME + 1)
    (tmp_path / "model.pkl").write_bytes(plaintext)
    encrypt_file(tmp_path / "model.pkl", tmp_path / "model.pkl.esdk", key=run, context={"path": "model/model.pkl"})

    run_key, bound = opened(record, ring)
    assert len(run_key) == 32
    assert bound["securemfg:run-key"] == run.key_id
    assert bound["securemfg:root"] == "4711"
    artifact, context = opened(
        (tmp_path / "model.pkl.esdk").read_bytes(), keyring("securemfg-run", run.key_id, run_key)
    )
    assert (artifact, context) == (plaintext, {"path": "model/model.pkl"})


def test_exit_path_of_a_nested_record_opens_one_level_per_key(tmp_path: Path, local: LocalKey, ring: Any) -> None:
    other = create_local_key(tmp_path / "other.key")
    run, record = create_run_key({"one": [local], "two": [other]}, {"securemfg:root": "4711"})
    artifact = encrypt_bytes(b"weights", key=run)

    with pytest.raises(Exception):
        opened(record, ring)
    inner, bound = opened(record, keyring("securemfg", other.name, other.path.read_bytes()))
    assert bound["securemfg:depth"] == "2"
    run_key, bound = opened(inner, ring)
    assert bound["securemfg:depth"] == "1"
    assert opened(artifact, keyring("securemfg-run", run.key_id, run_key))[0] == b"weights"


def test_run_key_of_the_official_sdk_opens_here_too(local: LocalKey) -> None:
    run, record = create_run_key({"default": [local]}, {"securemfg:root": "4711"})
    key = decrypt_bytes(record, key=local)
    assert decrypt_bytes(written(b"x", keyring("securemfg-run", run.key_id, key), 4096, {}), key=run) == b"x"
