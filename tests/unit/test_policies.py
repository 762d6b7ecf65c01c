"""The rules, on what the modes' components really register and check, and the pack's config."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pulumi
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pulumi.runtime.mocks import MockCallArgs, MockResourceArgs, Mocks
from pulumi.runtime.proto import analyzer_pb2

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.gateway import gateway
from infra.cluster.manifests.identity import namespace as version_namespace
from infra.cluster.manifests.teams import team_objects
from infra.cluster.manifests.version import Version
from infra.cluster.manifests.workload import workload
from infra.contracts import Stack
from infra.settings import EndpointSettings, PlatformSettings, VersionSettings
from infra.settings.cluster import GatewaySettings
from infra.settings.version import mlserver
from infra.single_node.endpoint import Endpoint
from infra.single_node.platform import Platform
from infra.single_node.version import ModelServers, ServedVersion
from model_packaging.artifact import Artifact
from model_packaging.build import build_artifact
from model_packaging.keys import PrivateKey
from model_packaging.manifest import GitSource
from model_packaging.signing import sign
from model_packaging.stores.layout import Layout
from policies.__main__ import Pack
from policies.rules import MODEL_SERVERS, ROUTER, RULES

STACK = Stack(team="diagnostics", name="dev.scan", folder="/srv/project")
INTERNALS = {"directory": "/srv/project/.state/nodes/dev", "ports": [20000, 20999], "gpus": [], "runtime": "process"}
DIGEST = "sha256:" + "0123456789abcdef" * 4
LIMITS = {"cpu": 2, "memory": "2Gi"}
CLEAN = GitSource(commit="0123456789" * 4, branch="main", dirty=False)
KEY = PrivateKey(Ed25519PrivateKey.generate())
PACKAGE = {
    "framework": {"name": "none", "version": "1"},
    "training_data": "none",
    "licence": "Apache-2.0",
    "samples": [{"prompt": "hello"}],
}

Violations = dict[str, list[str]]


class _Recorder(Mocks):
    def __init__(self) -> None:
        self.registered: list[tuple[str, dict[str, Any]]] = []

    def new_resource(self, args: MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.registered.append((args.typ, args.inputs))
        return f"{args.name}-id", args.inputs

    def call(self, args: MockCallArgs) -> tuple[dict[str, Any], None]:
        return {}, None


def violations(make: Callable[[], object]) -> Violations:
    """What the rules say of the resources that `make` makes: messages by rule, for those that found any."""
    recorder = _Recorder()
    pulumi.runtime.set_mocks(recorder)
    pulumi.runtime.test(make)()
    for type_, inputs in recorder.registered:
        if type_ == MODEL_SERVERS:
            # The engine shows the rules what the provider's check made of the inputs.
            ModelServers.driver.check({}, inputs)
    found = {
        rule.name: [message for type_, inputs in recorder.registered for message in rule.violations(type_, inputs)]
        for rule in RULES
    }
    return {name: messages for name, messages in found.items() if messages}


def platform(**node: Any) -> Violations:
    document = {"environment": "dev", "mode": "single-node", "node": {"gpus": []} | node}
    settings = PlatformSettings.model_validate(document)
    return violations(lambda: Platform(STACK, settings))


@pytest.fixture
def store(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "store")


def package(store: Layout, git: GitSource | None = CLEAN, file: str = "weights.txt", content: bytes = b"1") -> Artifact:
    folder = store.path.parent / "scan"
    folder.mkdir()
    (folder / "package.yaml").write_text(
        json.dumps(PACKAGE | {"allow_pickle": [file] if content[:1] == b"\x80" else []})
    )
    (folder / file).write_bytes(content)
    build_artifact(folder, "scan", "1.0.0", store, git=git)
    return Artifact.find(store, "scan", "1.0.0")


def version(store: Layout, *keys: PrivateKey, **settings: Any) -> Violations:
    """What the rules say of a version in an environment that trusts these keys and asks for no signature."""
    document = {"environment": "dev", "model": "scan", "version": "1.0.0", "resources": LIMITS} | settings
    validated = VersionSettings.model_validate(document)
    named = [{"name": f"keys/{number}.pub", "pem": key.public.pem} for number, key in enumerate(keys)]
    trust = {"required": False, "keys": named, "teams": {}} if keys else None
    outputs: Any = {
        "environment": "dev",
        "internals": INTERNALS,
        "artifact_store": store.location,
        "trust": trust,
    }
    return violations(
        lambda: ServedVersion(STACK, validated, outputs, secret=False),
    )


@pytest.fixture
def signed(store: Layout) -> Layout:
    """A store with a version that no rule has anything against."""
    sign(package(store), KEY, "ada@example.org")
    return store


def endpoint(*versions: str, **settings: Any) -> Violations:
    variants = [{"version": version, "weight": 1} for version in versions]
    document = {"environment": "dev", "model": "scan", "variants": variants} | settings
    validated = EndpointSettings.model_validate(document)
    outputs: Any = {"internals": INTERNALS, "endpoint_base_url": "http://127.0.0.1:7080"}
    exports: Any = {"backend": {"protocol": "oip-v2", "grpc": False}}
    return violations(
        lambda: Endpoint(
            STACK,
            validated,
            outputs,
            {version: exports for version in versions},  # noqa: C420 - the keyword form has no types
        )
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1"])
def test_a_router_on_a_loopback_address_is_fine(address: str) -> None:
    assert platform(address=address) == {}


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3", "2001:db8::7"])
def test_a_router_on_another_address_is_named_with_its_key_and_a_remedy(address: str) -> None:
    (message,) = platform(address=address)["router-listens-on-loopback"]
    assert message.startswith(f"lepton:platform.node.address: given {address!r}: ")
    assert "write '127.0.0.1'" in message


def test_a_version_that_is_limited_signed_and_from_a_commit_is_fine(signed: Layout) -> None:
    assert version(signed, KEY) == {}


@pytest.mark.parametrize(("given", "missing"), [({"cpu": 2}, "memory"), ({"memory": "2Gi"}, "cpu")])
def test_a_version_without_a_limit_is_told_which(signed: Layout, given: dict[str, Any], missing: str) -> None:
    (message,) = version(signed, KEY, resources=given)["version-has-limits"]
    assert message.startswith(f"lepton:version.resources.{missing}: not given: a replica of scan 1.0.0 ")
    assert f"such as '{missing}: 2" in message


def test_a_version_without_any_limit_gets_a_message_for_each(signed: Layout) -> None:
    assert len(version(signed, KEY, resources={})["version-has-limits"]) == 2


@pytest.mark.parametrize("image", [DIGEST, f"registry.example.org:5000/scan@{DIGEST}", f"scan:1.0.0@{DIGEST}"])
def test_an_image_named_by_its_content_is_fine(signed: Layout, image: str) -> None:
    assert version(signed, KEY, runtime="docker", image=image) == {}


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("scan", "scan"),
        ("scan:1.0.0", "scan"),
        ("registry.example.org:5000/team/scan", "registry.example.org:5000/team/scan"),
        ("registry.example.org:5000/team/scan:latest", "registry.example.org:5000/team/scan"),
    ],
)
def test_an_image_named_by_a_tag_is_told_the_form_that_lasts(signed: Layout, image: str, repository: str) -> None:
    (message,) = version(signed, KEY, runtime="docker", image=image)["image-is-named-by-content"]
    assert message.startswith(f"lepton:version.image: given {image!r}: ")
    assert f"'{repository}@sha256:…'" in message


def test_an_image_that_the_runtime_does_not_use_is_fine(signed: Layout) -> None:
    assert version(signed, KEY, runtime="process", image="scan:1.0.0") == {}


@pytest.mark.parametrize(
    ("git", "problem"),
    [
        (None, "it comes from no Git commit"),
        (CLEAN.model_copy(update={"dirty": True}), f"it comes from commit {CLEAN.commit} with local changes"),
    ],
)
def test_a_version_that_nobody_can_make_again_is_named(store: Layout, git: GitSource | None, problem: str) -> None:
    artifact = package(store, git)
    (message,) = version(store)["version-comes-from-a-commit"]
    assert message.startswith(f"scan 1.0.0 ({artifact.digest}): {problem}, ")


def test_a_version_with_pickled_objects_is_told_which_files(store: Layout) -> None:
    artifact = package(store, file="model.pkl", content=pickle.dumps({"weights": [1.0]}))
    (message,) = version(store)["version-has-no-pickles"]
    assert message.startswith(f"scan 1.0.0 ({artifact.digest}): model.pkl: pickled objects run code")


def test_a_version_that_no_trusted_key_signed_is_told_whose_would_count(signed: Layout) -> None:
    (message,) = version(signed, PrivateKey(Ed25519PrivateKey.generate()))["version-is-signed"]
    assert "no key that environment dev trusts for team diagnostics has signed it (trusted: keys/0.pub)" in message
    assert f"lepton package sign scan:1.0.0 --key FILE --store {signed.location}" in message


def test_a_version_in_an_environment_without_trusted_keys_is_told_where_to_name_them(signed: Layout) -> None:
    (message,) = version(signed)["version-is-signed"]
    assert message.endswith("name the teams' public keys in lepton:platform.trust")


def test_an_endpoint_with_failover_is_fine() -> None:
    assert endpoint("1.0.0", "1.1.0") == {}


def test_an_endpoint_of_several_variants_without_failover_is_named() -> None:
    (message,) = endpoint("1.0.0", "1.1.0", failover=False)["endpoint-has-failover"]
    assert message.startswith("lepton:endpoint.failover: given False: ")
    assert "write 'failover: true'" in message


def test_one_variant_has_nothing_to_fail_over_to() -> None:
    assert endpoint("1.0.0", failover=False) == {}


# -- in a cluster

COMMIT = {"lepton/git-commit": "0123456789" * 4, "lepton/git-dirty": "false"}
SIGNED = COMMIT | {"lepton/signed-by": "SHA256:abc"}


def judge(*objects: Manifest) -> Violations:
    """What the rules say of Kubernetes objects: messages by rule, for those that found any."""
    found = {
        rule.name: [message for manifest in objects for message in rule.violations(kubernetes_type(manifest), manifest)]
        for rule in RULES
    }
    return {name: messages for name, messages in found.items() if messages}


def kubernetes_type(manifest: Manifest) -> str:
    version = manifest["apiVersion"]
    return f"kubernetes:{version if '/' in version else f'core/{version}'}:{manifest['kind']}"


def in_a_cluster(provenance: dict[str, str] = SIGNED, image: str = f"scan@{DIGEST}", **settings: Any) -> Violations:
    """What they say of a version's namespace and Pods."""
    document = {"environment": "dev", "model": "scan", "version": "1.0.0", "resources": LIMITS} | settings
    internals: Any = {
        "environment": "dev",
        "namespace": "lepton",
        "teams": {"diagnostics": {"namespace": "diagnostics-dev", "quota": {}, "limits": {}, "queue": None}},
        "images": {"server": None, "puller": f"puller@{DIGEST}", "pull_secrets": []},
        "pools": [],
        "features": [],
        "monitoring_namespace": None,
    }
    made = Version(
        team="diagnostics",
        settings=VersionSettings.model_validate(document),
        server=mlserver(),
        internals=internals,
        image=image,
        digest=DIGEST,
        size=1000,
        store="oci://registry.example.org/models",
        prometheus="http://prometheus.lepton.svc:9090",
        provenance=provenance,
    )
    return judge(version_namespace(made), workload(made))


def shared_gateway(**settings: Any) -> Manifest:
    return gateway("dev", "lepton", ["diagnostics"], GatewaySettings.model_validate({"class_name": "x"} | settings))


def test_a_version_in_a_cluster_that_is_limited_signed_and_from_a_commit_is_fine() -> None:
    assert in_a_cluster() == {}
    assert in_a_cluster(nodes_per_replica=2) == {}


@pytest.mark.parametrize("nodes", [1, 2], ids=["deployment", "leader-worker-set"])
def test_a_version_in_a_cluster_without_a_limit_is_told_which(nodes: int) -> None:
    (message,) = in_a_cluster(resources={"cpu": 2}, nodes_per_replica=nodes)["version-has-limits"]
    assert message.startswith("lepton:version.resources.memory: not given: container server of scan 1.0.0 ")


def test_an_image_in_a_cluster_that_is_named_by_a_tag_is_told_of() -> None:
    (message,) = in_a_cluster(image="registry.example.org:5000/scan:1.0.0")["image-is-named-by-content"]
    assert "given 'registry.example.org:5000/scan:1.0.0' (container server)" in message
    assert "'registry.example.org:5000/scan@sha256:…'" in message


@pytest.mark.parametrize(
    ("provenance", "rule", "said"),
    [
        ({"lepton/signed-by": "x"}, "version-comes-from-a-commit", "it comes from no Git commit"),
        (SIGNED | {"lepton/git-dirty": "true"}, "version-comes-from-a-commit", "with local changes"),
        (SIGNED | {"lepton/pickles": "model.pkl"}, "version-has-no-pickles", "model.pkl: pickled objects run code"),
        (COMMIT, "version-is-signed", "sign it: lepton package sign scan:1.0.0 --key FILE"),
    ],
)
def test_where_a_version_in_a_cluster_comes_from_is_judged_as_on_a_node(
    provenance: dict[str, str], rule: str, said: str
) -> None:
    found = in_a_cluster(provenance=provenance)
    assert list(found) == [rule]
    (message,) = found[rule]
    assert message.startswith(f"scan 1.0.0 ({DIGEST}): ")
    assert said in message


def test_a_gateway_without_tls_is_named_with_its_key() -> None:
    (message,) = judge(shared_gateway())["gateway-has-tls"]
    assert message.startswith("lepton:platform.cluster.gateway.tls: not given: ")
    assert judge(shared_gateway(tls={"secret": "wildcard"})) == {}


def test_a_teams_namespace_that_lets_more_in_is_named() -> None:
    namespace, _ = team_objects("dev", "diagnostics")
    assert judge(namespace) == {}
    label = "pod-security.kubernetes.io/enforce"
    namespace["metadata"]["labels"][label] = "baseline"
    (message,) = judge(namespace)["namespace-restricts-pods"]
    assert f"label {label}: given 'baseline'" in message
    assert message.endswith("write 'restricted'")
    del namespace["metadata"]["labels"][label]
    assert "not given" in judge(namespace)["namespace-restricts-pods"][0]


def test_what_is_not_ours_is_not_judged() -> None:
    theirs = shared_gateway()
    theirs["metadata"]["labels"] = {}
    namespace: Manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "theirs"}}
    container = {"name": "x", "image": "x:latest"}
    deployment: Manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "theirs"},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    assert judge(theirs, namespace, deployment) == {}


class Refused(Exception):
    pass


class _Context:
    """What gRPC gives a call: aborting one raises."""

    def abort(self, _code: object, details: str) -> None:
        raise Refused(details)


def configured(**levels: Any) -> Pack:
    pack = Pack(RULES)
    config = {name.replace("_", "-"): analyzer_pb2.PolicyConfig(**fields) for name, fields in levels.items()}
    pack.Configure(analyzer_pb2.ConfigureAnalyzerRequest(policyConfig=config), _Context())
    return pack


def level_of_a_violation(pack: Pack) -> list[str]:
    request = analyzer_pb2.AnalyzeRequest(type=ROUTER, urn="urn:of-the-router")
    request.properties.update({"address": "0.0.0.0", "port": 7080})
    diagnostics = pack.Analyze(request, _Context()).diagnostics
    assert {(found.policyName, found.urn) for found in diagnostics} <= {
        ("router-listens-on-loopback", "urn:of-the-router")
    }
    return [analyzer_pb2.EnforcementLevel.Name(found.enforcementLevel) for found in diagnostics]


def test_every_rule_advises_unless_told_otherwise() -> None:
    info = Pack(RULES).GetAnalyzerInfo(None, _Context())
    assert {policy.name: policy.enforcementLevel for policy in info.policies} == {
        rule.name: analyzer_pb2.ADVISORY for rule in RULES
    }
    assert level_of_a_violation(Pack(RULES)) == ["ADVISORY"]


@pytest.mark.parametrize(
    ("given", "reported"),
    [("ADVISORY", ["ADVISORY"]), ("MANDATORY", ["MANDATORY"]), ("DISABLED", []), ("REMEDIATE", ["MANDATORY"])],
)
def test_the_packs_config_sets_a_rules_level(given: str, reported: list[str]) -> None:
    pack = configured(router_listens_on_loopback={"enforcementLevel": given})
    assert level_of_a_violation(pack) == reported


def test_a_config_for_a_rule_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(Refused, match=r"version-has-limit: there is no rule of that name; .*, version-has-limits,"):
        configured(version_has_limit={"enforcementLevel": "MANDATORY"})


def test_a_config_key_that_does_not_exist_is_refused() -> None:
    with pytest.raises(Refused, match=r"version-has-limits\.cores: unknown key; known here: enforcementLevel"):
        configured(version_has_limits={"properties": {"cores": 3}})


def test_the_pack_ends_when_the_engine_that_started_it_is_killed() -> None:
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    tell = "import os; print(os.getpid(), flush=True); from policies.__main__ import serve; serve()"
    with subprocess.Popen([sys.executable, "-c", start, tell], stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout is not None
        pack = psutil.Process(int(engine.stdout.readline()))
        port = int(engine.stdout.readline())
        assert port > 0
        engine.kill()
    deadline = time.monotonic() + 10
    try:
        while pack.is_running() and pack.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the pack runs on without its engine"
            time.sleep(0.05)
    except psutil.NoSuchProcess:
        return
    finally:
        if pack.is_running():
            pack.kill()
