"""An environment in a cluster whose endpoints have host names that DNS doesn't know, and TLS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Certificates, make_certificates
from tests.cluster.gateway import CLASS
from tests.engine.cluster_sandbox import Cluster, ServingSandbox

MODEL, VERSION = "tumour", "1.0.0"
DOMAIN = "models.example.com"


class _Trusting(ServingSandbox):
    """Its user trusts the authority of the Gateway's certificate."""

    certificates: Certificates

    @property
    def environment(self) -> dict[str, str]:
        trusted = str(self.certificates.authority)
        return super().environment | {"SSL_CERT_FILE": trusted, "CURL_CA_BUNDLE": trusted}


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path) -> Iterator[_Trusting]:
    port = cluster.gateway.tls_port
    gateway = {
        "class_name": CLASS,
        "port": port,
        "url": f"https://127.0.0.1:{port}",
        "domain": DOMAIN,
        "tls": {"secret": "wildcard"},
    }
    sandbox = _Trusting(cluster, gateway=gateway)
    sandbox.certificates = make_certificates(tmp_path, f"*.{DOMAIN}")
    try:
        yield sandbox
    finally:
        sandbox.close()


def test_an_endpoint_has_its_teams_name_and_its_split_is_seen_through_tls(project: _Trusting) -> None:
    project.up()
    project.control_plane.apply(project.certificates.secret(project.home, "wildcard"))

    project.write_version(MODEL, VERSION)
    endpoint = project.write_endpoint(MODEL, {VERSION: 1})
    port = project.cluster.gateway.tls_port
    host = f"{project.team}.{DOMAIN}"
    up = project.must("up", project.name, "--requests", "40")
    assert f"{endpoint}  https://{host}:{port}/{project.team}/{MODEL}" in up.out
    assert project.observed(endpoint) == {VERSION: 1}

    (curl,) = (line for line in up.out.splitlines() if line.startswith("curl "))
    pasted = project.run("bash", "-c", curl)
    assert pasted.out.startswith("HTTP/2 200"), pasted
    assert json.loads(pasted.out.splitlines()[-1])["model_version"] == VERSION
