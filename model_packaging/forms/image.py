"""Form `image`: a container image that holds a model and, from the image it is built on, the server of it.

What the image says and how its files are layered is the same whoever builds it. Source: OCI image specification 1.1
(config, annotations).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from infra.settings.version import ServerSettings
from model_packaging.artifact import Artifact
from model_packaging.errors import ExportRefused
from model_packaging.manifest import Files

MODEL_DIR = PurePosixPath("model")
"""From the root; where a container of the node's `docker` runtime has it too, so that one command fits both."""
HTTP_PORT, GRPC_PORT, METRICS_PORT = 8080, 8081, 8082

LABELS = "org.opencontainers.image."
ARTIFACT_LABEL = "lepton.artifact"

_NOBODY = "65532:65532"
"""A user that owns nothing, and needs no entry in `/etc/passwd`."""
_ROOT = {"", "0", "root"}

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_USER = re.compile(r"[\w.-]+(:[\w.-]+)?", re.ASCII)

_LARGE_BYTES = 64 << 20
_MOST_OWN_LAYERS = 64
_MOST_LAYERS = 120
"""Docker's overlay2 driver takes 128 and fails to start containers of a few less."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(
    rf"(?:(?P<host>[a-zA-Z0-9.-]+(?::[0-9]+)?)/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*):(?P<tag>[a-zA-Z0-9_][\w.-]{{0,127}})",
    re.ASCII,
)
"""The grammar of references of github.com/distribution/reference, with a tag."""


@dataclass(frozen=True)
class Image:
    """A container image."""

    base: str | Path
    """The image it is built on: an image's name, for a Docker Engine to build; or an OCI image layout, or an archive of
    one or of `docker save`, whose layers are taken over without any engine."""
    tag: str | None = None
    """The image's name. Default: `MODEL:VERSION`."""
    server: ServerSettings | None = None
    """What serves the model. Default: what its `package.yaml` says, else MLServer, as for a version stack."""
    platform: str | None = None
    """Of a base for several: `linux/arm64`."""
    user: str | None = None
    """Whom the server runs as. Default: the base's user; where that is root, one without any rights."""
    source: str | None = None
    """The URL of the repository that the model comes from."""


@dataclass(frozen=True)
class ImageName:
    """An image's name and tag."""

    name: str
    tag: str

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"

    @property
    def full(self) -> str:
        """With the registry that engines take a short name to mean."""
        host, slash, _ = self.name.partition("/")
        if slash and ("." in host or ":" in host or host == "localhost"):
            return str(self)
        return f"docker.io/{'' if slash else 'library/'}{self}"


@dataclass(frozen=True)
class Container:
    """What a container of the image runs, and what is said about it."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    ports: tuple[int, ...]
    labels: Mapping[str, str]

    @property
    def entrypoint(self) -> tuple[str, ...]:
        """In place of the base's own."""
        return self.command[:1]

    @property
    def arguments(self) -> tuple[str, ...]:
        return self.command[1:]


def image_name(artifact: Artifact, form: Image) -> ImageName:
    """Raises ExportRefused where the tag is no image's name."""
    given = form.tag or f"{artifact.description.model}:{artifact.description.version}"
    if not _NAME.fullmatch(given):
        raise ExportRefused(
            f"given {given!r}: an image's name is [HOST[:PORT]/]NAME:TAG in lower case, such as "
            "'registry.example.org/team/tumour:1.2.0'"
        )
    name, _, tag = given.rpartition(":")
    return ImageName(name, tag)


def container(artifact: Artifact, form: Image) -> Container:
    """What the artifact's container runs: the server's command, placeholders filled in.

    Raises:
        ExportRefused: a variable's name is none.
    """
    said = artifact.description
    server = said.package.serving(form.server)
    for name in server.env:
        if not _VARIABLE.fullmatch(name):
            raise ExportRefused(f"env: given {name!r}: a variable's name has letters, digits, '_', '.' and '-' alone")
    ports = {"http_port": HTTP_PORT}
    if server.grpc:
        ports["grpc_port"] = GRPC_PORT
    if server.metrics_path is not None:
        ports["metrics_port"] = METRICS_PORT
    values = {
        "model_dir": f"/{MODEL_DIR}",
        "model": said.model,
        "version": said.version,
        # In its network it may listen on every address: whoever runs it says what is published.
        "host": "0.0.0.0",
        "grpc_port": "",
        "metrics_port": "",
        **ports,
    }
    return Container(
        command=tuple(part.format(**values) for part in server.command),
        env={name: value.format(**values) for name, value in sorted(server.env.items())},
        ports=tuple(ports.values()),
        labels=_labels(artifact, form),
    )


def user(form: Image, base: str) -> str:
    """Whom the server runs as, on a base that runs as `base`. Raises ExportRefused where that is no user."""
    found = form.user or (_NOBODY if base.partition(":")[0] in _ROOT else base)
    if not _USER.fullmatch(found):
        raise ExportRefused(f"user: given {found!r}: a user is USER[:GROUP], by names or numbers, such as '1000:1000'")
    return found


def layer_groups(files: Files) -> list[Files]:
    """The files of each layer: each large file has its own, which versions that have it share; the small come last, so
    that a changed setting moves no weights. Where so many are large that engines would refuse, some share one."""
    sizes = {path: sum(part.length for part in parts) for path, parts in files.items()}
    large = sorted((path for path, size in sizes.items() if size >= _LARGE_BYTES), key=str)
    small = sorted((path for path, size in sizes.items() if size < _LARGE_BYTES), key=str)
    together = max(1, -(-len(large) // _MOST_OWN_LAYERS))
    groups = [large[start : start + together] for start in range(0, len(large), together)]
    return [{path: files[path] for path in group} for group in (*groups, small) if group]


def check_layers(base: int, own: int) -> None:
    """Raises ExportRefused where engines could not run an image of so many layers."""
    if base + own > _MOST_LAYERS:
        raise ExportRefused(
            f"the base has {base} layers and the model {own}: engines run images of at most {_MOST_LAYERS}; "
            "take a base with fewer (flatten it)"
        )


def _labels(artifact: Artifact, form: Image) -> dict[str, str]:
    """OCI's annotations, as far as they are known."""
    said = artifact.description
    known = {
        "title": said.model,
        "version": said.version,
        "revision": said.git.commit if said.git else None,
        "licenses": said.package.licence,
        "authors": said.package.author,
        "created": said.created,
        "source": form.source,
    }
    labels = {f"{LABELS}{name}": value for name, value in known.items() if value is not None}
    return labels | {ARTIFACT_LABEL: artifact.digest}
