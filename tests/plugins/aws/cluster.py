"""EKS's types."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

from tests.plugins.aws.kinds import Account, Kind, Properties, Refused, is_missing, mapped, some

_TIMEOUT_SECONDS = 30.0
_PAUSE_SECONDS = 0.02


def _until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise Refused(f"{what}: not within {_TIMEOUT_SECONDS:g} s")
        time.sleep(_PAUSE_SECONDS)


def _finished(account: Account, cluster: str, update: Properties, **of: str) -> None:
    """Waits for an update, and raises Refused when it fails."""
    found: Properties = {}

    def ended() -> bool:
        found.update(account.eks.describe_update(name=cluster, updateId=update["id"], **of)["update"])
        return found["status"] != "InProgress"

    _until(f"update {update['id']} of {cluster}", ended)
    if found["status"] != "Successful":
        raise Refused(f"update {update['type']} of {cluster} {found['status']}: {found['errors']}")


def _gone(find: Callable[[], object]) -> bool:
    try:
        return not find()
    except ClientError as error:
        if is_missing(error):
            return True
        raise


class Cluster(Kind):
    token = "aws:eks/cluster:Cluster"
    properties = frozenset(
        {
            "name",
            "version",
            "roleArn",
            "vpcConfig",
            "accessConfig",
            "encryptionConfig",
            "enabledClusterLogTypes",
            "upgradePolicy",
            "bootstrapSelfManagedAddons",
        }
    )
    replaced_by = frozenset({"name", "roleArn", "encryptionConfig", "bootstrapSelfManagedAddons"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        encryption = inputs["encryptionConfig"]
        account.eks.create_cluster(
            name=inputs["name"],
            version=inputs["version"],
            roleArn=inputs["roleArn"],
            resourcesVpcConfig=self._vpc_config(inputs) | {"subnetIds": inputs["vpcConfig"]["subnetIds"]},
            accessConfig=inputs["accessConfig"],
            encryptionConfig=[
                {"provider": {"keyArn": encryption["provider"]["keyArn"]}, "resources": encryption["resources"]}
            ],
            logging=self._logging(inputs),
            upgradePolicy=inputs["upgradePolicy"],
            bootstrapSelfManagedAddons=inputs["bootstrapSelfManagedAddons"],
            tags=account.tags(inputs),
        )
        name = inputs["name"]
        _until(f"cluster {name} is active", lambda: self._described(account, name)["status"] == "ACTIVE")
        return name, self._outputs(account, name)

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        def configure(**change: Any) -> None:
            _finished(account, identity, account.eks.update_cluster_config(name=identity, **change)["update"])

        if "version" in changed:
            made = account.eks.update_cluster_version(name=identity, version=new["version"])
            _finished(account, identity, made["update"])
        # AWS takes one kind of change in a call.
        if "vpcConfig" in changed:
            configure(resourcesVpcConfig=self._vpc_config(new))
        if "enabledClusterLogTypes" in changed:
            configure(logging=self._logging(new))
        if "upgradePolicy" in changed:
            configure(upgradePolicy=new["upgradePolicy"])
        return self._outputs(account, identity)

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return self._described(account, identity)

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.eks.delete_cluster(name=identity)
        _until(f"cluster {identity} is gone", lambda: _gone(lambda: self._described(account, identity)))

    def _described(self, account: Account, name: str) -> Properties:
        return account.eks.describe_cluster(name=name)["cluster"]

    def _outputs(self, account: Account, name: str) -> Properties:
        found = self._described(account, name)
        vpc = found["resourcesVpcConfig"]
        return {
            "arn": found["arn"],
            "endpoint": found["endpoint"],
            "status": found["status"],
            "certificateAuthority": found["certificateAuthority"],
            "vpcConfig": {
                "subnetIds": vpc["subnetIds"],
                "endpointPrivateAccess": vpc["endpointPrivateAccess"],
                "endpointPublicAccess": vpc["endpointPublicAccess"],
                "clusterSecurityGroupId": vpc["clusterSecurityGroupId"],
                "vpcId": vpc["vpcId"],
            },
        }

    def _vpc_config(self, inputs: Properties) -> Properties:
        given = {key: value for key, value in inputs["vpcConfig"].items() if key != "subnetIds"}
        names = ("endpointPrivateAccess", "endpointPublicAccess", "publicAccessCidrs")
        return mapped(given, {name: name for name in names})

    def _logging(self, inputs: Properties) -> Properties:
        return {"clusterLogging": [{"types": inputs["enabledClusterLogTypes"], "enabled": True}]}


_TAINT = {"key": "key", "value": "value", "effect": "effect"}


class NodeGroup(Kind):
    token = "aws:eks/nodeGroup:NodeGroup"
    properties = frozenset(
        {
            "nodeGroupName",
            "clusterName",
            "nodeRoleArn",
            "version",
            "releaseVersion",
            "amiType",
            "capacityType",
            "instanceTypes",
            "subnetIds",
            "launchTemplate",
            "scalingConfig",
            "updateConfig",
            "labels",
            "taints",
        }
    )
    replaced_by = frozenset(
        {"nodeGroupName", "clusterName", "nodeRoleArn", "amiType", "capacityType", "instanceTypes", "subnetIds"}
    )
    named_by = "nodeGroupName"

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        cluster, name = inputs["clusterName"], inputs["nodeGroupName"]
        made = account.eks.create_nodegroup(
            **some(
                clusterName=cluster,
                nodegroupName=name,
                nodeRole=inputs["nodeRoleArn"],
                version=inputs.get("version"),
                releaseVersion=inputs.get("releaseVersion"),
                amiType=inputs["amiType"],
                capacityType=inputs["capacityType"],
                instanceTypes=inputs.get("instanceTypes"),
                subnets=inputs["subnetIds"],
                launchTemplate=inputs["launchTemplate"],
                scalingConfig=inputs["scalingConfig"],
                updateConfig=inputs["updateConfig"],
                labels=inputs["labels"],
                taints=[mapped(taint, _TAINT) for taint in inputs.get("taints", [])],
                tags=account.tags(inputs),
            )
        )["nodegroup"]
        _until(f"node group {name} is active", lambda: self._described(account, cluster, name)["status"] == "ACTIVE")
        return f"{cluster}:{name}", {"arn": made["nodegroupArn"], "status": "ACTIVE"}

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        group = {"clusterName": new["clusterName"], "nodegroupName": new["nodeGroupName"]}
        settings = changed & {"scalingConfig", "updateConfig", "labels", "taints"}
        if settings:
            update = account.eks.update_nodegroup_config(**group, **self._settings(settings, old, new))["update"]
            _finished(account, new["clusterName"], update, nodegroupName=new["nodeGroupName"])
        if changed & {"version", "releaseVersion", "launchTemplate"}:
            release = new.get("releaseVersion") if "releaseVersion" in changed else None
            update = account.eks.update_nodegroup_version(
                **group,
                **some(version=new.get("version"), releaseVersion=release, launchTemplate=new["launchTemplate"]),
            )["update"]
            _finished(account, new["clusterName"], update, nodegroupName=new["nodeGroupName"])
        return {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return self._described(account, state["clusterName"], state["nodeGroupName"])

    def refreshed(self, account: Account, identity: str, inputs: Properties) -> Properties:
        found = self._described(account, inputs["clusterName"], inputs["nodeGroupName"])
        return inputs | {"scalingConfig": found["scalingConfig"]}

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        cluster, name = state["clusterName"], state["nodeGroupName"]
        account.eks.delete_nodegroup(clusterName=cluster, nodegroupName=name)
        _until(f"node group {name} is gone", lambda: _gone(lambda: self._described(account, cluster, name)))

    def _settings(self, changed: set[str], old: Properties, new: Properties) -> Properties:
        gone_labels = sorted(set(old.get("labels", {})) - set(new.get("labels", {})))
        taints = [mapped(taint, _TAINT) for taint in new.get("taints", [])]
        gone_taints = [mapped(taint, _TAINT) for taint in old.get("taints", []) if taint not in new.get("taints", [])]
        every = {
            "scalingConfig": new["scalingConfig"],
            "updateConfig": new["updateConfig"],
            "labels": some(addOrUpdateLabels=new.get("labels"), removeLabels=gone_labels),
            "taints": some(addOrUpdateTaints=taints, removeTaints=gone_taints),
        }
        return {key: every[key] for key in changed}

    def _described(self, account: Account, cluster: str, name: str) -> Properties:
        return account.eks.describe_nodegroup(clusterName=cluster, nodegroupName=name)["nodegroup"]


class Addon(Kind):
    token = "aws:eks/addon:Addon"
    properties = frozenset(
        {
            "clusterName",
            "addonName",
            "addonVersion",
            "configurationValues",
            "podIdentityAssociations",
            "resolveConflictsOnCreate",
            "resolveConflictsOnUpdate",
        }
    )
    replaced_by = frozenset({"clusterName", "addonName"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        cluster, name = inputs["clusterName"], inputs["addonName"]
        made = account.eks.create_addon(
            clusterName=cluster,
            addonName=name,
            resolveConflicts=inputs["resolveConflictsOnCreate"],
            tags=account.tags(inputs),
            **self._settings(inputs),
        )["addon"]
        _until(f"add-on {name} is active", lambda: self._described(account, cluster, name)["status"] == "ACTIVE")
        return f"{cluster}:{name}", {"arn": made["addonArn"]}

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        if "podIdentityAssociations" in changed:
            return super().update(account, identity, changed, old, new)
        update = account.eks.update_addon(
            clusterName=new["clusterName"],
            addonName=new["addonName"],
            resolveConflicts=new["resolveConflictsOnUpdate"],
            **self._settings(new),
        )["update"]
        _finished(account, new["clusterName"], update, addonName=new["addonName"])
        return {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return self._described(account, state["clusterName"], state["addonName"])

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        cluster, name = state["clusterName"], state["addonName"]
        account.eks.delete_addon(clusterName=cluster, addonName=name)
        _until(f"add-on {name} is gone", lambda: _gone(lambda: self._described(account, cluster, name)))

    def _settings(self, inputs: Properties) -> Properties:
        return some(
            addonVersion=inputs.get("addonVersion"),
            configurationValues=inputs.get("configurationValues"),
            podIdentityAssociations=[
                mapped(found, {"serviceAccount": "serviceAccount", "roleArn": "roleArn"})
                for found in inputs.get("podIdentityAssociations", [])
            ],
        )

    def _described(self, account: Account, cluster: str, name: str) -> Properties:
        return account.eks.describe_addon(clusterName=cluster, addonName=name)["addon"]


class AccessEntry(Kind):
    token = "aws:eks/accessEntry:AccessEntry"
    properties = frozenset({"clusterName", "principalArn", "type", "kubernetesGroups"})
    replaced_by = frozenset({"clusterName", "principalArn", "type"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.eks.create_access_entry(
            **some(
                clusterName=inputs["clusterName"],
                principalArn=inputs["principalArn"],
                type=inputs["type"],
                kubernetesGroups=inputs.get("kubernetesGroups"),
                tags=account.tags(inputs),
            )
        )["accessEntry"]
        return f"{inputs['clusterName']}:{inputs['principalArn']}", {"accessEntryArn": made["accessEntryArn"]}

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        account.eks.update_access_entry(
            clusterName=new["clusterName"],
            principalArn=new["principalArn"],
            kubernetesGroups=new.get("kubernetesGroups", []),
        )
        return {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.eks.describe_access_entry(clusterName=state["clusterName"], principalArn=state["principalArn"])

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.eks.delete_access_entry(clusterName=state["clusterName"], principalArn=state["principalArn"])


class AccessPolicyAssociation(Kind):
    token = "aws:eks/accessPolicyAssociation:AccessPolicyAssociation"
    properties = frozenset({"clusterName", "principalArn", "policyArn", "accessScope"})
    replaced_by = properties

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        account.eks.associate_access_policy(
            **self._who(inputs), policyArn=inputs["policyArn"], accessScope=inputs["accessScope"]
        )
        return "#".join((inputs["clusterName"], inputs["principalArn"], inputs["policyArn"])), {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        associated = account.eks.list_associated_access_policies(**self._who(state))["associatedAccessPolicies"]
        return [policy for policy in associated if policy["policyArn"] == state["policyArn"]]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.eks.disassociate_access_policy(**self._who(state), policyArn=state["policyArn"])

    def _who(self, state: Properties) -> Properties:
        return {"clusterName": state["clusterName"], "principalArn": state["principalArn"]}


class PodIdentityAssociation(Kind):
    token = "aws:eks/podIdentityAssociation:PodIdentityAssociation"
    properties = frozenset({"clusterName", "namespace", "serviceAccount", "roleArn"})
    replaced_by = frozenset({"clusterName", "namespace", "serviceAccount"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.eks.create_pod_identity_association(
            **{key: inputs[key] for key in self.properties}, tags=account.tags(inputs)
        )["association"]
        return made["associationId"], {
            "associationArn": made["associationArn"],
            "associationId": made["associationId"],
        }

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.eks.describe_pod_identity_association(clusterName=state["clusterName"], associationId=identity)

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.eks.delete_pod_identity_association(clusterName=state["clusterName"], associationId=identity)


def addon_version(account: Account, arguments: Properties) -> Properties:
    """`aws:eks/getAddonVersion`: the newest version, or the default one, for a version of Kubernetes."""
    name, kubernetes = arguments["addonName"], arguments["kubernetesVersion"]
    pages = account.eks.get_paginator("describe_addon_versions").paginate(addonName=name, kubernetesVersion=kubernetes)
    versions = [version for page in pages for addon in page["addons"] for version in addon["addonVersions"]]
    for version in versions:
        if arguments.get("mostRecent") or any(fit.get("defaultVersion") for fit in version["compatibilities"]):
            return {**arguments, "id": name, "version": version["addonVersion"]}
    raise Refused(f"no version of add-on {name} is for Kubernetes {kubernetes}")


KINDS = (Cluster, NodeGroup, Addon, AccessEntry, AccessPolicyAssociation, PodIdentityAssociation)
