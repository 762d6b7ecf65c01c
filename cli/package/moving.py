"""Moves artifacts: to other stores, into the forms that others take, and out of the way."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import output
from cli.context import JsonOption
from cli.package.shared import (
    ByOption,
    CatalogueOption,
    StoreOption,
    VersionArgument,
    open_catalogue_if_any,
    open_claiming_store,
    open_store,
    parse_name,
    who,
)

if TYPE_CHECKING:
    from model_packaging.forms import Form


def copy(
    name: VersionArgument,
    to: Annotated[str, typer.Option(metavar="STORE", help="The other store: a folder, or oci://HOST/PREFIX.")],
    store: StoreOption = None,
    catalogue: CatalogueOption = None,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a version and its signatures to another store. Interrupted, it goes on from what is there."""
    named = parse_name(name)
    from model_packaging.stores.copying import copy_version  # noqa: PLC0415

    with (
        open_claiming_store(to, catalogue, who(by)) as (target, _),
        output.bar(f"copying {named}", quiet=as_json, in_bytes=True) as progress,
    ):
        copied = copy_version(open_store(store), target, *named, progress=progress)
    output.result(
        {**asdict(copied), "store": target.location},
        f"{named} is in {target.location}: {output.size(copied.sent_bytes)} sent, "
        f"{output.size(copied.present_bytes)} were there\n{copied.digest}",
        as_json=as_json,
    )


def export(
    name: VersionArgument,
    *,
    form: Annotated[
        Literal["folder", "sagemaker", "image"],
        typer.Option("--as", help="A folder with its files, what SageMaker loads, or a container image."),
    ],
    to: Annotated[
        Path | None, typer.Option(help="The folder or file to make; none for an image that Docker builds.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="image: what to build on: an image's name, or an OCI layout or archive's path.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="image: its name. Default: MODEL:VERSION.")] = None,
    platform: Annotated[str | None, typer.Option(help="image: of a base for several, such as linux/arm64.")] = None,
    user: Annotated[str | None, typer.Option(help="image: whom the server runs as. Default: nobody of rights.")] = None,
    uri: Annotated[
        str | None, typer.Option(metavar="s3://…", help="sagemaker: the prefix that you will upload it below.")
    ] = None,
    uncompressed: Annotated[
        bool, typer.Option("--uncompressed", help="sagemaker: a folder that mirrors the prefix, not model.tar.gz.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of a file, or of an earlier export.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version in a form that others take: a folder, SageMaker's, a container image."""
    named = parse_name(name)
    from model_packaging.artifact import Artifact  # noqa: PLC0415
    from model_packaging.forms import Folder, Image, SageMaker  # noqa: PLC0415
    from model_packaging.forms import export as write_form  # noqa: PLC0415

    _refuse_others(form, "image", base=base, tag=tag, platform=platform, user=user)
    _refuse_others(form, "sagemaker", uri=uri, uncompressed=uncompressed or None)
    wanted: Form
    match form:
        case "folder":
            wanted = Folder()
        case "sagemaker":
            wanted = SageMaker(compressed=not uncompressed, uri=uri)
        case "image":
            wanted = Image(_base(base), tag=tag, platform=platform, user=user)
    artifact = Artifact.find(open_store(store), *named)
    with output.bar(f"exporting {named}", quiet=as_json, in_bytes=True) as progress:
        made = write_form(artifact, wanted, to, replace=replace, progress=progress)
    model_data = made.document.get("ModelDataSource")
    lines = [json.dumps({"ModelDataSource": model_data}, indent=2)] if model_data else []
    output.result(
        {
            **named._asdict(),
            "as": form,
            "place": made.place,
            "digest": made.digest,
            "size_bytes": made.size_bytes,
            "document": made.document,
        },
        "\n".join([f"{named} as {form}: {made.place}, {output.size(made.size_bytes)}", made.digest, *lines]),
        as_json=as_json,
    )


def delete(
    name: VersionArgument, store: StoreOption = None, catalogue: CatalogueOption = None, as_json: JsonOption = False
) -> None:
    """Take a version out of a store. Refused where it is, or may be, served. `gc` frees what only it was made of."""
    named = parse_name(name)
    from model_packaging.errors import NotInCatalogue  # noqa: PLC0415
    from model_packaging.lifecycle import check_deletion  # noqa: PLC0415

    target = open_store(store)
    target.resolve(*named)
    opened = open_catalogue_if_any(catalogue)
    with opened or nullcontext():
        try:
            record = opened.show(*named) if opened else None
        except NotInCatalogue:
            record = None
        if record is not None:
            check_deletion(str(named), record.summary.stage, {each.stack for each in record.deployed})
        target.delete(*named)
        if opened and record is not None:
            opened.forget(*named, target.location)
    output.result(
        {**named._asdict(), "store": target.location}, f"{named} is deleted from {target.location}", as_json=as_json
    )


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Free what deleted versions were made of. Safe beside builds and copies."""
    target = open_store(store)
    done = target.collect(dry_run=dry_run)
    verb = "would free" if dry_run else "freed"
    output.result(
        {
            "store": target.location,
            "dry_run": dry_run,
            "blobs": done.blobs,
            "uploads": done.uploads,
            "freed_bytes": done.freed_bytes,
            "kept": done.kept,
            "note": done.note,
        },
        done.note
        or f"{target.location}: {verb} {output.size(done.freed_bytes)} in {done.blobs} blobs "
        f"and {done.uploads} broken-off uploads",
        as_json=as_json,
    )


def _refuse_others(form: str, owner: str, **options: object) -> None:
    """Raises typer.BadParameter where an option of form `owner` is given for another."""
    given = [name for name, value in options.items() if value is not None]
    if given and form != owner:
        raise typer.BadParameter(f"--{given[0]} is an option of --as {owner}, not of --as {form}; leave it out")


def _base(given: str | None) -> str | Path:
    """An OCI layout or archive where there is such a path; else the name of an image that Docker has, or can get."""
    if given is None:
        raise typer.BadParameter("an image needs --base, the image with the server that it is built on")
    return Path(given) if Path(given).exists() else given
