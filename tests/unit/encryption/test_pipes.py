"""Messages through pipes: in order, nothing released before all of it verified, memory flat."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from securemfg.encryption import (
    EncryptingReader,
    RawAesKey,
    create_local_key,
    decrypt_bytes,
    decrypt_file,
    decrypt_stream,
    encrypt_bytes,
    encrypt_file,
    encrypt_stream,
    inspect_file,
    reencrypt_file,
    verify_file,
)
from securemfg.errors import DecryptionError, EncryptionError

FRAME = 1 << 20
KEY = RawAesKey("tests", "test", bytes(range(32)))
OTHER = RawAesKey("tests", "other", bytes(32))
SIZES = [0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 3 * FRAME + 1]


class Trickle(io.RawIOBase):
    """Gives what it has in odd pieces, as a socket does. Cannot seek."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def read(self, size: int = -1, /) -> bytes:
        piece = self.data[self.at : self.at + min(size, 70_001)]
        self.at += len(piece)
        return piece


class Reluctant(io.RawIOBase):
    """Takes a little at a time, as a pipe does."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: memoryview, /) -> int:
        taken = bytes(data[:100_003])
        self.data += taken
        return len(taken)


@pytest.mark.parametrize("size", SIZES)
def test_a_stream_makes_the_round_trip_and_is_the_same_message_as_a_file(size: int) -> None:
    plain, message, back = os.urandom(size), Reluctant(), Reluctant()
    written = encrypt_stream(Trickle(plain), message, key=KEY, context={"plant": "7"})
    assert (written.plaintext_length, written.message_length) == (size, len(message.data))
    assert decrypt_bytes(bytes(message.data), key=KEY, context={"plant": "7"}) == plain
    Path("message").write_bytes(message.data)
    assert inspect_file("message").frames == written.frames
    read = decrypt_stream(Trickle(bytes(message.data)), back, key=KEY, context={"plant": "7"})
    assert (bytes(back.data), read.plaintext_length) == (plain, size)


@pytest.mark.parametrize("piece", [1, 17, 4096, FRAME, 5 * FRAME])
def test_the_reader_gives_the_message_in_whatever_pieces_are_asked_for(piece: int) -> None:
    plain = os.urandom(FRAME + 5 if piece > 17 else 300)
    reader = EncryptingReader(io.BytesIO(plain), key=KEY)
    pieces = []
    while data := reader.read(piece):
        pieces.append(data)
    assert decrypt_bytes(b"".join(pieces), key=KEY) == plain
    assert reader.read(10) == b""
    assert reader.message is not None
    assert reader.message.plaintext_length == len(plain)


@pytest.mark.parametrize("harm", ["cut", "flipped", "longer", "other-context", "other-key"])
def test_nothing_of_a_bad_message_comes_out(harm: str) -> None:
    message = bytearray(encrypt_bytes(os.urandom(3 * FRAME), key=KEY, context={"plant": "7"}))
    match harm:
        case "cut":
            del message[-1]
        case "flipped":
            message[-30] ^= 1  # in the last frame: the ones before verify
        case "longer":
            message += b"x"
    target = Reluctant()
    with pytest.raises(DecryptionError):
        decrypt_stream(
            Trickle(bytes(message)),
            target,
            key=OTHER if harm == "other-key" else KEY,
            context={"plant": "8" if harm == "other-context" else "7"},
        )
    assert target.data == b""


def test_the_kept_message_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    seen: list[list[str]] = []

    class Looking(Reluctant):
        def write(self, data: memoryview, /) -> int:
            seen.append(os.listdir(folder))
            return super().write(data)

    decrypt_stream(io.BytesIO(encrypt_bytes(b"x" * 100, key=KEY)), Looking(), key=KEY, folder=folder)
    assert seen == [[]]


def test_a_full_disk_for_the_kept_message_is_named_and_nothing_is_written() -> None:
    folder = Path("/dev/full-is-not-a-folder")
    with pytest.raises(EncryptionError, match="no temporary file in /dev/full-is-not-a-folder"):
        decrypt_stream(io.BytesIO(b""), Reluctant(), key=KEY, folder=folder)


def test_a_source_that_fails_is_a_typed_error_and_no_whole_message() -> None:
    class Breaking(Trickle):
        def read(self, size: int = -1, /) -> bytes:
            if self.at > FRAME:
                raise OSError(5, "Input/output error")
            return super().read(size)

    target = Reluctant()
    with pytest.raises(EncryptionError, match="the source cannot be read: Input/output error"):
        encrypt_stream(Breaking(os.urandom(3 * FRAME)), target, key=KEY)
    with pytest.raises(DecryptionError):
        decrypt_bytes(bytes(target.data), key=KEY)


def test_a_non_blocking_source_is_refused_and_not_taken_for_an_end() -> None:
    class Empty(io.RawIOBase):
        def read(self, size: int = -1, /) -> None:
            return None

    with pytest.raises(EncryptionError, match="non-blocking"):
        encrypt_stream(Empty(), Reluctant(), key=KEY)


def test_real_pipes_carry_a_message_larger_than_their_buffer() -> None:
    plain = os.urandom(2 * FRAME + 77)
    inlet, outlet = os.pipe()

    def feed() -> None:
        with os.fdopen(outlet, "wb", buffering=0) as end:
            encrypt_stream(io.BytesIO(plain), end, key=KEY)

    thread = threading.Thread(target=feed)
    thread.start()
    target = io.BytesIO()
    with os.fdopen(inlet, "rb", buffering=0) as end:
        decrypt_stream(end, target, key=KEY)
    thread.join()
    assert target.getvalue() == plain


def test_memory_stays_flat_however_long_the_stream_is() -> None:
    code = (
        "import io, resource, sys\n"
        "from securemfg.encryption import RawAesKey, encrypt_stream\n"
        "class Zeros(io.RawIOBase):\n"
        "    left = int(sys.argv[1]) << 20\n"
        "    def read(self, size=-1):\n"
        "        size = min(size, self.left); self.left -= size\n"
        "        return bytes(size)\n"
        "class Sink:\n"
        "    def write(self, data): return len(data)\n"
        "encrypt_stream(Zeros(), Sink(), key=RawAesKey('t', 't', bytes(32)))\n"
        "print(next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')))\n"
    )
    short, long = (
        int(subprocess.run([sys.executable, "-c", code, size], capture_output=True, check=True, text=True).stdout)
        for size in ("8", "400")
    )
    assert long - short < 8 * 1024  # KiB


def test_verify_file_says_what_decrypt_file_would_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "m").write_bytes(encrypt_bytes(os.urandom(FRAME + 9), key=KEY))
    assert verify_file(folder / "m", key=KEY).plaintext_length == FRAME + 9
    harmed = bytearray((folder / "m").read_bytes())
    harmed[-20] ^= 1
    (folder / "m").write_bytes(harmed)
    with pytest.raises(DecryptionError, match="m: frame 2 was changed"):
        verify_file(folder / "m", key=KEY)
    assert os.listdir(folder) == ["m"]


@pytest.mark.parametrize("size", SIZES)
def test_reencryption_gives_a_new_message_for_the_new_key_alone(size: int) -> None:
    plain = os.urandom(size)
    Path("plain").write_bytes(plain)
    old = encrypt_file("plain", "message", key=KEY, context={"plant": "7"})
    new = reencrypt_file("message", "message", key=KEY, new_key=OTHER, context={"plant": "7"})
    assert new.message_id != old.message_id
    assert (new.context, new.recipients) == ({"plant": "7"}, ("tests/other",))
    decrypt_file("message", "back", key=OTHER, context={"plant": "7"})
    assert Path("back").read_bytes() == plain
    with pytest.raises(DecryptionError, match="no key at hand"):
        decrypt_file("message", "back", key=KEY)


def test_reencryption_can_bind_anew_and_refuses_what_is_bound_elsewhere() -> None:
    Path("plain").write_bytes(b"recipe")
    encrypt_file("plain", "message", key=KEY, context={"plant": "7"})
    with pytest.raises(DecryptionError, match="bound to 'plant' = '7'"):
        reencrypt_file("message", "new", key=KEY, new_key=OTHER, context={"plant": "8"})
    assert not Path("new").exists()
    assert reencrypt_file("message", "new", key=KEY, new_key=OTHER, new_context={"plant": "9"}).context == {
        "plant": "9"
    }


def test_a_damaged_message_is_left_as_it_was_by_reencryption() -> None:
    Path("plain").write_bytes(os.urandom(5 * FRAME))
    encrypt_file("plain", "message", key=KEY)
    harmed = bytearray(Path("message").read_bytes())
    harmed[3 * FRAME] ^= 1
    Path("message").write_bytes(harmed)
    with pytest.raises(DecryptionError, match="was changed"):
        reencrypt_file("message", "message", key=KEY, new_key=OTHER)
    assert Path("message").read_bytes() == harmed


@pytest.mark.parametrize("library", ["torch", "safetensors"])
def test_tensors_load_through_the_message_file(library: str) -> None:
    from securemfg.encryption import open_message

    create_local_key(Path("keys/dev.key"))
    if library == "torch":
        torch = pytest.importorskip("torch", reason="runs in the session that installs PyTorch")
        torch.save({"w": torch.arange(300_000)}, "plain")
        encrypt_file("plain", "message", key="local:keys/dev.key")
        with open_message("message", key="local:keys/dev.key") as file:
            assert torch.equal(torch.load(file, weights_only=True)["w"], torch.arange(300_000))
        return
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"w": numpy.arange(300_000)}, "plain")
    encrypt_file("plain", "message", key="local:keys/dev.key")
    with open_message("message", key="local:keys/dev.key") as file:
        assert (safetensors.load(file.read())["w"] == numpy.arange(300_000)).all()


def test_an_upload_to_s3_is_encrypted_on_its_way(s3_bucket: str) -> None:
    import boto3

    plain = os.urandom(12 * FRAME + 3)  # several parts of a multipart upload
    client = boto3.client("s3")
    reader = EncryptingReader(Trickle(plain), key=KEY, context={"plant": "7"})
    client.upload_fileobj(reader, s3_bucket, "model.bin")
    assert reader.message is not None
    stored = client.get_object(Bucket=s3_bucket, Key="model.bin")["Body"]
    with tempfile.TemporaryFile() as target:
        decrypt_stream(stored, target, key=KEY, context={"plant": "7"})
        target.seek(0)
        assert target.read() == plain
