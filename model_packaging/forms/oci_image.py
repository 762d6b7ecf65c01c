"""Writes an image straight as OCI layers: those of a base as they are, and the model's on top.

No engine takes part, and the same artifact on the same base gives the same digest on any machine.

Source: OCI image specification 1.1 (config, manifest, image layout).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from model_packaging.artifact import Artifact
from model_packaging.digests import Target, digest_of
from model_packaging.forms.base_image import LAYER_TYPE, BaseImage, BaseLayer, open_base
from model_packaging.forms.exported import Exported
from model_packaging.forms.image import (
    LABELS,
    MODEL_DIR,
    Container,
    Image,
    ImageName,
    check_layers,
    container,
    image_name,
    layer_groups,
    user,
)
from model_packaging.forms.image_output import ImageOutput, blob_path, image_output
from model_packaging.forms.tar import archive_size, write_archive
from model_packaging.manifest import INDEX_TYPE, MANIFEST_TYPE, REF_NAME, Files, canonical
from model_packaging.progress import Meter, Metered, Progress

_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_CONTAINERD_NAME = "io.containerd.image.name"
_KEPT = ("architecture", "os", "os.version", "os.features", "variant")
"""Of a base's config; the rest tells of its own making."""


def write_image(
    artifact: Artifact,
    form: Image,
    base: Path,
    target: Path,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Writes the image as an OCI image layout, or as one archive where `target` ends in `.tar`.

    The archive is an image layout with Docker's `manifest.json` beside: `docker load`, podman, skopeo and containerd
    read it.

    Raises:
        BaseRefused: the base is no image, or is harmed, or is for other platforms.
        ExportRefused: the tag is no image's name, or the layers are too many.
        TargetExists, BlobMissing, DigestMismatch, StoreDamaged, StoreUnreachable, DiskFull, NotWritable
    """
    name, described = image_name(artifact, form), container(artifact, form)
    groups = layer_groups(artifact.files)
    with open_base(base, form.platform) as image:
        check_layers(len(image.layers), len(groups))
        meter = Meter(progress, artifact.size + sum(layer.size for layer in image.layers))
        with image_output(target, replace=replace) as output:
            layers = list(_add_layers(artifact, image, groups, output, meter))
            diff_ids = [*image.diff_ids, *(layer["digest"] for layer in layers[len(image.layers) :])]
            config = canonical(_config(artifact, form, described, image, diff_ids, groups))
            labels = _annotations(described, image)
            manifest = canonical(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST_TYPE,
                    "config": _described(output, _CONFIG_TYPE, config),
                    "layers": layers,
                    "annotations": labels,
                }
            )
            descriptor = _described(output, MANIFEST_TYPE, manifest)
            _add_names(output, name, image, descriptor, config, layers)
    return Exported(
        str(target),
        digest_of(manifest),
        sum(layer["size"] for layer in layers) + len(config) + len(manifest),
        {
            "name": str(name),
            "image_id": digest_of(config),
            "platform": image.platform,
            "base": image.digest,
            "layers": layers[len(image.layers) :],
        },
    )


def _add_layers(
    artifact: Artifact, image: BaseImage, groups: list[Files], output: ImageOutput, meter: Meter
) -> Iterator[dict[str, Any]]:
    for layer in image.layers:
        digest = output.add_blob(layer.size, partial(_write_base, image, layer, meter))
        yield {"mediaType": layer.media_type, "digest": digest, "size": layer.size}
    for files in groups:
        size = archive_size(files, MODEL_DIR)
        digest = output.add_blob(size, partial(_write_files, artifact, files, meter))
        yield {"mediaType": LAYER_TYPE, "digest": digest, "size": size}


def _write_base(image: BaseImage, layer: BaseLayer, meter: Meter, target: Target) -> None:
    image.write(layer, Metered(meter, target))


def _write_files(artifact: Artifact, files: Files, meter: Meter, target: Target) -> None:
    write_archive(artifact, files, MODEL_DIR, target, meter)


def _config(
    artifact: Artifact, form: Image, described: Container, image: BaseImage, diff_ids: list[str], groups: list[Files]
) -> dict[str, Any]:
    base, created = image.settings, artifact.description.created
    env = {**dict(_variable(text) for text in base.env or ()), **described.env}
    # What the base says of itself is not so of this image.
    labels = {key: value for key, value in (base.labels or {}).items() if not key.startswith(LABELS)}
    time = {"created": created} if created is not None else {}
    history = [
        {"created_by": f"lepton package export: {len(files)} {'file' if len(files) == 1 else 'files'}", **time}
        for files in groups
    ]
    return {
        **{key: image.document[key] for key in _KEPT if key in image.document},
        **time,
        "config": {
            **(image.document.get("config") or {}),
            "Entrypoint": list(described.entrypoint),
            "Cmd": list(described.arguments),
            "Env": [f"{name}={value}" for name, value in env.items()],
            "ExposedPorts": {**(base.ports or {}), **{f"{port}/tcp": {} for port in described.ports}},
            "Labels": labels | _annotations(described, image),
            "User": user(form, base.user or ""),
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [*_history(image), *history],
    }


def _variable(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _history(image: BaseImage) -> list[Any]:
    """The base's, or an entry a layer where it doesn't have that: readers count on one."""
    steps = image.config.history or ()
    if sum(not step.empty_layer for step in steps) == len(image.layers):
        return list(image.document.get("history") or ())
    return [{"created_by": "base"} for _ in image.layers]


def _annotations(described: Container, image: BaseImage) -> dict[str, str]:
    return {**described.labels, **({f"{LABELS}base.digest": image.digest} if image.digest else {})}


def _described(output: ImageOutput, media_type: str, document: bytes) -> dict[str, Any]:
    """Adds a document as a blob, and returns its descriptor."""
    digest = output.add_blob(len(document), lambda target: target.write(memoryview(document)))
    return {"mediaType": media_type, "digest": digest, "size": len(document)}


def _add_names(
    output: ImageOutput,
    name: ImageName,
    image: BaseImage,
    descriptor: dict[str, Any],
    config: bytes,
    layers: list[dict[str, Any]],
) -> None:
    """What readers begin with: written last, and by itself worth nothing."""
    platform = {key: image.document[key] for key in _KEPT if key in image.document}
    named = {REF_NAME: name.tag, _CONTAINERD_NAME: name.full}
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [{**descriptor, "platform": platform, "annotations": named}],
    }
    output.add("index.json", canonical(index))
    output.add("oci-layout", canonical({"imageLayoutVersion": "1.0.0"}))
    if output.keeps_docker_manifest:
        saved = {
            "Config": blob_path(digest_of(config)),
            "RepoTags": [str(name)],
            "Layers": [blob_path(layer["digest"]) for layer in layers],
        }
        output.add("manifest.json", canonical([saved]))
