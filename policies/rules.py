"""The rules: each looks at one resource's type and inputs, and says what is wrong and what would be right.

They import no Pulumi, so that a test, a command or a pack of another team's can use them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from infra.cluster.names import MANAGED_BY, MODEL_LABEL, TEAM_LABEL, VERSION_LABEL

Properties = Mapping[str, Any]
"""A resource's inputs, as the engine has them: after the provider's check, numbers as floats, without what is unset."""

Severity = Literal["low", "medium", "high", "critical"]

_DYNAMIC = "pulumi-python:dynamic/single-node:"
ROUTER = f"{_DYNAMIC}Router"
MODEL_SERVERS = f"{_DYNAMIC}ModelServers"
ENDPOINT_ROUTES = f"{_DYNAMIC}EndpointRoutes"

_KUBERNETES = "kubernetes:"
NAMESPACE = f"{_KUBERNETES}core/v1:Namespace"
GATEWAY = f"{_KUBERNETES}gateway.networking.k8s.io/v1:Gateway"
_DEPLOYMENT = f"{_KUBERNETES}apps/v1:Deployment"
_LEADER_WORKER_SET = f"{_KUBERNETES}leaderworkerset.x-k8s.io/v1:LeaderWorkerSet"
WORKLOADS = (_DEPLOYMENT, _LEADER_WORKER_SET)

_POD_SECURITY = "pod-security.kubernetes.io/enforce"

_BY_CONTENT = re.compile(r"(.+@)?sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Rule:
    name: str
    sentence: str
    """What it asks for."""
    severity: Severity
    """How bad it is to break it; whether that stops an update is the pack's config to say."""
    find: Mapping[str, Callable[[Properties], Iterator[str]]]
    """By type of resource, what looks at one: yields a message for each violation, with key, what was given, why that
    is wrong and what would be right."""

    def violations(self, type_: str, properties: Properties) -> list[str]:
        """What is wrong with a resource; nothing where the rule is about other types."""
        find = self.find.get(type_)
        return list(find(properties)) if find else []


def _beyond_loopback(properties: Properties) -> Iterator[str]:
    address = properties["address"]
    if not ipaddress.ip_address(address).is_loopback:
        yield (
            f"lepton:platform.node.address: given {address!r}: the router has neither TLS nor authentication, and "
            "whoever reaches that address reaches every model of the node; write '127.0.0.1', and put what "
            "authenticates clients in front of it"
        )


def _without_limits(properties: Properties) -> Iterator[str]:
    for key, name, example in (("cpu", "cpu", "cpu: 2"), ("memory_bytes", "memory", "memory: 2Gi")):
        if properties.get(key) is None:
            yield (
                f"lepton:version.resources.{name}: not given: a replica of {_version(properties)} may take all that "
                f"the node has from the versions beside it; write a limit, such as '{example}'"
            )


def _image_by_tag(properties: Properties) -> Iterator[str]:
    image = properties.get("image")
    # Where the runtime is another, the image is not used.
    if properties.get("runtime") == "docker" and image is not None and not _BY_CONTENT.fullmatch(image):
        yield (
            f"lepton:version.image: given {image!r}: a tag can be moved, and {_version(properties)} would come back "
            f"from a rollback as another program; name the image by its content: '{_without_tag(image)}@sha256:…', "
            "or its id 'sha256:…'"
        )


def _without_tag(image: str) -> str:
    repository, slash, name = image.rpartition("/")
    # A colon before the last slash is the registry's port.
    return f"{repository}{slash}{name.partition(':')[0]}"


def _from_no_commit(properties: Properties) -> Iterator[str]:
    commit = properties.get("git_commit")
    if commit is None:
        problem = "it comes from no Git commit"
    elif properties.get("git_dirty"):
        problem = f"it comes from commit {commit} with local changes"
    else:
        return
    yield (
        f"{_artifact(properties)}: {problem}, so nobody can see what it was made of or make it again; commit the "
        "changes and build a new version from there"
    )


def _with_pickles(properties: Properties) -> Iterator[str]:
    files = properties.get("pickles")
    if files:
        yield (
            f"{_artifact(properties)}: {', '.join(files)}: pickled objects run code of their maker's when they are "
            "loaded; save the weights as safetensors or ONNX and build a new version from those"
        )


def _unsigned(properties: Properties) -> Iterator[str]:
    trust = properties.get("trust")
    if trust is None:
        yield (
            f"{_artifact(properties)}: this environment trusts no key, so that nobody's signature counts; name the "
            "teams' public keys in lepton:platform.trust"
        )
    elif properties.get("signed_by") is None:
        trusted = ", ".join(key["name"] for key in trust["keys"]) or "none"
        yield (
            f"{_artifact(properties)}: no key that environment {trust['environment']} trusts for team "
            f"{trust['team']} has signed it (trusted: {trusted}); sign it: lepton package sign "
            f"{properties['model']}:{properties['version']} --key FILE --store {properties['store']}"
        )


def _without_failover(properties: Properties) -> Iterator[str]:
    endpoint = properties["endpoint"]
    others = len(endpoint["variants"]) - 1
    if others and not endpoint["failover"]:
        yield (
            f"lepton:endpoint.failover: given False: when every replica of a variant of {endpoint['model']} is dead, "
            "the clients that it is given get errors; write 'failover: true', or leave the key out, so that the "
            "baseline answers for it"
        )


# -- in a cluster


def _plain_listeners(gateway: Properties) -> Iterator[str]:
    for listener in gateway["spec"]["listeners"] if _is_ours(gateway) else []:
        if listener["protocol"] == "HTTP":
            yield (
                f"lepton:platform.cluster.gateway.tls: not given: whoever is between a client and listener "
                f"{listener['name']} reads and changes what it asks and is answered; write "
                "'tls: {secret: NAME}', or 'tls: {issuer: NAME}' with a domain"
            )


def _lax_pods(namespace: Properties) -> Iterator[str]:
    if not _is_ours(namespace):
        return
    labels = _labels(namespace)
    level = labels.get(_POD_SECURITY)
    if level is None or (TEAM_LABEL in labels and level != "restricted"):
        name = namespace["metadata"]["name"]
        wanted = "restricted" if TEAM_LABEL in labels else "restricted', 'baseline' or 'privileged"
        yield (
            f"namespace {name}: label {_POD_SECURITY}: {f'given {level!r}' if level else 'not given'}: Pods in it may "
            f"take over their node; write '{wanted}'"
        )


def _containers_without_limits(workload: Properties) -> Iterator[str]:
    for name, example in (("cpu", "cpu: 2"), ("memory", "memory: 2Gi")):
        for container in _containers(workload, "containers"):
            if name not in container.get("resources", {}).get("limits", {}):
                yield (
                    f"lepton:version.resources.{name}: not given: container {container['name']} of "
                    f"{_served(workload)} may take all that a node has from the versions beside it; write a limit, "
                    f"such as '{example}'"
                )
                break


def _containers_by_tag(workload: Properties) -> Iterator[str]:
    for container in _containers(workload, "initContainers", "containers"):
        image = container["image"]
        if not _BY_CONTENT.fullmatch(image):
            yield (
                f"lepton:version.image: given {image!r} (container {container['name']}): a tag can be moved, and "
                f"{_served(workload)} would come back from a rollback as another program; name the image by its "
                f"content: '{_without_tag(image)}@sha256:…'"
            )


def _workload_from_no_commit(workload: Properties) -> Iterator[str]:
    if _is_version(workload):
        yield from _from_no_commit(_artifact_of(workload))


def _workload_with_pickles(workload: Properties) -> Iterator[str]:
    if _is_version(workload):
        yield from _with_pickles(_artifact_of(workload))


def _workload_unsigned(workload: Properties) -> Iterator[str]:
    if _is_version(workload) and "lepton/signed-by" not in _annotations(workload):
        artifact = _artifact_of(workload)
        yield (
            f"{_artifact(artifact)}: no key that the environment trusts has signed it; name the teams' public keys in "
            f"lepton:platform.trust, and sign it: lepton package sign {artifact['model']}:{artifact['version']} "
            "--key FILE --store STORE"
        )


def _artifact_of(workload: Properties) -> Properties:
    """What a version's workload says of its artifact, in the words of the single node's."""
    annotations = _annotations(workload)
    return {
        "model": annotations[MODEL_LABEL],
        "version": annotations[VERSION_LABEL],
        "digest": annotations["lepton/artifact-digest"],
        "git_commit": annotations.get("lepton/git-commit"),
        "git_dirty": annotations.get("lepton/git-dirty") == "true",
        "pickles": annotations.get("lepton/pickles", "").split(),
    }


def _containers(workload: Properties, *kinds: str) -> list[Properties]:
    """Of a version's Pods; none where the workload is another's, or something else of ours."""
    if not _is_version(workload):
        return []
    group = workload["spec"].get("leaderWorkerTemplate")
    templates = [group["leaderTemplate"], group["workerTemplate"]] if group else [workload["spec"]["template"]]
    return [container for template in templates for kind in kinds for container in template["spec"].get(kind, [])]


def _is_version(resource: Properties) -> bool:
    return _is_ours(resource) and VERSION_LABEL in _labels(resource)


def _is_ours(resource: Properties) -> bool:
    """Others' programs may have resources of the same types; those are theirs to judge."""
    return MANAGED_BY.items() <= _labels(resource).items()


def _labels(resource: Properties) -> Mapping[str, str]:
    return resource["metadata"].get("labels", {})


def _annotations(resource: Properties) -> Mapping[str, str]:
    return resource["metadata"].get("annotations", {})


def _served(workload: Properties) -> str:
    return _version(_artifact_of(workload))


def _version(properties: Properties) -> str:
    return f"{properties['model']} {properties['version']}"


def _artifact(properties: Properties) -> str:
    return f"{_version(properties)} ({properties['digest']})"


RULES = (
    Rule(
        name="gateway-has-tls",
        sentence="What clients and the Gateway say to each other is encrypted.",
        severity="high",
        find={GATEWAY: _plain_listeners},
    ),
    Rule(
        name="namespace-restricts-pods",
        sentence="A namespace says how its Pods are restricted, and a team's restricts them all.",
        severity="high",
        find={NAMESPACE: _lax_pods},
    ),
    Rule(
        name="router-listens-on-loopback",
        sentence="The router is reached from its own machine alone.",
        severity="high",
        find={ROUTER: _beyond_loopback},
    ),
    Rule(
        name="version-has-limits",
        sentence="A version says how much CPU and memory a replica may take.",
        severity="medium",
        find={MODEL_SERVERS: _without_limits} | dict.fromkeys(WORKLOADS, _containers_without_limits),
    ),
    Rule(
        name="image-is-named-by-content",
        sentence="A version's container image is named by its digest.",
        severity="medium",
        find={MODEL_SERVERS: _image_by_tag} | dict.fromkeys(WORKLOADS, _containers_by_tag),
    ),
    Rule(
        name="version-comes-from-a-commit",
        sentence="A version was built from a Git commit, without local changes.",
        severity="medium",
        find={MODEL_SERVERS: _from_no_commit} | dict.fromkeys(WORKLOADS, _workload_from_no_commit),
    ),
    Rule(
        name="version-has-no-pickles",
        sentence="A version holds no pickled objects, which run code when they are loaded.",
        severity="high",
        find={MODEL_SERVERS: _with_pickles} | dict.fromkeys(WORKLOADS, _workload_with_pickles),
    ),
    Rule(
        name="version-is-signed",
        sentence="A version is signed by a key that the environment trusts.",
        severity="high",
        find={MODEL_SERVERS: _unsigned} | dict.fromkeys(WORKLOADS, _workload_unsigned),
    ),
    Rule(
        name="endpoint-has-failover",
        sentence="A dead variant's share is answered by the baseline.",
        severity="medium",
        find={ENDPOINT_ROUTES: _without_failover},
    ),
)
