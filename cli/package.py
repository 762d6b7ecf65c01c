"""`lepton package`: builds artifacts of model versions into a store, and verifies them there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.errors import ErrorsAsText

if TYPE_CHECKING:
    from datetime import datetime

    from model_packaging.store import Store

app = typer.Typer(cls=ErrorsAsText, no_args_is_help=True, help="Model versions as immutable artifacts.")

StoreOption = Annotated[
    Path | None, typer.Option(help="The artifact store's folder. Default: .state/store in the project.")
]


@app.command()
def build(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Holds package.yaml and the model's files."),
    ],
    *,
    model: Annotated[str, typer.Option(help="The model's name.")],
    version: Annotated[str, typer.Option(help="Its semantic version.")],
    store: StoreOption = None,
    source: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="A folder of the Git repository the model is from. Default: the current.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Package a model's folder as one version of it."""
    _check_names(model, version)
    from model_packaging.build import build_artifact  # noqa: PLC0415
    from model_packaging.git import git_source  # noqa: PLC0415

    target = _store(store)
    git = git_source(source or Path.cwd())
    built = build_artifact(folder, model, version, target, git=git, created=_source_date())
    if as_json:
        document = {
            "digest": built.digest,
            "model": model,
            "version": version,
            "store": str(target.path),
            "git_commit": git.commit if git else None,
            "size_bytes": built.size_bytes,
            "created": built.created,
        }
        output.document(document)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.filesize import decimal  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415

    console = Console(soft_wrap=True, highlight=False)
    done = "[green]packaged[/]" if built.created else "[dim]unchanged[/]"
    origin = f"commit {git.commit[:12]}{' with local changes' if git.dirty else ''}" if git else "no Git commit"
    console.print(f"{done} {model} {version}, {decimal(built.size_bytes)}, {origin}, in {escape(str(target.path))}")
    console.print(built.digest)


@app.command()
def verify(
    artifact: Annotated[str, typer.Argument(metavar="MODEL:VERSION")],
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hash every byte of a version's artifact again. Exit status 1 where one differs."""
    model, colon, version = artifact.partition(":")
    if not colon:
        raise typer.BadParameter(f"given {artifact!r}: an artifact is named MODEL:VERSION, such as tumour:1.0.0")
    _check_names(model, version)
    target = _store(store)
    digest = target.resolve(model, version)
    faults = [str(fault) for fault in target.check(digest)]
    for fault in faults:
        output.error(fault)
    if as_json:
        output.document({"model": model, "version": version, "digest": digest, "faults": faults})
    elif not faults:
        output.line(f"{model} {version} is intact: {digest}")
    if faults:
        raise typer.Exit(1)


def _store(path: Path | None) -> Store:
    from model_packaging.store import Store  # noqa: PLC0415

    if path is None:
        from infra.project import find_root  # noqa: PLC0415

        path = find_root(Path.cwd()) / ".state" / "store"
    return Store(path)


def _check_names(model: str, version: str) -> None:
    from infra.settings import SettingsError, parse_value  # noqa: PLC0415
    from infra.settings.values import Name, SemanticVersion  # noqa: PLC0415

    try:
        parse_value(Name, model, "model")
        parse_value(SemanticVersion, version, "version")
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None


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
            f"SOURCE_DATE_EPOCH: given {given!r}: it is a whole number of seconds since 1970"
        ) from None
