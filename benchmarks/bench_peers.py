"""File to file with the libraries that people would use instead, interleaved with ours and with a plain copy.

Target: at 1 GiB at least 3x as fast as the fastest peer, each way. Every peer runs at its best:

- the official AWS Encryption SDK: raw AES keyring, suite 0x0478 (no signature), read(1 MiB), the best of several frame
  lengths, which is looked for first
- tink streaming AEAD, AES256_GCM_HKDF, 1 MB segments
- age, by pyrage
- amazon-s3-encryption-client-python, which needs an older `cryptography`: its environment is made in `.bench/` by pip.
  Its S3 and KMS are answered inside the process from local files, without a network, which favours it. It holds
  everything in memory: about 4 GiB for 1 GiB.

A peer that is not installed, or cannot be, is left out, and the table says so.
"""

from __future__ import annotations

import filecmp
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import bench_files
from measuring import (
    Work,
    answer,
    disturbed,
    filesystem,
    interleaved,
    keep,
    nothing,
    options,
    own,
    remove,
    spreads,
    table,
    verdict,
    write_random,
)

MIB = 1 << 20
FRAMES = (256 << 10, 1 << 20, 4 << 20)  # bytes; the official SDK's default of 4 KiB is several times slower
S3_CLIENT = "amazon-s3-encryption-client-python"
ENVIRONMENT = Path(__file__).resolve().parent.parent / ".bench"


def _pump(reader: BinaryIO, writer: BinaryIO) -> None:
    while part := reader.read(MIB):
        writer.write(part)


def _kept(path: Path, make: Callable[[], str]) -> str:
    """What is at `path`; made first where nothing is."""
    if not path.exists():
        path.write_text(make())
    return path.read_text()


# -- the official SDK --------------------------------------------------------------------------------------------------


def _official(key: str) -> tuple[Any, dict[str, Any]]:
    import aws_encryption_sdk
    from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
    from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
    from aws_cryptographic_material_providers.mpl.models import AesWrappingAlg, CreateRawAesKeyringInput

    keyring = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig()).create_raw_aes_keyring(
        CreateRawAesKeyringInput(
            key_namespace="bench",
            key_name="bench",
            wrapping_key=Path(key).read_bytes(),
            wrapping_alg=AesWrappingAlg.ALG_AES256_GCM_IV12_TAG16,
        )
    )
    return aws_encryption_sdk.EncryptionSDKClient(), {"keyring": keyring}


def official_encrypt(source: str, target: str, key: str, frame: str = str(MIB)) -> Work:
    from aws_encryption_sdk.identifiers import Algorithm

    client, with_key = _official(key)
    suite = Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY

    def work() -> None:
        with (
            open(source, "rb") as reader,
            open(target, "wb") as writer,
            client.stream(mode="e", source=reader, algorithm=suite, frame_length=int(frame), **with_key) as stream,
        ):
            _pump(stream, writer)

    return work


def official_decrypt(source: str, target: str, key: str, _frame: str = "") -> Work:
    client, with_key = _official(key)

    def work() -> None:
        with (
            open(source, "rb") as reader,
            open(target, "wb") as writer,
            client.stream(mode="d", source=reader, **with_key) as stream,
        ):
            _pump(stream, writer)

    return work


# -- tink --------------------------------------------------------------------------------------------------------------


def _tink(key: str) -> Any:
    import tink
    from tink import secret_key_access, streaming_aead

    streaming_aead.register()

    def make() -> str:
        handle = tink.new_keyset_handle(streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB)
        return str(tink.json_proto_keyset_format.serialize(handle, secret_key_access.TOKEN))

    text = _kept(Path(f"{key}.tink"), make)
    handle = tink.json_proto_keyset_format.parse(text, secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


def tink_encrypt(source: str, target: str, key: str, _frame: str = "") -> Work:
    primitive = _tink(key)

    def work() -> None:
        with (
            open(source, "rb") as reader,
            open(target, "wb") as writer,
            primitive.new_encrypting_stream(writer, b"") as stream,
        ):
            _pump(reader, stream)

    return work


def tink_decrypt(source: str, target: str, key: str, _frame: str = "") -> Work:
    primitive = _tink(key)

    def work() -> None:
        with (
            open(source, "rb") as reader,
            open(target, "wb") as writer,
            primitive.new_decrypting_stream(reader, b"") as stream,
        ):
            _pump(stream, writer)

    return work


# -- age ---------------------------------------------------------------------------------------------------------------


def _age(key: str) -> Any:
    from pyrage import x25519

    return x25519.Identity.from_str(_kept(Path(f"{key}.age"), lambda: str(x25519.Identity.generate())))


def age_encrypt(source: str, target: str, key: str, _frame: str = "") -> Work:
    import pyrage

    recipient = _age(key).to_public()
    return lambda: pyrage.encrypt_file(source, target, [recipient])


def age_decrypt(source: str, target: str, key: str, _frame: str = "") -> Work:
    import pyrage

    identity = _age(key)
    return lambda: pyrage.decrypt_file(source, target, [identity])


# -- the S3 encryption client ------------------------------------------------------------------------------------------


def _s3_client(key: str, answered: Callable[..., Any]) -> Any:
    """The peer's client; `answered` stands in for S3, and a fixed data key for KMS."""
    import base64
    import json

    import boto3
    from botocore.awsrequest import AWSResponse
    from botocore.config import Config
    from s3_encryption import S3EncryptionClient, S3EncryptionClientConfig
    from s3_encryption.materials.kms_keyring import KmsKeyring

    plain = {"CiphertextBlob": "AAAA", "Plaintext": base64.b64encode(Path(key).read_bytes()).decode(), "KeyId": "bench"}

    class Body:
        def stream(self) -> Any:
            yield json.dumps(plain).encode()

    session = boto3.Session("bench", "bench", region_name="eu-central-1")
    kms = session.client("kms")
    kms.meta.events.register("before-send.kms", lambda request, **_: AWSResponse(request.url, 200, {}, Body()))
    s3 = session.client(
        "s3", config=Config(request_checksum_calculation="when_required", s3={"payload_signing_enabled": False})
    )
    s3.meta.events.register("before-send.s3", lambda request, **_: answered(request, AWSResponse))
    return S3EncryptionClient(s3, S3EncryptionClientConfig(keyring=KmsKeyring(kms, "bench")))


def s3_encrypt(source: str, target: str, key: str, _frame: str = "") -> Work:
    import json

    class Empty:
        def stream(self) -> Any:
            return iter(())

    def stored(request: Any, response: Any) -> Any:
        body = request.body
        with open(target, "wb") as writer:
            if isinstance(body, bytes):
                writer.write(body)
            else:
                _pump(body, writer)
        headers = {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
            if name.startswith("x-amz-meta-")
        }
        Path(f"{target}.headers").write_text(json.dumps(headers))
        return response(request.url, 200, {}, Empty())

    client = _s3_client(key, stored)

    def work() -> None:
        with open(source, "rb") as reader:
            client.put_object(Bucket="bench", Key="bench", Body=reader)

    return work


def s3_decrypt(source: str, target: str, key: str, _frame: str = "") -> Work:
    import json

    def sent(request: Any, response: Any) -> Any:
        headers = json.loads(Path(f"{source}.headers").read_text())
        headers["content-length"] = str(os.path.getsize(source))
        return response(request.url, 200, headers, open(source, "rb"))

    client = _s3_client(key, sent)

    def work() -> None:
        with open(target, "wb") as writer:
            _pump(client.get_object(Bucket="bench", Key="bench")["Body"], writer)

    return work


def _s3_environment() -> tuple[str, str]:
    """The Python that has the S3 encryption client, or "" and why there is none. Made once, by pip."""
    python = ENVIRONMENT / "s3" / "bin" / "python"
    if not python.exists():
        ENVIRONMENT.mkdir(exist_ok=True)
        (ENVIRONMENT / ".gitignore").write_text("*\n")
        print(f"installing {S3_CLIENT} into {ENVIRONMENT} (once)", flush=True)
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(python.parent.parent)], capture_output=True, text=True, check=False
        )
        if made.returncode:
            return "", f"no environment could be made for it: {(made.stdout + made.stderr).strip()[-200:]}"
    if subprocess.run([str(python), "-c", "import s3_encryption"], capture_output=True, check=False).returncode:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", S3_CLIENT]
        put = subprocess.run(command, capture_output=True, text=True, check=False)
        if put.returncode:
            return "", f"pip could not install it: {put.stderr.strip().splitlines()[-1][:200]}"
    return str(python), ""


# -- runs --------------------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[..., Work]] = {
    "nothing": nothing,
    "copy": lambda source, target, key, _frame="": bench_files.copy(source, target, key),
    "encrypt ours": lambda source, target, key, _frame="": bench_files.encrypt(source, target, key),
    "decrypt ours": lambda source, target, key, _frame="": bench_files.decrypt(source, target, key),
    "encrypt official SDK": official_encrypt,
    "decrypt official SDK": official_decrypt,
    "encrypt tink": tink_encrypt,
    "decrypt tink": tink_decrypt,
    "encrypt age": age_encrypt,
    "decrypt age": age_decrypt,
    "encrypt S3 client": s3_encrypt,
    "decrypt S3 client": s3_decrypt,
}
NEEDED = {"official SDK": "aws_encryption_sdk", "tink": "tink", "age": "pyrage"}


def pythons() -> tuple[dict[str, str], dict[str, str]]:
    """Every peer that is here with the Python that has it, and the others with the reason."""
    here = {"ours": sys.executable}
    absent = {}
    for peer, module in NEEDED.items():
        if importlib.util.find_spec(module):
            here[peer] = sys.executable
        else:
            absent[peer] = f"{module} is not installed"
    python, why = _s3_environment()
    if python:
        here["S3 client"] = python
    else:
        absent["S3 client"] = why
    return here, absent


def main() -> None:
    if answer(OPERATIONS):
        return
    chosen = options(__doc__, rounds=5, mebibytes=1024).parse_args()
    here, absent = pythons()
    from securemfg.encryption import create_local_key

    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        key, plain, target = folder / "bench.key", folder / "plain", folder / "target"
        create_local_key(key)
        write_random(plain, chosen.mebibytes)
        frame = {"bytes": MIB}

        def run(operation: str, source: Path, to: Path = target) -> dict[str, Any]:
            remove(to)
            python = here.get(operation.partition(" ")[2], sys.executable)
            result: dict[str, Any] = own(__file__, operation, source, to, key, frame["bytes"], fresh=to, python=python)
            return result

        def sealed(peer: str) -> Path:
            return folder / f"message {peer}"

        frames = {}
        if "official SDK" in here:
            for frame["bytes"] in FRAMES:
                there = run("encrypt official SDK", plain, sealed("official SDK"))["wall"]
                frames[frame["bytes"]] = there + run("decrypt official SDK", sealed("official SDK"))["wall"]
            frame["bytes"] = min(frames, key=frames.__getitem__)
        for peer in here:  # once before it counts: warms the page cache, and shows that each gives back what it got
            run(f"encrypt {peer}", plain, sealed(peer))
            run(f"decrypt {peer}", sealed(peer))
            if not filecmp.cmp(plain, target, shallow=False):
                raise SystemExit(f"{peer}: what was decrypted is not what was encrypted")
        variants: dict[str, Callable[[], Any]] = {"copy": lambda: run("copy", plain)}
        for peer in here:
            variants[f"encrypt {peer}"] = lambda peer=peer: run(f"encrypt {peer}", plain)
        for peer in here:
            variants[f"decrypt {peer}"] = lambda peer=peer: run(f"decrypt {peer}", sealed(peer))
        results = interleaved(variants, chosen.rounds)
        kind = filesystem(folder)
    floors = {python: own(__file__, "nothing", python=python)["rss"] for python in set(here.values())}
    wall, cpu = spreads(results, "wall"), spreads(results, "cpu")
    above = {
        name: max(run["rss"] for run in runs) - floors[here.get(name.partition(" ")[2], sys.executable)]
        for name, runs in results.items()
    }
    rows = []
    for name in results:
        verb, _, peer = name.partition(" ")
        ours = wall.get(f"{verb} ours")
        shown = target_shown = "-"
        if ours and peer != "ours":
            shown = f"{wall[name].median / ours.median:.1f}"
            target_shown = verdict(wall[name].median / ours.median, 3, at_least=True)
        rows.append(
            (
                name,
                f"{wall[name].median / wall['copy'].median:.2f}",
                shown,
                target_shown,
                wall[name].shown(1, 3),
                cpu[name].shown(1, 3),
                f"{above[name] / MIB:.0f}",
            )
        )
    table(
        f"{chosen.mebibytes} MiB, file to file on {kind}, {chosen.rounds} rounds (min / median / max)",
        ("what", "x copy", "x ours", "target", "wall s", "cpu s", "MiB above interpreter"),
        rows,
    )
    if frames:
        tried = ", ".join(f"{size >> 10} KiB {seconds:.2f} s" for size, seconds in frames.items())
        print(f"official SDK, frame lengths tried, there and back: {tried}; taken: {frame['bytes'] >> 10} KiB")
    for peer, why in absent.items():
        print(f"left out: {peer} ({why})")
    print(disturbed(results))
    keep(
        f"peers-{chosen.mebibytes}-{kind}",
        {
            "mebibytes": chosen.mebibytes,
            "file_system": kind,
            "left_out": absent,
            "official_frame_bytes": frame["bytes"],
            **{
                name: {
                    "wall_seconds": wall[name].plain(),
                    "cpu_seconds": cpu[name].plain(),
                    "bytes_above": above[name],
                }
                for name in results
            },
        },
    )


if __name__ == "__main__":
    main()
