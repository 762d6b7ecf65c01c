"""Pulls a version's files: what cluster mode runs before a version's server starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.context import JsonOption


def pull(
    store: Annotated[str, typer.Argument(metavar="STORE", help="oci://HOST[:PORT]/PREFIX, or a folder.")],
    name: Annotated[str, typer.Argument(metavar="MODEL@DIGEST", help="Such as tumour@sha256:…")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that is to hold the files, and just them.")],
    *,
    key: Annotated[
        list[Path] | None,
        typer.Option(exists=True, dir_okay=False, help="A public key that must have signed it; of several, one."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch an artifact's files by its digest, each byte verified, whole or not at all."""
    model, at, digest = name.partition("@")
    if not at:
        raise typer.BadParameter(f"given {name!r}: an artifact is named MODEL@DIGEST, such as tumour@sha256:…")
    from model_packaging.pulling import pull as pull_files  # noqa: PLC0415
    from model_packaging.stores import open_store  # noqa: PLC0415

    with output.bar(f"pulling {model}", quiet=as_json, in_bytes=True) as progress:
        artifact = pull_files(open_store(store), model, digest, target, key or [], progress)
    output.result(
        {"model": model, "version": artifact.description.version, "digest": digest, "place": str(target)},
        f"{target}: {model} {artifact.description.version}, {output.size(artifact.size)}\n{digest}",
        as_json=as_json,
    )
