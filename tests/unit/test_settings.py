"""What a config may say, and what is said to one that can't be used."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings import EndpointSettings, PlatformSettings, SettingsError, VersionSettings, parse_settings
from infra.settings.rollout import RolloutSettings
from infra.settings.values import Settings

FILE = "stacks/diagnostics/Pulumi.dev.tumour.yaml"
VERSION = {"environment": "dev", "model": "tumour", "version": "1.0.0"}
ENDPOINT = {"environment": "dev", "model": "tumour", "variants": [{"version": "1.0.0", "weight": 1}]}
PLATFORM = {"environment": "dev", "mode": "single-node"}


def refusal(kind: type[Settings], document: object) -> str:
    with pytest.raises(SettingsError) as refused:
        parse_settings(kind, document, file=FILE, key="lepton:it")
    return str(refused.value)


def version(**more: object) -> VersionSettings:
    return parse_settings(VersionSettings, VERSION | more, file=FILE, key="lepton:version")


def test_a_short_config_is_enough() -> None:
    settings = version()
    assert (settings.replicas, settings.resources.gpu, settings.ready_timeout) == (1, 0, 120)


def test_a_server_can_be_named_in_short() -> None:
    named = version(server="mlserver").server
    assert named is not None
    assert named.command[0] == "mlserver"


@pytest.mark.parametrize(
    ("written", "seconds"), [("500ms", 0.5), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400)]
)
def test_durations_are_read_in_their_units(written: str, seconds: float) -> None:
    assert version(ready_timeout=written).ready_timeout == seconds


@pytest.mark.parametrize("written", ["90", 90, "0s", "-1s", "1 s", "s", None, "1w"])
def test_what_is_no_duration_is_refused(written: object) -> None:
    assert "a duration is a number above 0 and a unit" in refusal(VersionSettings, VERSION | {"ready_timeout": written})


@pytest.mark.parametrize(("written", "count"), [("512Mi", 512 * 2**20), ("1.5Gi", 3 * 2**29)])
def test_sizes_are_read_in_their_units(written: str, count: int) -> None:
    assert version(resources={"memory": written}).resources.memory == count


@pytest.mark.parametrize("good", ["0.0.0", "1.2.3", "1.0.0-rc.1", "1.0.0-0.3.7", "10.20.30-a-b.7"])
def test_semantic_versions_are_taken(good: str) -> None:
    assert version(version=good).version == good


@pytest.mark.parametrize("bad", ["1", "1.0", "v1.0.0", "1.0.0-", "01.0.0", "1.0.0-01", "1.0.0 ", 1.0, "latest"])
def test_what_is_no_semantic_version_is_refused(bad: object) -> None:
    assert "a version is a semantic version such as '1.2.0'" in refusal(VersionSettings, VERSION | {"version": bad})


def test_build_metadata_is_refused_with_what_to_write_instead() -> None:
    assert "write '1.0.0'" in refusal(VersionSettings, VERSION | {"version": "1.0.0+cu12"})


@pytest.mark.parametrize("bad", ["", "Tumour", "tumour_net", "-x", "x-", "x" * 64, "a.b", 7])
def test_a_name_is_a_dns_label(bad: object) -> None:
    assert "DNS-1123" in refusal(VersionSettings, VERSION | {"model": bad})


def test_an_unknown_key_is_named_with_the_one_that_was_meant() -> None:
    said = refusal(VersionSettings, VERSION | {"replica": 2})
    assert f"{FILE}: lepton:it.replica: given 2" in said
    assert "did you mean 'replicas'" in said


def test_an_unknown_key_deep_inside_is_told_what_is_known_there() -> None:
    said = refusal(VersionSettings, VERSION | {"resources": {"gpus": 1}})
    assert "lepton:it.resources.gpus" in said
    assert "known here: cpu, device_class, gpu," in said


def test_every_mistake_has_a_line() -> None:
    said = refusal(EndpointSettings, {"environment": "Dev", "variants": [{"version": "1.0", "weight": -1}], "x": 1})
    assert len(said.splitlines()) == 5


@pytest.mark.parametrize("weight", [-1, 1.5, "90", True, None, 1_000_001])
def test_a_weight_is_a_whole_number(weight: object) -> None:
    said = refusal(EndpointSettings, ENDPOINT | {"variants": [{"version": "1.0.0", "weight": weight}]})
    assert "a weight is an integer from 0 to 1000000" in said


def test_no_variants_are_no_traffic() -> None:
    assert "give at least one variant" in refusal(EndpointSettings, ENDPOINT | {"variants": []})


def test_weights_of_0_alone_are_no_traffic() -> None:
    said = refusal(EndpointSettings, ENDPOINT | {"variants": [{"version": "1.0.0", "weight": 0}]})
    assert "give one variant at least 1" in said


def test_the_baseline_is_the_greatest_weight_unless_named() -> None:
    variants = [{"version": "1.0.0", "weight": 10}, {"version": "2.0.0", "weight": 90}]
    settings = parse_settings(EndpointSettings, ENDPOINT | {"variants": variants}, file=FILE, key="k")
    named = parse_settings(EndpointSettings, ENDPOINT | {"variants": variants, "baseline": "1.0.0"}, file=FILE, key="k")
    assert (settings.baseline_version, named.baseline_version) == ("2.0.0", "1.0.0")


@pytest.mark.parametrize("sticky", [{}, {"header": "x-user", "cookie": {"name": "c"}}])
def test_stickiness_goes_by_one_thing(sticky: object) -> None:
    assert "give one of the two" in refusal(EndpointSettings, ENDPOINT | {"sticky": sticky})


def test_a_server_may_name_only_what_will_be_filled_in() -> None:
    said = refusal(VersionSettings, VERSION | {"server": {"command": ["serve", "--port", "{port}"]}})
    assert "{http_port}" in said


SECRET = "hunter2"


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": "docker"},
        {"env": {"TOKEN": SECRET, "LEPTON_TEAM": "x"}},
        {"env": {"TOKEN": [SECRET]}},
        {"env": [SECRET]},
        {"envv": {"TOKEN": SECRET}},
        {"server": {"command": ["serve"], "env": {"TOKEN": SECRET, "OTHER": "{port}"}}},
        {"server": {"command": ["serve"], "env": {"TOKEN": f"{SECRET}{{"}}},
        {"server": {"env": {"TOKEN": SECRET}}},
        {"resources": {"TOKEN": {"a": SECRET}}},
    ],
    ids=str,
)
def test_no_error_repeats_what_may_be_a_secret(change: dict[str, object]) -> None:
    said = refusal(VersionSettings, VERSION | {"env": {"TOKEN": SECRET}} | change)
    assert SECRET not in said
    assert f"{FILE}: lepton:it" in said


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "LEPTON_NODE", "LEPTON_ANY"])
def test_variables_that_mark_a_server_can_not_be_set(name: str) -> None:
    for key, change in (
        ("env", {"env": {name: "0"}}),
        ("server.env", {"server": {"command": ["serve"], "env": {name: "0"}}}),
    ):
        said = refusal(VersionSettings, VERSION | change)
        assert f"lepton:it.{key}: {name} is not yours to set" in said


@pytest.mark.parametrize("address", ["localhost", "", "127.0.0", "1.2.3.4/8", "[::1]", 2130706433, None])
def test_the_routers_address_is_an_ip_address(address: object) -> None:
    said = refusal(PlatformSettings, PLATFORM | {"node": {"address": address}})
    assert f"node.address: given {address!r}: an address is an IP address, such as '127.0.0.1'" in said


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::", "::1", "2001:db8::7"])
def test_ip_addresses_are_taken(address: str) -> None:
    document = PLATFORM | {"node": {"address": address}}
    assert parse_settings(PlatformSettings, document, file=FILE, key="k").node.address == address


def test_a_container_needs_an_image() -> None:
    assert "needs 'image'" in refusal(VersionSettings, VERSION | {"runtime": "docker"})


def test_a_service_port_within_the_servers_range_is_refused() -> None:
    said = refusal(PlatformSettings, PLATFORM | {"node": {"port": 20500}})
    assert "node.port 20500 lies within node.ports 20000-20999" in said


def test_settings_survive_the_state_that_pulumi_keeps_them_in() -> None:
    settings = version(health={"interval": "250ms"}, resources={"memory": "1.5Gi"})
    assert (
        VersionSettings.model_validate_json(settings.model_dump_json(exclude={"resources"})).health == settings.health
    )


ROLLOUTS: list[dict[str, object]] = [
    {},
    {"strategy": "shadow", "shadow_percent": 12.5, "keep": "1h", "approve": [25, 100]},
    {"steps": "exponential", "first": 1, "factor": 3, "alpha": 0.01, "score": {"resources": 2}},
    {
        "gates": [
            {"metric": "error_ratio", "compare": False, "limit": 0.01},
            {"metric": "promql", "name": "accuracy", "query": "accuracy{version='{version}'}", "better": "higher"},
        ],
        "hooks": {"before": [{"command": ["make", "check"], "timeout": "5m"}], "after": [{"url": "http://x/y"}]},
        "notify": [{"url_variable": "SLACK", "on": ["start", "step"]}],
        "quiet": [{"days": ["fri"], "start": "18:00", "end": "08:00", "zone": "Europe/Zurich"}],
    },
]


@pytest.mark.parametrize("document", ROLLOUTS, ids=["nothing", "shadow", "exponential", "everything else"])
def test_a_rollouts_settings_survive_the_config_that_they_are_kept_in(document: dict[str, object]) -> None:
    settings = parse_settings(EndpointSettings, ENDPOINT | {"rollout": document}, file=FILE, key="k").rollout
    assert RolloutSettings.model_validate(json.loads(settings.model_dump_json())) == settings


@pytest.mark.parametrize(
    ("rollout", "problem"),
    [
        ({"strategy": "canari"}, "rollout.strategy: given 'canari'"),
        ({"steps": []}, "steps are rising percentages"),
        ({"steps": [50, 25, 100]}, "steps are rising percentages"),
        ({"steps": [5, 101]}, "steps are rising percentages"),
        ({"steps": [0, 100]}, "steps are rising percentages"),
        ({"max_surge": 0, "max_unavailable": 0}, "no replica could move"),
        ({"bake": "1h"}, "max_bake is shorter than bake"),
        ({"alpha": 0.5}, "rollout.alpha: given 0.5"),
        ({"score": {"response_time": 0, "errors": 0}}, "every weight of the score is 0"),
        ({"gates": [{"metric": "throughput"}] * 2}, "two gates are called throughput; give one of them a 'name'"),
        ({"gates": [{"metric": "promql", "name": "x"}]}, "'query' belongs to metric 'promql'"),
        ({"gates": [{"metric": "promql", "query": "up"}]}, "a gate of metric 'promql' needs a 'name'"),
        ({"gates": [{"metric": "error_ratio", "query": "up"}]}, "'query' belongs to metric 'promql'"),
        ({"gates": [{"metric": "error_ratio", "compare": False}]}, "needs a 'limit'"),
        ({"gates": [{"metric": "error_ratio", "tolerence": 2}]}, "did you mean 'tolerance'?"),
        ({"hooks": {"before": [{"command": ["x"], "url": "http://x"}]}}, "give one of 'command', 'url'"),
        ({"notify": [{}]}, "give either 'url' or 'url_variable'"),
        ({"quiet": [{"start": "6pm", "end": "08:00"}]}, "a time of day is '18:00', in quotes"),
        ({"quiet": [{"start": "18:00", "end": "18:00"}]}, "quiet hours last less than a day"),
        ({"quiet": [{"start": "18:00", "end": "08:00", "zone": "Zurich"}]}, "a time zone is a name such as"),
    ],
    ids=str,
)
def test_what_no_rollout_could_do_is_refused(rollout: dict[str, object], problem: str) -> None:
    said = refusal(EndpointSettings, ENDPOINT | {"rollout": rollout})
    assert f"{FILE}: lepton:it.rollout" in said
    assert problem in said


@pytest.mark.parametrize(
    ("guard", "problem"),
    [
        ({"rules": []}, "guard.rules"),
        ({}, "guard.rules is required"),
        ({"rules": [{"action": "drop"}]}, "a rule of the guard watches 'error_ratio', 'latency_p95' or 'ready'"),
        ({"rules": [{"error_ratio": 2}]}, "guard.rules[0].error_ratio: given 2"),
        ({"rules": [{"ready": 1}], "recover": 0}, "guard.recover: given 0"),
        ({"rules": [{"ready": 1}], "max_actions": 0}, "guard.max_actions: given 0"),
    ],
    ids=str,
)
def test_a_guard_without_a_rule_that_could_hold_is_refused(guard: dict[str, object], problem: str) -> None:
    assert problem in refusal(EndpointSettings, ENDPOINT | {"guard": guard})


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_no_document_makes_more_than_an_error(document: object) -> None:
    for kind in (PlatformSettings, VersionSettings, EndpointSettings):
        with pytest.raises(SettingsError):
            parse_settings(kind, document, file=FILE, key="lepton:it")
