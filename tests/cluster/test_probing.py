"""The requests by which an endpoint's split is seen: that each is a client of its own, and what they need."""

from __future__ import annotations

import itertools
import threading
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.cluster.live.probing import versions_seen
from infra.cluster.observe import Observer
from infra.contracts import ObservationError
from infra.names import VERSION_HEADER
from infra.settings.cluster import GatewaySettings
from tests.answering import Answer, answering
from tests.certificates import make_certificates

V1, V2 = "1.0.0", "2.0.0"


class StickyGateway:
    """Gives its versions in turn, and each client that sends its cookie back the version that it had."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns = itertools.cycle((V1, V2))

    def __call__(self, headers: Message) -> Answer:
        kept = headers.get("cookie", "").removeprefix("session=")
        with self._lock:
            version = kept or next(self._turns)
        return 200, {VERSION_HEADER: version, "set-cookie": f"session={version}; Path=/"}, {}


def test_a_sticky_endpoints_split_is_seen_by_clients_that_each_come_for_the_first_time() -> None:
    with answering(StickyGateway()) as url:
        assert versions_seen(f"{url}/diagnostics/scan", "scan", 100) == {V1: 50, V2: 50}


def test_servers_that_never_say_their_version_are_not_asked_for_long() -> None:
    asked: list[Message] = []

    def silent(headers: Message) -> Answer:
        asked.append(headers)
        return 404, {}, {}

    with answering(silent) as url:
        assert versions_seen(f"{url}/diagnostics/scan", "scan", 200) is None
    assert len(asked) < 50


def test_a_private_ca_is_trusted_where_ssl_cert_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates = make_certificates(tmp_path)
    with answering(lambda _: (200, {VERSION_HEADER: V1}, {}), certificates) as url:
        with pytest.raises(ObservationError, match=r"CERTIFICATE_VERIFY_FAILED.*SSL_CERT_FILE names the file"):
            versions_seen(f"{url}/diagnostics/scan", "scan", 1)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
        assert versions_seen(f"{url}/diagnostics/scan", "scan", 10) == {V1: 10}


def test_a_name_that_dns_does_not_have_is_told_with_what_to_do() -> None:
    with pytest.raises(ObservationError) as failed:
        versions_seen("https://diagnostics.models.invalid/diagnostics/scan", "scan", 1)
    told = str(failed.value)
    assert "can't be reached from here" in told
    assert "DNS and network for diagnostics.models.invalid" in told
    assert "gateway.url" in told
    assert "gateway.probe: false" in told


def platform(url: str, **gateway: Any) -> Any:
    facts = {"hostnames": {}, **gateway}
    internals = {
        "environment": "dev",
        "connection": {"kubeconfig": "/nobody/reads/it", "context": None, "document": None},
        "gateway": facts,
        "teams": {},
        "images": {},
        "pools": [],
    }
    return {"endpoint_base_url": url, "metrics_url": "", "internals": internals}


def test_an_environment_without_the_probe_has_nothing_sent_through_its_gateway() -> None:
    url = "http://127.0.0.1:9"
    assert Observer(platform(url, probe=False)).split("diagnostics", "scan", 3) is None
    for gateway in ({"probe": True}, {}):
        with pytest.raises(ObservationError, match="can't be reached from here"):
            Observer(platform(url, **gateway)).split("diagnostics", "scan", 3)


def test_a_gateway_is_probed_unless_it_is_said_not_to() -> None:
    assert GatewaySettings.model_validate({"class_name": "x"}).probe
    assert not GatewaySettings.model_validate({"class_name": "x", "probe": False}).probe
    with pytest.raises(ValidationError, match="probe"):
        GatewaySettings.model_validate({"class_name": "x", "probe": "no"})
