"""What stand-ins of Pulumi's resource plugins share: the engine's values in Python, and the process of a service."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from google.protobuf import struct_pb2
from pulumi.runtime.proto import provider_pb2_grpc

_WORKERS = 256
_MESSAGE_BYTES = 400 * 1024 * 1024


def to_python(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Without nulls, and with whole numbers as what they are."""
    found = {key: _to_python(value) for key, value in struct.fields.items()}
    return {key: value for key, value in found.items() if value is not None}


def to_struct(document: Mapping[str, Any]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(document)
    return struct


def fail(context: grpc.ServicerContext, text: str) -> NoReturn:
    context.abort(grpc.StatusCode.UNKNOWN, text)
    raise AssertionError("abort raises")


def serve(service: provider_pb2_grpc.ResourceProviderServicer) -> None:
    """Tells the engine the port on standard output, and ends with the engine."""
    threading.Thread(target=_end_with_engine, daemon=True).start()
    options = [("grpc.max_receive_message_length", _MESSAGE_BYTES), ("grpc.max_send_message_length", _MESSAGE_BYTES)]
    server = grpc.server(ThreadPoolExecutor(_WORKERS), options=options)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    server.wait_for_termination()


def _end_with_engine() -> None:
    """However the engine ends: a killed one can't say goodbye."""
    engine = os.pidfd_open(os.getppid())
    select.select([engine], [], [])
    os._exit(0)


def _to_python(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return to_python(value.struct_value)
    if kind == "list_value":
        return [_to_python(element) for element in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    return None if kind in (None, "null_value") else getattr(value, kind)
