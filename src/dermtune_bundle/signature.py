"""Who made a bundle: an Ed25519 signature (RFC 8032) of its SHA256SUMS, hence of every byte in it."""

import base64
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dermtune_bundle.container import CHECKSUMS, SIGNATURE
from dermtune_bundle.errors import BundleError, DermtuneError
from dermtune_bundle.files import atomic_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_CONTEXT: Final = b"dermtune bundle, version 1\n"  # the key signs nothing else that looks like this
_LINE = re.compile(r"ed25519 (?P<key>[0-9a-f]{16}) (?P<signature>[A-Za-z0-9+/]{86}==)\n")


def make_keys(stem: Path) -> str:
    """Write a new pair of keys: STEM.key, to sign with and to keep secret, and STEM.pub, to give away.

    Returns:
        The public key's id, 16 hexadecimal digits.

    Raises:
        DermtuneError: one of the files exists, or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    secret, public = Path(f"{stem}.key"), Path(f"{stem}.pub")
    if present := [str(path) for path in (secret, public) if path.exists()]:
        raise DermtuneError(
            f"{present[0]}: exists; a key that is lost cannot be made again: choose a new name"
        )
    key = Ed25519PrivateKey.generate()
    try:
        secret.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
        with atomic_path(public) as temporary:
            temporary.write_bytes(
                key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
            )
    except OSError as error:
        raise DermtuneError(f"{secret}: cannot be written: {error.strerror}") from error
    return _key_id(key.public_key())


def sign(sums: bytes, key: Path) -> bytes:
    """The content of SHA256SUMS.sig.

    Args:
        sums: the content of SHA256SUMS.
        key: the file of a private key.

    Raises:
        DermtuneError: the file holds no such key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    secret: object = _load(key, lambda data: load_pem_private_key(data, password=None))
    if not isinstance(secret, Ed25519PrivateKey):
        raise DermtuneError(f"{key}: no private Ed25519 key; `dermtune keygen` makes one")
    signature = base64.b64encode(secret.sign(_CONTEXT + sums)).decode()
    return f"ed25519 {_key_id(secret.public_key())} {signature}\n".encode()


def claimed_key(files: dict[str, bytes], *, source: Path) -> str | None:
    """The id of the key that a bundle's signature claims, unchecked; None: it bears none.

    Raises:
        BundleError: what it bears is no signature.
    """
    return _parse_signature(files, source)[0] if SIGNATURE in files else None


def _parse_signature(files: dict[str, bytes], source: Path) -> tuple[str, bytes]:
    """Key id and signature, of one spelling alone."""
    match = _LINE.fullmatch(files[SIGNATURE].decode("ascii", errors="replace"))
    signature = base64.b64decode(match["signature"]) if match else b""
    if match is None or base64.b64encode(signature).decode() != match["signature"]:
        raise BundleError(
            f"{source / SIGNATURE}: no signature; the bundle is damaged or was changed: fetch it again"
        )
    return match["key"], signature


def check_signature(files: dict[str, bytes], key: Path, *, source: Path) -> str:
    """Hold a bundle's signature against a public key.

    Args:
        files: the bundle's, which match their SHA256SUMS.
        key: the file of the public key.
        source: what error messages call the bundle.

    Returns:
        The key's id.

    Raises:
        BundleError: there is no signature, it is another key's, or it is not of these bytes.
        DermtuneError: the file holds no public key.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public: object = _load(key, load_pem_public_key)
    if not isinstance(public, Ed25519PublicKey):
        raise DermtuneError(f"{key}: no public Ed25519 key; ask who sent you the bundle for theirs")
    where = source / SIGNATURE
    if SIGNATURE not in files:
        raise BundleError(f"{where}: missing; the bundle is not signed, so that {key} cannot vouch for it")
    claimed, signature = _parse_signature(files, source)
    if claimed != _key_id(public):
        raise BundleError(f"{where}: signed by key {claimed}, and {key} is key {_key_id(public)}")
    try:
        public.verify(signature, _CONTEXT + files[CHECKSUMS])
    except InvalidSignature:
        raise BundleError(f"{where}: not the signature of this {CHECKSUMS}; do not use the bundle") from None
    return claimed


def _key_id(key: "Ed25519PublicKey") -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _load(path: Path, parse: Callable[[bytes], object]) -> object:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise DermtuneError(f"{path}: {error.strerror}") from error
    except Exception as error:  # cryptography raises its own and others
        raise DermtuneError(f"{path}: no key in PEM form, without a password") from error
