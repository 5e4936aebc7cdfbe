"""The exit on another platform: the official JavaScript SDK opens what lies in the store, with nothing of this package.

The script is the one that docs/format.md shows. The SDK is installed once, at the version that
tests/vectors/node/package.json pins, into pytest's cache folder in the checkout; npm's own cache lies there too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.parts import missing
from tests.parts.mlflow_server import Store
from tests.vectors.page import snippet
from tests.vectors.reading import PLACE as VECTORS_FILE
from tests.vectors.reading import VECTORS, named

NODE = Path(__file__).resolve().parents[1] / "vectors" / "node"

pytestmark = pytest.mark.live


def run(*command: object, folder: Path, home: Path) -> str:
    """What a program of Node's says; its own words when it fails."""
    environment = {**os.environ, "HOME": str(home), "NO_COLOR": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def node_modules(request: pytest.FixtureRequest) -> Path:
    """The official JavaScript SDK, installed."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            missing(program, "install Node.js 20 or newer, with npm")
    wanted = (NODE / "package.json").read_bytes()
    cache = request.config.cache.mkdir("node")
    place = cache / hashlib.sha256(wanted).hexdigest()[:16]
    if not place.is_dir():
        with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as name:
            making = Path(name, "sdk")
            making.mkdir()
            (making / "package.json").write_bytes(wanted)
            options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", "--no-update-notifier")
            run("npm", "install", *options, "--cache", cache / "npm", folder=making, home=making)
            try:
                making.rename(place)
            except OSError:  # another process was faster
                assert place.is_dir()
    return place / "node_modules"


@pytest.fixture
def scripts(node_modules: Path, tmp_path: Path) -> Path:
    """A folder whose scripts find the SDK."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "node_modules").symlink_to(node_modules)
    (folder / "exit.mjs").write_text(snippet("js"))
    return folder


def test_javascript_sdk_opens_a_record_and_then_an_artifact_of_mlflow(
    local_store: Store, local_experiment: str, scripts: Path, tmp_path: Path
) -> None:
    import mlflow

    import securemfg

    weights = os.urandom((1 << 20) + 5)
    Path("weights.bin").write_bytes(weights)
    with securemfg.step("training"), mlflow.start_run() as started:
        mlflow.log_artifact("weights.bin", "model")
    stored = {path: data for path, data in local_store.stored().items() if started.info.run_id in path}
    ((_, record),) = ((path, data) for path, data in stored.items() if "/.securemfg/keys/" in path)
    ((_, artifact),) = ((path, data) for path, data in stored.items() if path.endswith("model/weights.bin"))
    assert weights[:4096] not in artifact
    (scripts / "record.esdk").write_bytes(record)
    (scripts / "artifact.esdk").write_bytes(artifact)
    key = Path(".securemfg/keys/default.key").absolute()
    said = run("node", "exit.mjs", "record.esdk", "artifact.esdk", "weights.bin", key, folder=scripts, home=tmp_path)
    assert (scripts / "weights.bin").read_bytes() == weights
    assert "model/weights.bin" in said


JUDGE = """
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import {
  buildClient, CommitmentPolicy, RawAesKeyringNode, RawAesWrappingSuiteIdentifier, RawRsaKeyringNode
} from '@aws-crypto/client-node'

const { decrypt } = buildClient(CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
const vectors = JSON.parse(readFileSync(process.argv[2], 'utf8'))
const whole = parts => Buffer.concat(parts.map(p => p.zeros ? Buffer.alloc(p.zeros) : Buffer.from(p, 'base64')))
const keyring = ({ kind, provider, name, key, pem }) => kind === 'rsa'
  ? new RawRsaKeyringNode({ keyNamespace: provider, keyName: name, rsaKey: { privateKey: pem }, oaepHash: 'sha256' })
  : new RawAesKeyringNode({
      keyNamespace: provider,
      keyName: name,
      unencryptedMasterKey: Uint8Array.from(Buffer.from(key, 'hex')),
      utf8Sorting: true,
      wrappingSuite: RawAesWrappingSuiteIdentifier.AES256_GCM_IV12_TAG16_NO_PADDING
    })
const found = {}
for (const { name, opened_by: keys, message } of vectors.messages) {
  for (const key of keys) {
    found[`${name}/${key}`] = await decrypt(keyring(vectors.keys[key]), whole(message)).then(
      ({ plaintext, messageHeader }) => ({
        sha256: createHash('sha256').update(plaintext).digest('hex'),
        context: { ...messageHeader.encryptionContext }
      }),
      String
    )
  }
}
for (const { name, keys, record } of vectors.records.opened) {
  let opened = whole(record)
  for (const key of [...keys].reverse()) opened = (await decrypt(keyring(vectors.keys[key]), opened)).plaintext
  found[`record ${name}`] = opened.toString('hex')
}
for (const { name, key, message } of vectors.refused) {
  found[`refused ${name}`] = await decrypt(keyring(vectors.keys[key]), whole(message)).then(() => false, () => true)
}
console.log(JSON.stringify(found))
"""

# What this reader takes and ours does not: sound messages beyond our limits, and bytes after the final frame.
TAKEN = {"65 recipients", "frame length above 64 MiB", "trailing byte", "two messages"}


@pytest.fixture(scope="module")
def judged(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the JavaScript SDK makes of every vector."""
    folder = tmp_path_factory.mktemp("judge")
    (folder / "node_modules").symlink_to(node_modules)
    (folder / "judge.mjs").write_text(JUDGE)
    found: dict[str, Any] = json.loads(run("node", "judge.mjs", VECTORS_FILE, folder=folder, home=folder))
    return found


@pytest.mark.parametrize("vector", named(VECTORS["messages"]))
def test_javascript_sdk_opens_it_with_each_key(judged: dict[str, Any], vector: dict[str, Any]) -> None:
    wanted = {"sha256": vector["plaintext"]["sha256"], "context": vector["context"]}
    for key in vector["opened_by"]:
        assert judged[f"{vector['name']}/{key}"] == wanted


def test_javascript_sdk_opens_every_record(judged: dict[str, Any]) -> None:
    for vector in VECTORS["records"]["opened"]:
        assert judged[f"record {vector['name']}"] == VECTORS["keys"]["run"]["key"]


def test_javascript_sdk_refuses_what_we_refuse_but_for_four(judged: dict[str, Any]) -> None:
    taken = {vector["name"] for vector in VECTORS["refused"] if not judged[f"refused {vector['name']}"]}
    assert taken == TAKEN
