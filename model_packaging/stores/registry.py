"""A store in an OCI registry: a repository a model, a tag a version.

Source: OCI distribution specification 1.1. What is guaranteed when several push at once: docs/decisions/registries.md.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import TypeAdapter, ValidationError
from requests.utils import parse_header_links

from infra.settings.values import Digest, Name
from model_packaging.digests import copy, digest_of
from model_packaging.errors import (
    BlobMissing,
    DigestMismatch,
    NotInStore,
    PackagingError,
    StoreDamaged,
    StoreUnreachable,
    VersionExists,
)
from model_packaging.folders import writing_to
from model_packaging.manifest import MANIFEST_TYPE, ImageManifest
from model_packaging.semver import is_semantic, precedence
from model_packaging.stores.collection import Collected
from model_packaging.stores.locks import machine_lock
from model_packaging.stores.offered import attachment_tag, attachment_tags, parse_attachment, parse_version
from model_packaging.stores.store import PLAIN_REGISTRY_SCHEME, REGISTRY_SCHEME, Claim, Entry, Store
from model_packaging.stores.transport import Answer, Patience, Refused, Transport
from model_packaging.stores.verified import VerifiedStream
from model_packaging.threads import threads

_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_PREFIX = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = TypeAdapter[str](Digest)
_NAME = TypeAdapter[str](Name)
_TAGS_A_PAGE = 1000
_MOST_PAGES = 10_000
_ASKED_AT_ONCE = 64
_UPLOAD_LOST = {400, 404, 416}
"""What registries answer that no longer know, or no longer understand, where an upload stands."""
_UPLOAD_TYPE = {"Content-Type": "application/octet-stream"}
_ACCEPT = {"Accept": MANIFEST_TYPE}


class Registry:
    """A store at `oci://HOST[:PORT][/PREFIX]`, over TLS, or `oci+http://…` without. The methods are those of `Store`.

    A version is there once its tag is: that is written last, when the registry has all blobs.
    """

    def __init__(
        self,
        location: str,
        *,
        claim: Claim | None = None,
        patience: Patience | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """
        Args:
            claim: What makes sure, for all machines, that a version is pushed with the same bytes only.

        Raises:
            PackagingError: the location is not of that form, or holds credentials.
        """
        self.location, self._host, self._prefix = _parse(location)
        plain = location.startswith(PLAIN_REGISTRY_SCHEME)
        self._transport = Transport(self._host, plain=plain, patience=patience, environ=environ)
        self._claim = claim
        self._environ = environ

    def __repr__(self) -> str:
        return f"Registry({self.location!r})"

    # Versions

    def entries(self, model: str | None = None) -> Iterator[Entry]:
        for name in sorted(self._models()) if model is None else [model]:
            for version, digest in self._digests(name, self._versions(name)):
                yield Entry(name, version, digest)

    def resolve(self, model: str, version: str) -> str:
        digest = self._tagged(model, version) if _is_name(model) and is_semantic(version) else None
        if digest is None:
            raise NotInStore.version(self.location, model, version, self._versions(model))
        return digest

    def put(self, model: str, version: str, manifest: bytes) -> bool:
        document = parse_version(model, version, manifest)
        digest = digest_of(manifest)
        with self._locked(model, version):
            self._refuse_other(model, version, digest)
            self._require_blobs(model, document)
            if self._claim is not None:
                self._claim(self, model, version, manifest)
            # Again, as the blobs may have taken a while, and other machines don't know our lock.
            if self._refuse_other(model, version, digest):
                return False
            self._write_version(model, version, manifest, digest)
        return True

    def attachment(self, model: str, digest: str, kind: str) -> bytes | None:
        kept = self._tagged(model, attachment_tag(self._checked(digest), kind))
        return None if kept is None else self.read_manifest(model, kept)

    def attach(self, model: str, digest: str, kind: str, manifest: bytes, replacing: bytes | None) -> bool:
        document, tag = parse_attachment(model, digest, manifest), attachment_tag(digest, kind)
        with self._locked(model, tag):
            if self.attachment(model, digest, kind) != replacing:
                return False
            self._require_blobs(model, document)
            self._write_manifest(model, tag, manifest)
            return self._tagged(model, tag) == digest_of(manifest)

    def writing(self) -> AbstractContextManager[None]:
        # A registry's own garbage collection spares what is young, or stops all writing: its operator sees to it.
        return nullcontext()

    def collect(self, *, dry_run: bool = False) -> Collected:
        return Collected(
            note=f"{self.location} is a registry: the manifests of deleted versions are gone from it, and their blobs "
            "go when its operator runs the registry's own garbage collection"
        )

    def delete(self, model: str, version: str) -> None:
        with self._locked(model, version):
            digest = self.resolve(model, version)
            others = [tag for tag in self._tags(model) if tag != version]
            attached = [tag for tag in others if tag.startswith(attachment_tags(digest))]
            held = dict(self._digests(model, [tag for tag in others if tag not in attached]))
            # First the version: a signature without one is harmless, a version without its signature is not.
            self._untag(model, version, digest, with_manifest=digest not in held.values())
            if any(is_semantic(tag) for tag, kept in held.items() if kept == digest):
                return
            for tag, kept in self._digests(model, attached):
                self._untag(model, tag, kept, with_manifest=kept not in held.values())

    # Blobs

    def read_manifest(self, model: str, digest: str) -> bytes:
        answer = self._ask("GET", model, f"manifests/{self._checked(digest)}", {200, 404}, headers=_ACCEPT)
        if answer.status == 404:
            raise NotInStore.digest(self.location, digest)
        found = digest_of(answer.content)
        if found != digest:
            what = f"the manifest {digest}"
            raise DigestMismatch(self.location, what, digest, found, f"{len(answer.content)} bytes")
        return answer.content

    def has_blob(self, model: str, digest: str) -> bool:
        return self._ask("HEAD", model, f"blobs/{self._checked(digest)}", {200, 404}).status == 200

    def open_blob(self, model: str, digest: str, what: str) -> BinaryIO:
        repository = self._repository(model)
        path = f"/v2/{repository}/blobs/{self._checked(digest)}"
        stream = self._transport.download(path, repository=repository, what=what)
        if stream is None:
            raise BlobMissing(self.location, what, digest)
        return stream

    def add_blob(self, model: str, source: BinaryIO, size: int, digest: str | None = None) -> str:
        if digest is None:
            with _rewindable(source, size) as again:
                start = again.tell()
                digest, length = copy(again, None, at_most=size)
                if length != size:
                    raise _short(self.location, digest, length, size)
                if not self.has_blob(model, digest):
                    again.seek(start)
                    self._upload(model, again, size, digest)
        elif self.has_blob(model, digest):
            # The bytes are taken from the source all the same: what follows them may be the next blob.
            found, length = copy(source, None, at_most=size)
            if (found, length) != (digest, size):
                raise DigestMismatch(self.location, "a blob", digest, found, f"{length} bytes of {size}")
        else:
            self._upload(model, source, size, digest)
        return digest

    def mount(self, model: str, digest: str, source: Store) -> bool:
        """Takes a blob from another prefix of the same registry, without a byte sent; False where that can't be."""
        if not isinstance(source, Registry) or source._host != self._host or source._prefix == self._prefix:
            return False
        query = urlencode({"mount": digest, "from": source._repository(model)})
        try:
            answer = self._ask("POST", model, f"blobs/uploads/?{query}", {201, 202})
        except Refused:
            return False
        if answer.status == 202:
            # An upload was begun in its place, which nobody ends.
            location = self._transport.resolve(answer.url, answer.headers.get("Location"))
            self._transport.ask("DELETE", location, repository=self._repository(model), expected=range(200, 500))
        return answer.status == 201

    # Inside

    def _repository(self, model: str) -> str:
        if not _is_name(model):
            raise NotInStore(
                f"{self.location} can have no model {model!r:.80}: a name is at most 63 lower-case letters, digits and "
                "hyphens"
            )
        return f"{self._prefix}/{model}" if self._prefix else model

    def _checked(self, digest: str) -> str:
        try:
            return _DIGEST.validate_python(digest)
        except ValidationError:
            raise NotInStore.digest(self.location, digest) from None

    def _ask(self, method: str, model: str, path: str, expected: set[int], **more: Any) -> Answer:
        repository = self._repository(model)
        return self._transport.ask(method, f"/v2/{repository}/{path}", repository=repository, expected=expected, **more)

    def _tagged(self, model: str, tag: str) -> str | None:
        """The digest of what a tag names now."""
        answer = self._ask("HEAD", model, f"manifests/{tag}", {200, 404}, headers=_ACCEPT)
        if answer.status == 404:
            return None
        digest = answer.headers.get("Docker-Content-Digest")
        if digest is None:
            # It may leave that out. Then the bytes say it.
            answer = self._ask("GET", model, f"manifests/{tag}", {200, 404}, headers=_ACCEPT)
            return digest_of(answer.content) if answer.status == 200 else None
        try:
            return _DIGEST.validate_python(digest)
        except ValidationError:
            raise StoreDamaged(
                f"{self.location}: the tag {tag} of {model} has no digest 'sha256:…' but {digest!r:.80}; push it again"
            ) from None

    def _digests(self, model: str, tags: list[str]) -> Iterator[tuple[str, str]]:
        """Tags, in their order, with what they name; those that are gone by now are left out."""
        for start in range(0, len(tags), _ASKED_AT_ONCE):
            some = tags[start : start + _ASKED_AT_ONCE]
            with threads() as pool:
                digests = list(pool.map(lambda tag: self._tagged(model, tag), some))
            yield from ((tag, digest) for tag, digest in zip(some, digests, strict=True) if digest is not None)

    def _versions(self, model: str) -> list[str]:
        return sorted(filter(is_semantic, self._tags(model)), key=precedence) if _is_name(model) else []

    def _tags(self, model: str) -> list[str]:
        repository = self._repository(model)
        listed = self._listed(f"/v2/{repository}/tags/list?n={_TAGS_A_PAGE}", "tags", repository)
        # Tags become parts of addresses.
        return [tag for tag in listed if _TAG.fullmatch(tag)]

    def _models(self) -> set[str]:
        try:
            repositories = self._listed("/v2/_catalog", "repositories", "")
        except Refused as error:
            raise StoreUnreachable(
                f"{self.location} does not say which models it has, as many registries don't; name a model, as with "
                f"lepton package rebuild --model MODEL ({error})"
            ) from error
        start = f"{self._prefix}/" if self._prefix else ""
        return {name[len(start) :] for name in repositories if name.startswith(start) and _is_name(name[len(start) :])}

    def _listed(self, path: str, key: str, repository: str) -> list[str]:
        """All names of a listing, page after page (RFC 8288 links); none where there is no such listing's subject."""
        found: dict[str, None] = {}
        for _ in range(_MOST_PAGES):
            answer = self._transport.ask(
                "GET", path, repository=repository, expected={200, 404} if repository else {200}
            )
            if answer.status == 404:
                break
            page = answer.json()
            # Null where there are none, in some.
            names = (cast("dict[str, object]", page).get(key) or []) if isinstance(page, dict) else None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in cast("list[object]", names)):
                raise StoreDamaged(f"{self.location} should list its {key} by name, and answers {str(page)!r:.80}")
            before = len(found)
            found.update(dict.fromkeys(cast("list[str]", names)))
            link = _next_page(answer.headers)
            if link is None or len(found) == before:
                break
            path = self._transport.resolve(answer.url, link)
        return list(found)

    def _refuse_other(self, model: str, version: str, digest: str) -> bool:
        """Whether the version is there with that digest. Raises VersionExists where it has another."""
        stored = self._tagged(model, version)
        if stored is not None and stored != digest:
            raise VersionExists(self.location, model, version, stored, digest)
        return stored is not None

    def _write_version(self, model: str, version: str, manifest: bytes, digest: str) -> None:
        """Raises VersionExists where another machine was first, as far as that shows."""
        try:
            self._write_manifest(model, version, manifest)
        except Refused:
            # It may keep tags from being changed.
            self._refuse_other(model, version, digest)
            raise
        if not self._refuse_other(model, version, digest):
            raise StoreDamaged(f"{self.location} took {model} {version}, and does not have it; push it again")

    def _require_blobs(self, model: str, document: ImageManifest) -> None:
        digests = list(dict.fromkeys(blob.digest for blob in document.blobs))
        with threads() as pool:
            for digest, is_there in zip(
                digests, pool.map(lambda each: self.has_blob(model, each), digests), strict=True
            ):
                if not is_there:
                    raise BlobMissing(self.location, f"blob {digest}", digest)

    def _write_manifest(self, model: str, tag: str, manifest: bytes) -> None:
        kind = {"Content-Type": MANIFEST_TYPE}
        self._ask("PUT", model, f"manifests/{tag}", {200, 201, 202}, headers=kind, body=manifest)

    def _untag(self, model: str, tag: str, digest: str, *, with_manifest: bool) -> None:
        """Takes a tag away: with the manifest, if only it names that and the registry lets manifests go."""
        refused = None
        for way in [digest, tag] if with_manifest else [tag]:
            try:
                self._ask("DELETE", model, f"manifests/{way}", {200, 202, 204, 404})
            except Refused as error:
                refused = error
            if self._tagged(model, tag) is None:
                return
        raise StoreUnreachable(
            f"{self.location} does not delete: {model} {tag} is still there; have its operator delete it, or allow it"
            f"{f' ({refused})' if refused else ''}"
        )

    def _upload(self, model: str, source: BinaryIO, size: int, digest: str) -> None:
        """Sends a blob, again from its start where the connection is cut, if `source` can go back there."""
        patience = self._transport.patience
        start = source.tell() if source.seekable() else None
        for attempt in range(1, patience.attempts + 1):
            answer = self._ask("POST", model, "blobs/uploads/", {202}, headers=_UPLOAD_TYPE)
            url = self._transport.resolve(answer.url, answer.headers.get("Location"))
            body = VerifiedStream(source, size, digest, store=self.location, what="a blob") if size else b""
            try:
                self._transport.ask(
                    "PUT",
                    _with_query(url, digest=digest),
                    repository=self._repository(model),
                    expected={201, 204},
                    headers=_UPLOAD_TYPE,
                    body=body,
                    attempts=1,
                )
            except StoreUnreachable as error:
                lasting = isinstance(error, Refused) and error.status not in _UPLOAD_LOST
                if start is None or attempt == patience.attempts or lasting:
                    raise
                # Also the answer may have been all that was lost.
                if self.has_blob(model, digest):
                    source.seek(start + size)
                    return
                source.seek(start)
                self._transport.sleep(patience.delay(attempt))
            else:
                return

    def _locked(self, model: str, tag: str) -> AbstractContextManager[None]:
        return machine_lock(f"{self._host}/{self._repository(model)}:{tag}", self._environ)


def _parse(location: str) -> tuple[str, str, str]:
    """The location as it is written, the host with its port, and the prefix."""
    scheme = next((scheme for scheme in (REGISTRY_SCHEME, PLAIN_REGISTRY_SCHEME) if location.startswith(scheme)), None)
    if scheme is None:
        raise PackagingError(f"{location!r:.200} is no registry; one is {REGISTRY_SCHEME}HOST[:PORT]/PREFIX")
    host, _, prefix = location.removeprefix(scheme).partition("/")
    host, prefix = host.lower(), prefix.rstrip("/")
    if "@" in location:
        raise PackagingError(
            "a registry's location holds no credentials, as configs and logs keep it: take out what is before the "
            "'@', and log in with `docker login` or `podman login`, or set LEPTON_REGISTRY_USERNAME and _PASSWORD"
        )
    if not _HOST.fullmatch(host) or (prefix and not _PREFIX.fullmatch(prefix)):
        raise PackagingError(
            f"{location!r:.200} is no registry; one is {REGISTRY_SCHEME}HOST[:PORT]/PREFIX, the prefix in lower-case "
            "letters and digits, separated by '/', '-', '_' or '.'"
        )
    return scheme + "/".join(filter(None, [host, prefix])), host, prefix


def _is_name(model: str) -> bool:
    try:
        _NAME.validate_python(model)
    except ValidationError:
        return False
    return True


def _next_page(headers: Mapping[str, str]) -> str | None:
    links = parse_header_links(headers.get("Link", ""))
    return next((link["url"] for link in links if link.get("rel") == "next"), None)


def _with_query(url: str, **more: str) -> str:
    parts = urlsplit(url)
    return parts._replace(query=urlencode([*parse_qsl(parts.query, keep_blank_values=True), *more.items()])).geturl()


@contextmanager
def _rewindable(source: BinaryIO, size: int) -> Iterator[BinaryIO]:
    """The next bytes of a stream, to be read twice: their digest is asked for before they are sent."""
    if source.seekable():
        yield source
        return
    with writing_to(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
        copy(source, cast("Any", file), at_most=size)
        file.seek(0)
        yield cast("BinaryIO", file)


def _short(store: str, found: str, length: int, size: int) -> DigestMismatch:
    return DigestMismatch(store, "a blob", "the digest of the whole", found, f"{length} bytes of {size}")
