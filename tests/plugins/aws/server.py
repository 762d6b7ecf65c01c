"""The plugin's gRPC service, as Pulumi's engine asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
from botocore.exceptions import BotoCoreError, ClientError
from google.protobuf import empty_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

from tests.plugins.aws import cluster, network, shared
from tests.plugins.aws.kinds import Account, Kind, Properties, Refused, is_missing
from tests.plugins.serving import fail, serve, to_python, to_struct

VERSION = "7.51.1"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""What the engine sends in place of a value that isn't known yet."""

KINDS: dict[str, Kind] = {kind.token: kind() for module in (cluster, network, shared) for kind in module.KINDS}
_PROVIDER_SETTINGS = {"region", "defaultTags", "allowedAccountIds", "version"}
_PROVIDER_DEFAULTS = {"skipCredentialsValidation", "skipRegionValidation"}
"""What the plugin's SDK always sends; they mean nothing here."""
_RANDOM_LETTERS = 7


class Plugin(provider_pb2_grpc.ResourceProviderServicer):
    def __init__(self) -> None:
        self._account = Account("us-east-1")

    # -- the provider itself

    def GetPluginInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        return plugin_pb2.PluginInfo(version=VERSION)

    def Handshake(self, request: Any, context: grpc.ServicerContext) -> Any:
        return provider_pb2.ProviderHandshakeResponse()

    def Attach(self, request: Any, context: grpc.ServicerContext) -> Any:
        return empty_pb2.Empty()

    def Cancel(self, request: Any, context: grpc.ServicerContext) -> Any:
        return empty_pb2.Empty()

    def CheckConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        unknown = sorted(set(to_python(request.news)) - _PROVIDER_SETTINGS - _PROVIDER_DEFAULTS)
        failures = [
            provider_pb2.CheckFailure(property=name, reason="the stand-in does not know this setting")
            for name in unknown
        ]
        return provider_pb2.CheckResponse(inputs=request.news, failures=failures)

    def DiffConfig(self, request: Any, context: grpc.ServicerContext) -> Any:
        old, new = to_python(request.olds), to_python(request.news)
        replaces = ["region"] if old.get("region") != new.get("region") else []
        some = provider_pb2.DiffResponse.DIFF_NONE if old == new else provider_pb2.DiffResponse.DIFF_SOME
        return provider_pb2.DiffResponse(changes=some, replaces=replaces)

    def Configure(self, request: Any, context: grpc.ServicerContext) -> Any:
        # Settings that aren't texts arrive as JSON.
        settings = to_python(request.args)
        tags = json.loads(settings.get("defaultTags", "{}")).get("tags", {})
        self._account = Account(settings["region"], tags)
        allowed = json.loads(settings.get("allowedAccountIds", "[]"))
        account = self._account.sts.get_caller_identity()["Account"]
        if allowed and account not in allowed:
            fail(context, f"AWS account ID not allowed: {account}")
        return provider_pb2.ConfigureResponse(supportsPreview=True)

    def Invoke(self, request: Any, context: grpc.ServicerContext) -> Any:
        arguments = to_python(request.args)
        match request.tok:
            case "aws:index/getCallerIdentity:getCallerIdentity":
                found = self._account.sts.get_caller_identity()
                result = {
                    "accountId": found["Account"],
                    "arn": found["Arn"],
                    "userId": found["UserId"],
                    "id": found["Account"],
                }
            case "aws:eks/getAddonVersion:getAddonVersion":
                result = _tried(context, request.tok, lambda: cluster.addon_version(self._account, arguments))
            case _:
                fail(context, f"the stand-in does not know the function {request.tok}")
        response = provider_pb2.InvokeResponse()
        # The field's name is a word of Python's own.
        getattr(response, "return").CopyFrom(to_struct(result))
        return response

    # -- resources

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        kind = _kind(request.urn, context)
        inputs, olds = to_python(request.news), to_python(request.olds)
        if kind.named_by and kind.named_by not in inputs:
            letters = request.randomSeed.hex()[:_RANDOM_LETTERS]
            inputs[kind.named_by] = olds.get(kind.named_by) or f"{request.urn.split('::')[-1]}-{letters}"
        failures = [
            provider_pb2.CheckFailure(property=name, reason=f"the stand-in does not know this of {kind.token}")
            for name in kind.unknown(inputs)
        ]
        return provider_pb2.CheckResponse(inputs=to_struct(inputs), failures=failures)

    def Diff(self, request: Any, context: grpc.ServicerContext) -> Any:
        kind = _kind(request.urn, context)
        changed = _changed(to_python(request.old_inputs), to_python(request.news))
        replaces = sorted(changed & kind.replaced_by)
        return provider_pb2.DiffResponse(
            changes=provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE,
            diffs=sorted(changed),
            replaces=replaces,
            # One with a name of its own can't be there twice; one that has none may.
            deleteBeforeReplace=bool(replaces) and kind.named_by is None,
        )

    def Create(self, request: Any, context: grpc.ServicerContext) -> Any:
        kind, inputs = _kind(request.urn, context), to_python(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(properties=to_struct(inputs))
        identity, outputs = _tried(context, request.urn, lambda: kind.create(self._account, inputs))
        return provider_pb2.CreateResponse(id=identity, properties=to_struct({**inputs, **outputs}))

    def Update(self, request: Any, context: grpc.ServicerContext) -> Any:
        kind, inputs, state = _kind(request.urn, context), to_python(request.news), to_python(request.olds)
        changed = _changed(to_python(request.old_inputs), inputs)
        if request.preview:
            # A change of a launch template makes a version whose number nobody knows yet.
            unknown = {key: UNKNOWN for key in ("latestVersion", "defaultVersion") if key in state}
            return provider_pb2.UpdateResponse(properties=to_struct({**state, **inputs, **unknown}))
        outputs = _tried(context, request.urn, lambda: kind.update(self._account, request.id, changed, state, inputs))
        kept = {key: value for key, value in state.items() if key not in kind.properties}
        return provider_pb2.UpdateResponse(properties=to_struct({**kept, **inputs, **outputs}))

    def Read(self, request: Any, context: grpc.ServicerContext) -> Any:
        kind, state = _kind(request.urn, context), to_python(request.properties)
        try:
            there = kind.find(self._account, request.id, state)
        except ClientError as error:
            if not is_missing(error):
                fail(context, f"{request.urn}: {error}")
            there = None
        if not there:
            return provider_pb2.ReadResponse()
        before = to_python(request.inputs)
        inputs = kind.refreshed(self._account, request.id, before)
        changed = {key: inputs[key] for key in _changed(before, inputs)}
        return provider_pb2.ReadResponse(
            id=request.id, properties=to_struct({**state, **changed}), inputs=to_struct(inputs)
        )

    def Delete(self, request: Any, context: grpc.ServicerContext) -> Any:
        kind, state = _kind(request.urn, context), to_python(request.properties)

        def delete() -> None:
            try:
                kind.delete(self._account, request.id, state)
            except ClientError as error:
                if not is_missing(error):
                    raise

        _tried(context, request.urn, delete)
        return empty_pb2.Empty()


def _kind(urn: str, context: grpc.ServicerContext) -> Kind:
    token = urn.split("::")[2].rsplit("$", maxsplit=1)[-1]
    if token not in KINDS:
        fail(context, f"the stand-in does not know the type {token}")
    return KINDS[token]


def _changed(old: Properties, new: Properties) -> set[str]:
    return {key for key in {*old, *new} - {"__defaults"} if old.get(key) != new.get(key)}


def _tried(context: grpc.ServicerContext, what: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except (ClientError, BotoCoreError, Refused) as error:
        fail(context, f"{what}: {error}")


def main() -> None:
    serve(Plugin())
