"""Makes tests/vectors/securemfg_vectors.json: `python -m tests.vectors.generate`, from the repository's root.

The same bytes every time: see `writing`. The RSA key alone was made at random, once; it is taken from the file itself.
Every key in it is public and protects nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.vectors.writing import (
    MIB,
    Aes,
    Draft,
    Other,
    Pairs,
    Recipient,
    Rsa,
    drawn,
    framed,
    local,
    plaintext_of_zeros,
    serialized,
    tagged,
    write,
    write_without_commitment,
)

PLACE = Path(__file__).with_name("securemfg_vectors.json")
_LONG_ZEROS = re.compile(rb"\0{1024,}")

LOCAL = local("local")
OTHER = local("other")
RUN = Aes("securemfg-run", drawn("run key's id", 16).hex(), drawn("key/run"))
ROOT = [("securemfg:kind", "run"), ("securemfg:root", drawn("run id", 16).hex())]
# Its keys are ordered otherwise by a host's language, and by UTF-16 (the last two)
PLANT = [("plant", "7"), ("größe", "groß"), ("anlage", "Müller-Werk"), ("leer", ""), ("𝄞", "clef"), ("ｚ", "wide")]
KMS = Other("aws-kms", b"arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000", 184)
TRANSIT = Other("vault-transit", b"transit/ai-artifacts", 89)


def parts(message: bytes) -> list[str | dict[str, int]]:
    """A message as base64 texts, with long runs of zero bytes by their number."""
    found: list[str | dict[str, int]] = []
    at = 0
    for run in _LONG_ZEROS.finditer(message):
        found += [base64.b64encode(message[at : run.start()]).decode(), {"zeros": len(run[0])}]
        at = run.end()
    return [*found, base64.b64encode(message[at:]).decode()]


def _plaintext(plaintext: bytes) -> dict[str, object]:
    stated: dict[str, object] = {"length": len(plaintext), "sha256": hashlib.sha256(plaintext).hexdigest()}
    return {**stated, "hex": plaintext.hex()} if len(plaintext) <= 256 else stated


def _keys(escrow: Rsa) -> dict[str, dict[str, str]]:
    pem = escrow.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    aes = {"local": LOCAL, "other": OTHER, "run": RUN, "impostor": _impostor()}
    return {
        **{n: {"kind": "aes", "provider": k.provider, "name": k.name, "key": k.key.hex()} for n, k in aes.items()},
        "escrow": {"kind": "rsa", "provider": "securemfg-rsa", "name": escrow.name, "pem": pem},
    }


def _impostor() -> Aes:
    return Aes(LOCAL.provider, LOCAL.name, drawn("key/impostor"))


def _context(pairs: Pairs) -> dict[str, str]:
    bound = serialized(pairs)
    return {
        "pairs": dict(pairs),  # type: ignore[dict-item]
        "serialized": bound.hex(),
        "transit_associated_data": base64.b64encode(b"securemfg" + bound).decode(),
    }


# -- what opens -------------------------------------------------------------------------------------------------------


def _good(
    name: str,
    comment: str,
    plaintext: bytes,
    recipients: list[Recipient],
    opened_by: list[str],
    *,
    context: Pairs = (),
    written_here: bool = True,
    **more: Any,
) -> dict[str, object]:
    draft = write(name, plaintext, recipients, context=context, **more)
    return {
        "name": name,
        "comment": comment,
        "opened_by": opened_by,
        "context": dict(context),
        "frame_length": more.get("frame_length", MIB),
        "as_securemfg_writes": written_here,
        "data_key": draft.data_key.hex(),
        "message_id": draft.message_id.hex(),
        "derived_key": draft.derived_key.hex(),
        "commitment": draft.commitment.hex(),
        "plaintext": _plaintext(plaintext),
        "sha256": hashlib.sha256(draft.message).hexdigest(),
        "message": parts(draft.message),
    }


def _messages(escrow: Rsa) -> list[dict[str, object]]:
    artifact = [*ROOT, ("securemfg:path", "model/model.pkl")]
    two = plaintext_of_zeros("two frames", MIB, b"final")
    full = plaintext_of_zeros("one full frame and one byte", MIB, b"!")
    short = drawn("short frames", 40)
    spoiled = Other(LOCAL.provider, LOCAL.name.encode() + bytes.fromhex("000000800000000c") + drawn("no iv", 12), 48)
    other = {"written_here": False}
    return [
        _good("empty", "no plaintext and no context", b"", [LOCAL], ["local"]),
        _good("small", "a context that is sorted by its UTF-8 bytes", b"press 7", [LOCAL], ["local"], context=PLANT),
        _good("two frames", "one full frame (ciphertext of zeros), then five bytes", two, [LOCAL], ["local"]),
        _good("one full frame and one byte", "the shortest with two frames", full, [OTHER], ["other"], context=PLANT),
        _good(
            "escrow", "RSA-OAEP with SHA-256, which binds no context", b"recipe", [escrow], ["escrow"], context=PLANT
        ),
        _good(
            "several recipients",
            "four kinds of key, two of which nobody can ask here: each of the others opens it alone",
            b"for many",
            [KMS, TRANSIT, escrow, OTHER, LOCAL],
            ["escrow", "other", "local"],
            context=PLANT,
        ),
        _good(
            "spoiled recipient first",
            "the first recipient names the right key and does not open: the second one does",
            b"second try",
            [spoiled, LOCAL],
            ["local"],
        ),
        _good("artifact", "wrapped by a run key, bound to its place", b"weights", [RUN], ["run"], context=artifact),
        _good("short frames", "16 bytes each, the last one 8", short, [LOCAL], ["local"], frame_length=16, **other),
        _good("full final frame", "2 x 16 bytes", short[:32], [LOCAL], ["local"], frame_length=16, **other),
        _good(
            "empty final frame",
            "2 x 16 bytes and an empty final frame, as some writers end",
            short[:32],
            [LOCAL],
            ["local"],
            frame_length=16,
            empty_final=True,
            **other,
        ),
    ]


# -- what is refused --------------------------------------------------------------------------------------------------


def _flipped(message: bytes, at: int) -> bytes:
    return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


def _retagged(draft: Draft, header: bytes) -> bytes:
    """The message with another header, whose tag is right: as a writer with the data key could make it."""
    return header + tagged(draft.derived_key, header) + b"".join(draft.frames)


def _refused(escrow: Rsa) -> list[dict[str, object]]:
    text = drawn("short frames", 40)
    three = write("refused", text, [LOCAL], context=PLANT, frame_length=16)
    whole, start = three.message, three.header + three.tag
    first, second, last = three.frames
    escrowed = write("refused, escrow", b"x", [escrow], context=PLANT)
    foreign = write("refused", text, [LOCAL], context=PLANT, frame_length=16, commitment=drawn("another commitment"))
    no_frame = write("frame length 0", b"x", [LOCAL])
    one = serialized([("plant", "7")])

    def numbered(sequence: int, part: bytes, *, final: bool = False) -> bytes:
        return framed(three.derived_key, three.message_id, sequence, part, final=final)

    def bound(raw: bytes) -> bytes:
        return write(f"context {raw.hex()}", b"x", [LOCAL], raw_context=raw).message

    def in_order_of(*pairs: tuple[str, str]) -> bytes:
        return bound(serialized(pairs, in_order=False))

    def value_of_plant(message: bytes) -> bytes:
        return _flipped(message, message.index(b"plant\0\x017") + 7)

    long_frames = write("long frames", b"x", [LOCAL], claimed_frame_length=(1 << 26) + 1).message
    many = write("65 recipients", b"x", [KMS] * 64 + [LOCAL]).message
    none = write("no recipient", b"x", []).message
    old = write_without_commitment("v1", b"x", [LOCAL])
    frame_0 = _retagged(no_frame, no_frame.header[:-36] + bytes(4) + no_frame.header[-32:])
    unknown = _retagged(no_frame, no_frame.header[:-37] + b"\3" + no_frame.header[-36:])
    return [
        _bad(
            "context changed",
            "key",
            "a bit of a value: the context is in the wrap of the data key",
            value_of_plant(whole),
        ),
        _bad(
            "context changed, escrow", "header tag", "RSA binds no context", value_of_plant(escrowed.message), "escrow"
        ),
        _bad("another key of that name", "key", "its bytes are others", whole, "impostor"),
        _bad("wrapped key changed", "key", "one bit", _flipped(whole, len(three.header) - 38)),
        _bad("commitment to another key", "commitment", "all else is right, with a tag over it", foreign.message),
        _bad("header tag changed", "header tag", "one bit", _flipped(whole, len(start) - 1)),
        _bad("frame IV changed", "frame tag", "one bit of the stored IV", _flipped(whole, len(start) + 15)),
        _bad("ciphertext changed", "frame tag", "one bit in frame 1", _flipped(whole, len(start) + 16)),
        _bad("frame tag changed", "frame tag", "one bit in frame 1", _flipped(whole, len(start) + len(first) - 1)),
        _bad("final tag changed", "frame tag", "the message's last bit", _flipped(whole, len(whole) - 1)),
        _bad("frames swapped", "sequence", "2 before 1, both as they were", start + second + first + last),
        _bad("frame left out", "sequence", "1, then the final one, which says 3", start + first + last),
        _bad("frame twice", "sequence", "1, 1, 2, 3", start + first + first + second + last),
        _bad("wrong sequence", "sequence", "1, 3, 3, all tags right", start + first + numbered(3, text[16:32]) + last),
        _bad(
            "final frame's wrong sequence",
            "sequence",
            "1, 2, 2, all tags right",
            start + first + second + numbered(2, text[32:], final=True),
        ),
        _bad(
            "final frame too long",
            "size",
            "17 bytes where frames have 16, all tags right",
            start + first + second + numbered(3, bytes(17), final=True),
        ),
        _bad("no final frame", "size", "it ends after frame 2", start + first + second),
        _bad("cut by one byte", "size", "the last tag has 15 bytes", whole[:-1]),
        _bad("header alone", "size", "no frame", start),
        _bad("trailing byte", "size", "a zero byte after the final frame", whole + b"\0"),
        _bad("two messages", "size", "one after the other", whole + whole),
        _bad("context key twice", "context", "all tags right", in_order_of(("plant", "7"), ("plant", "8"))),
        _bad("context out of order", "context", "all tags right", in_order_of(("b", "1"), ("a", "2"))),
        _bad("context with slack", "context", "one byte after the last pair", bound(one + b"\0")),
        _bad("context of no pairs", "context", "a count of 0: an empty context has no bytes", bound(bytes(2))),
        _bad("context not UTF-8", "context", "a key with byte ff", bound(one.replace(b"plant", b"pl\xffnt"))),
        _bad("no recipient", "recipients", "a count of 0", none),
        _bad("65 recipients", "recipients", "64 are read; the last one is the local key", many, sound=True),
        _bad("frame length 0", "frame length", "in a framed body", frame_0),
        _bad("frame length above 64 MiB", "frame length", "67,108,865 bytes", long_frames, sound=True),
        _bad("content type 3", "content type", "neither framed nor unframed", unknown),
        _bad("suite without commitment", "suite", "version 1, suite 0x0178", old, sound=True),
        _bad("suite of version 1", "suite", "version 2 with suite 0x0178", b"\x02\x01\x78" + whole[3:]),
        _bad("not a message", "no message", "text", b"epoch,loss\n1,0.25\n"),
        _bad("nothing", "size", "no bytes", b""),
    ]


def _bad(
    name: str, reason: str, comment: str, message: bytes, key: str = "local", *, sound: bool = False
) -> dict[str, object]:
    """`sound`: another reader may open it; it is refused here for a limit or for its suite alone."""
    stated = {"name": name, "comment": comment, "reason": reason, "key": key, "sound": sound}
    return {**stated, "message": parts(message)}


# -- run keys ---------------------------------------------------------------------------------------------------------


def _record(draw: str, groups: list[tuple[str, list[Recipient]]], *, version: int = 1, **changed: str) -> bytes:
    """The record of the run key, one layer for each group. `changed`: pairs as they should not be, by short name."""
    record = RUN.key
    for depth, (group, recipients) in enumerate(groups, start=1):
        pairs = {
            **dict(ROOT),
            "securemfg:purpose": "run-key",
            "securemfg:run-key": RUN.name,
            "securemfg:version": str(version),
            "securemfg:depth": str(depth),
            "securemfg:group": group,
            **{f"securemfg:{name.strip('_').replace('_', '-')}": value for name, value in changed.items()},
        }
        record = write(f"{draw}/{depth}", record, recipients, context=list(pairs.items())).message
    return record


def _records(escrow: Rsa) -> dict[str, object]:
    plain = [("default", [LOCAL])]
    nested: list[tuple[str, list[Recipient]]] = [("default", [LOCAL, escrow]), ("operator_feedback", [OTHER])]

    def opened(name: str, comment: str, keys: list[str], groups: Any, *, version: int = 1) -> dict[str, object]:
        stated = {"name": name, "comment": comment, "keys": keys, "version": version}
        names = [group for group, _ in groups]
        return {**stated, "groups": names, "record": parts(_record(name, groups, version=version))}

    def refused(name: str, comment: str, reason: str, record: bytes) -> dict[str, object]:
        return {"name": name, "comment": comment, "reason": reason, "keys": ["local"], "record": parts(record)}

    too_deep = _record("deeper than it is", plain, depth="2")
    same_depth = _record("twice as deep", [*plain, ("other", [LOCAL])], depth="2")
    return {
        "path": f".securemfg/keys/{RUN.name}.esdk",
        "run_key": "run",
        "binding": dict(ROOT),
        "artifact": "artifact",
        "opened": [
            opened("one layer", "a record as it is made first", ["local"], plain),
            opened(
                "two layers", "a key of each group is needed; the outer layer opens first", ["local", "other"], nested
            ),
            opened(
                "two layers, escrow",
                "the same record, with the escrow key in place of the local one",
                ["escrow", "other"],
                nested,
            ),
            opened(
                "rewrapped",
                "the same run key for another recipient, version 2",
                ["other"],
                [("default", [OTHER])],
                version=2,
            ),
        ],
        "refused": [
            refused("of another root", "copied from another run", "binding", _record("root", plain, root="0" * 32)),
            refused(
                "of another id",
                "stored under a name that is not its own",
                "binding",
                _record("id", plain, run_key="0" * 32),
            ),
            refused(
                "of another purpose",
                "a message that is no record",
                "binding",
                _record("purpose", plain, purpose="note"),
            ),
            refused(
                "deeper than it is", "it claims two layers; what the first holds is no message", "no message", too_deep
            ),
            refused("of one depth twice", "both of its layers say 2", "binding", same_depth),
            refused("of no depth", "depth 0", "depth", _record("depth", plain, depth="0")),
            refused("of depth 17", "16 layers are read", "depth", _record("deepest", plain, depth="17")),
            refused("of no version", "version 0", "record version", _record("version", plain, version_="0")),
            refused("of two groups, one key", "the outer layer's key is missing", "key", _record("two layers", nested)),
        ],
    }


# -- the file ---------------------------------------------------------------------------------------------------------


def _escrow() -> Rsa:
    if PLACE.exists():
        pem = json.loads(PLACE.read_text(encoding="utf-8"))["keys"]["escrow"]["pem"].encode()
        private = serialization.load_pem_private_key(pem, password=None)
        assert isinstance(private, rsa.RSAPrivateKey)
    else:
        private = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    der = private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Rsa(hashlib.sha256(der).hexdigest()[:16], private)


def document() -> str:
    """The file's text."""
    escrow = _escrow()
    vectors = {
        "about": "Messages as docs/format.md describes them, and what a reader refuses. Made by tests/vectors/generate.py. "
        "Every key in here is public: use none of them. A message is a list of base64 texts and runs of zero bytes.",
        "keys": _keys(escrow),
        "contexts": [_context(pairs) for pairs in ([], [("a", "")], PLANT, ROOT)],
        "messages": _messages(escrow),
        "refused": _refused(escrow),
        "records": _records(escrow),
    }
    return json.dumps(vectors, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PLACE.write_text(document(), encoding="utf-8")
