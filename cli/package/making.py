"""Makes artifacts and vouches for them: built, verified, signed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.context import JsonOption
from cli.package.shared import (
    ByOption,
    CatalogueOption,
    StoreOption,
    VersionArgument,
    check_name,
    open_claiming_store,
    open_store,
    parse_name,
    who,
)

if TYPE_CHECKING:
    from datetime import datetime

    from model_packaging.artifact import Artifact


def build(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="Holds package.yaml and the model's files; or a snapshot in Hugging Face's cache, or runs:/… or "
            "models:/… of MLflow.",
        ),
    ],
    *,
    model: Annotated[str, typer.Option(help="The model's name.")],
    version: Annotated[str, typer.Option(help="Its semantic version.")],
    store: StoreOption = None,
    catalogue: CatalogueOption = None,
    source: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="A folder of the Git repository the model is from. Default: the current.",
        ),
    ] = None,
    description: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The package.yaml of a source that has none.")
    ] = None,
    zstd: Annotated[bool, typer.Option("--zstd", help="Compress the layers; weights seldom get smaller.")] = False,
    reread: Annotated[
        bool, typer.Option("--reread", help="Read also the files that did not change since they were last read.")
    ] = False,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Package a model's folder as one version of it."""
    name = check_name(model, version)
    from model_packaging.build import build_artifact  # noqa: PLC0415
    from model_packaging.git import git_source  # noqa: PLC0415
    from model_packaging.memory import Memory  # noqa: PLC0415
    from model_packaging.sources.fetching import fetched  # noqa: PLC0415

    with (
        open_claiming_store(store, catalogue, who(by)) as (target, registered),
        fetched(folder, description) as (directory, found),
        output.bar(f"packaging {name}", quiet=as_json, in_bytes=True) as progress,
    ):
        built = build_artifact(
            directory,
            model,
            version,
            target,
            # Of what is fetched, the current folder's repository is not the one that it is from.
            git=git_source(source or Path.cwd()) if source or found is None else None,
            found=found,
            created=_source_date(),
            compression="zstd" if zstd else "none",
            memory=None if reread else Memory.of_user(),
            progress=progress,
        )
    git = built.description.git
    for remark in found.remarks if found else ():
        output.say(remark)
    if as_json:
        document = {
            "digest": built.digest,
            "model": model,
            "version": version,
            "store": target.location,
            "catalogue": registered,
            "git_commit": git.commit if git else None,
            "size_bytes": built.size_bytes,
            "created": built.created,
        }
        output.document(document)
        return
    done = "packaged" if built.created else "unchanged"
    origin = f"commit {git.commit[:12]}{' with local changes' if git.dirty else ''}" if git else "no Git commit"
    output.line(f"{done} {model} {version}, {output.size(built.size_bytes)}, {origin}, in {target.location}")
    output.line(built.digest)


def verify(
    name: VersionArgument,
    *,
    key: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="A public key that must have signed it; of several, one."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hash every byte of a version's artifact again. Exit status 1 where one differs, or a signature does."""
    named = parse_name(name)
    from model_packaging.artifact import Artifact  # noqa: PLC0415
    from model_packaging.errors import PackagingError  # noqa: PLC0415

    target = open_store(store)
    digest = target.resolve(*named)
    faults: list[str] = []
    signer = None
    try:
        artifact = Artifact.find(target, *named)
        with output.bar(f"verifying {named}", quiet=as_json, in_bytes=True) as progress:
            faults += [str(fault) for fault in artifact.check(progress)]
        signer = _signer(artifact, key or [])
    except PackagingError as fault:
        faults.append(str(fault))
    for fault in faults:
        output.error(fault)
    if as_json:
        output.document({**named._asdict(), "digest": digest, "signed_by": signer, "faults": faults})
    elif not faults:
        output.line(f"{named.model} {named.version} is intact{f', signed by {signer}' if signer else ''}: {digest}")
    if faults:
        raise typer.Exit(1)


def sign(
    name: VersionArgument,
    *,
    key: Annotated[
        Path, typer.Option(envvar="LEPTON_KEY", exists=True, dir_okay=False, help="The team's private key.")
    ],
    store: StoreOption = None,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a version's artifact, and sign it. An encrypted key's password: LEPTON_KEY_PASSWORD, or asked for."""
    named = parse_name(name)
    from model_packaging.artifact import Artifact  # noqa: PLC0415
    from model_packaging.keys import PrivateKey  # noqa: PLC0415
    from model_packaging.signing import sign as add_signature  # noqa: PLC0415

    private = PrivateKey.read(key, _password(key))
    artifact = Artifact.find(open_store(store), *named)
    with output.bar(f"verifying {named}", quiet=as_json, in_bytes=True) as progress:
        artifact.verify(progress)
    new = add_signature(artifact, private, who(by))
    fingerprint = private.public.fingerprint
    output.result(
        {**named._asdict(), "digest": artifact.digest, "key": fingerprint, "new": new},
        f"{named}: {'signed' if new else 'was signed before'} with {fingerprint}\n{artifact.digest}",
        as_json=as_json,
    )


def key(
    private: Annotated[Path, typer.Argument(metavar="FILE", help="The private key's file; FILE.pub is the public.")],
    as_json: JsonOption = False,
) -> None:
    """Make a team's key pair. With LEPTON_KEY_PASSWORD, or one that is typed in, the private key is encrypted."""
    from model_packaging.keys import PASSWORD_VARIABLE, generate_key  # noqa: PLC0415

    public = private.with_name(f"{private.name}.pub")
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is None and os.isatty(0):
        password = typer.prompt("Password (empty: none)", default="", hide_input=True, confirmation_prompt=True)
    private.parent.mkdir(parents=True, exist_ok=True)
    made = generate_key(private, public, password or None)
    output.result(
        {"private": str(private), "public": str(public), "key": made.fingerprint, "encrypted": bool(password)},
        f"{private}: keep it secret{'' if password else ' (it is not encrypted)'}\n{public}: to be trusted by "
        f"environments\n{made.fingerprint}",
        as_json=as_json,
    )


def _signer(artifact: Artifact, keys: list[Path]) -> str | None:
    """Which of `keys` has signed the artifact; None where none is asked for."""
    from model_packaging.keys import PublicKey  # noqa: PLC0415
    from model_packaging.signing import TrustedKey, verify_signature  # noqa: PLC0415

    if not keys:
        return None
    trusted = [TrustedKey(str(file), PublicKey.read(file)) for file in keys]
    return str(verify_signature(artifact, trusted))


def _password(file: Path) -> str | None:
    from model_packaging.keys import PASSWORD_VARIABLE  # noqa: PLC0415

    given = os.environ.get(PASSWORD_VARIABLE)
    if given is None and os.isatty(0) and b"ENCRYPTED" in file.read_bytes():
        given = typer.prompt(f"Password of {file}", hide_input=True)
    return given or None


def _source_date() -> datetime | None:
    """https://reproducible-builds.org/specs/source-date-epoch/"""
    from datetime import UTC, datetime  # noqa: PLC0415

    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        return None
    try:
        return datetime.fromtimestamp(int(given), UTC)
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(
            f"SOURCE_DATE_EPOCH: given {given!r}: it is a whole number of seconds since 1970, up to the year 9999"
        ) from None
