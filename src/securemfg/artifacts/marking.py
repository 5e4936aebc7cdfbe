"""What people see in MLflow of a run whose artifacts are encrypted: a tag, and a note where there is none."""

from __future__ import annotations

import contextlib
from typing import Final

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from securemfg.artifacts.location import Root

TAG: Final = "securemfg.encrypted"
VALUE: Final = "AES-256-GCM, AWS Encryption SDK message format 2 (0x0478)"
_NOTE_TAG: Final = "mlflow.note.content"
NOTE: Final = (
    "**Encrypted by securemfg.** The artifacts of this run are stored as ciphertext, so their previews here are "
    "unreadable. With a key: `securemfg artifacts download runs:/{id}/ -o FOLDER`, or load them in Python with "
    "securemfg active."
)


def mark(root: Root, tracking_uri: str | None) -> None:
    """Say on a run's or a logged model's page that what it holds is encrypted. A page that cannot be had is no failure:
    the artifacts are encrypted whether or not it says so.
    """
    with contextlib.suppress(MlflowException, AttributeError):  # older clients know no logged models
        client = MlflowClient(tracking_uri=tracking_uri)
        if root.kind == "run":
            known = client.get_run(root.id).data.tags
            if TAG not in known:
                client.set_tag(root.id, TAG, VALUE)
            if not known.get(_NOTE_TAG):
                client.set_tag(root.id, _NOTE_TAG, NOTE.format(id=root.id))
        elif root.kind == "model":
            client.set_logged_model_tags(root.id, {TAG: VALUE})
