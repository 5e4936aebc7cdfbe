"""The official Python SDK with the vectors' keys."""

from __future__ import annotations

from typing import Any

from tests.parts import missing
from tests.vectors.reading import VECTORS

try:
    import aws_encryption_sdk
    from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
    from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
    from aws_cryptographic_material_providers.mpl.models import (
        AesWrappingAlg,
        CreateRawAesKeyringInput,
        CreateRawRsaKeyringInput,
        PaddingScheme,
    )
except ImportError:
    aws_encryption_sdk = None


def needed() -> None:
    if aws_encryption_sdk is None:
        missing("the official SDK", "pip install 'aws-encryption-sdk[MPL]'")


def client(policy: str = "REQUIRE_ENCRYPT_REQUIRE_DECRYPT") -> Any:
    return aws_encryption_sdk.EncryptionSDKClient(
        commitment_policy=getattr(aws_encryption_sdk.CommitmentPolicy, policy)
    )


def keyring(name: str) -> Any:
    """The keyring of one of the vectors' keys."""
    stated = VECTORS["keys"][name]
    providers = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    if stated["kind"] == "rsa":
        return providers.create_raw_rsa_keyring(
            CreateRawRsaKeyringInput(
                key_namespace=stated["provider"],
                key_name=stated["name"],
                padding_scheme=PaddingScheme.OAEP_SHA256_MGF1,
                private_key=stated["pem"].encode(),
            )
        )
    return providers.create_raw_aes_keyring(
        CreateRawAesKeyringInput(
            key_namespace=stated["provider"],
            key_name=stated["name"],
            wrapping_key=bytes.fromhex(stated["key"]),
            wrapping_alg=AesWrappingAlg.ALG_AES256_GCM_IV12_TAG16,
        )
    )
