"""Where the records of run keys lie below an artifact root. Imports nothing heavy: each of MLflow's processes asks."""

from __future__ import annotations

import re
from typing import Final

from securemfg.errors import DecryptionError

FOLDER: Final = ".securemfg"
RECORDS: Final = f"{FOLDER}/keys"
MAX_RECORD: Final = 1 << 18  # bytes
_ID: Final = re.compile(r"[0-9a-f]{32}")


def record_path(key_id: str) -> str:
    """Where the record of run key `key_id` lies below its artifact root. Raises DecryptionError for a bad id."""
    if not _ID.fullmatch(key_id):
        raise DecryptionError(f"{key_id[:80]!r} is not the id of a run key")
    return f"{RECORDS}/{key_id}.esdk"
