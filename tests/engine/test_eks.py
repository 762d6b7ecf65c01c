"""An EKS cluster by the real Pulumi engine, against moto in place of AWS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from tests.deadline import until
from tests.engine.sandbox import REPOSITORY, free_ports

REGION = "eu-west-1"
CLUSTER = "lepton-prod"
DEPLOYER = "arn:aws:iam::123456789012:role/deployer"
PLUGIN = REPOSITORY / "tests" / "plugins" / "aws"

PROGRAM = """
import json
from pathlib import Path

import pulumi

from infra.cluster.eks import EksCluster
from infra.settings.eks import EksSettings
from infra.settings.loading import parse_settings

document = json.loads(Path("settings.json").read_text())
cluster = EksCluster("prod", "prod", parse_settings(EksSettings, document, file="settings.json", key="eks"))
pulumi.export("kubeconfig", cluster.kubeconfig)
pulumi.export("registry", cluster.registry)
"""

SETTINGS: dict[str, Any] = {
    "region": REGION,
    "kubernetes": "1.33",
    "nat": "one",
    "access": [{"principal": DEPLOYER, "level": "admin"}],
    "pools": [
        {
            "name": "l4",
            "instance_types": ["g6.2xlarge"],
            "max": 4,
            "gpu": {"count": 1, "product": "NVIDIA-L4"},
        },
        {
            "name": "h100",
            "instance_types": ["p5.48xlarge"],
            "max": 2,
            "gpu": {"count": 8, "product": "NVIDIA-H100-80GB-HBM3"},
        },
    ],
    "registry": {"repositories": ["models/tumour"]},
    "api": {"private_cidrs": ["10.200.0.0/16"]},
}
ADDONS = {"vpc-cni", "coredns", "kube-proxy", "eks-pod-identity-agent", "aws-ebs-csi-driver", "metrics-server"}


@dataclass(frozen=True)
class Step:
    """Something that an update did to a resource."""

    what: str
    name: str
    begun: int
    ended: int
    """Places in the engine's sequence of events."""


@dataclass(frozen=True)
class Update:
    status: int
    steps: list[Step]
    errors: str

    def changed(self) -> set[tuple[str, str]]:
        return {(step.what, step.name) for step in self.steps}

    def step(self, what: str, name: str) -> Step:
        (found,) = [step for step in self.steps if (step.what, step.name) == (what, name)]
        return found


class World:
    """A stack of one EKS cluster, and an AWS of its own."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="lepton-eks-"))
        self.settings = SETTINGS
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        self._log = (self.root / "moto.log").open("wb")
        self._moto = subprocess.Popen(
            [sys.executable, "-m", "tests.plugins.aws.moto_eks", str(port)],
            cwd=REPOSITORY,
            env=os.environ | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        until(self._answers, 60, what="moto's answer")
        self.nothing = self.inventory()
        (self.root / "Pulumi.yaml").write_text(yaml.safe_dump({"name": "lepton", "runtime": "python"}))
        (self.root / "__main__.py").write_text(PROGRAM)
        (self.root / "state").mkdir()
        assert self._pulumi("stack", "init", "prod").returncode == 0

    def up(self, *options: str, **settings: Any) -> Update:
        """Brings the stack to these settings, added to those that it has."""
        (self.root / "settings.json").write_text(json.dumps(self.settings | settings))
        return _read(self._pulumi("up", "--yes", "--skip-preview", "--json", *options))

    def must_up(self, *options: str, **settings: Any) -> Update:
        update = self.up(*options, **settings)
        assert update.status == 0, update.errors
        self.settings = self.settings | settings
        return update

    def destroy(self) -> Update:
        return _read(self._pulumi("destroy", "--yes", "--skip-preview", "--json"))

    def output(self, name: str) -> str:
        return self._pulumi("stack", "output", name).stdout.strip()

    def client(self, service: str) -> Any:
        return boto3.client(
            service,  # pyright: ignore[reportArgumentType]
            region_name=REGION,
            endpoint_url=self._url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def node_groups(self) -> dict[str, dict[str, Any]]:
        """By pool."""
        eks = self.client("eks")
        described = [
            eks.describe_nodegroup(clusterName=CLUSTER, nodegroupName=name)["nodegroup"]
            for name in eks.list_nodegroups(clusterName=CLUSTER)["nodegroups"]
        ]
        return {found["labels"]["lepton/pool"]: found for found in described}

    def inventory(self) -> dict[str, list[str]]:
        """What the account has, of all that a cluster is made of."""
        ec2, ecr, eks = self.client("ec2"), self.client("ecr"), self.client("eks")
        iam, kms, logs = self.client("iam"), self.client("kms"), self.client("logs")
        keys = [key["KeyId"] for key in kms.list_keys()["Keys"]]
        states = {key: kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] for key in keys}
        gateways, endpoints = ec2.describe_nat_gateways()["NatGateways"], ec2.describe_vpc_endpoints()["VpcEndpoints"]
        found: dict[str, Any] = {
            "vpcs": [vpc["VpcId"] for vpc in ec2.describe_vpcs()["Vpcs"]],
            "subnets": [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]],
            "internet gateways": [
                one["InternetGatewayId"] for one in ec2.describe_internet_gateways()["InternetGateways"]
            ],
            "addresses": [address["AllocationId"] for address in ec2.describe_addresses()["Addresses"]],
            "NAT gateways": [one["NatGatewayId"] for one in gateways if one["State"] != "deleted"],
            "route tables": [table["RouteTableId"] for table in ec2.describe_route_tables()["RouteTables"]],
            "endpoints": [one["VpcEndpointId"] for one in endpoints if one["State"] != "deleted"],
            "security groups": [group["GroupId"] for group in ec2.describe_security_groups()["SecurityGroups"]],
            "flow logs": [flow["FlowLogId"] for flow in ec2.describe_flow_logs()["FlowLogs"]],
            "launch templates": [one["LaunchTemplateId"] for one in ec2.describe_launch_templates()["LaunchTemplates"]],
            "clusters": eks.list_clusters()["clusters"],
            "roles": [role["RoleName"] for role in iam.list_roles()["Roles"]],
            # A key can't be deleted at once.
            "keys": [key for key, state in states.items() if state != "PendingDeletion"],
            "log groups": [group["logGroupName"] for group in logs.describe_log_groups()["logGroups"]],
            "repositories": [one["repositoryName"] for one in ecr.describe_repositories()["repositories"]],
        }
        return {kind: sorted(names) for kind, names in found.items()}

    def close(self) -> None:
        self._moto.kill()
        self._moto.wait()
        self._log.close()
        shutil.rmtree(self.root)

    def _pulumi(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PULUMI_", "AWS_"))}
        path = [str(PLUGIN), str(Path(sys.prefix) / "bin"), str(REPOSITORY / ".tools" / "bin"), kept["PATH"]]
        environment = kept | {
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": str(REPOSITORY),
            "PULUMI_BACKEND_URL": f"file://{self.root / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "",
            "PULUMI_HOME": str(self.root / "home"),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "AWS_ENDPOINT_URL": self._url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        return subprocess.run(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=420,
            check=False,
        )

    def _answers(self) -> bool:
        assert self._moto.poll() is None, (self.root / "moto.log").read_text()
        try:
            with urllib.request.urlopen(f"{self._url}/moto-api/", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


def _read(run: subprocess.CompletedProcess[str]) -> Update:
    """An update, from the events that the engine tells."""
    begun: dict[tuple[str, str], int] = {}
    steps: list[Step] = []
    errors: list[str] = [run.stderr]
    for line in run.stdout.splitlines():
        event = json.loads(line)
        if "diagnosticEvent" in event and event["diagnosticEvent"]["severity"] == "error":
            errors.append(event["diagnosticEvent"]["message"])
        for kind in ("resourcePreEvent", "resOutputsEvent"):
            metadata = event.get(kind, {}).get("metadata")
            if metadata is None or metadata["op"] == "same":
                continue
            *_, types, name = metadata["urn"].split("::")
            key = (metadata["op"], f"{types.split('$')[-1].split(':')[-1]} {name}")
            if kind == "resourcePreEvent":
                begun[key] = event["sequence"]
            else:
                steps.append(Step(*key, begun[key], event["sequence"]))
    return Update(run.returncode, steps, "\n".join(errors))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """An environment whose cluster is up."""
    world = World()
    try:
        world.must_up()
        yield world
    finally:
        world.close()


def test_up_makes_a_private_cluster_with_all_its_parts(world: World) -> None:
    eks = world.client("eks")
    cluster = eks.describe_cluster(name=CLUSTER)["cluster"]
    assert cluster["resourcesVpcConfig"]["endpointPublicAccess"] is False
    assert cluster["resourcesVpcConfig"]["endpointPrivateAccess"] is True
    assert cluster["accessConfig"] == {
        "authenticationMode": "API",
        "bootstrapClusterCreatorAdminPermissions": False,
    }
    assert len(cluster["resourcesVpcConfig"]["subnetIds"]) == 3
    assert set(world.node_groups()) == {"cpu", "l4", "h100"}
    assert set(eks.list_addons(clusterName=CLUSTER)["addons"]) == ADDONS
    assert eks.list_access_entries(clusterName=CLUSTER)["accessEntries"] == [DEPLOYER]
    (policy,) = eks.list_associated_access_policies(clusterName=CLUSTER, principalArn=DEPLOYER)[
        "associatedAccessPolicies"
    ]
    assert policy["policyArn"].endswith("/AmazonEKSClusterAdminPolicy")
    accounts = {
        found["serviceAccount"] for found in eks.list_pod_identity_associations(clusterName=CLUSTER)["associations"]
    }
    assert accounts == {"aws-node", "ebs-csi-controller-sa", "cluster-autoscaler"}


def test_the_outputs_lead_to_the_cluster_and_its_registry(world: World) -> None:
    cluster = world.client("eks").describe_cluster(name=CLUSTER)["cluster"]
    document = json.loads(world.output("kubeconfig"))
    assert document["clusters"][0]["cluster"] == {
        "server": cluster["endpoint"],
        "certificate-authority-data": cluster["certificateAuthority"]["data"],
    }
    (repository,) = world.client("ecr").describe_repositories()["repositories"]
    assert repository["repositoryUri"] == f"{world.output('registry')}/models/tumour"


def test_joined_networks_reach_the_api_server_and_nothing_else_does(world: World) -> None:
    group = world.client("eks").describe_cluster(name=CLUSTER)["cluster"]["resourcesVpcConfig"][
        "clusterSecurityGroupId"
    ]
    (found,) = world.client("ec2").describe_security_groups(GroupIds=[group])["SecurityGroups"]
    rules = [(rule["FromPort"], rule["ToPort"], rule["IpRanges"][0]["CidrIp"]) for rule in found["IpPermissions"]]
    assert rules == [(443, 443, "10.200.0.0/16")]


def test_a_second_up_changes_nothing(world: World) -> None:
    assert world.must_up().changed() == set()


def test_a_pools_bounds_change_without_the_size_that_an_autoscaler_gave_it(world: World) -> None:
    eks = world.client("eks")
    name = world.node_groups()["l4"]["nodegroupName"]
    eks.update_nodegroup_config(clusterName=CLUSTER, nodegroupName=name, scalingConfig={"desiredSize": 3})
    small, large = world.settings["pools"]

    update = world.must_up("--refresh", pools=[small | {"max": 5}, large])

    assert ("update", "NodeGroup prod-l4") in update.changed()
    assert world.node_groups()["l4"]["scalingConfig"] == {"minSize": 0, "maxSize": 5, "desiredSize": 3}


def test_upgrades_and_replacements_go_through_the_control_plane_and_then_pool_by_pool(world: World) -> None:
    small, large = world.settings["pools"]
    held = world.must_up(kubernetes="1.34", pools=[small, large | {"kubernetes": "1.33"}])

    groups = ("NodeGroup prod-cpu", "NodeGroup prod-l4")
    cluster = held.step("update", "Cluster prod")
    addons = {("update", name) for what, name in held.changed() if name.startswith("Addon ")}
    assert len(addons) == len(ADDONS)
    assert held.changed() - addons == {("update", "Cluster prod"), *(("update", name) for name in groups)}
    first, second = (held.step("update", name) for name in groups)
    assert cluster.ended < first.begun
    assert first.ended < second.begun
    assert {pool: group["version"] for pool, group in world.node_groups().items()} == {
        "cpu": "1.34",
        "l4": "1.34",
        "h100": "1.33",
    }

    # The pool that was held back follows; and other instances can't be had in place.
    old = world.node_groups()["l4"]["nodegroupName"]
    update = world.must_up(pools=[small | {"instance_types": ["g6.4xlarge"]}, large])

    made = update.step("create-replacement", "NodeGroup prod-l4")
    upgraded = update.step("update", "NodeGroup prod-h100")
    deleted = update.step("delete-replaced", "NodeGroup prod-l4")
    assert made.ended < upgraded.begun
    assert upgraded.ended < deleted.begun
    assert {name for _, name in update.changed()} == {"NodeGroup prod-l4", "NodeGroup prod-h100"}
    groups = world.node_groups()
    assert groups["h100"]["version"] == "1.34"
    assert groups["l4"]["instanceTypes"] == ["g6.4xlarge"]
    assert groups["l4"]["nodegroupName"] != old


def test_a_skipped_minor_version_is_refused_with_awss_words_and_no_pool_is_touched(world: World) -> None:
    before = world.settings["kubernetes"]
    skipped = f"1.{int(before.split('.')[1]) + 2}"

    update = world.up(kubernetes=skipped)

    assert update.status != 0
    assert f"Unsupported Kubernetes minor version update from {before} to {skipped}" in update.errors
    assert not [name for _, name in update.changed() if name.startswith("NodeGroup")]
    assert {group["version"] for group in world.node_groups().values()} == {before}


def test_destroy_leaves_nothing(world: World) -> None:
    assert world.inventory() != world.nothing
    destroyed = world.destroy()
    assert destroyed.status == 0, destroyed.errors
    assert world.inventory() == world.nothing
