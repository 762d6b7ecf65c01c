"""The files that keys are kept in: what is written, what is read, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from model_packaging.errors import KeyRefused
from model_packaging.keys import PrivateKey, PublicKey, generate_key

OTHER_KINDS = [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "team.pem", tmp_path / "team.pub"


def test_what_a_new_private_key_signs_the_public_key_in_the_other_file_verifies(pair: tuple[Path, Path]) -> None:
    made = generate_key(*pair)
    private, public = PrivateKey.read(pair[0]), PublicKey.read(pair[1])
    assert private.public == public == made
    signature = private.sign(b"content")
    assert public.verifies(signature, b"content")
    assert not public.verifies(signature, b"other content")
    assert not public.verifies(signature[:-1], b"content")


def test_signatures_are_those_of_rfc_8032() -> None:
    """Section 7.1, test 3."""
    secret = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
    key = PrivateKey(ed25519.Ed25519PrivateKey.from_private_bytes(secret))
    assert key.public.der.hex().endswith("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
    assert key.sign(bytes.fromhex("af82")).hex() == (
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )


def test_only_its_owner_can_read_a_new_private_key(pair: tuple[Path, Path]) -> None:
    before = os.umask(0)
    try:
        generate_key(*pair)
    finally:
        os.umask(before)
    assert stat.S_IMODE(pair[0].stat().st_mode) == 0o600


def test_a_key_with_a_password_is_encrypted_and_read_with_that_alone(pair: tuple[Path, Path]) -> None:
    made = generate_key(*pair, "correct horse")
    assert pair[0].read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert PrivateKey.read(pair[0], "correct horse").public == made
    with pytest.raises(KeyRefused, match=r"team\.pem can't be decrypted: the password is wrong"):
        PrivateKey.read(pair[0], "wrong horse")
    with pytest.raises(KeyRefused, match="is encrypted, and no password was given; set LEPTON_KEY_PASSWORD"):
        PrivateKey.read(pair[0])


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_that_is_there_is_never_overwritten(pair: tuple[Path, Path], which: int) -> None:
    pair[which].write_text("precious")
    with pytest.raises(KeyRefused, match=rf"{pair[which].name} exists, and a key is never overwritten"):
        generate_key(*pair)
    assert pair[which].read_text() == "precious"
    assert not pair[1 - which].exists()


def test_no_private_key_is_left_where_the_public_one_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(KeyRefused, match=r"absent/team\.pub can't be written: No such file or directory"):
        generate_key(tmp_path / "team.pem", tmp_path / "absent" / "team.pub")
    assert list(tmp_path.iterdir()) == []


def test_one_file_can_not_hold_both_keys(tmp_path: Path) -> None:
    with pytest.raises(KeyRefused, match="name two files"):
        generate_key(tmp_path / "team.pem", tmp_path / "team.pem")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_private_key_that_others_can_use_is_refused(pair: tuple[Path, Path], mode: int) -> None:
    generate_key(*pair)
    pair[0].chmod(mode)
    with pytest.raises(KeyRefused, match=rf"can be used by others \(mode {mode:04o}\); chmod 600 it"):
        PrivateKey.read(pair[0])


@pytest.mark.parametrize("key", OTHER_KINDS, ids=["ECDSA", "RSA"])
def test_a_key_of_another_kind_is_refused(tmp_path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    private, public = tmp_path / "private", tmp_path / "public"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(KeyRefused, match=r"holds a key of the kind .*, and signatures are Ed25519"):
        PrivateKey.read(private)
    with pytest.raises(KeyRefused, match=r"holds a key of the kind .*, and signatures are Ed25519"):
        PublicKey.read(public)


def test_a_private_key_in_place_of_the_public_one_is_refused_and_not_repeated(pair: tuple[Path, Path]) -> None:
    generate_key(*pair)
    with pytest.raises(KeyRefused, match="holds a private key, which nobody but its team may have") as refused:
        PublicKey.read(pair[0])
    secret = pair[0].read_text().splitlines()[1]
    assert secret not in str(refused.value)


def test_two_keys_in_one_file_are_refused(pair: tuple[Path, Path]) -> None:
    generate_key(*pair)
    pair[1].write_text(pair[1].read_text() * 2)
    with pytest.raises(KeyRefused, match=r"team\.pub holds several keys"):
        PublicKey.read(pair[1])


def test_files_that_hold_no_key_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"-" * 100_000)
    (tmp_path / "text").write_text("hello")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    for file in tmp_path.iterdir():
        file.chmod(0o700)
    said = {
        "absent": "can't be read: No such file or directory",
        "folder": "can't be read: Is a directory",
        "pipe": "is not a plain file",
        "large": "is larger than any key's file",
        "text": "key in PEM",
        "binary": "key in PEM",
    }
    for name, problem in said.items():
        for read in (PublicKey.read, PrivateKey.read):
            with pytest.raises(KeyRefused) as refused:
                read(tmp_path / name)
            assert str(refused.value).startswith(str(tmp_path / name)), name
            assert problem in str(refused.value), name


def test_the_fingerprint_is_that_of_the_der_form(pair: tuple[Path, Path]) -> None:
    generate_key(*pair)
    lines = pair[1].read_text().splitlines()
    der = base64.b64decode("".join(lines[1:-1]))
    assert PublicKey.read(pair[1]).fingerprint == f"sha256:{hashlib.sha256(der).hexdigest()}"


def test_a_public_key_is_written_as_it_was_read(pair: tuple[Path, Path]) -> None:
    generate_key(*pair)
    assert PublicKey.read(pair[1]).pem == pair[1].read_text()


@given(st.text() | st.binary().map(lambda der: f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(der).decode()}\n"))
def test_no_text_makes_more_than_a_refusal(text: str) -> None:
    with pytest.raises(KeyRefused, match=r"^the key "):
        PublicKey.parse(text, "the key")
