"""Models as the Hugging Face Hub's clients leave them on disk: a snapshot in their cache, or a folder.

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache, https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from model_packaging.errors import SourceRefused
from model_packaging.manifest import GitSource
from model_packaging.sources.documents import read_front_matter, read_json
from model_packaging.sources.findings import Findings, FoundFramework
from model_packaging.sources.staging import filling, put

_CACHED = re.compile(r"models--(?P<repository>.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SAME_WEIGHTS = re.compile(
    r"pytorch_model.*\.(bin|bin\.index\.json)|tf_model.*\.h5|flax_model.*\.msgpack|rust_model\.ot"
)
_NO_CONTENT = {".git", ".gitattributes", ".gitignore", ".cache"}
_SPDX = {
    licence.lower(): licence
    for licence in (
        "AFL-3.0", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-2.0", "CC-BY-3.0",
        "CC-BY-4.0", "CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-4.0",
        "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "ECL-2.0", "EPL-1.0", "EPL-2.0", "EUPL-1.1", "EUPL-1.2", "ISC",
        "LPPL-1.3c", "MIT", "MPL-2.0", "MS-PL", "NCSA", "ODbL-1.0", "OFL-1.1", "OSL-3.0", "PostgreSQL", "Unlicense",
        "WTFPL", "Zlib",
    )
}  # fmt: skip
"""The Hub writes SPDX's names in lower case. Not those that it leaves open, such as `gpl-3.0` (only, or later)."""


@dataclass(frozen=True)
class Snapshot:
    """The files of a model, each with where its bytes are."""

    files: Mapping[PurePosixPath, Path]
    left_out: tuple[PurePosixPath, ...]
    """The same weights in other forms, which were not asked for."""
    repository: str | None
    """On the Hub, such as `org/name`; None where the place doesn't tell."""
    commit: str | None
    """Of the repository."""


def is_cached(folder: Path) -> bool:
    """Whether a folder is a snapshot in the Hub's cache, by where it is."""
    root = folder.resolve()
    return root.parent.name == "snapshots" and _CACHED.fullmatch(root.parent.parent.name) is not None


def read_snapshot(folder: Path, *, all_forms: bool = False) -> Snapshot:
    """Lists a snapshot's files. In the Hub's cache they are links to the same repository's blobs, and followed.

    Args:
        all_forms: Whether to take `pytorch_model.bin`, `tf_model.h5`, `flax_model.msgpack` and `rust_model.ot` also
            where safetensors files are beside them.

    Raises:
        SourceRefused: a link leads elsewhere, or there is something besides files.
    """
    root = folder.resolve()
    cached = _CACHED.fullmatch(root.parent.parent.name) if root.parent.name == "snapshots" else None
    blobs = root.parent.parent / "blobs" if cached else None
    files = dict(_walk(root, PurePosixPath(), blobs))
    if not files:
        raise SourceRefused(f"{folder} holds no file; name the snapshot's folder, which holds the model's config.json")
    left_out = () if all_forms else tuple(sorted(path for path in files if _is_copy(path, files)))
    return Snapshot(
        {path: files[path] for path in sorted(files.keys() - set(left_out))},
        left_out,
        cached["repository"].replace("--", "/") if cached else None,
        root.name if cached and _COMMIT.fullmatch(root.name) else None,
    )


def fetch(snapshot: Path, folder: Path, *, link: bool = False, all_forms: bool = False) -> Findings:
    """Brings a snapshot's files into the new or empty `folder`, and returns what the place they were in says.

    What the files themselves say is for `inspect` to find.

    Args:
        link: Make hard links where possible, at no cost of time or space. The folder is then only for reading: to write
            to a file of it would harm the cache.
        all_forms: As for `read_snapshot`.

    Raises:
        SourceRefused: a link leads out of the snapshot's repository, or `folder` holds something.
    """
    found = read_snapshot(snapshot, all_forms=all_forms)
    with filling(folder) as content:
        put(found.files, content, link=link)
    names = {"huggingface.repository": found.repository, "huggingface.commit": found.commit}
    return Findings(
        labels={key: value for key, value in names.items() if value},
        git=GitSource(commit=found.commit, branch=None, dirty=False) if found.commit else None,
        remarks=tuple(f"{path} is left out: safetensors files hold the same weights" for path in found.left_out),
    )


def read_model(folder: Path, files: Collection[PurePosixPath]) -> Findings:
    """What config files and the model card in `folder` say; nothing where there are none.

    A card or config that can't be read is remarked upon and not taken: it may be another's.
    """
    remarks: list[str] = []
    documents = {name: _document(folder, name, files, remarks) for name in _CONFIGS}
    card = _document(folder, "README.md", files, remarks)
    architectures = _texts(documents["config.json"].get("architectures"))
    adapted = documents["adapter_config.json"].get("base_model_name_or_path")
    licence = _licence(card)
    datasets = _texts(card.get("datasets"))
    if card and licence is None and "license" in card:
        remarks.append(f"README.md: its license {card['license']!r:.80} says not which; write licence in package.yaml")
    return Findings(
        framework=_framework(documents),
        licence=licence,
        training_data=", ".join(datasets) or None,
        parents=tuple(dict.fromkeys((*_texts(card.get("base_model")), *_texts(adapted)))),
        architecture=next(iter(architectures), None) or _text(documents["model_index.json"].get("_class_name")),
        remarks=tuple(remarks),
    )


_CONFIGS = ("config.json", "model_index.json", "adapter_config.json", "config_sentence_transformers.json")


def _framework(documents: Mapping[str, Mapping[str, Any]]) -> FoundFramework | None:
    sentence = documents["config_sentence_transformers.json"].get("__version__")
    if isinstance(sentence, dict):
        version = _text(cast("dict[str, object]", sentence).get("sentence_transformers"))
        return FoundFramework("sentence-transformers", version, "config_sentence_transformers.json")
    if "_diffusers_version" in documents["model_index.json"]:
        version = _text(documents["model_index.json"]["_diffusers_version"])
        return FoundFramework("diffusers", version, "model_index.json")
    adapter, config = documents["adapter_config.json"], documents["config.json"]
    if "peft_type" in adapter:
        return FoundFramework("peft", _text(adapter.get("peft_version")), "adapter_config.json")
    if "model_type" in config or "transformers_version" in config:
        return FoundFramework("transformers", _text(config.get("transformers_version")), "config.json")
    return None


def _document(folder: Path, name: str, files: Collection[PurePosixPath], remarks: list[str]) -> dict[str, Any]:
    if PurePosixPath(name) not in files:
        return {}
    try:
        return read_front_matter(folder / name) if name.endswith(".md") else read_json(folder / name)
    except SourceRefused as error:
        remarks.append(str(error))
        return {}


def _licence(card: Mapping[str, Any]) -> str | None:
    names = _texts(card.get("license"))
    if len(names) != 1:
        return None
    if names[0] == "other":
        return _text(card.get("license_name"))
    return _SPDX.get(names[0].lower(), names[0])


def _texts(value: object) -> tuple[str, ...]:
    """One text or a list of them, as model cards write both."""
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return tuple(text for text in map(_text, values) if text)


def _text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _is_copy(path: PurePosixPath, files: Collection[PurePosixPath]) -> bool:
    return _SAME_WEIGHTS.fullmatch(path.name) is not None and any(
        other.parent == path.parent and other.suffix == ".safetensors" for other in files
    )


def _walk(root: Path, relative: PurePosixPath, blobs: Path | None) -> Iterator[tuple[PurePosixPath, Path]]:
    try:
        entries = sorted(os.scandir(root / relative), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceRefused(f"{root / relative} can't be read: {error.strerror}") from error
    for entry in entries:
        path = relative / entry.name
        if entry.name in _NO_CONTENT:
            continue
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from _walk(root, path, blobs)
        elif stat.S_ISREG(mode):
            yield path, root / path
        elif stat.S_ISLNK(mode):
            yield path, _follow(root / path, blobs)
        else:
            raise SourceRefused(f"{root / path} is neither a file nor a folder; take it out")


def _follow(link: Path, blobs: Path | None) -> Path:
    if blobs is None:
        raise SourceRefused(
            f"{link} is a link, and its folder is no snapshot of the Hub's cache (models--ORG--NAME/snapshots/COMMIT), "
            "where links are followed; copy what it leads to"
        )
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        raise SourceRefused(f"{link} leads nowhere; download the snapshot again") from None
    if not target.is_relative_to(blobs) or not target.is_file():
        raise SourceRefused(
            f"{link} leads to {target}, which is no file of its own repository's {blobs}; download the snapshot again"
        )
    return target
