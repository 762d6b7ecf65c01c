"""What the commands on packages share: their options, and the store and the catalogue that they work on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from infra.errors import UserError

if TYPE_CHECKING:
    from model_packaging.catalogue.catalogue import Catalogue
    from model_packaging.stores.store import Claim, Store

VersionArgument = Annotated[str, typer.Argument(metavar="MODEL:VERSION", help="Such as tumour:1.0.0.")]
StoreOption = Annotated[
    str | None,
    typer.Option(
        envvar="LEPTON_STORE",
        metavar="STORE",
        help="The store: a folder, or oci://HOST[:PORT]/PREFIX. Default: .state/store in the project.",
    ),
]
CatalogueOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The catalogue: sqlite:///FILE, postgresql://… or mysql://… Default: LEPTON_CATALOGUE, or else "
        ".state/catalogue.sqlite in the project.",
    ),
]
ByOption = Annotated[
    str | None, typer.Option(envvar="LEPTON_USER", help="Who does it. Default: Git's user.email, else the login name.")
]
WhyOption = Annotated[str, typer.Option(help="Why; kept in the history.")]


class NoCatalogue(UserError):
    """Outside of a project, and none is named."""


class VersionName(NamedTuple):
    model: str
    version: str

    def __str__(self) -> str:
        return f"{self.model}:{self.version}"


def parse_name(text: str) -> VersionName:
    """Reads MODEL:VERSION. Raises typer.BadParameter."""
    model, colon, version = text.partition(":")
    if not colon:
        raise typer.BadParameter(f"given {text!r}: a version is named MODEL:VERSION, such as tumour:1.0.0")
    return check_name(model, version)


def check_name(model: str, version: str) -> VersionName:
    """Raises typer.BadParameter where one of them is no name."""
    from infra.settings import SettingsError, parse_value  # noqa: PLC0415
    from infra.settings.values import Name, SemanticVersion  # noqa: PLC0415

    try:
        parse_value(Name, model, "model")
        parse_value(SemanticVersion, version, "version")
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None
    return VersionName(model, version)


def open_store(location: str | None, claim: Claim | None = None) -> Store:
    """The store at a location, or the project's. Raises NotInProjectError where neither is there."""
    from model_packaging import stores  # noqa: PLC0415

    return stores.open_store(location or str(_project_root() / ".state" / "store"), claim)


def open_catalogue(url: str | None) -> Catalogue:
    """The catalogue at a URL, or at that of LEPTON_CATALOGUE, or the project's.

    Raises:
        NoCatalogue: outside of a project, where no URL is given.
        CatalogueFailed: it can't be reached or read.
    """
    found = open_catalogue_if_any(url)
    if found is None:
        raise NoCatalogue(
            f"{Path.cwd()} is not inside a project, which would have a catalogue; name one with --catalogue, "
            "such as sqlite:///catalogue.sqlite"
        )
    return found


def open_catalogue_if_any(url: str | None) -> Catalogue | None:
    """The same, or None where there is none to open."""
    from infra.project import NotInProjectError  # noqa: PLC0415
    from model_packaging.catalogue.catalogue import Catalogue  # noqa: PLC0415

    url = url or os.environ.get("LEPTON_CATALOGUE")
    if url is None:
        try:
            url = f"sqlite:///{_project_root() / '.state' / 'catalogue.sqlite'}"
        except NotInProjectError:
            return None
    return Catalogue(url)


def who(given: str | None) -> str:
    """Who runs the command: as given, or else as updates of stacks are signed."""
    from rollout.author import acting_user  # noqa: PLC0415

    return given or acting_user(Path.cwd())


def _project_root() -> Path:
    from infra.project import find_root  # noqa: PLC0415

    return find_root(Path.cwd())


@contextmanager
def open_claiming_store(location: str | None, catalogue: str | None, person: str) -> Iterator[tuple[Store, str | None]]:
    """A store that registers each version it takes, where there is a catalogue; and that one's location."""
    opened = open_catalogue_if_any(catalogue)
    if opened is None:
        yield open_store(location), None
        return
    from model_packaging.catalogue.claims import claim_for  # noqa: PLC0415

    with opened:
        yield open_store(location, claim_for(opened, person)), opened.location
