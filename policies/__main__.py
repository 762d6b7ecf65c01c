"""The policy pack that `pulumi preview --policy-pack policies` runs: `policies.rules`, behind the engine's protocol.

The engine starts this program, reads the port that it prints, and asks it about every resource before touching one.
Why not the PolicyPack of `pulumi-policy`: it asks for protobuf 5, and the rest of the project runs on 6.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty
from pulumi.runtime.proto import analyzer_pb2, analyzer_pb2_grpc, plugin_pb2

from policies.rules import RULES, Rule

NAME = "lepton"
VERSION = version("lepton")


class Pack(analyzer_pb2_grpc.AnalyzerServicer):
    """Answers the engine's questions. Every rule is advisory unless the pack's config says otherwise."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._levels: dict[str, Any] = {rule.name: analyzer_pb2.ADVISORY for rule in rules}

    def GetAnalyzerInfo(self, request: Any, context: Any) -> Any:
        policies = [
            analyzer_pb2.PolicyInfo(
                name=rule.name,
                description=rule.sentence,
                enforcementLevel=self._levels[rule.name],
                severity=_severity(rule),
                policy_type=analyzer_pb2.POLICY_TYPE_RESOURCE,
            )
            for rule in self._rules
        ]
        return analyzer_pb2.AnalyzerInfo(name=NAME, version=VERSION, supportsConfig=True, policies=policies)

    def Configure(self, request: Any, context: Any) -> Any:
        for name, config in request.policyConfig.items():
            if name == "all":
                continue  # The engine has put it into each rule's own.
            if name not in self._levels:
                known = ", ".join(self._levels)
                _refuse(context, f"{name}: there is no rule of that name; known here: {known}, and all")
            if config.properties.fields:
                unknown = ", ".join(config.properties.fields)
                _refuse(context, f"{name}.{unknown}: unknown key; known here: enforcementLevel")
            self._levels[name] = config.enforcementLevel
        return Empty()

    def Analyze(self, request: Any, context: Any) -> Any:
        properties = json_format.MessageToDict(request.properties)
        diagnostics = [
            analyzer_pb2.AnalyzeDiagnostic(
                policyName=rule.name,
                policyPackName=NAME,
                policyPackVersion=VERSION,
                description=rule.sentence,
                message=message,
                enforcementLevel=self._level(rule),
                urn=request.urn,
                severity=_severity(rule),
            )
            for rule in self._rules
            if self._levels[rule.name] != analyzer_pb2.DISABLED
            for message in rule.violations(request.type, properties)
        ]
        return analyzer_pb2.AnalyzeResponse(diagnostics=diagnostics)

    # What the engine also asks, and no rule needs.

    def Handshake(self, request: Any, context: Any) -> Any:
        return analyzer_pb2.AnalyzerHandshakeResponse()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version=VERSION)

    def ConfigureStack(self, request: Any, context: Any) -> Any:
        return analyzer_pb2.AnalyzerStackConfigureResponse()

    def AnalyzeStack(self, request: Any, context: Any) -> Any:
        return analyzer_pb2.AnalyzeResponse()

    def Remediate(self, request: Any, context: Any) -> Any:
        return analyzer_pb2.RemediateResponse()

    def Cancel(self, request: Any, context: Any) -> Any:
        return Empty()

    def _level(self, rule: Rule) -> Any:
        level = self._levels[rule.name]
        # No rule mends what it finds: what was to be mended, and is not, must not pass.
        return analyzer_pb2.MANDATORY if level == analyzer_pb2.REMEDIATE else level


def serve() -> None:
    """Serves the pack until the engine that started this process is gone."""
    engine = os.getppid()
    # A resource may be larger than the 4 MiB that gRPC takes by default.
    server = grpc.server(ThreadPoolExecutor(max_workers=4), options=[("grpc.max_receive_message_length", -1)])
    analyzer_pb2_grpc.add_AnalyzerServicer_to_server(Pack(RULES), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    # An engine that ends interrupts its plugins; one that is killed can't.
    with suppress(KeyboardInterrupt):
        while os.getppid() == engine:
            server.wait_for_termination(timeout=0.5)


def _severity(rule: Rule) -> Any:
    return analyzer_pb2.PolicySeverity.Value(f"POLICY_SEVERITY_{rule.severity.upper()}")


def _refuse(context: Any, problem: str) -> None:
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)


if __name__ == "__main__":
    serve()
