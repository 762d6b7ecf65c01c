"""The plugin's gRPC service, as Pulumi's engine asks for it.

It behaves as pulumi-kubernetes 4.34 with server-side apply does, in what a program and its users can see; but the API
server's field validation is strict here, where the real one warns.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf import empty_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc, status_pb2

from tests.plugins.kubernetes import objects
from tests.plugins.kubernetes.api import Api, ApiError, Connection, NoSuchKind, Object
from tests.plugins.kubernetes.readiness import Hopeless, lacks
from tests.plugins.serving import fail, serve, to_python, to_struct

VERSION = "4.34.2"

_TIMEOUT_SECONDS = 600
_CREATE_TRIES = 5
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
_DIFF = provider_pb2.PropertyDiff
_KINDS = {
    "add": (_DIFF.ADD, _DIFF.ADD_REPLACE),
    "delete": (_DIFF.DELETE, _DIFF.DELETE_REPLACE),
    "update": (_DIFF.UPDATE, _DIFF.UPDATE_REPLACE),
}


class Failure(Exception):
    """An operation failed, and changed nothing that Pulumi must remember."""


class NotReady(Exception):
    """The object is there, and isn't what was asked for."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))


class Plugin(provider_pb2_grpc.ResourceProviderServicer):
    def __init__(self) -> None:
        self._api: Api | None = None
        self._unreachable = "it was not configured"
        self._namespace = ""
        self._mutable: set[str] = set()
        self._cancelled = threading.Event()

    # -- the provider itself

    def GetPluginInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        return plugin_pb2.PluginInfo(version=VERSION)

    def Handshake(self, request: Any, context: grpc.ServicerContext) -> Any:
        return provider_pb2.ProviderHandshakeResponse()

    def Attach(self, request: Any, context: grpc.ServicerContext) -> Any:
        return empty_pb2.Empty()

    def Cancel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._cancelled.set()
        return empty_pb2.Empty()

    def CheckConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Another cluster means other objects; other ways to the same cluster do not."""
        old, new = to_python(request.olds), to_python(request.news)
        changed = sorted(key for key in {*old, *new} - {"version"} if old.get(key) != new.get(key))
        is_other = bool(changed) and not objects.has_unknowns(new) and _server(old) != _server(new)
        some = provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE
        return provider_pb2.DiffResponse(changes=some, diffs=changed, replaces=changed if is_other else [])

    def Configure(self, request: Any, context: grpc.ServicerContext) -> Any:
        settings = to_python(request.args)
        for key, kind in (("enableConfigMapMutable", "ConfigMap"), ("enableSecretMutable", "Secret")):
            if _is_true(settings.get(key)):
                self._mutable.add(kind)
        try:
            connection = _connection(settings)
            self._namespace = settings.get("namespace") or connection.namespace
            api = Api(connection)
            api.version()
            self._api = api
        except (ApiError, ValueError, KeyError, OSError) as error:
            self._unreachable = str(error)
        return provider_pb2.ConfigureResponse(supportsPreview=True)

    # -- resources

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        inputs = to_python(request.news)
        metadata = inputs.setdefault("metadata", {})
        failures = []
        if not metadata.get("name"):
            failures.append(provider_pb2.CheckFailure(property="metadata.name", reason="the stand-in makes no names"))
        elif not metadata.get("namespace") and self._is_namespaced(request.urn):
            metadata["namespace"] = self._namespace
        return provider_pb2.CheckResponse(inputs=to_struct(inputs), failures=failures)

    def Diff(self, request: Any, context: grpc.ServicerContext) -> Any:
        old_inputs, live = objects.normalized(to_python(request.old_inputs)), to_python(request.olds)
        new = objects.normalized(to_python(request.news))
        old = objects.pruned(live, old_inputs)
        detailed: dict[str, Any] = {}
        replaced: list[str] = []
        for path, what in objects.differences(old, new):
            text = objects.written(path)
            if any(
                text == ignored or text.startswith((f"{ignored}.", f"{ignored}[")) for ignored in request.ignoreChanges
            ):
                continue
            replaces = objects.replaces(new, path, self._mutable)
            detailed[text] = _DIFF(kind=_KINDS[what][replaces], inputDiff=what == "delete")
            replaced += [text] if replaces else []
        same_name = live.get("metadata", {}).get("name") == new["metadata"].get("name")
        same_namespace = live.get("metadata", {}).get("namespace") == new["metadata"].get("namespace")
        return provider_pb2.DiffResponse(
            changes=provider_pb2.DiffResponse.DIFF_SOME if detailed else provider_pb2.DiffResponse.DIFF_NONE,
            replaces=replaced,
            deleteBeforeReplace=bool(replaced) and same_name and same_namespace,
            detailedDiff=detailed,
            hasDetailedDiff=True,
        )

    def Create(self, request: Any, context: grpc.ServicerContext) -> Any:
        inputs = to_python(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(properties=to_struct(self._previewed(request.urn, inputs, None)))
        try:
            applied = self._created(request.urn, inputs)
        except ApiError as error:
            fail(
                context,
                f'resource "{request.urn}" was not successfully created by the Kubernetes API server: {error}',
            )
        except Failure as error:
            fail(context, str(error))
        try:
            live = self._when_ready(applied, inputs, request.timeout)
        except NotReady as error:
            text = (
                f'resource "{request.urn}" was successfully created, but the Kubernetes API server reported that it '
                f"failed to fully initialize or become live: {error}"
            )
            _fail_partly(context, objects.id_of(applied), self._now(applied), None, text)
        return provider_pb2.CreateResponse(id=objects.id_of(live), properties=to_struct(live))

    def Update(self, request: Any, context: grpc.ServicerContext) -> Any:
        inputs = to_python(request.news)
        if request.preview:
            try:
                return provider_pb2.UpdateResponse(
                    properties=to_struct(self._previewed(request.urn, inputs, to_python(request.olds)))
                )
            except (ApiError, Failure) as error:
                fail(context, str(error))
        try:
            before = self._read(inputs["apiVersion"], inputs["kind"], request.id)
        except (ApiError, Failure) as error:
            fail(context, f'update of resource "{request.urn}" failed: {error}')
        if before is None:
            fail(context, f'update of resource "{request.urn}" failed: {request.id} not found')
        try:
            live = self._when_ready(self._applied(request.urn, inputs), inputs, request.timeout)
        except (ApiError, NotReady) as error:
            text = (
                f'the Kubernetes API server reported that "{request.id}" failed to fully initialize or become live: '
                f"{error}"
            )
            _fail_partly(context, request.id, self._now(before), None, text)
        return provider_pb2.UpdateResponse(properties=to_struct(live))

    def Read(self, request: Any, context: grpc.ServicerContext) -> Any:
        old_inputs = to_python(request.inputs)
        api_version, kind = objects.kind_of(request.urn)
        if self._api is None:
            fail(context, "failed to read resource state due to unreachable cluster. " + self._unreachable)
        try:
            live = self._read(api_version, kind, request.id)
            missing = [] if live is None or _skips(old_inputs) else self._missing(live)
        except ApiError as error:
            fail(context, str(error))
        if live is None:
            return provider_pb2.ReadResponse()
        if old_inputs:
            inputs = objects.pruned(live, objects.normalized(old_inputs))
        else:
            inputs, missing = objects.without_what_the_server_owns(live), []
        if missing:
            _fail_partly(context, request.id, live, inputs, "; ".join(missing))
        return provider_pb2.ReadResponse(id=request.id, properties=to_struct(live), inputs=to_struct(inputs))

    def Delete(self, request: Any, context: grpc.ServicerContext) -> Any:
        inputs = to_python(request.old_inputs) or to_python(request.properties)
        api_version, kind = objects.kind_of(request.urn)
        try:
            api = self._reached()
            namespace, name = _split(request.id)
            before = api.get(api_version, kind, name, namespace)
            propagation = objects.annotation(inputs, "deletionPropagationPolicy").capitalize() or "Foreground"
            api.delete(api_version, kind, name, namespace, propagation=propagation)
            if before and objects.annotation(inputs, "skipAwait") != "true":
                uid = before["metadata"]["uid"]
                self._until(
                    lambda: self._is_gone(api, api_version, kind, name, namespace, uid),
                    _seconds(request.timeout, inputs),
                )
        except (ApiError, Failure, NotReady) as error:
            fail(context, f'deleting "{request.id}" failed: {error}')
        return empty_pb2.Empty()

    # -- private

    def _reached(self) -> Api:
        if self._api is None:
            raise Failure(f"configured Kubernetes cluster is unreachable: {self._unreachable}")
        return self._api

    def _is_namespaced(self, urn: str) -> bool:
        """A kind that the API server doesn't know yet is taken for one that lives in a Namespace."""
        try:
            return self._reached().resource(*objects.kind_of(urn)).namespaced
        except NoSuchKind:
            return True
        except (ApiError, Failure):
            return False

    def _previewed(self, urn: str, inputs: Object, old: Object | None) -> Object:
        """What the API server would make of it; the inputs where it can't say yet."""
        if self._api is None or objects.has_unknowns(inputs):
            return inputs
        force = old is None or objects.annotation(inputs, "patchForce") == "true"
        try:
            found = self._api.apply(inputs, manager=objects.manager_of(urn), force=force, dry_run=True)
        except ApiError as error:
            if error.code in (403, 404):
                return inputs
            raise
        return {key: value for key, value in found.items() if key != "status"}

    def _created(self, urn: str, inputs: Object) -> Object:
        """Tries again for some seconds where the Namespace or the kind isn't there yet."""
        pause = 0.5
        for last in (*[False] * _CREATE_TRIES, True):
            try:
                return self._applied(urn, inputs)
            except ApiError as error:
                if error.code != 404 or last or self._cancelled.wait(pause):
                    raise
            pause *= 2
        raise AssertionError("the last try returns or raises")

    def _applied(self, urn: str, inputs: Object) -> Object:
        manager, force = objects.manager_of(urn), objects.annotation(inputs, "patchForce") == "true"
        try:
            return self._reached().apply(inputs, manager=manager, force=force)
        except ApiError as error:
            if error.code == 409:
                text = (
                    "Server-Side Apply field conflict detected. The resource managed by field manager "
                    f'"{manager}" had an apply conflict: {error}'
                )
                raise ApiError(error.code, error.reason, text) from error
            raise

    def _when_ready(self, applied: Object, inputs: Object, timeout: float) -> Object:
        """The live object once it is ready; raises NotReady."""
        if not _skips(inputs):
            self._until(lambda: self._missing(self._now(applied)), _seconds(timeout, inputs))
        return self._now(applied)

    def _until(self, missing: Callable[[], list[str]], seconds: float) -> None:
        """Returns once nothing is missing. An API server that is away for a while doesn't end the wait."""
        deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE_SECONDS
        found: list[str] = []
        while True:
            try:
                found = missing()
            except Hopeless as error:
                raise NotReady(str(error)) from error
            except ApiError as error:
                if 400 <= error.code < 500 and error.code != 429:
                    raise NotReady(str(error)) from error
                found = [str(error)]
            if not found:
                return
            if self._cancelled.is_set():
                raise NotReady("the operation was cancelled", *found)
            if time.monotonic() > deadline:
                raise NotReady(f"not ready within {seconds:g} s", *found)
            self._cancelled.wait(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)

    def _missing(self, live: Object) -> list[str]:
        try:
            return lacks(self._reached(), live)
        except Hopeless as error:
            return [str(error)]

    def _now(self, live: Object) -> Object:
        """The object as it is now, or as it was last seen."""
        try:
            return self._read(live["apiVersion"], live["kind"], objects.id_of(live)) or live
        except ApiError:
            return live

    def _read(self, api_version: str, kind: str, identity: str) -> Object | None:
        namespace, name = _split(identity)
        return self._reached().get(api_version, kind, name, namespace)

    def _is_gone(self, api: Api, api_version: str, kind: str, name: str, namespace: str | None, uid: str) -> list[str]:
        live = api.get(api_version, kind, name, namespace)
        if live is None or live["metadata"]["uid"] != uid:
            return []
        told = [
            entry["message"] for entry in (live.get("status") or {}).get("conditions") or [] if entry.get("message")
        ]
        return [f"{kind} {name} still exists", *told]


def _connection(settings: Mapping[str, Any]) -> Connection:
    """From the provider's `kubeconfig` (contents, or a path), or from where kubectl looks."""
    given = settings.get("kubeconfig") or os.environ.get("KUBECONFIG") or "~/.kube/config"
    context = settings.get("context")
    if "\n" in given or given.lstrip().startswith("{"):
        return Connection.of(given, context)
    path = Path(given).expanduser()
    return Connection.of(path.read_text(), context, path.parent)


def _server(settings: Mapping[str, Any]) -> str:
    try:
        return _connection(settings).server
    except (ValueError, KeyError, OSError):
        return json.dumps([settings.get("kubeconfig"), settings.get("context")])


def _split(identity: str) -> tuple[str | None, str]:
    namespace, _, name = identity.rpartition("/")
    return namespace or None, name


def _seconds(timeout: float, inputs: Object) -> float:
    return timeout or float(objects.annotation(inputs, "timeoutSeconds") or _TIMEOUT_SECONDS)


def _skips(inputs: Object) -> bool:
    """Whether nobody is to wait until it is ready. Its deletion is waited for with `ready`, and not with `true`."""
    return objects.annotation(inputs, "skipAwait") in ("true", "ready")


def _is_true(value: Any) -> bool:
    return value is True or str(value).lower() == "true"


def _fail_partly(
    context: grpc.ServicerContext, identity: str, live: Object, inputs: Object | None, text: str
) -> NoReturn:
    """The engine keeps the object, and tries again with the next update."""
    detail = provider_pb2.ErrorResourceInitFailed(id=identity, properties=to_struct(live), reasons=[text])
    if inputs is not None:
        detail.inputs.CopyFrom(to_struct(inputs))
    status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=text)
    status.details.add().Pack(detail)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    fail(context, text)


def main() -> None:
    serve(Plugin())
