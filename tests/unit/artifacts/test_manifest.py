"""The manifest's format: what is signed, who may have signed it, and that the public verifier takes ours."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from securemfg.artifacts.manifest import MAX_MANIFEST, sign, verified
from securemfg.encryption.digests import SHARD, FileDigest, MessageDigest
from securemfg.encryption.signers import LocalSigner, create_signing_key, open_pinned, open_signer
from securemfg.encryption.source import stored_digest
from securemfg.errors import ConfigError, DecryptionError, EncryptionError, KeyUnavailable

NAME = "model/m-" + "0" * 32


def shard(digit: str, size: int = 9) -> FileDigest:
    """The digest of a file of one shard."""
    return FileDigest(size, (digit * 64,))


FILES = {
    "MLmodel": shard("0"),
    "a/b.bin": FileDigest(2 * SHARD + 1, ("1" * 64, "2" * 64, "3" * 64)),
    "a.txt": shard("4", SHARD),
    "a:1:2": shard("5"),
}


@pytest.fixture
def signer(tmp_path: Path) -> LocalSigner:
    return create_signing_key(tmp_path / "signer.key", tmp_path / "signer.pem")


def keys(signer: LocalSigner) -> Any:
    return signer.verifying_keys()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "p384"])
def test_what_was_signed_is_what_is_verified(tmp_path: Path, kind: str) -> None:
    if kind == "p384":
        made = LocalSigner(ec.generate_private_key(ec.SECP384R1()), "p384")
    else:
        create_signing_key(tmp_path / "k" / "signer.key", tmp_path / "signer.pem", kind=kind)
        made = open_signer(f"{kind}:k/signer.key", folder=tmp_path)
    bundle, manifest = sign(NAME, FILES, made)
    pinned = open_pinned(f"{kind}:{tmp_path}/signer.pem") if kind != "p384" else made.verifying_keys()
    read = verified(bundle, pinned, origin="tests")
    assert (read.name, dict(read.files), read.pin) == (NAME, FILES, manifest.pin)
    assert read.pin == "sha256:" + hashlib.sha256(read.payload).hexdigest()


def test_pin_is_of_the_content_and_not_of_the_key(tmp_path: Path) -> None:
    one, two = create_signing_key(tmp_path / "1.key"), create_signing_key(tmp_path / "2.key")
    assert sign(NAME, FILES, one)[1].pin == sign(NAME, dict(reversed(FILES.items())), two)[1].pin
    assert sign(NAME, {**FILES, "x": shard("3")}, one)[1].pin != sign(NAME, FILES, one)[1].pin
    assert sign(NAME[:-1] + "1", FILES, one)[1].pin != sign(NAME, FILES, one)[1].pin


def changed(change: Callable[[dict[str, Any], dict[str, Any]], None], bundle: bytes) -> bytes:
    """`bundle` with its statement changed, and everything else as it was."""
    document = json.loads(bundle)
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    change(document, statement)
    document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(document).encode()


def test_a_changed_statement_is_refused(signer: LocalSigner) -> None:
    bundle, _ = sign(NAME, FILES, signer)

    def change(_: dict[str, Any], statement: dict[str, Any]) -> None:
        statement["predicate"]["resources"][0]["digest"] = "f" * 64

    with pytest.raises(DecryptionError, match="its signature does not verify"):
        verified(changed(change, bundle), keys(signer), origin="tests")


def test_a_key_inside_the_bundle_counts_for_nothing(signer: LocalSigner, tmp_path: Path) -> None:
    stranger = create_signing_key(tmp_path / "stranger.key")
    forged = json.loads(sign(NAME, FILES, stranger)[0])
    with pytest.raises(DecryptionError, match=r"which artifacts.signers \(plant.toml\) does not pin"):
        verified(json.dumps(forged).encode(), keys(signer), origin="plant.toml")
    public = stranger.verifying_keys()[0].pem.decode()
    for hint in (signer.verifying_keys()[0].hint, "", None, public):
        forged["verificationMaterial"]["publicKey"] = {"hint": hint, "rawBytes": public}
        with pytest.raises(DecryptionError, match="signature does not verify|does not pin"):
            verified(json.dumps(forged).encode(), keys(signer), origin="tests")
    forged["verificationMaterial"] = {"certificate": {"rawBytes": public}, "tlogEntries": []}
    with pytest.raises(DecryptionError, match="does not pin"):
        verified(json.dumps(forged).encode(), keys(signer), origin="tests")
    with pytest.raises(DecryptionError, match="does not pin: none"):
        verified(json.dumps(forged).encode(), (), origin="tests")


@pytest.mark.parametrize(
    "document",
    [b"", b"{}", b"[]", b"null", b"\xff", b'{"mediaType": 1, "dsseEnvelope": []}', b'"x"', b'{"dsseEnvelope": {}}'],
)
def test_what_is_no_bundle_is_refused_with_a_typed_error(signer: LocalSigner, document: bytes) -> None:
    with pytest.raises(DecryptionError, match="manifest"):
        verified(document, keys(signer), origin="tests")


def test_every_cut_and_every_flipped_byte_is_refused_or_changes_nothing(signer: LocalSigner) -> None:
    bundle, manifest = sign(NAME, FILES, signer)
    for end in range(0, len(bundle), 7):
        with pytest.raises(DecryptionError):
            verified(bundle[:end], keys(signer), origin="tests")
    for at in range(len(bundle)):
        flipped = bundle[:at] + bytes([bundle[at] ^ 1]) + bundle[at + 1 :]
        try:
            read = verified(flipped, keys(signer), origin="tests")
        except DecryptionError:
            continue
        assert read.payload == manifest.payload  # a byte that says nothing, such as a key's hint's name


def test_a_bundle_too_long_is_not_parsed(signer: LocalSigner) -> None:
    with pytest.raises(DecryptionError, match="longer than"):
        verified(bytes(MAX_MANIFEST + 1), keys(signer), origin="tests")


@pytest.mark.parametrize(
    "path", ["../up", "/etc/passwd", "a//b", "a/./b", "", ".securemfg/keys/x", "a/.securemfg/b", "."]
)
def test_a_path_that_leads_elsewhere_is_neither_signed_nor_read(signer: LocalSigner, path: str) -> None:
    with pytest.raises(EncryptionError, match="cannot be in a manifest"):
        sign(NAME, {path: shard("0")}, signer)
    entry = {"name": f"{path}:0:9"}
    assert resigned(signer, lambda s: s["predicate"]["resources"][0].update(entry)) == "no proper entry"


@pytest.mark.parametrize(
    "names",
    [
        ["MLmodel:1:9"],  # its start is missing
        ["MLmodel:0:0"],
        ["MLmodel:0:-9"],
        [f"MLmodel:0:{SHARD + 1}"],
        ["MLmodel:0:9", "MLmodel:9:10"],  # a shard that is not full, and one more
        [f"MLmodel:0:{SHARD}", f"MLmodel:{SHARD + 1}:{SHARD + 2}"],  # a byte that nobody signed
        ["MLmodel:0:9", "MLmodel:0:9"],
        ["MLmodel:00:9"],
        ["MLmodel:0:٩"],
    ],
)
def test_shards_that_are_not_a_whole_file_are_refused(signer: LocalSigner, names: list[str]) -> None:
    def entries(statement: dict[str, Any]) -> None:
        (first, *_) = statement["predicate"]["resources"]
        statement["predicate"]["resources"] = [{**first, "name": name} for name in names]

    assert resigned(signer, entries) == "no proper entry"


def test_a_file_that_is_empty_as_stored_is_not_signed(signer: LocalSigner) -> None:
    with pytest.raises(EncryptionError, match="is empty as stored"):
        sign(NAME, {"MLmodel": shard("0"), "empty": FileDigest(0, ())}, signer)


def resigned(signer: LocalSigner, change: Callable[[dict[str, Any]], None]) -> str:
    """Why a statement that the right key signed is refused all the same."""
    from securemfg.artifacts import manifest

    bundle, _ = sign(NAME, FILES, signer)
    document = json.loads(bundle)
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    signature, _ = signer.sign(manifest._pae(payload))
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    with pytest.raises(DecryptionError) as caught:
        verified(json.dumps(document).encode(), keys(signer), origin="tests")
    for why in (
        "no proper entry",
        "subject's digest",
        "predicate type",
        "statement type",
        "method",
        "hash type",
        "shard size",
        "algo",
    ):
        if why in str(caught.value):
            return why
    return str(caught.value)


def test_other_statements_of_the_same_signer_are_no_manifests(signer: LocalSigner) -> None:
    def doubled(statement: dict[str, Any]) -> None:
        statement["predicate"]["resources"].append(statement["predicate"]["resources"][0])

    assert resigned(signer, doubled) == "no proper entry"
    assert resigned(signer, lambda s: s.update(predicateType="https://slsa.dev/provenance/v1")) == "predicate type"
    assert resigned(signer, lambda s: s.update(_type="x")) == "statement type"
    assert resigned(signer, lambda s: s["predicate"]["serialization"].update(method="files")) == "method"
    assert resigned(signer, lambda s: s["predicate"]["serialization"].update(shard_size=1 << 20)) == "shard size"
    assert resigned(signer, lambda s: s["predicate"]["serialization"].update(hash_type="blake2")) == "hash type"
    assert resigned(signer, lambda s: s["subject"][0]["digest"].update(sha256="0" * 64)) == "subject's digest"
    assert resigned(signer, lambda s: s["predicate"]["resources"][0].update(algorithm="md5")) == "algo"


def test_ignored_paths_of_a_manifest_excuse_no_file(signer: LocalSigner) -> None:
    _, manifest = sign(NAME, FILES, signer)
    with pytest.raises(DecryptionError, match=r"files that nobody signed: '\.git/config'"):
        manifest.check({**FILES, ".git/config": shard("0")})


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({**FILES, "x": shard("3")}, "files that nobody signed: 'x'"),
        ({name: of for name, of in FILES.items() if name != "a/b.bin"}, "signed files are missing: 'a/b.bin'"),
        ({**FILES, "a.txt": FileDigest(SHARD, ("1" * 64,))}, r"changed or swapped: 'a\.txt'"),
        ({**FILES, "a.txt": shard("4", SHARD - 1)}, r"changed or swapped: 'a\.txt'"),
        ({**FILES, "a.txt": shard("5"), "a/b.bin": shard("1")}, r"changed or swapped: 'a\.txt', 'a/b\.bin'"),
        ({**FILES, "a/b.bin": FileDigest(2 * SHARD + 1, ("1" * 64, "3" * 64, "2" * 64))}, r"swapped: 'a/b\.bin'"),
    ],
)
def test_anything_but_exactly_the_signed_files_is_refused(
    signer: LocalSigner, found: dict[str, FileDigest], said: str
) -> None:
    _, manifest = sign(NAME, FILES, signer)
    manifest.check(FILES)
    manifest.check({"a/b.bin": FILES["a/b.bin"]}, "a")
    manifest.check({"a.txt": FILES["a.txt"]}, "a.txt")
    with pytest.raises(DecryptionError, match=said):
        manifest.check(found)


def test_nothing_to_sign_is_an_error(signer: LocalSigner) -> None:
    with pytest.raises(EncryptionError, match="no files"):
        sign(NAME, {}, signer)


# -- the public verifier ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=["p256", "p384"])
def test_the_public_verifier_accepts_ours_and_refuses_what_we_refuse(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    pytest.importorskip("OpenSSL", reason="needs pyopenssl, which model-signing imports")
    verifying = pytest.importorskip("model_signing.verifying", reason="needs model-signing 1.1.1")
    signer = LocalSigner(ec.generate_private_key(curve), "tests")
    model = tmp_path / "model"
    for path, data in {"MLmodel": b"a", "a/b.bin": b"b" * (2 * SHARD + 3), "a-b": b"c", "a.b": b"x" * SHARD}.items():
        (model / path).parent.mkdir(parents=True, exist_ok=True)
        (model / path).write_bytes(data)
    files = {str(path.relative_to(model)): stored_digest(path) for path in model.rglob("*") if path.is_file()}
    (model / ".securemfg" / "keys").mkdir(parents=True)
    (model / ".securemfg" / "keys" / "record.esdk").write_bytes(b"record")
    place = model / ".securemfg" / "manifest.sig"
    place.write_bytes(sign(NAME, files, signer)[0])
    public = tmp_path / "public.pem"
    public.write_bytes(signer.verifying_keys()[0].pem)

    def verify() -> None:
        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(model, place)

    verify()
    (model / "extra").write_bytes(b"x")
    with pytest.raises(ValueError, match="Extra files"):
        verify()
    (model / "extra").unlink()
    with (model / "a" / "b.bin").open("r+b") as file:
        file.seek(SHARD)
        file.write(b"c")
    with pytest.raises(ValueError, match="mismatch"):
        verify()


def test_what_the_public_signer_makes_is_read(tmp_path: Path) -> None:
    pytest.importorskip("OpenSSL", reason="needs pyopenssl, which model-signing imports")
    signing = pytest.importorskip("model_signing.signing", reason="needs model-signing 1.1.1")
    hashing = pytest.importorskip("model_signing.hashing", reason="needs model-signing 1.1.1")
    private = ec.generate_private_key(ec.SECP256R1())
    key = tmp_path / "key.pem"
    pkcs8 = serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))
    model = tmp_path / "model"
    model.mkdir()
    (model / "MLmodel").write_bytes(b"a" * (SHARD + 1))
    sharded = hashing.Config().use_shard_serialization(shard_size=SHARD)
    by_key = signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(sharded)
    by_key.sign(model, tmp_path / "out.sig")
    read = verified((tmp_path / "out.sig").read_bytes(), LocalSigner(private, "k").verifying_keys(), origin="tests")
    assert dict(read.files) == {"MLmodel": stored_digest(model / "MLmodel")}


# -- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_that_others_can_read_does_not_sign(tmp_path: Path) -> None:
    create_signing_key(tmp_path / "signer.key")
    (tmp_path / "signer.key").chmod(0o640)
    with pytest.raises(KeyUnavailable, match="can be read by others"):
        open_signer("ed25519:signer.key", folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("signer.key", "must be like 'ed25519:PATH'"),
        ("rsa:signer.key", "of kind ed25519, ecdsa, aws-kms, vault-transit"),
        ("ed25519:", "must be like"),
        ("aws-kms:alias/x", "named by its key ARN"),
        ("vault-transit:transit/x", "needs a Vault"),
        ("ecdsa:signer.key", "write 'ed25519:"),
    ],
)
def test_a_text_that_names_no_signer_is_a_settings_error(tmp_path: Path, text: str, said: str) -> None:
    create_signing_key(tmp_path / "signer.key")
    with pytest.raises(ConfigError, match=said):
        open_signer(text, folder=tmp_path, origin="plant.toml")


def test_pinned_keys_are_public_and_nobody_else_may_write_them(tmp_path: Path) -> None:
    create_signing_key(tmp_path / "signer.key", tmp_path / "signer.pem")
    assert len(open_pinned("ed25519:signer.pem", folder=tmp_path)) == 1
    with pytest.raises(KeyUnavailable, match="is a private key"):
        open_pinned("ed25519:signer.key", folder=tmp_path)
    with pytest.raises(KeyUnavailable, match="cannot be read"):
        open_pinned("ed25519:absent.pem", folder=tmp_path)
    (tmp_path / "signer.pem").chmod(0o664)
    with pytest.raises(KeyUnavailable, match="can be changed by others"):
        open_pinned("ed25519:signer.pem", folder=tmp_path)


def test_other_curves_and_kinds_sign_no_models(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    for private in (ec.generate_private_key(ec.SECP521R1()), rsa.generate_private_key(65537, 2048)):
        place = tmp_path / "other.key"
        pkcs8, pem = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
        place.write_bytes(private.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        place.chmod(0o600)
        with pytest.raises(KeyUnavailable, match="P-384"):
            open_signer(f"ecdsa:{place}")


def test_a_signing_key_does_not_travel_and_is_not_shown(signer: LocalSigner) -> None:
    import pickle

    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(signer)
    assert "PRIVATE" not in repr(signer)
    with pytest.raises(EncryptionError, match="exists already"):
        create_signing_key(Path(repr(signer).split("ed25519:")[1].split(",")[0]))


# -- digests in any order ---------------------------------------------------------------------------------------------


def in_shards(data: bytes) -> FileDigest:
    parts = [data[at : at + SHARD] for at in range(0, len(data), SHARD)]
    return FileDigest(len(data), tuple(hashlib.sha256(part).hexdigest() for part in parts))


@pytest.mark.parametrize("final", [0, 1, SHARD - 301, SHARD - 300, SHARD - 299, SHARD, SHARD + 8])
@pytest.mark.parametrize("frames", [0, 1, 5])
def test_frames_in_any_order_give_the_digest_of_the_whole(frames: int, final: int) -> None:
    header = b"h" * 300
    parts = [bytes([n]) * SHARD for n in range(frames)] + [b"f" * final]
    digest = MessageDigest(header, frames)
    threads = [
        threading.Thread(target=digest.add, args=(index, memoryview(parts[index])))
        for index in reversed(range(frames + 1))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert digest.whole() == in_shards(header + b"".join(parts))


def test_who_waits_for_a_frame_that_never_comes_is_let_go() -> None:
    digest = MessageDigest(b"", 1)
    waiting = threading.Thread(target=lambda: digest.add(1, memoryview(b"x")))
    waiting.start()
    assert waiting.is_alive()
    digest.abandon()
    waiting.join(20)
    assert not waiting.is_alive()


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 300, 1 << 20, (1 << 20) + 1, 40 << 20])
def test_the_digest_of_a_message_is_that_of_its_file(tmp_path: Path, size: int) -> None:
    import os

    from securemfg.encryption import RawAesKey, decrypt_file, encrypt_file, verify_file

    key = RawAesKey("tests", "test", bytes(range(32)))
    (tmp_path / "plain").write_bytes(os.urandom(size))
    told: list[FileDigest] = []
    encrypt_file(tmp_path / "plain", tmp_path / "message", key=key, witness=told.append)
    decrypt_file(tmp_path / "message", tmp_path / "again", key=key, witness=told.append)
    verify_file(tmp_path / "message", key=key, witness=told.append)
    expected = in_shards((tmp_path / "message").read_bytes())
    assert [*told, stored_digest(tmp_path / "message")] == [expected] * 4
    assert (tmp_path / "again").read_bytes() == (tmp_path / "plain").read_bytes()


def test_what_a_witness_refuses_never_appears(tmp_path: Path) -> None:
    from securemfg.encryption import RawAesKey, decrypt_file, encrypt_file

    key = RawAesKey("tests", "test", bytes(range(32)))
    (tmp_path / "plain").write_bytes(b"x")
    encrypt_file(tmp_path / "plain", tmp_path / "message", key=key)

    def refuse(digest: FileDigest) -> None:
        raise DecryptionError("not this one")

    for act, target in ((encrypt_file, "other"), (decrypt_file, "again")):
        source = "plain" if act is encrypt_file else "message"
        with pytest.raises(DecryptionError, match="not this one"):
            act(tmp_path / source, tmp_path / target, key=key, witness=refuse)
        assert not (tmp_path / target).exists()


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('signer = "signer.key"', r"'artifacts\.signer' must be like 'ed25519:PATH'.*securemfg\.toml"),
        ('signers = "ed25519:signer.pem"', r"'artifacts\.signers' must be a list"),
        ('signers = ["gpg:me"]', "of kind ed25519, ecdsa, aws-kms, vault-transit, got 'gpg:me'"),
        ('singer = "ed25519:x"', "did you mean 'signer'"),
    ],
)
def test_a_setting_that_names_no_signer_is_said_with_its_place(tmp_path: Path, line: str, said: str) -> None:
    from securemfg.config import load

    (tmp_path / "securemfg.toml").write_text(f"[artifacts]\n{line}\n")
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "securemfg.toml", environment={})


def signatures(folder: Path, lines: str) -> Any:
    from securemfg.config import load
    from securemfg.encryption.configured_signers import ConfiguredSigners

    if lines:
        (folder / "securemfg.toml").write_text(f"[artifacts]\n{lines}\n")
    return ConfiguredSigners(load(folder=folder, environment={}), lambda *_args, **_fields: None)


def test_what_is_required_follows_the_settings(tmp_path: Path) -> None:
    embedded, plain, signs, verifies = (tmp_path / name for name in ("embedded", "plain", "signs", "verifies"))
    for folder in (embedded, plain, signs, verifies):
        folder.mkdir()
        create_signing_key(folder / "s.key", folder / "s.pem")
    found = signatures(embedded, "")
    assert found.required
    assert [key.hint for key in found.pinned()] == [key.hint for key in found.signer().verifying_keys()]
    assert (embedded / ".securemfg/keys/signer.key").stat().st_mode & 0o777 == 0o600
    assert signatures(embedded, "").pinned()[0].hint == found.pinned()[0].hint  # the next process has the same key
    found = signatures(plain, 'encrypt_from = "internal"')
    assert (found.required, found.signer(), found.pinned()) == (False, None, ())
    found = signatures(signs, 'signer = "ed25519:s.key"')
    assert found.required
    assert found.pinned()[0].hint == open_pinned(f"ed25519:{signs}/s.pem")[0].hint
    found = signatures(verifies, 'signers = ["ed25519:s.pem"]')
    assert (found.required, found.signer(), len(found.pinned())) == (True, None, 1)


def test_doctor_says_who_signs(tmp_path: Path) -> None:
    from securemfg.cli.doctor import _signing
    from securemfg.workflow import Workflow

    def said(lines: str) -> list[tuple[str, str]]:
        (tmp_path / "securemfg.toml").write_text(f"[artifacts]\n{lines}\n")
        return [(result.state, result.text) for result in _signing(Workflow.from_config(tmp_path))]

    create_signing_key(tmp_path / "s.key", tmp_path / "s.pem")
    create_signing_key(tmp_path / "other.key", tmp_path / "other.pem")
    ((state, text),) = said("")
    assert (state, "models are not signed" in text) == ("warn", True)
    ((state, text),) = said('signer = "ed25519:s.key"\nsigners = ["ed25519:s.pem"]')
    assert (state, "signs with" in text) == ("ok", True)
    (state, text) = said('signer = "ed25519:s.key"\nsigners = ["ed25519:other.pem"]')[-1]
    assert (state, "is not among artifacts.signers" in text) == ("fail", True)
