"""What is sent through a gateway: with TLS, and before its data plane knows a version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.traffic import app
from infra.addresses import reached_at
from infra.names import VERSION_HEADER
from rollout.driving.warming import NotWarmError, Warmed, send_samples
from rollout.sample_requests import SampleRequests
from rollout.split import measure_split
from tests.answering import Answer, answering
from tests.certificates import Certificates, make_certificates
from tests.rollout.world import ENDPOINT, NEW, OLD, World

SAMPLES: list[dict[str, Any]] = [{"id": str(number), "inputs": []} for number in range(2)]
PATH = "/diagnostics/scan/v2/models/scan/infer"
HOST = "team.models.invalid"


def answered_by(version: str, status: int = 200) -> Answer:
    return status, {VERSION_HEADER: version}, {}


def named_in_body(version: str) -> Answer:
    """An answer of the Open Inference Protocol, where the gateway adds no header."""
    return 200, {}, {"model_name": "scan", "model_version": version, "outputs": []}


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path)


@pytest.fixture
def tls_url(certificates: Certificates) -> Iterator[str]:
    """An endpoint's, where OLD answers unless a version is asked for."""
    with answering(lambda headers: answered_by(headers.get(VERSION_HEADER, OLD)), certificates) as url:
        yield url + PATH


# -- TLS


def test_a_split_is_measured_through_tls(
    tls_url: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    split = measure_split(tls_url, SAMPLES[0], 10, 2)
    assert (split.versions, split.failures) == ({OLD: 10}, {})


def test_a_version_is_warmed_up_through_tls(
    tls_url: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    assert warm(tls_url).requests == 5


def test_requests_to_try_an_endpoint_with_go_through_tls(
    tls_url: str, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's samples are given here; reading them is shown with a whole environment."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    monkeypatch.chdir(World(tmp_path / "project").root)
    asked = SampleRequests(tls_url.removesuffix(PATH), PATH, SAMPLES)
    monkeypatch.setattr("rollout.sample_requests.sample_requests", lambda *_: asked)
    sent = CliRunner().invoke(app, ["send", ENDPOINT, "--rate", "20", "--for", "1s", "--json"])
    assert sent.exit_code == 0, sent.output
    assert json.loads(sent.stdout)["versions"] == {OLD: 20}


def test_nothing_is_sent_to_whom_nobody_vouches_for(tls_url: str) -> None:
    split = measure_split(tls_url, SAMPLES[0], 2, 1)
    assert (split.versions, split.failures) == ({}, {"SSLCertVerificationError": 2})
    with pytest.raises(NotWarmError, match=r"had no answer: SSLCertVerificationError: .*certificate"):
        warm(tls_url)


def test_an_endpoint_that_dns_does_not_know_is_reached_where_its_gateway_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(make_certificates(tmp_path, HOST).authority))
    heard: list[str | None] = []

    def answer(headers: Message) -> Answer:
        heard.append(headers.get("host"))
        return answered_by(headers.get(VERSION_HEADER, OLD))

    with answering(answer, Certificates(tmp_path)) as gateway:
        asked = SampleRequests(f"https://{HOST}:8443", PATH, SAMPLES, at=gateway)
        split = measure_split(asked.url, SAMPLES[0], 3, 1, at=asked.at)
        assert send_samples(asked, NEW, 2, 20, WaitingClock()).requests == 2
        # Its certificate isn't for the address.
        assert measure_split(gateway + PATH, SAMPLES[0], 1).failures == {"SSLCertVerificationError": 1}
    assert (split.versions, split.failures) == ({OLD: 3}, {})
    assert heard == [f"{HOST}:8443"] * 5


@pytest.mark.parametrize(
    ("url", "base", "at"),
    [
        ("http://127.0.0.1:8080/t/m", "http://127.0.0.1:8080", None),
        (f"https://{HOST}:8443/t/m", "https://127.0.0.1:8443", "https://127.0.0.1:8443"),
        ("https://team.example.com/t/m", "https://example.com", None),
        ("https://team.badexample.com/t/m", "https://example.com", "https://example.com"),
    ],
    ids=["no name of its own", "an address", "a name below the gateway's", "a name beside it"],
)
def test_the_way_to_an_endpoint_is_its_gateways_unless_its_name_leads_there(
    url: str, base: str, at: str | None
) -> None:
    assert reached_at(url, base) == at


# -- a pin that the data plane doesn't know yet


class WaitingClock:
    """Time passes only while somebody waits."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waits = 0

    def now(self) -> datetime:
        raise NotImplementedError

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.waits += 1


def warm(url: str, clock: WaitingClock | None = None) -> Warmed:
    return send_samples(SampleRequests(url, "", SAMPLES), NEW, 5, 20, clock or WaitingClock())


class Gateway:
    """Gives some answers in turn, and the last of them from then on."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)

    def __call__(self, headers: Message) -> Answer:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


OWN_404, OWN_500, OWN_503 = ((status, {}, {"error": "no route"}) for status in (404, 500, 503))


@pytest.mark.parametrize(
    "first",
    [OWN_404, OWN_500, OWN_503, answered_by(OLD), named_in_body(OLD)],
    ids=["404", "500", "503", "the split", "the split, without the header"],
)
def test_a_pin_that_the_data_plane_comes_to_know_is_waited_for(first: Answer) -> None:
    clock = WaitingClock()
    with answering(Gateway(first, first, answered_by(NEW))) as url:
        assert warm(url + PATH, clock).requests == 5
    assert clock.waits == 2


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_an_error_of_the_version_itself_is_told_at_once(status: int) -> None:
    clock = WaitingClock()
    with (
        answering(Gateway(answered_by(NEW, status), answered_by(NEW))) as url,
        pytest.raises(NotWarmError, match=f"was answered {status}"),
    ):
        warm(url + PATH, clock)
    assert clock.waits == 0


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (OWN_503, 'was answered 503: {"error": "no route"}'),
        (answered_by(OLD), f"was answered by {OLD}"),
        ((200, {}, {}), "was answered by nobody that says its version"),
    ],
    ids=["an error", "the split", "nobody"],
)
def test_a_pin_that_the_data_plane_never_knows_is_told_by_its_answer(answer: Answer, told: str) -> None:
    clock = WaitingClock()
    with answering(Gateway(answer)) as url, pytest.raises(NotWarmError) as failed:
        warm(url + PATH, clock)
    assert told in str(failed.value)
    assert clock.seconds == pytest.approx(5, abs=0.2)


def test_a_version_may_be_named_by_its_answer_alone() -> None:
    with answering(Gateway(named_in_body(NEW))) as url:
        assert warm(url + PATH).requests == 5
