"""moto with the parts of EKS that it lacks, as the EKS API Reference describes them.

Updates take time, as AWS's do: one is under way until it was asked about twice. Run as a module, it serves on a port:
`python -m tests.plugins.aws.moto_eks PORT`.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from moto.core.utils import camelcase_to_underscores
from moto.ec2.models import ec2_backends
from moto.eks import urls
from moto.eks.models import Cluster, EKSBackend, Nodegroup, eks_backends
from moto.eks.responses import EKSResponse
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

ACCOUNT = "123456789012"
ASKED_UNTIL_DONE = 2

Document = dict[str, Any]
Answer = tuple[int, Mapping[str, str], str]


class Refusal(Exception):
    """An answer of the API that is an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Update:
    document: Document
    finish: Callable[[], None]
    asked: int = 0


@dataclass
class Extra:
    """What a cluster has beyond moto's."""

    updates: dict[str, Update] = field(default_factory=dict)
    addons: dict[str, Document] = field(default_factory=dict)
    entries: dict[str, Document] = field(default_factory=dict)
    policies: dict[str, dict[str, Document]] = field(default_factory=dict)
    """Of a principal, by policy."""
    identities: dict[str, Document] = field(default_factory=dict)


class Service:
    """EKS of one region."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._backend: EKSBackend = eks_backends[ACCOUNT][region]
        self._ec2: Any = ec2_backends[ACCOUNT][region]

    # -- what moto makes, completed

    def cluster_made(self, body: Document) -> None:
        cluster = self._backend.clusters[body["name"]]
        subnet = self._ec2.get_subnet(body["resourcesVpcConfig"]["subnetIds"][0])
        group = self._ec2.create_security_group(
            f"eks-cluster-sg-{cluster.name}-{uuid.uuid4().hex[:8]}", "EKS created security group", subnet.vpc_id
        )
        cluster.resources_vpc_config = {
            "endpointPublicAccess": True,
            "endpointPrivateAccess": False,
            "publicAccessCidrs": ["0.0.0.0/0"] if body["resourcesVpcConfig"].get("endpointPublicAccess", True) else [],
            **cluster.resources_vpc_config,
            "clusterSecurityGroupId": group.id,
            "vpcId": subnet.vpc_id,
        }
        vars(cluster)["access_config"] = body.get("accessConfig", {"authenticationMode": "CONFIG_MAP"})
        vars(cluster)["upgrade_policy"] = body.get("upgradePolicy", {"supportType": "EXTENDED"})

    def nodegroup_made(self, cluster: str, body: Document) -> None:
        nodegroup = self._nodegroup(cluster, body["nodegroupName"])
        nodegroup.update_config = body.get("updateConfig", {"maxUnavailable": 1})
        nodegroup.version = body.get("version") or self._cluster(cluster).version

    def cluster_gone(self, group: str) -> None:
        self._ec2.delete_security_group(group_id=group)

    def check_nodegroup(self, cluster: str, body: Document) -> None:
        self._not_ahead(self._cluster(cluster), body.get("version"))

    # -- updates

    def update_cluster_version(self, name: str, body: Document) -> Document:
        cluster = self._cluster(name)
        now, then = _minor(cluster.version), _minor(body["version"])
        if then != now + 1:
            _refuse(
                "InvalidParameterException",
                f"Unsupported Kubernetes minor version update from {cluster.version} to {body['version']}",
            )
        return self._begin(cluster, "VersionUpdate", lambda: setattr(cluster, "version", body["version"]))

    def update_cluster_config(self, name: str, body: Document) -> Document:
        cluster = self._cluster(name)
        given = [key for key in body if key != "clientRequestToken"]
        if len(given) != 1:
            _refuse("InvalidParameterException", f"Only one type of update can be allowed: {given}")
        (key,) = given
        names = {
            "resourcesVpcConfig": "EndpointAccessUpdate",
            "logging": "LoggingUpdate",
            "upgradePolicy": "UpgradePolicyUpdate",
        }

        def finish() -> None:
            attribute = camelcase_to_underscores(key)
            before = getattr(cluster, attribute)
            setattr(cluster, attribute, before | body[key])

        return self._begin(cluster, names[key], finish)

    def update_nodegroup_version(self, name: str, nodegroup_name: str, body: Document) -> Document:
        cluster, nodegroup = self._cluster(name), self._nodegroup(name, nodegroup_name)
        self._not_ahead(cluster, body.get("version"))
        if nodegroup.status != "ACTIVE":
            _refuse("ResourceInUseException", f"Nodegroup {nodegroup_name} is {nodegroup.status}", 409)
        nodegroup.status = "UPDATING"

        def finish() -> None:
            nodegroup.version = body.get("version") or nodegroup.version
            nodegroup.release_version = body.get("releaseVersion") or nodegroup.release_version
            nodegroup.launch_template = body.get("launchTemplate") or nodegroup.launch_template
            nodegroup.status = "ACTIVE"
            nodegroup.modified_at = datetime.now(UTC)

        return self._begin(cluster, "VersionUpdate", finish)

    def describe_update(self, name: str, update_id: str) -> Document:
        update = self._extra(self._cluster(name)).updates.get(update_id)
        if update is None:
            _missing(f"No update found for ID: {update_id}")
        update.asked += 1
        if update.asked == ASKED_UNTIL_DONE:
            update.finish()
            update.document["status"] = "Successful"
        return {"update": update.document}

    def list_updates(self, name: str) -> Document:
        return {"updateIds": list(self._extra(self._cluster(name)).updates)}

    def nodegroup_configured(self, name: str, update: Document) -> None:
        """moto's update of a node group's config, for whoever asks how it goes: it is done."""
        self._extra(self._cluster(name)).updates[update["id"]] = Update(update, lambda: None)

    # -- add-ons

    def describe_addon_versions(self, query: Mapping[str, str]) -> Document:
        """One version for each version of Kubernetes; its default."""
        kubernetes = query["kubernetesVersion"]
        compatibility = {"clusterVersion": kubernetes, "platformVersions": ["*"], "defaultVersion": True}
        version = {
            "addonVersion": f"v1.{_minor(kubernetes)}.0-eksbuild.1",
            "architecture": ["amd64", "arm64"],
            "compatibilities": [compatibility],
        }
        return {"addons": [{"addonName": query["addonName"], "type": "networking", "addonVersions": [version]}]}

    def create_addon(self, name: str, body: Document) -> Document:
        cluster = self._cluster(name)
        addons, addon = self._extra(cluster).addons, body["addonName"]
        if addon in addons:
            _refuse("ResourceInUseException", f"Addon already exists: {addon}", 409)
        version = self.describe_addon_versions({"kubernetesVersion": cluster.version, "addonName": addon})
        addons[addon] = {
            "addonName": addon,
            "clusterName": name,
            "status": "ACTIVE",
            "addonVersion": body.get("addonVersion") or version["addons"][0]["addonVersions"][0]["addonVersion"],
            "addonArn": self._arn(f"addon/{name}/{addon}/{uuid.uuid4()}"),
            "createdAt": _now(),
            "modifiedAt": _now(),
            "tags": body.get("tags", {}),
            **_given(body, "configurationValues"),
            "podIdentityAssociations": self._addon_identities(name, body, addon),
        }
        return {"addon": addons[addon]}

    def describe_addon(self, name: str, addon: str) -> Document:
        return {"addon": self._addon(name, addon)}

    def update_addon(self, name: str, addon: str, body: Document) -> Document:
        document = self._addon(name, addon)

        def finish() -> None:
            document.update(_given(body, "addonVersion", "configurationValues"), modifiedAt=_now())

        return self._begin(self._cluster(name), "AddonUpdate", finish)

    def delete_addon(self, name: str, addon: str) -> Document:
        document = self._addon(name, addon)
        extra = self._extra(self._cluster(name))
        for identity in [key for key, found in extra.identities.items() if found.get("ownerArn") == addon]:
            del extra.identities[identity]
        del extra.addons[addon]
        return {"addon": document | {"status": "DELETING"}}

    def list_addons(self, name: str) -> Document:
        return {"addons": list(self._extra(self._cluster(name)).addons)}

    # -- access entries

    def create_access_entry(self, name: str, body: Document) -> Document:
        cluster = self._cluster(name)
        mode = vars(cluster)["access_config"]["authenticationMode"]
        if "API" not in mode:
            _refuse("InvalidRequestException", f"The cluster's authentication mode must be set to API: {mode}")
        entries, principal = self._extra(cluster).entries, body["principalArn"]
        if principal in entries:
            _refuse("ResourceInUseException", "The specified access entry resource is already in use", 409)
        kind, short = principal.split(":")[-1].split("/", 1)
        entries[principal] = {
            "clusterName": name,
            "principalArn": principal,
            "kubernetesGroups": body.get("kubernetesGroups", []),
            "accessEntryArn": self._arn(f"access-entry/{name}/{kind}/{ACCOUNT}/{short}/{uuid.uuid4()}"),
            "createdAt": _now(),
            "modifiedAt": _now(),
            "tags": body.get("tags", {}),
            "username": body.get("username", principal),
            "type": body.get("type", "STANDARD"),
        }
        return {"accessEntry": entries[principal]}

    def describe_access_entry(self, name: str, principal: str) -> Document:
        return {"accessEntry": self._entry(name, principal)}

    def update_access_entry(self, name: str, principal: str, body: Document) -> Document:
        entry = self._entry(name, principal)
        entry.update(_given(body, "kubernetesGroups", "username"), modifiedAt=_now())
        return {"accessEntry": entry}

    def delete_access_entry(self, name: str, principal: str) -> Document:
        self._entry(name, principal)
        extra = self._extra(self._cluster(name))
        del extra.entries[principal]
        extra.policies.pop(principal, None)
        return {}

    def list_access_entries(self, name: str) -> Document:
        return {"accessEntries": list(self._extra(self._cluster(name)).entries)}

    def associate_access_policy(self, name: str, principal: str, body: Document) -> Document:
        self._entry(name, principal)
        scope = body["accessScope"]
        if (scope["type"] == "namespace") != bool(scope.get("namespaces")):
            _refuse("InvalidParameterException", f"The access scope is invalid: {scope}")
        policy = {
            "policyArn": body["policyArn"],
            "accessScope": {"namespaces": [], **scope},
            "associatedAt": _now(),
            "modifiedAt": _now(),
        }
        policies = self._extra(self._cluster(name)).policies
        policies.setdefault(principal, {})[body["policyArn"]] = policy
        return {"clusterName": name, "principalArn": principal, "associatedAccessPolicy": policy}

    def list_associated_access_policies(self, name: str, principal: str) -> Document:
        self._entry(name, principal)
        policies = self._extra(self._cluster(name)).policies.get(principal, {})
        return {"clusterName": name, "principalArn": principal, "associatedAccessPolicies": list(policies.values())}

    def disassociate_access_policy(self, name: str, principal: str, policy: str) -> Document:
        self._entry(name, principal)
        if self._extra(self._cluster(name)).policies.get(principal, {}).pop(policy, None) is None:
            _missing(f"No associated access policy found: {policy}")
        return {}

    # -- Pod Identity

    def create_pod_identity_association(self, name: str, body: Document, owner: str | None = None) -> Document:
        identities = self._extra(self._cluster(name)).identities
        wanted = (body["namespace"], body["serviceAccount"])
        if any((found["namespace"], found["serviceAccount"]) == wanted for found in identities.values()):
            _refuse("ResourceInUseException", f"Association already exists: {wanted}", 409)
        identity = f"a-{uuid.uuid4().hex[:17]}"
        identities[identity] = {
            "clusterName": name,
            **_given(body, "namespace", "serviceAccount", "roleArn", "tags"),
            "associationId": identity,
            "associationArn": self._arn(f"podidentityassociation/{name}/{identity}"),
            "createdAt": _now(),
            "modifiedAt": _now(),
            **({"ownerArn": owner} if owner else {}),
        }
        return {"association": identities[identity]}

    def describe_pod_identity_association(self, name: str, identity: str) -> Document:
        found = self._extra(self._cluster(name)).identities.get(identity)
        if found is None:
            _missing(f"No pod identity association found: {identity}")
        return {"association": found}

    def delete_pod_identity_association(self, name: str, identity: str) -> Document:
        answer = self.describe_pod_identity_association(name, identity)
        del self._extra(self._cluster(name)).identities[identity]
        return answer

    def list_pod_identity_associations(self, name: str) -> Document:
        return {"associations": list(self._extra(self._cluster(name)).identities.values())}

    # -- private

    def _begin(self, cluster: Cluster, kind: str, finish: Callable[[], None]) -> Document:
        document = {
            "id": str(uuid.uuid4()),
            "status": "InProgress",
            "type": kind,
            "params": [],
            "createdAt": _now(),
            "errors": [],
        }
        self._extra(cluster).updates[document["id"]] = Update(document, finish)
        return {"update": dict(document)}

    def _cluster(self, name: str) -> Cluster:
        if name not in self._backend.clusters:
            _missing(f"No cluster found for name: {name}.")
        return self._backend.clusters[name]

    def _nodegroup(self, cluster: str, name: str) -> Nodegroup:
        nodegroups = self._cluster(cluster).nodegroups
        if name not in nodegroups:
            _missing(f"No node group found for name: {name}.")
        return nodegroups[name]

    def _addon(self, cluster: str, name: str) -> Document:
        addons = self._extra(self._cluster(cluster)).addons
        if name not in addons:
            _missing(f"No addon: {name} found in cluster: {cluster}")
        return addons[name]

    def _entry(self, cluster: str, principal: str) -> Document:
        entries = self._extra(self._cluster(cluster)).entries
        if principal not in entries:
            _missing(f"The specified principalArn could not be found: {principal}")
        return entries[principal]

    def _addon_identities(self, cluster: str, body: Document, addon: str) -> list[str]:
        # Every add-on of this project with an identity lives in kube-system.
        made = [
            self.create_pod_identity_association(cluster, {"namespace": "kube-system", **wanted}, addon)
            for wanted in body.get("podIdentityAssociations", [])
        ]
        return [found["association"]["associationArn"] for found in made]

    def _extra(self, cluster: Cluster) -> Extra:
        return vars(cluster).setdefault("extra", Extra())

    def _arn(self, resource: str) -> str:
        return f"arn:aws:eks:{self._region}:{ACCOUNT}:{resource}"

    def _not_ahead(self, cluster: Cluster, version: str | None) -> None:
        if version and _minor(version) > _minor(cluster.version):
            _refuse(
                "InvalidParameterException",
                f"Nodegroup Kubernetes version {version} is ahead of the cluster's, {cluster.version}",
            )


_C = r"/clusters/(?P<name>[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Document]]] = [
    ("POST", f"{_C}/updates", lambda s, name, body: s.update_cluster_version(name, body)),
    ("GET", f"{_C}/updates", lambda s, name, body: s.list_updates(name)),
    ("GET", f"{_C}/updates/(?P<update>[^/]+)", lambda s, name, body, update: s.describe_update(name, update)),
    ("POST", f"{_C}/update-config", lambda s, name, body: s.update_cluster_config(name, body)),
    (
        "POST",
        f"{_C}/node-groups/(?P<group>[^/]+)/update-version",
        lambda s, name, body, group: s.update_nodegroup_version(name, group, body),
    ),
    ("POST", f"{_C}/addons", lambda s, name, body: s.create_addon(name, body)),
    ("GET", f"{_C}/addons", lambda s, name, body: s.list_addons(name)),
    ("GET", f"{_C}/addons/(?P<addon>[^/]+)", lambda s, name, body, addon: s.describe_addon(name, addon)),
    ("DELETE", f"{_C}/addons/(?P<addon>[^/]+)", lambda s, name, body, addon: s.delete_addon(name, addon)),
    ("POST", f"{_C}/addons/(?P<addon>[^/]+)/update", lambda s, name, body, addon: s.update_addon(name, addon, body)),
    ("POST", f"{_C}/access-entries", lambda s, name, body: s.create_access_entry(name, body)),
    ("GET", f"{_C}/access-entries", lambda s, name, body: s.list_access_entries(name)),
    (
        "POST",
        f"{_C}/access-entries/(?P<who>.+)/access-policies",
        lambda s, name, body, who: s.associate_access_policy(name, who, body),
    ),
    (
        "GET",
        f"{_C}/access-entries/(?P<who>.+)/access-policies",
        lambda s, name, body, who: s.list_associated_access_policies(name, who),
    ),
    (
        "DELETE",
        f"{_C}/access-entries/(?P<who>.+)/access-policies/(?P<policy>.+)",
        lambda s, name, body, who, policy: s.disassociate_access_policy(name, who, policy),
    ),
    ("GET", f"{_C}/access-entries/(?P<who>.+)", lambda s, name, body, who: s.describe_access_entry(name, who)),
    ("POST", f"{_C}/access-entries/(?P<who>.+)", lambda s, name, body, who: s.update_access_entry(name, who, body)),
    ("DELETE", f"{_C}/access-entries/(?P<who>.+)", lambda s, name, body, who: s.delete_access_entry(name, who)),
    (
        "POST",
        f"{_C}/pod-identity-associations",
        lambda s, name, body: s.create_pod_identity_association(name, body),
    ),
    ("GET", f"{_C}/pod-identity-associations", lambda s, name, body: s.list_pod_identity_associations(name)),
    (
        "GET",
        f"{_C}/pod-identity-associations/(?P<identity>[^/]+)",
        lambda s, name, body, identity: s.describe_pod_identity_association(name, identity),
    ),
    (
        "DELETE",
        f"{_C}/pod-identity-associations/(?P<identity>[^/]+)",
        lambda s, name, body, identity: s.delete_pod_identity_association(name, identity),
    ),
]


def answer(request: Any, full_url: str, headers: Any) -> Any:
    """An EKS request: by this module where moto has no answer, and by moto with what it leaves out."""
    url = urlsplit(full_url)
    path, method = unquote(url.path), request.method
    body: Document = json.loads(request.get_data() or "{}")
    region = re.findall(r"Credential=[^/]+/\d+/([^/]+)/", request.headers["Authorization"])[0]
    service = Service(region)
    try:
        if path == "/addons/supported-versions":
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            return _answered(service.describe_addon_versions(query))
        for verb, pattern, work in _ROUTES:
            found = re.fullmatch(pattern, path)
            if verb == method and found:
                return _answered(work(service, body=body, **found.groupdict()))
        return _by_moto(service, request, full_url, headers, method, path, body)
    except Refusal as refusal:
        text = {"message": refusal.message, "__type": refusal.code}
        return refusal.status, {"x-amzn-errortype": refusal.code}, json.dumps(text)


def _by_moto(
    service: Service, request: Any, full_url: str, headers: Any, method: str, path: str, body: Document
) -> Any:
    parts = path.strip("/").split("/")
    creates_nodegroup = method == "POST" and len(parts) == 3 and parts[2] == "node-groups"
    if creates_nodegroup:
        service.check_nodegroup(parts[1], body)
    answered = EKSResponse.dispatch(request, full_url, headers)
    if answered[0] >= 400:
        return answered
    if method == "POST" and parts == ["clusters"]:
        service.cluster_made(body)
    elif creates_nodegroup:
        service.nodegroup_made(parts[1], body)
    elif method == "DELETE" and len(parts) == 2:
        service.cluster_gone(json.loads(answered[2])["cluster"]["resourcesVpcConfig"]["clusterSecurityGroupId"])
    elif parts[-1] == "update-config":
        service.nodegroup_configured(parts[1], json.loads(answered[2])["update"])
    return answered


def _answered(document: Document) -> Answer:
    return 200, {"content-type": "application/json"}, json.dumps(document)


def _refuse(code: str, message: str, status: int = 400) -> NoReturn:
    raise Refusal(status, code, message)


def _missing(message: str) -> NoReturn:
    _refuse("ResourceNotFoundException", message, 404)


def _given(body: Document, *keys: str) -> Document:
    return {key: body[key] for key in keys if key in body}


def _minor(version: str) -> int:
    return int(version.split(".")[1])


def _now() -> float:
    return datetime.now(UTC).timestamp()


def install() -> None:
    """Puts this module's answers before moto's, in this process."""
    urls.url_paths = {"{0}/(?P<eks_path>.+)$": answer}


def main() -> None:
    install()
    port = int(sys.argv[1])
    run_simple(
        "127.0.0.1",
        port,
        DomainDispatcherApplication(create_backend_app),
        threaded=True,
        request_handler=MotoRequestHandler,
    )


if __name__ == "__main__":
    main()
