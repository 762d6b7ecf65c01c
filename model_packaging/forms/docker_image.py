"""Builds an image with the Docker Engine (`DOCKER_HOST`, or its default socket), which keeps it.

Reference: https://docs.docker.com/reference/api/engine/, https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from model_packaging.artifact import Artifact
from model_packaging.digests import Target
from model_packaging.errors import DockerFailed, ExportRefused
from model_packaging.forms.exported import Exported
from model_packaging.forms.image import (
    LABELS,
    MODEL_DIR,
    Container,
    Image,
    check_layers,
    container,
    image_name,
    layer_groups,
    user,
)
from model_packaging.forms.tar import TRAILER, file_header, padding, write_members
from model_packaging.manifest import Files
from model_packaging.progress import Meter, Progress

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image as EngineImage

_DOCKERFILE = "Dockerfile"


def build_image(artifact: Artifact, form: Image, base: str, progress: Progress | None = None) -> Exported:
    """Has the engine build the image on its image `base`, which it pulls if it must, and tag it.

    The model goes to the engine in one pass, and nothing of it is kept here. The files are the artifact's, byte for
    byte; the engine puts times of its own into the image, so its digest is another each time.

    Raises:
        DockerFailed: no engine answers, or it can't build the image.
        ExportRefused: a variable can't stand in a Dockerfile, or the layers are too many.
        BlobMissing, DigestMismatch, StoreDamaged, StoreUnreachable: nothing is tagged.
    """
    name, described = image_name(artifact, form), container(artifact, form)
    groups = layer_groups(artifact.files)
    with _engine() as client:
        found = _fetch(client, base, form.platform)
        check_layers(len(found.attrs["RootFS"].get("Layers") or ()), len(groups))
        dockerfile = _dockerfile(form, described, found, groups)
        labels = _labels(described, base, found)
        image_id = _build(client, artifact, groups, dockerfile, labels, Meter(progress, artifact.size))
        client.api.tag(image_id, name.name, name.tag, force=True)
        built = client.images.get(image_id)
    platform = f"{built.attrs['Os']}/{built.attrs['Architecture']}"
    document = {"name": str(name), "image_id": image_id, "platform": platform, "base": found.id}
    return Exported(str(name), image_id, int(built.attrs["Size"]), document)


def _dockerfile(form: Image, described: Container, base: EngineImage, groups: list[Files]) -> str:
    own = base.attrs["Config"] or {}
    lines = [
        # The very image that was looked at, whatever its name stands for by now.
        f"FROM {base.id}",
        *(f'COPY ["{number}/", "/{MODEL_DIR}/"]' for number, _ in enumerate(groups)),
        *(f"ENV {key}={_quoted(key, value)}" for key, value in described.env.items()),
        *(f"EXPOSE {port}" for port in described.ports),
        f"USER {user(form, own.get('User') or '')}",
        f"ENTRYPOINT {json.dumps(described.entrypoint)}",
        f"CMD {json.dumps(described.arguments)}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(key: str, value: str) -> str:
    if "\n" in value or "\r" in value:
        # Not the value: it may be a secret.
        raise ExportRefused(
            f"env.{key} holds a line break, and no Dockerfile can; write it without, or give the base as an OCI image "
            "layout or an archive, where it may"
        )
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'


def _labels(described: Container, base: str, found: EngineImage) -> dict[str, str]:
    digests = [name.partition("@")[2] for name in found.attrs.get("RepoDigests") or ()]
    ours = {f"{LABELS}base.name": base, **({f"{LABELS}base.digest": digests[0]} if digests else {})}
    # What the base says of itself is not so of this image, and a build can't take it away.
    emptied = {key: "" for key in found.labels if key.startswith(LABELS)}
    return {**emptied, **ours, **described.labels}


def _build(
    client: DockerClient,
    artifact: Artifact,
    groups: list[Files],
    dockerfile: str,
    labels: Mapping[str, str],
    meter: Meter,
) -> str:
    """Streams the context to the engine while it is read from the store. Returns the image's ID."""
    import docker.errors  # noqa: PLC0415 - slow to import, and needed by few exports

    outlet, inlet = os.pipe()
    # The outlet is closed first: where the engine doesn't read on, the writer must not wait for it.
    with ThreadPoolExecutor(1) as pool, open(outlet, "rb") as context:
        writing = pool.submit(_write_context, inlet, artifact, groups, dockerfile, meter)
        try:
            image_id, problem = _follow(
                client.api.build(
                    fileobj=context,
                    custom_context=True,
                    labels=dict(labels),
                    rm=True,
                    forcerm=True,
                    decode=True,
                    # Of a large model, a step may take longer than any fixed time.
                    timeout=None,
                )
            )
        except docker.errors.APIError as error:
            image_id, problem = None, str(error.explanation or error)
    fault = writing.exception()
    if fault is not None and not isinstance(fault, BrokenPipeError):
        # The engine's own problem is then that it got no Dockerfile.
        raise fault
    if problem is not None or image_id is None:
        raise DockerFailed(f"the Docker Engine could not build the image: {problem or 'it named none'}")
    return image_id


def _follow(lines: Iterator[Any]) -> tuple[str | None, str | None]:
    """The image's ID, and what went wrong; to the end, so that nothing stays unread."""
    image_id, problem = None, None
    for line in lines:
        problem = line.get("error", problem)
        image_id = (line.get("aux") or {}).get("ID", image_id)
    return image_id, problem


def _write_context(inlet: int, artifact: Artifact, groups: list[Files], dockerfile: str, meter: Meter) -> None:
    with open(inlet, "wb") as target:
        for number, files in enumerate(groups):
            write_members(artifact, files, PurePosixPath(str(number)), target, meter)
        # Last, once every byte before it is verified: without it, the engine builds nothing.
        _write_document(_DOCKERFILE, dockerfile.encode(), target)
        target.write(TRAILER)


def _write_document(name: str, content: bytes, target: Target) -> None:
    target.write(memoryview(file_header(name, len(content)) + content + padding(len(content))))


def _fetch(client: DockerClient, base: str, platform: str | None) -> EngineImage:
    """The engine's image of that name; pulled where it has none, or one for another platform."""
    import docker.errors  # noqa: PLC0415
    import docker.utils  # noqa: PLC0415

    with contextlib.suppress(docker.errors.ImageNotFound):
        image = client.images.get(base)
        found = "/".join(filter(None, (image.attrs["Os"], image.attrs["Architecture"], image.attrs.get("Variant"))))
        if platform is None or f"{found}/".startswith(f"{platform}/"):
            return image
    repository, tag = docker.utils.parse_repository_tag(base)
    try:
        return client.images.pull(repository, tag or "latest", platform=platform)
    except docker.errors.APIError as error:
        raise DockerFailed(
            f"the Docker Engine does not have {base!r}{f' for {platform}' if platform else ''} and could not pull it "
            f"({error.explanation}); correct the name, log in to its registry, or load it with `docker load`"
        ) from None


@contextlib.contextmanager
def _engine() -> Iterator[DockerClient]:
    """A client of the engine, whose errors become ours."""
    import docker  # noqa: PLC0415
    import docker.constants  # noqa: PLC0415
    import docker.errors  # noqa: PLC0415

    address = os.environ.get("DOCKER_HOST") or docker.constants.DEFAULT_UNIX_SOCKET.removeprefix("http+")
    try:
        client = docker.from_env()
    except docker.errors.DockerException as error:
        raise DockerFailed(
            f"no Docker Engine answers at {address} ({error}); start one, set DOCKER_HOST to where it is, or give the "
            "base as an OCI image layout or an archive (`skopeo copy`, `docker save`), which needs no engine"
        ) from None
    try:
        yield client
    except docker.errors.DockerException as error:
        raise DockerFailed(f"the Docker Engine refused: {getattr(error, 'explanation', None) or error}") from None
    except OSError as error:
        # Of the connection: what the engine itself has to say comes as an error of its API.
        raise DockerFailed(f"the Docker Engine at {address} stopped answering: {error}") from None
    finally:
        client.close()
