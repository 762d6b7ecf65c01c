"""What an EKS cluster is made of: each kind of resource, in the inputs that matter."""

from __future__ import annotations

import base64
import ipaddress
import json
from typing import Any

import pytest

from infra.cluster.eks.network import INTERFACE_ENDPOINTS
from tests.component.eks_cluster import ACCOUNT, DEPLOYER, H100, L4, Declared, Deployment, deploy, settings

PEOPLE = f"arn:aws:iam::{ACCOUNT}:role/people"
READERS = f"arn:aws:iam::{ACCOUNT}:role/readers"

VPC = "aws:ec2/vpc:Vpc"
SUBNET = "aws:ec2/subnet:Subnet"
NAT = "aws:ec2/natGateway:NatGateway"
ROUTE = "aws:ec2/route:Route"
ROUTE_TABLE = "aws:ec2/routeTable:RouteTable"
ENDPOINT = "aws:ec2/vpcEndpoint:VpcEndpoint"
TEMPLATE = "aws:ec2/launchTemplate:LaunchTemplate"
CLUSTER = "aws:eks/cluster:Cluster"
GROUP = "aws:eks/nodeGroup:NodeGroup"
ADDON = "aws:eks/addon:Addon"
ENTRY = "aws:eks/accessEntry:AccessEntry"
ASSOCIATION = "aws:eks/accessPolicyAssociation:AccessPolicyAssociation"
POD_IDENTITY = "aws:eks/podIdentityAssociation:PodIdentityAssociation"
ROLE = "aws:iam/role:Role"
ROLE_POLICY = "aws:iam/rolePolicy:RolePolicy"
ATTACHMENT = "aws:iam/rolePolicyAttachment:RolePolicyAttachment"
KEY = "aws:kms/key:Key"
LOG_GROUP = "aws:cloudwatch/logGroup:LogGroup"
REPOSITORY = "aws:ecr/repository:Repository"
LIFECYCLE = "aws:ecr/lifecyclePolicy:LifecyclePolicy"

WITHOUT_RESOURCES = {
    "ecr:GetAuthorizationToken",
    "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeAutoScalingInstances",
    "autoscaling:DescribeLaunchConfigurations",
    "autoscaling:DescribeScalingActivities",
    "ec2:DescribeImages",
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeLaunchTemplateVersions",
    "ec2:GetInstanceTypesFromInstanceRequirements",
}
"""Actions for which AWS has no resource to name."""


@pytest.fixture(scope="module")
def full() -> Deployment:
    """A cluster with something of everything."""
    return deploy(
        settings(
            account=ACCOUNT,
            kubernetes="1.34",
            pools=[L4, H100 | {"kubernetes": "1.33", "ami_release": "1.33.3-20250904"}],
            access=[
                {"principal": DEPLOYER, "level": "admin"},
                {"principal": READERS, "level": "view"},
                {"principal": PEOPLE, "level": "team", "teams": ["diagnostics", "vision"]},
            ],
            api={"private_cidrs": ["10.200.0.0/16"], "public_cidrs": ["203.0.113.0/24"]},
            addons={"coredns": "v1.11.4-eksbuild.2"},
            registry={"repositories": ["models/tumour", "servers/mlserver"], "untagged_days": 30},
            artifact_bucket="my-models",
            log_retention_days=30,
            tags={"cost-centre": "42"},
        ),
    )


@pytest.fixture(scope="module")
def plain() -> Deployment:
    """A cluster of which only what must be said was said."""
    return deploy(settings())


def policies(deployment: Deployment) -> dict[str, list[dict[str, Any]]]:
    """The statements of every policy of a role, by name."""
    return {name: json.loads(found["policy"])["Statement"] for name, found in deployment.every(ROLE_POLICY).items()}


def document(declared: Declared, key: str) -> list[dict[str, Any]]:
    return json.loads(declared[key])["Statement"]


# -- the provider


def test_everything_is_made_by_one_provider_of_the_region_and_account(full: Deployment) -> None:
    provider = full.one("pulumi:providers:aws")
    assert provider["region"] == "eu-west-1"
    assert json.loads(provider["allowedAccountIds"]) == [ACCOUNT]
    assert json.loads(provider["defaultTags"]) == {"tags": {"lepton:environment": "prod", "cost-centre": "42"}}
    others = [found for found in full.resources if found is not provider]
    assert {found.provider.split("::")[-2] for found in others} == {"x"}


# -- network


def test_the_vpc_has_three_private_and_three_public_subnets_that_dont_overlap(full: Deployment) -> None:
    vpc = full.one(VPC)
    assert vpc["cidrBlock"] == "10.0.0.0/16"
    assert vpc["enableDnsSupport"] is True
    assert vpc["enableDnsHostnames"] is True
    subnets = full.every(SUBNET)
    assert {name: (found["availabilityZone"], found["cidrBlock"]) for name, found in subnets.items()} == {
        "x-private-a": ("eu-west-1a", "10.0.0.0/18"),
        "x-private-b": ("eu-west-1b", "10.0.64.0/18"),
        "x-private-c": ("eu-west-1c", "10.0.128.0/18"),
        "x-public-a": ("eu-west-1a", "10.0.192.0/24"),
        "x-public-b": ("eu-west-1b", "10.0.193.0/24"),
        "x-public-c": ("eu-west-1c", "10.0.194.0/24"),
    }
    assert not any(found["mapPublicIpOnLaunch"] for found in subnets.values())


def test_load_balancers_find_their_subnets_by_tags(full: Deployment) -> None:
    for name, subnet in full.every(SUBNET).items():
        role = "internal-elb" if "private" in name else "elb"
        assert subnet["tags"][f"kubernetes.io/role/{role}"] == "1"
        assert subnet["tags"]["kubernetes.io/cluster/lepton-prod"] == "shared"


@pytest.mark.parametrize(
    ("nat", "gateways", "private_routes_to"),
    [
        ("per-zone", {"x-nat-a", "x-nat-b", "x-nat-c"}, ["x-nat-a", "x-nat-b", "x-nat-c"]),
        ("one", {"x-nat-a"}, ["x-nat-a", "x-nat-a", "x-nat-a"]),
        ("none", set(), []),
    ],
)
def test_nat_gateways_are_the_private_subnets_way_out(
    nat: str, gateways: set[str], private_routes_to: list[str]
) -> None:
    deployment = deploy(settings(nat=nat))
    assert set(deployment.every(NAT)) == gateways
    assert set(deployment.every("aws:ec2/eip:Eip")) == gateways
    for name, gateway in deployment.every(NAT).items():
        assert gateway["allocationId"] == f"id-of-{name}"
        assert gateway["subnetId"] == f"id-of-{name.replace('nat', 'public')}"
    routes = deployment.every(ROUTE)
    private = [routes[name] for name in sorted(routes) if "private" in name]
    assert [route["natGatewayId"] for route in private] == [f"id-of-{name}" for name in private_routes_to]
    assert {route["destinationCidrBlock"] for route in routes.values()} <= {"0.0.0.0/0"}
    public = [route for name, route in routes.items() if "public" in name]
    assert {route["gatewayId"] for route in public} == ({"id-of-x"} if gateways else set())
    assert bool(deployment.every("aws:ec2/internetGateway:InternetGateway")) == bool(gateways)


def test_every_subnet_has_a_route_table_of_its_own(full: Deployment) -> None:
    associations = full.every("aws:ec2/routeTableAssociation:RouteTableAssociation")
    assert {(found["subnetId"], found["routeTableId"]) for found in associations.values()} == {
        (f"id-of-{name}", f"id-of-{name}") for name in full.every(SUBNET)
    }
    assert {found["vpcId"] for found in full.every(ROUTE_TABLE).values()} == {"id-of-x"}


def test_awss_services_are_reached_within_the_vpc(full: Deployment) -> None:
    endpoints = full.every(ENDPOINT)
    s3 = endpoints.pop("x-s3")
    assert (s3["vpcEndpointType"], s3["serviceName"]) == ("Gateway", "com.amazonaws.eu-west-1.s3")
    assert s3["routeTableIds"] == [f"id-of-x-private-{letter}" for letter in "abc"]
    assert {found["serviceName"] for found in endpoints.values()} == {
        f"com.amazonaws.eu-west-1.{service}" for service in INTERFACE_ENDPOINTS
    }
    for endpoint in endpoints.values():
        assert endpoint["vpcEndpointType"] == "Interface"
        assert endpoint["privateDnsEnabled"] is True
        assert endpoint["subnetIds"] == [f"id-of-x-private-{letter}" for letter in "abc"]
        assert endpoint["securityGroupIds"] == ["id-of-x-endpoints"]


def test_endpoints_take_https_from_the_vpc_and_nothing_else(full: Deployment) -> None:
    group = full.one("aws:ec2/securityGroup:SecurityGroup")
    (rule,) = group["ingress"]
    assert (rule["protocol"], rule["fromPort"], rule["toPort"]) == ("tcp", 443, 443)
    assert rule["cidrBlocks"] == ["10.0.0.0/16"]
    assert group["egress"] == []


def test_the_default_security_group_lets_nothing_through(full: Deployment) -> None:
    group = full.one("aws:ec2/defaultSecurityGroup:DefaultSecurityGroup")
    assert (group["vpcId"], group["ingress"], group["egress"]) == ("id-of-x", [], [])


def test_flow_logs_are_kept_encrypted_for_the_said_time(full: Deployment) -> None:
    flow = full.one("aws:ec2/flowLog:FlowLog")
    assert (flow["vpcId"], flow["trafficType"], flow["logDestinationType"]) == (
        "id-of-x",
        "ALL",
        "cloud-watch-logs",
    )
    group = full.one(LOG_GROUP, "x-flow")
    assert flow["logDestination"] == "arn:of:x-flow"
    assert flow["iamRoleArn"] == "arn:of:x-flow"
    assert (group["name"], group["retentionInDays"]) == ("/aws/vpc/lepton-prod/flow-logs", 30)
    assert group["kmsKeyId"] == "arn:of:x-cluster"
    (statement,) = policies(full)["x-flow"]
    assert all("log-group:/aws/vpc/lepton-prod/flow-logs" in arn for arn in statement["Resource"])


# -- control plane


def test_the_api_server_is_private_unless_told_otherwise(plain: Deployment, full: Deployment) -> None:
    private = plain.one(CLUSTER)["vpcConfig"]
    assert private["endpointPrivateAccess"] is True
    assert private["endpointPublicAccess"] is False
    assert "publicAccessCidrs" not in private
    public = full.one(CLUSTER)["vpcConfig"]
    assert public["endpointPrivateAccess"] is True
    assert public["endpointPublicAccess"] is True
    assert public["publicAccessCidrs"] == ["203.0.113.0/24"]


def test_the_control_plane_is_in_the_private_subnets_and_of_the_said_version(full: Deployment) -> None:
    cluster = full.one(CLUSTER)
    assert (cluster["name"], cluster["version"]) == ("lepton-prod", "1.34")
    assert cluster["vpcConfig"]["subnetIds"] == [f"id-of-x-private-{letter}" for letter in "abc"]
    assert cluster["upgradePolicy"] == {"supportType": "STANDARD"}
    assert cluster["bootstrapSelfManagedAddons"] is False


def test_secrets_are_encrypted_with_a_key_that_rotates(full: Deployment) -> None:
    cluster, key = full.one(CLUSTER), full.one(KEY, "x-cluster")
    assert cluster["encryptionConfig"] == {"provider": {"keyArn": "arn:of:x-cluster"}, "resources": ["secrets"]}
    assert key["enableKeyRotation"] is True
    assert key["deletionWindowInDays"] == 30
    aliases = full.every("aws:kms/alias:Alias")
    assert {name: (found["name"], found["targetKeyId"]) for name, found in aliases.items()} == {
        "x-cluster": ("alias/lepton-prod/cluster", "id-of-x-cluster"),
        "x-images": ("alias/lepton-prod/images", "id-of-x-images"),
    }
    (statement,) = policies(full)["x"]
    assert statement["Resource"] == ["arn:of:x-cluster"]
    assert set(statement["Action"]) == {"kms:Encrypt", "kms:Decrypt", "kms:ListGrants", "kms:DescribeKey"}


def test_keys_are_the_accounts_and_cloudwatch_uses_one_for_our_logs_alone(full: Deployment) -> None:
    account, logs = document(full.one(KEY, "x-cluster"), "policy")
    assert account["Principal"] == {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
    assert logs["Principal"] == {"Service": "logs.eu-west-1.amazonaws.com"}
    assert logs["Condition"]["ArnEquals"]["kms:EncryptionContext:aws:logs:arn"] == [
        f"arn:aws:logs:eu-west-1:{ACCOUNT}:log-group:/aws/eks/lepton-prod/cluster",
        f"arn:aws:logs:eu-west-1:{ACCOUNT}:log-group:/aws/vpc/lepton-prod/flow-logs",
    ]
    assert document(full.one(KEY, "x-images"), "policy") == [account]


def test_all_control_plane_logs_go_to_a_group_that_was_there_before(full: Deployment) -> None:
    cluster, group = full.one(CLUSTER), full.one(LOG_GROUP, "x")
    assert set(cluster["enabledClusterLogTypes"]) == {
        "api",
        "audit",
        "authenticator",
        "controllerManager",
        "scheduler",
    }
    assert (group["name"], group["retentionInDays"], group["kmsKeyId"]) == (
        "/aws/eks/lepton-prod/cluster",
        30,
        "arn:of:x-cluster",
    )
    assert full.precedes(group, cluster)


def test_the_cluster_goes_before_the_policies_of_its_role(full: Deployment) -> None:
    cluster, attachment = full.one(CLUSTER), full.one(ATTACHMENT, "x-0")
    assert attachment["policyArn"] == "arn:aws:iam::aws:policy/AmazonEKSClusterPolicy"
    assert full.precedes(attachment, cluster)
    assert full.precedes(full.one(ROLE_POLICY, "x"), cluster)
    assert cluster["roleArn"] == "arn:of:x"


def test_people_come_in_by_access_entries_alone(full: Deployment) -> None:
    assert full.one(CLUSTER)["accessConfig"] == {
        "authenticationMode": "API",
        "bootstrapClusterCreatorAdminPermissions": False,
    }
    entries = {found["principalArn"]: found for found in full.every(ENTRY).values()}
    assert set(entries) == {DEPLOYER, READERS, PEOPLE}
    assert {found["type"] for found in entries.values()} == {"STANDARD"}
    assert entries[PEOPLE]["kubernetesGroups"] == ["lepton:diagnostics", "lepton:vision"]
    assert "kubernetesGroups" not in entries[DEPLOYER].inputs
    policy = "arn:aws:eks::aws:cluster-access-policy/"
    associations = {found["principalArn"]: found for found in full.every(ASSOCIATION).values()}
    assert {who: found["policyArn"].removeprefix(policy) for who, found in associations.items()} == {
        DEPLOYER: "AmazonEKSClusterAdminPolicy",
        READERS: "AmazonEKSViewPolicy",
        PEOPLE: "AmazonEKSEditPolicy",
    }
    assert associations[DEPLOYER]["accessScope"] == {"type": "cluster"}
    scope = associations[PEOPLE]["accessScope"]
    assert scope["type"] == "namespace"
    assert [name.rsplit("-", 1)[0] for name in scope["namespaces"]] == ["diagnostics-prod", "vision-prod"]
    for who, association in associations.items():
        assert full.precedes(entries[who], association)


def test_access_entries_keep_their_names_in_a_list_of_another_order() -> None:
    entries: list[dict[str, Any]] = [
        {"principal": DEPLOYER, "level": "admin"},
        {"principal": READERS, "level": "view"},
    ]
    first, second = (deploy(settings(access=some)) for some in (entries, entries[::-1]))
    assert {name: found["principalArn"] for name, found in first.every(ENTRY).items()} == {
        name: found["principalArn"] for name, found in second.every(ENTRY).items()
    }


def test_joined_networks_reach_the_api_server(full: Deployment, plain: Deployment) -> None:
    rule = full.one("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule")
    assert rule["securityGroupId"] == "sg-cluster"
    assert (rule["cidrIpv4"], rule["ipProtocol"], rule["fromPort"], rule["toPort"]) == (
        "10.200.0.0/16",
        "tcp",
        443,
        443,
    )
    assert plain.every("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule") == {}


# -- pools


def test_pools_are_upgraded_one_after_the_other(full: Deployment) -> None:
    groups = full.every(GROUP)
    assert list(groups) == ["x-cpu", "x-l4", "x-h100"]
    assert full.precedes(groups["x-cpu"], groups["x-l4"])
    assert full.precedes(groups["x-l4"], groups["x-h100"])
    assert full.precedes(full.one(CLUSTER), groups["x-cpu"])
    for group in groups.values():
        assert group["updateConfig"] == {"maxUnavailable": 1}


def test_a_pool_may_stay_behind_the_control_plane(full: Deployment) -> None:
    groups = full.every(GROUP)
    assert {name: found["version"] for name, found in groups.items()} == {
        "x-cpu": "1.34",
        "x-l4": "1.34",
        "x-h100": "1.33",
    }
    assert groups["x-h100"]["releaseVersion"] == "1.33.3-20250904"
    assert "releaseVersion" not in groups["x-l4"].inputs


def test_node_groups_are_of_their_pools_amis_types_and_capacity(full: Deployment) -> None:
    groups = full.every(GROUP)
    assert {
        name: (found["amiType"], found["capacityType"], found["instanceTypes"]) for name, found in groups.items()
    } == {
        "x-cpu": ("AL2023_x86_64_STANDARD", "ON_DEMAND", ["m7i.xlarge"]),
        "x-l4": ("BOTTLEROCKET_x86_64_NVIDIA", "SPOT", ["g6.2xlarge", "g6.4xlarge"]),
        "x-h100": ("AL2023_x86_64_NVIDIA", "ON_DEMAND", ["p5.48xlarge"]),
    }
    assert {found["nodeRoleArn"] for found in groups.values()} == {"arn:of:x-node"}
    assert groups["x-l4"]["subnetIds"] == [f"id-of-x-private-{letter}" for letter in "abc"]
    assert groups["x-h100"]["subnetIds"] == ["id-of-x-private-b"]


def test_an_autoscaler_owns_the_size_of_a_pool_that_names_none(full: Deployment) -> None:
    groups = full.every(GROUP)
    assert groups["x-l4"]["scalingConfig"] == {"minSize": 0, "maxSize": 4, "desiredSize": 0}
    assert groups["x-l4"].ignored == ("scalingConfig.desiredSize",)
    assert groups["x-h100"]["scalingConfig"] == {"minSize": 1, "maxSize": 2, "desiredSize": 2}
    assert groups["x-h100"].ignored == ()


def test_gpu_nodes_are_labelled_and_tainted_before_there_are_any(full: Deployment) -> None:
    groups = full.every(GROUP)
    assert groups["x-cpu"]["labels"] == {"lepton/pool": "cpu"}
    assert groups["x-cpu"]["taints"] == []
    assert groups["x-l4"]["labels"] == {
        "lepton/pool": "l4",
        "nvidia.com/gpu.product": "NVIDIA-L4",
        "example.com/purpose": "small",
    }
    assert groups["x-l4"]["taints"] == [
        {"key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE"},
        {"key": "example.com/small", "value": "", "effect": "PREFER_NO_SCHEDULE"},
    ]
    assert groups["x-h100"]["labels"]["nvidia.com/mig.config"] == "all-1g.10gb"


def test_nodes_are_launched_without_public_addresses_with_imdsv2_and_encrypted_disks(full: Deployment) -> None:
    templates = full.every(TEMPLATE)
    assert set(templates) == {"x-cpu", "x-l4", "x-h100"}
    for name, template in templates.items():
        assert template["metadataOptions"] == {
            "httpEndpoint": "enabled",
            "httpTokens": "required",
            "httpPutResponseHopLimit": 1,
        }
        (interface,) = template["networkInterfaces"]
        assert interface["associatePublicIpAddress"] == "false"
        assert interface["securityGroups"] == ["sg-cluster"]
        (disk,) = template["blockDeviceMappings"]
        assert disk["ebs"]["encrypted"] == "true"
        assert disk["ebs"]["volumeType"] == "gp3"
        tagged = {found["resourceType"]: found["tags"] for found in template["tagSpecifications"]}
        wanted = {"lepton:environment": "prod", "cost-centre": "42", "Name": name}
        assert tagged == {"instance": wanted, "volume": wanted}
        assert full.one(GROUP, name)["launchTemplate"] == {"id": f"id-of-{name}", "version": "7"}
    disks = {name: template["blockDeviceMappings"][0] for name, template in templates.items()}
    assert (disks["x-l4"]["deviceName"], disks["x-l4"]["ebs"]["volumeSize"]) == ("/dev/xvdb", 500)
    assert (disks["x-h100"]["deviceName"], disks["x-h100"]["ebs"]["volumeSize"]) == ("/dev/xvda", 2000)


def test_a_reserved_pool_takes_its_nodes_from_the_reservation(full: Deployment) -> None:
    assert full.one(TEMPLATE, "x-h100")["capacityReservationSpecification"] == {
        "capacityReservationTarget": {"capacityReservationId": "cr-0123456789abcdef0"}
    }
    assert "capacityReservationSpecification" not in full.one(TEMPLATE, "x-l4").inputs


def test_a_capacity_block_has_its_instance_type_in_the_template() -> None:
    deployment = deploy(settings(pools=[H100 | {"capacity": "capacity-block"}]))
    template, group = deployment.one(TEMPLATE, "x-h100"), deployment.one(GROUP, "x-h100")
    assert template["instanceType"] == "p5.48xlarge"
    assert template["instanceMarketOptions"] == {"marketType": "capacity-block"}
    assert group["capacityType"] == "CAPACITY_BLOCK"
    assert "instanceTypes" not in group.inputs


def test_bottlerocket_is_told_to_share_gpus(full: Deployment) -> None:
    toml = base64.b64decode(full.one(TEMPLATE, "x-l4")["userData"]).decode()
    assert 'device-sharing-strategy = "time-slicing"' in toml
    assert "replicas = 4" in toml
    assert "userData" not in full.one(TEMPLATE, "x-h100").inputs


def test_nodes_may_join_and_pull_and_nothing_else(full: Deployment) -> None:
    attached = {
        found["policyArn"].removeprefix("arn:aws:iam::aws:policy/")
        for found in full.every(ATTACHMENT).values()
        if found["role"] == "x-node-0123456"
    }
    assert attached == {"AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"}
    assert "x-node" not in full.every(ROLE_POLICY)
    (trust,) = document(full.one(ROLE, "x-node"), "assumeRolePolicy")
    assert trust["Principal"] == {"Service": "ec2.amazonaws.com"}


def test_pools_are_described_for_who_places_versions(full: Deployment) -> None:
    pools = {found["name"]: found for found in full.outputs["pools"]}
    assert {name: found["gpu_resource"] for name, found in pools.items()} == {
        "cpu": None,
        "l4": "nvidia.com/gpu.shared",
        "h100": "nvidia.com/mig-1g.10gb",
    }
    assert pools["l4"]["labels"] == {"lepton/pool": "l4"}
    assert pools["h100"]["product"] == "NVIDIA-H100-80GB-HBM3"
    assert pools["h100"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present", "effect": "NoSchedule"}
    ]
    assert full.outputs["gpu_inventory"] == {"NVIDIA-L4": 4, "NVIDIA-H100-80GB-HBM3": 16}


# -- add-ons


def test_add_ons_are_pinned_or_follow_the_clusters_version(full: Deployment) -> None:
    versions = {found["addonName"]: found["addonVersion"] for found in full.every(ADDON).values()}
    assert versions == {
        "coredns": "v1.11.4-eksbuild.2",
        **{
            name: f"default of {name} for 1.34"
            for name in ("vpc-cni", "kube-proxy", "eks-pod-identity-agent", "aws-ebs-csi-driver", "metrics-server")
        },
    }
    for addon in full.every(ADDON).values():
        assert (addon["resolveConflictsOnCreate"], addon["resolveConflictsOnUpdate"]) == ("OVERWRITE", "OVERWRITE")


def test_network_policies_are_enforced(full: Deployment) -> None:
    cni = full.one(ADDON, "x-basis-vpc-cni")
    assert json.loads(cni["configurationValues"]) == {"enableNetworkPolicy": "true"}


def test_add_ons_have_roles_of_their_own_by_pod_identity(full: Deployment) -> None:
    identities = {
        found["addonName"]: found["podIdentityAssociations"]
        for found in full.every(ADDON).values()
        if "podIdentityAssociations" in found.inputs
    }
    assert identities == {
        "vpc-cni": [{"serviceAccount": "aws-node", "roleArn": "arn:of:x-cni"}],
        "aws-ebs-csi-driver": [{"serviceAccount": "ebs-csi-controller-sa", "roleArn": "arn:of:x-ebs"}],
    }


def test_nodes_find_the_network_add_ons_and_other_add_ons_find_nodes(full: Deployment) -> None:
    cpu = full.one(GROUP, "x-cpu")
    for name, addon in full.every(ADDON).items():
        if name.startswith("x-basis-"):
            assert full.precedes(addon, cpu), name
        else:
            assert full.precedes(cpu, addon), name


def test_nodes_find_a_way_out(full: Deployment) -> None:
    cpu = full.one(GROUP, "x-cpu")
    ways = [*full.every(ROUTE).values(), *full.every(ENDPOINT).values(), *full.every(NAT).values()]
    assert len(ways) == 6 + 10 + 3
    assert all(full.precedes(way, cpu) for way in ways)


# -- identity


def test_pod_roles_are_for_one_service_account_of_this_cluster(full: Deployment) -> None:
    cluster = f"arn:aws:eks:eu-west-1:{ACCOUNT}:cluster/lepton-prod"
    wanted = {
        "x-cni": ("aws-node", "kube-system"),
        "x-ebs": ("ebs-csi-controller-sa", "kube-system"),
        "x-autoscaler": ("cluster-autoscaler", "kube-system"),
        "x-puller": ("server", None),
    }
    for role, (account, namespace) in wanted.items():
        (trust,) = document(full.one(ROLE, role), "assumeRolePolicy")
        assert trust["Principal"] == {"Service": "pods.eks.amazonaws.com"}
        assert trust["Action"] == ["sts:AssumeRole", "sts:TagSession"]
        tags = {key.split("/")[1]: value for key, value in trust["Condition"]["StringEquals"].items()}
        assert tags["eks-cluster-arn"] == cluster
        assert tags["kubernetes-service-account"] == account
        assert tags.get("kubernetes-namespace") == namespace


def test_the_puller_reads_the_environments_repositories_and_the_bucket(full: Deployment, plain: Deployment) -> None:
    login, images, listing, objects = policies(full)["x-puller"]
    assert (login["Action"], login["Resource"]) == (["ecr:GetAuthorizationToken"], ["*"])
    assert images["Resource"] == [f"arn:aws:ecr:eu-west-1:{ACCOUNT}:repository/lepton/prod/*"]
    assert not [action for action in images["Action"] if "Put" in action or "Delete" in action or "*" in action]
    assert (listing["Action"], listing["Resource"]) == (["s3:ListBucket"], ["arn:aws:s3:::my-models"])
    assert (objects["Action"], objects["Resource"]) == (["s3:GetObject"], ["arn:aws:s3:::my-models/*"])
    assert len(policies(plain)["x-puller"]) == 2
    assert full.outputs["puller_role_arn"] == "arn:of:x-puller"


def test_the_autoscaler_gets_its_role(full: Deployment) -> None:
    assert full.one(POD_IDENTITY).inputs == {
        "clusterName": "lepton-prod",
        "namespace": "kube-system",
        "serviceAccount": "cluster-autoscaler",
        "roleArn": "arn:of:x-autoscaler",
    }


def test_the_autoscaler_changes_this_clusters_groups_alone(full: Deployment) -> None:
    _reading, describing, changing = policies(full)["x-autoscaler"]
    assert describing["Resource"] == [f"arn:aws:eks:eu-west-1:{ACCOUNT}:nodegroup/lepton-prod/*/*"]
    assert changing["Condition"] == {"StringEquals": {"aws:ResourceTag/k8s.io/cluster-autoscaler/lepton-prod": "owned"}}


def test_no_role_may_do_everything_or_to_everything(full: Deployment) -> None:
    statements = [(name, statement) for name, found in policies(full).items() for statement in found]
    assert len(policies(full)) == 4
    for name, statement in statements:
        assert statement["Effect"] == "Allow", name
        assert not [action for action in statement["Action"] if "*" in action], name
        if "*" in statement["Resource"]:
            assert set(statement["Action"]) <= WITHOUT_RESOURCES, name


# -- registries


def test_versions_in_a_repository_cant_be_changed_and_what_is_attached_to_them_can(full: Deployment) -> None:
    repositories = full.every(REPOSITORY)
    # As they were registered, which is in no order.
    assert sorted(found["name"] for found in repositories.values()) == [
        "lepton/prod/models/tumour",
        "lepton/prod/servers/mlserver",
    ]
    for repository in repositories.values():
        assert repository["imageTagMutability"] == "IMMUTABLE_WITH_EXCLUSION"
        assert repository["imageTagMutabilityExclusionFilters"] == [{"filter": "sha256-*", "filterType": "WILDCARD"}]
        assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
        assert repository["encryptionConfigurations"] == [{"encryptionType": "KMS", "kmsKey": "arn:of:x-images"}]
        assert repository["forceDelete"] is False


def test_only_what_no_tag_names_is_ever_taken_away(full: Deployment) -> None:
    for name, found in full.every(LIFECYCLE).items():
        assert found["repository"] == full.one(REPOSITORY, name)["name"]
        (rule,) = json.loads(found["policy"])["rules"]
        assert rule["selection"] == {
            "tagStatus": "untagged",
            "countType": "sinceImagePushed",
            "countUnit": "days",
            "countNumber": 30,
        }
    assert set(full.every(LIFECYCLE)) == set(full.every(REPOSITORY))


# -- outputs


def test_the_kubeconfig_names_a_command_and_holds_no_secret(full: Deployment) -> None:
    document = json.loads(full.outputs["kubeconfig"])
    (cluster,), (user,) = document["clusters"], document["users"]
    assert cluster["cluster"] == {"server": "https://eks.example", "certificate-authority-data": "Y2E="}
    assert set(user["user"]) == {"exec"}
    assert user["user"]["exec"]["command"] == "aws"
    assert user["user"]["exec"]["args"] == [
        *("eks", "get-token", "--cluster-name", "lepton-prod", "--region", "eu-west-1")
    ]
    assert document["current-context"] == document["contexts"][0]["name"] == "lepton-prod"


def test_what_is_made_in_the_cluster_waits_for_access_nodes_and_add_ons(full: Deployment) -> None:
    wanted = [f"AccessPolicyAssociation {name}" for name in full.every(ASSOCIATION)]
    wanted += [f"Addon x-addons-{name}" for name in ("aws-ebs-csi-driver", "coredns", "metrics-server")]
    assert full.outputs["kubeconfig_waits_for"] == sorted([*wanted, "Cluster x", "NodeGroup x-cpu"])


def test_the_registry_is_the_accounts_in_the_region(full: Deployment) -> None:
    assert full.outputs["registry"] == f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/lepton/prod"


def test_in_govcloud_arns_are_of_its_partition() -> None:
    principal = DEPLOYER.replace("arn:aws:", "arn:aws-us-gov:")
    deployment = deploy(
        settings(region="us-gov-west-1", access=[{"principal": principal, "level": "admin"}], artifact_bucket="models")
    )
    arns = [found["policyArn"] for kind in (ATTACHMENT, ASSOCIATION) for found in deployment.every(kind).values()]
    arns += [
        arn
        for found in policies(deployment).values()
        for statement in found
        for arn in statement["Resource"]
        if arn.startswith("arn:aws")
    ]
    assert arns
    assert all(arn.startswith("arn:aws-us-gov:") for arn in arns)


@pytest.mark.parametrize("cidr", ["10.0.0.0/16", "192.168.0.0/18", "172.16.32.0/20", "100.64.0.0/16"])
def test_subnets_lie_in_the_vpc_and_are_as_large_as_aws_wants(cidr: str) -> None:
    deployment = deploy(settings(cidr=cidr))
    networks = [ipaddress.IPv4Network(found["cidrBlock"]) for found in deployment.every(SUBNET).values()]
    assert len(networks) == 6
    for network in networks:
        assert network.subnet_of(ipaddress.IPv4Network(cidr))
        assert network.prefixlen <= 28
        assert not [other for other in networks if other is not network and other.overlaps(network)]
