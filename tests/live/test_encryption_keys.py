"""Keys of services and escrow keys: real OpenBao, KMS on moto (Stubber where moto is unfaithful), the official SDK as oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from securemfg.encryption import create_local_key, decrypt_bytes, encrypt_bytes, open_key
from securemfg.encryption.aws_kms import AwsKmsKey
from securemfg.encryption.keys import MAX_REMOTE, KeyServices
from securemfg.encryption.message import MAX_RECIPIENTS, EncryptedDataKey
from securemfg.encryption.rsa_oaep import PROVIDER as RSA
from securemfg.encryption.vault_transit import VaultTransitKey
from securemfg.errors import ConfigError, DecryptionError, EncryptionError, KeyUnavailable

CONTEXT = {"plant": "7", "líne": "ä"}
SIZES = [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 1]


def official() -> tuple[Any, Any]:
    """The official SDK's client and its material providers."""
    sdk = pytest.importorskip(
        "aws_encryption_sdk", reason="needs the AWS Encryption SDK: pip install 'aws-encryption-sdk[MPL]'"
    )
    from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
    from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig

    policy = sdk.CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
    return sdk.EncryptionSDKClient(commitment_policy=policy), AwsCryptographicMaterialProviders(
        config=MaterialProvidersConfig()
    )


def suite() -> Any:
    import aws_encryption_sdk

    return aws_encryption_sdk.Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY


# -- KMS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kms_arn(aws: str) -> str:
    import boto3

    return str(boto3.client("kms").create_key()["KeyMetadata"]["Arn"])


def test_kms_messages_open_both_ways_with_the_official_keyring(kms_arn: str) -> None:
    import boto3
    from aws_cryptographic_material_providers.mpl.models import CreateAwsKmsKeyringInput

    client, providers = official()
    keyring = providers.create_aws_kms_keyring(
        CreateAwsKmsKeyringInput(kms_key_id=kms_arn, kms_client=boto3.client("kms"))
    )
    key = open_key(f"aws-kms:{kms_arn}")
    for size in SIZES:
        data = bytes(size)
        plaintext, _ = client.decrypt(source=encrypt_bytes(data, key=key, context=CONTEXT), keyring=keyring)
        assert plaintext == data
        theirs, _ = client.encrypt(
            source=data, keyring=keyring, encryption_context=CONTEXT, algorithm=suite(), frame_length=1 << 20
        )
        assert decrypt_bytes(theirs, key=key, context=CONTEXT) == data


def test_kms_is_asked_once_to_write_and_once_to_read_and_gets_the_context(kms_arn: str) -> None:
    import boto3

    calls: list[tuple[str, dict[str, Any]]] = []

    class Counting:
        def __init__(self, region: str) -> None:
            assert region == "eu-central-1"
            self.kms = boto3.client("kms", region_name=region)

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(**arguments: Any) -> Any:
                calls.append((name, arguments))
                return getattr(self.kms, name)(**arguments)

            return call

    key = AwsKmsKey(kms_arn, client=Counting)
    message = encrypt_bytes(b"x", key=key, context=CONTEXT)
    decrypt_bytes(message, key=key)
    assert [name for name, _ in calls] == ["generate_data_key", "decrypt"]
    assert all(arguments["EncryptionContext"] == CONTEXT for _, arguments in calls)
    assert calls[1][1]["KeyId"] == kms_arn


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("DisabledException", "it is disabled"),
        ("KMSInvalidStateException", "pending deletion"),
        ("AccessDeniedException", r"the role needs kms:GenerateDataKey"),
        ("ThrottlingException", "throttling"),
        ("NotFoundException", "does not exist"),
        ("SomethingNew", "KMS answered SomethingNew"),
    ],
)
def test_kms_refusals_say_why_and_nothing_is_written(code: str, said: str) -> None:
    """By Stubber: moto lets disabled keys and those pending deletion work, and knows no throttling."""
    import boto3
    from botocore.stub import Stubber

    arn = "arn:aws:kms:eu-central-1:123456789012:key/1"
    kms = boto3.client("kms", region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")
    with Stubber(kms) as stub:
        stub.add_client_error("generate_data_key", code)
        with pytest.raises(KeyUnavailable, match=said):
            encrypt_bytes(b"x", key=AwsKmsKey(arn, origin="plant.toml", client=lambda _: kms))
        stub.assert_no_pending_responses()


def test_kms_that_answers_for_another_key_is_refused() -> None:
    import boto3
    from botocore.stub import Stubber

    arn = "arn:aws:kms:eu-central-1:123456789012:key/1"
    kms = boto3.client("kms", region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")
    with Stubber(kms) as stub:
        stub.add_response(
            "generate_data_key", {"KeyId": arn[:-1] + "2", "Plaintext": bytes(32), "CiphertextBlob": b"blob"}
        )
        with pytest.raises(KeyUnavailable, match="answered for key"):
            encrypt_bytes(b"x", key=AwsKmsKey(arn, client=lambda _: kms))


def test_kms_out_of_reach_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from botocore.config import Config

    def client(region: str) -> Any:
        return boto3.client(
            "kms", region_name=region, endpoint_url="http://127.0.0.1:9", aws_access_key_id="x",
            aws_secret_access_key="x", config=Config(retries={"total_max_attempts": 1}, connect_timeout=1),
        )  # fmt: skip

    key = AwsKmsKey("arn:aws:kms:eu-central-1:123456789012:key/1", client=client)
    with pytest.raises(KeyUnavailable, match="cannot be reached"):
        encrypt_bytes(b"x", key=key)


def test_a_changed_kms_ciphertext_or_context_does_not_open(kms_arn: str) -> None:
    key = open_key(f"aws-kms:{kms_arn}")
    data_key, edk = key.generate(CONTEXT)  # type: ignore[attr-defined]
    assert key.unwrap(edk, CONTEXT) == data_key  # type: ignore[attr-defined]
    with pytest.raises(DecryptionError, match="does not open it"):
        key.unwrap(edk, {"plant": "8"})  # type: ignore[attr-defined]
    damaged = EncryptedDataKey(edk.provider, edk.info, edk.ciphertext[:-1] + bytes([edk.ciphertext[-1] ^ 1]))
    with pytest.raises(DecryptionError, match="does not open it"):
        key.unwrap(damaged, CONTEXT)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["alias/plant", "1234-5678", "arn:aws:kms:eu-central-1:123456789012:alias/plant", ""])
def test_only_key_arns_are_taken(name: str) -> None:
    with pytest.raises(ConfigError):
        open_key(f"aws-kms:{name}")


# -- Vault transit ----------------------------------------------------------------------------------------------------


@pytest.fixture
def transit(openbao: Any) -> str:
    """A transit key of a real OpenBao."""
    from tests.parts.openbao import unique

    if "transit/" not in openbao.api("GET", "sys/mounts")["data"]:
        openbao.api("POST", "sys/mounts/transit", {"type": "transit"})
    name = unique("artifacts")
    openbao.api("POST", f"transit/keys/{name}", {"type": "aes256-gcm96"})
    return f"transit/{name}"


def vault(openbao: Any, folder: Path, rules: dict[str, list[str]] | None = None) -> Any:
    from securemfg.credentials.vault_client import VaultClient
    from securemfg.settings import VaultAuth, VaultSettings

    role = openbao.role(folder, rules=rules or {"transit/*": ["update"]})
    auth = VaultAuth(role_id=role.role_id, secret_id_file=role.secret_id_file)
    return VaultClient(VaultSettings(address=openbao.address, auth=auth, timeout="2s"))


def test_transit_messages_round_trip_and_survive_key_rotation(openbao: Any, transit: str, tmp_path: Path) -> None:
    client = vault(openbao, tmp_path)
    key = open_key(f"vault-transit:{transit}", services=KeyServices(vault=lambda: client))
    messages = {size: encrypt_bytes(bytes(size), key=key, context=CONTEXT) for size in SIZES}
    openbao.api("POST", f"{transit.replace('/', '/keys/')}/rotate", {})
    for size, message in messages.items():
        assert decrypt_bytes(message, key=key, context=CONTEXT) == bytes(size)
    assert decrypt_bytes(encrypt_bytes(b"new", key=key), key=key) == b"new"
    openbao.api("POST", f"{transit.replace('/', '/keys/')}/config", {"min_decryption_version": 2})
    with pytest.raises(DecryptionError, match="version|too old|disallowed"):
        decrypt_bytes(messages[1], key=key)


def test_a_transit_wrap_is_bound_to_its_context(openbao: Any, transit: str, tmp_path: Path) -> None:
    client = vault(openbao, tmp_path)
    key = VaultTransitKey(transit, vault=lambda: client)
    data_key, edk = key.generate(CONTEXT)
    assert key.unwrap(edk, CONTEXT) == data_key
    assert key.unwrap(key.wrap(data_key, CONTEXT), CONTEXT) == data_key
    for other in ({}, {"plant": "8"}):
        with pytest.raises(DecryptionError, match="does not open it"):
            key.unwrap(edk, other)


def test_a_vault_that_ignores_associated_data_is_refused() -> None:
    import base64

    class Careless:
        def request(self, method: str, path: str, body: Any = None, *, what: str = "") -> Any:
            return {"data": {"plaintext": base64.b64encode(bytes(32)).decode(), "ciphertext": "vault:v1:AAAA"}}

    with pytest.raises(KeyUnavailable, match="ignores associated data"):
        encrypt_bytes(b"x", key=VaultTransitKey("transit/artifacts", vault=Careless))


def test_transit_without_the_right_says_which_one(openbao: Any, transit: str, tmp_path: Path) -> None:
    client = vault(openbao, tmp_path, {"transit/decrypt/*": ["update"]})
    with pytest.raises(KeyUnavailable, match=r"policy needs update on transit/datakey/plaintext"):
        encrypt_bytes(b"x", key=VaultTransitKey(transit, vault=lambda: client))


def test_transit_sealed_in_mid_work_is_a_typed_error_and_works_again(openbao_alone: Any, tmp_path: Path) -> None:
    openbao_alone.api("POST", "sys/mounts/transit", {"type": "transit"})
    openbao_alone.api("POST", "transit/keys/a", {})
    client = vault(openbao_alone, tmp_path)
    key = VaultTransitKey("transit/a", vault=lambda: client)
    message = encrypt_bytes(b"x", key=key)
    openbao_alone.seal()
    with pytest.raises(EncryptionError, match="cannot be used"):
        encrypt_bytes(b"y", key=key)
    with pytest.raises(DecryptionError, match="cannot be used"):
        decrypt_bytes(message, key=key)
    openbao_alone.unseal()
    assert decrypt_bytes(message, key=key) == b"x"


def test_a_workflow_encrypts_artifacts_for_transit_with_one_call(
    openbao: Any, transit: str, tmp_path: Path, local_store: Any, local_experiment: str
) -> None:
    import mlflow

    import securemfg

    role = openbao.role(tmp_path, rules={"transit/*": ["update"]})
    Path("securemfg.toml").write_text(
        f'[keys]\ndefault = "vault-transit:{transit}"\n[vault]\naddress = "{openbao.address}"\n'
        f'auth = {{ role_id = "{role.role_id}", secret_id_file = "{role.secret_id_file}" }}\n'
    )
    with securemfg.step("training"), mlflow.start_run() as run:
        for number in range(5):
            mlflow.log_text(f"text {number}", f"{number}.txt")
        assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/3.txt") == "text 3"
    records = [path for path in local_store.stored() if run.info.run_id in path and "/.securemfg/keys/" in path]
    assert len(records) == 1
    assert not any(b"text 3" in data for data in local_store.stored().values())


# -- RSA escrow -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rsa_pair() -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ), private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def escrow(rsa_pair: tuple[bytes, bytes]) -> tuple[str, str]:
    """Key texts: the public half, and the private one as it comes out of the safe."""
    Path("safe.pem").write_bytes(rsa_pair[0])
    Path("safe.pem").chmod(0o600)
    Path("escrow.pem").write_bytes(rsa_pair[1])
    return "rsa:escrow.pem", "rsa:safe.pem"


def test_escrow_opens_what_the_lost_key_does_not(escrow: tuple[str, str]) -> None:
    local = create_local_key(Path("keys/dev.key"))
    message = encrypt_bytes(b"the recipe", key=[local, escrow[0]])
    with pytest.raises(DecryptionError, match="no key at hand"):
        decrypt_bytes(message, key=escrow[0])  # the public half reads nothing
    assert decrypt_bytes(message, key=escrow[1]) == b"the recipe"


def test_rsa_messages_open_both_ways_with_the_official_keyring(
    escrow: tuple[str, str], rsa_pair: tuple[bytes, bytes]
) -> None:
    from aws_cryptographic_material_providers.mpl.models import CreateRawRsaKeyringInput, PaddingScheme

    client, providers = official()
    key = open_key(escrow[1])
    keyring = providers.create_raw_rsa_keyring(
        CreateRawRsaKeyringInput(
            key_namespace=RSA,
            key_name=key.name,  # type: ignore[attr-defined]
            padding_scheme=PaddingScheme.OAEP_SHA256_MGF1,
            public_key=rsa_pair[1],
            private_key=rsa_pair[0],
        )
    )
    for size in SIZES:
        data = bytes(size)
        assert client.decrypt(source=encrypt_bytes(data, key=escrow[0], context=CONTEXT), keyring=keyring)[0] == data
        theirs, _ = client.encrypt(source=data, keyring=keyring, encryption_context=CONTEXT, algorithm=suite())
        assert decrypt_bytes(theirs, key=escrow[1], context=CONTEXT) == data


def test_bad_rsa_keys_are_refused_with_the_reason(escrow: tuple[str, str]) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    def public(key: Any) -> bytes:
        return bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    cases = {
        b"no key": "holds no RSA key",
        public(rsa.generate_private_key(public_exponent=65537, key_size=2048)): "2048 bits",
        public(ec.generate_private_key(ec.SECP256R1())): "another kind",
    }
    for pem, said in cases.items():
        Path("bad.pem").write_bytes(pem)
        with pytest.raises(KeyUnavailable, match=said):
            open_key("rsa:bad.pem")
    Path("safe.pem").chmod(0o644)
    with pytest.raises(KeyUnavailable, match="can be read by others"):
        open_key(escrow[1])
    with pytest.raises(KeyUnavailable, match="cannot be read"):
        open_key("rsa:absent.pem")


# -- several recipients -----------------------------------------------------------------------------------------------


def test_a_recipient_that_fails_does_not_stop_the_next(kms_arn: str, tmp_path: Path) -> None:
    import boto3

    local = create_local_key(Path("keys/dev.key"))
    kms = open_key(f"aws-kms:{kms_arn}")
    message = encrypt_bytes(b"x", key=[kms, local])

    def broken(_: str) -> Any:
        return boto3.client("kms", endpoint_url="http://127.0.0.1:9", region_name="eu-central-1")

    assert decrypt_bytes(message, key=[AwsKmsKey(kms_arn, client=broken), local]) == b"x"


def test_services_are_asked_at_most_sixteen_times_for_one_message() -> None:
    asked: list[EncryptedDataKey] = []

    class Slow:
        remote = True

        def wrap(self, data_key: bytes, context: Any) -> EncryptedDataKey:
            return EncryptedDataKey("slow", len(asked).to_bytes(2), data_key)

        def matches(self, edk: EncryptedDataKey) -> bool:
            return edk.provider == "slow"

        def unwrap(self, edk: EncryptedDataKey, context: Any) -> bytes:
            asked.append(edk)
            raise KeyUnavailable("not today")

    key = Slow()
    message = encrypt_bytes(b"x", key=[key] * MAX_RECIPIENTS)
    with pytest.raises(DecryptionError, match=f"not asked, after {MAX_REMOTE} others"):
        decrypt_bytes(message, key=key)
    assert len(asked) == MAX_REMOTE
