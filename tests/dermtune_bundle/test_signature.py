"""Only the bundle that the key signed passes."""

import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dermtune_bundle.bundle import Bundle, pack_bundle
from dermtune_bundle.container import SIGNATURE
from dermtune_bundle.errors import BundleError, DermtuneError
from dermtune_bundle.signature import make_keys


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "ours")
    make_keys(tmp_path / "theirs")
    return tmp_path


@pytest.fixture
def signed(tiny_bundle: Path, keys: Path) -> Path:
    pack_bundle(tiny_bundle, keys / "signed", key=keys / "ours.key")
    return keys / "signed"


def test_the_right_key_passes_and_its_id_is_told(signed: Path, keys: Path) -> None:
    opened = Bundle.open(signed, key=keys / "ours.pub")
    assert opened.signed_by is not None
    assert len(opened.signed_by) == 16
    unchecked = Bundle.open(signed)
    assert (unchecked.signed_by, unchecked.claimed_key) == (None, opened.signed_by)
    assert opened.version == Bundle.open(signed).version, "signing changes no version"


def test_a_signature_survives_packing(signed: Path, keys: Path) -> None:
    pack_bundle(signed, keys / "signed.zip")
    assert Bundle.open(keys / "signed.zip", key=keys / "ours.pub").signed_by


def test_another_key_is_refused_by_name(signed: Path, keys: Path) -> None:
    with pytest.raises(BundleError, match=r"SHA256SUMS\.sig: signed by key [0-9a-f]{16}, and .*theirs\.pub"):
        Bundle.open(signed, key=keys / "theirs.pub")


def test_an_unsigned_bundle_is_refused_where_a_key_is_asked_for(tiny_bundle: Path, keys: Path) -> None:
    assert Bundle.open(tiny_bundle).signed_by is None
    with pytest.raises(BundleError, match=r"SHA256SUMS\.sig: missing"):
        Bundle.open(tiny_bundle, key=keys / "ours.pub")


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_bit_of_the_signature_is_refused(signed: Path, keys: Path, data: st.DataObject) -> None:
    path = signed / SIGNATURE
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        with pytest.raises(BundleError, match=r"SHA256SUMS\.sig"):
            Bundle.open(signed, key=keys / "ours.pub")
    finally:
        path.write_bytes(whole)


def test_a_bundle_made_anew_does_not_pass_with_the_old_signature(signed: Path, keys: Path) -> None:
    """Who swaps the model can write new checksums, but no new signature."""
    card = (signed / "MODEL_CARD.md").read_bytes() + b"better than ever\n"
    sums = (signed / "SHA256SUMS").read_text()
    from hashlib import sha256  # noqa: PLC0415 (the attacker's)

    old = sha256((signed / "MODEL_CARD.md").read_bytes()).hexdigest()
    (signed / "MODEL_CARD.md").write_bytes(card)
    (signed / "SHA256SUMS").write_text(sums.replace(old, sha256(card).hexdigest()))
    Bundle.open(signed)
    with pytest.raises(BundleError, match="not the signature of this SHA256SUMS"):
        Bundle.open(signed, key=keys / "ours.pub")


def test_the_private_key_is_for_its_owner_alone_and_never_overwritten(keys: Path) -> None:
    assert stat.S_IMODE((keys / "ours.key").stat().st_mode) == 0o600
    with pytest.raises(DermtuneError, match=r"ours\.key: exists"):
        make_keys(keys / "ours")


@pytest.mark.parametrize(
    "content", ["", "no key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_a_file_that_is_no_key_is_named(signed: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "x.pub").write_text(content)
    with pytest.raises(DermtuneError, match=r"x\.pub: no key in PEM form"):
        Bundle.open(signed, key=tmp_path / "x.pub")
    with pytest.raises(DermtuneError, match="No such file"):
        Bundle.open(signed, key=tmp_path / "absent.pub")


def test_the_two_keys_of_a_pair_are_told_apart(signed: Path, tiny_bundle: Path, keys: Path) -> None:
    with pytest.raises(DermtuneError, match=r"ours\.key: no key in PEM form|no public"):
        Bundle.open(signed, key=keys / "ours.key")
    with pytest.raises(DermtuneError, match=r"ours\.pub: no key in PEM form|no private"):
        pack_bundle(tiny_bundle, keys / "x", key=keys / "ours.pub")


def test_what_is_no_signature_is_refused_though_no_key_is_given(signed: Path) -> None:
    (signed / SIGNATURE).write_text("ed25519 deadbeefdeadbeef AAAA==\n")
    with pytest.raises(BundleError, match=r"SHA256SUMS\.sig: no signature"):
        Bundle.open(signed)
