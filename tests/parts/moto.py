"""AWS by moto, over real HTTP on loopback. Where moto is unfaithful, a test uses Stubber or a fault proxy."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest

from tests.parts import missing


@pytest.fixture(scope="session")
def _moto() -> Iterator[str]:
    try:
        from moto.server import ThreadedMotoServer
    except ImportError:
        missing("moto", "pip install 'moto[server]'")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(_moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh AWS: its endpoint, with the environment pointing every boto3 client at it."""
    reset = urllib.request.Request(f"{_moto}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=10).close()
    for name, value in {
        "AWS_ENDPOINT_URL": _moto,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return _moto


@pytest.fixture
def s3_bucket(aws: str) -> str:
    """An empty bucket."""
    import boto3

    name = "plant-artifacts"
    boto3.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    return name
