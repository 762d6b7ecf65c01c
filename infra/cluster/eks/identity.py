"""Who may do what on AWS: roles for the control plane, nodes and Pods, each with as little as its work needs.

Policies of ours name the resources they are for. `*` stands only where AWS has no resource to name, as for an ECR
login: https://docs.aws.amazon.com/service-authorization/latest/reference/
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from infra.cluster.names import SERVER

POD_IDENTITY = "pods.eks.amazonaws.com"
_POLICY_VERSION = "2012-10-17"

Statement = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where on AWS a cluster is: what its ARNs are made of."""

    partition: str
    region: str
    account: str
    cluster: str
    """The cluster's name."""

    def arn(self, service: str, resource: str) -> str:
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    @property
    def cluster_arn(self) -> str:
        return self.arn("eks", f"cluster/{self.cluster}")

    def managed_policy(self, name: str) -> str:
        """The ARN of a policy that AWS keeps."""
        return f"arn:{self.partition}:iam::aws:policy/{name}"

    def access_policy(self, name: str) -> str:
        """The ARN of an access policy of EKS, for what a principal may do in Kubernetes."""
        return f"arn:{self.partition}:eks::aws:cluster-access-policy/{name}"


@dataclass(frozen=True)
class ServiceAccount:
    """A Kubernetes ServiceAccount."""

    namespace: str
    name: str


def document(*statements: Statement) -> str:
    return json.dumps({"Version": _POLICY_VERSION, "Statement": list(statements)}, separators=(",", ":"))


def allow(actions: Sequence[str], resources: Sequence[str], condition: Statement | None = None) -> Statement:
    statement: Statement = {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}
    return statement | ({"Condition": condition} if condition else {})


def service_trust(service: str) -> str:
    """Lets an AWS service take a role."""
    return document({"Effect": "Allow", "Principal": {"Service": service}, "Action": ["sts:AssumeRole"]})


def pod_trust(place: Place, *, name: str, namespace: str | None = None) -> str:
    """Lets Pods of this cluster take a role, by a ServiceAccount of that name; None: in any namespace.

    Source: https://docs.aws.amazon.com/eks/latest/userguide/pod-id-role.html, *Setting Conditions*.
    """
    tags = {
        "aws:RequestTag/eks-cluster-arn": place.cluster_arn,
        "aws:RequestTag/kubernetes-service-account": name,
    }
    if namespace is not None:
        tags["aws:RequestTag/kubernetes-namespace"] = namespace
    return document(
        {
            "Effect": "Allow",
            "Principal": {"Service": POD_IDENTITY},
            "Action": ["sts:AssumeRole", "sts:TagSession"],
            "Condition": {"StringEquals": tags},
        }
    )


class Role(pulumi.ComponentResource):
    """An IAM role with everything that it may do."""

    def __init__(
        self,
        name: str,
        trust: pulumi.Input[str],
        opts: pulumi.ResourceOptions,
        *,
        description: str,
        managed: Sequence[pulumi.Input[str]] = (),
        policy: pulumi.Input[str] | None = None,
    ) -> None:
        """`managed`: ARNs of policies that AWS keeps; `policy`: one of ours."""
        super().__init__("lepton:eks:Role", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        self.role = aws.iam.Role(name, assume_role_policy=trust, description=description, opts=child)
        for index, arn in enumerate(managed):
            aws.iam.RolePolicyAttachment(f"{name}-{index}", role=self.role.name, policy_arn=arn, opts=child)
        if policy is not None:
            aws.iam.RolePolicy(name, role=self.role.name, policy=policy, opts=child)
        self.arn = self.role.arn
        self.register_outputs({"arn": self.arn})


class PodRoles(pulumi.ComponentResource):
    """Roles for Pods, by Pod Identity: nothing in a Pod says so but its ServiceAccount's name."""

    def __init__(
        self,
        name: str,
        place: pulumi.Output[Place],
        opts: pulumi.ResourceOptions,
        *,
        registry_prefix: str,
        artifact_bucket: str | None,
    ) -> None:
        super().__init__("lepton:eks:PodRoles", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)

        def addon_role(short: str, account: str, policy: str) -> Role:
            return Role(
                f"{name}-{short}",
                place.apply(lambda place: pod_trust(place, namespace="kube-system", name=account)),
                child,
                description=f"ServiceAccount kube-system/{account}",
                managed=[place.apply(lambda place: place.managed_policy(policy))],
            )

        self.network = addon_role("cni", "aws-node", "AmazonEKS_CNI_Policy")
        self.storage = addon_role("ebs", "ebs-csi-controller-sa", "service-role/AmazonEBSCSIDriverPolicy")
        self.autoscaler = Role(
            f"{name}-autoscaler",
            place.apply(lambda place: pod_trust(place, namespace="kube-system", name="cluster-autoscaler")),
            child,
            description="ServiceAccount kube-system/cluster-autoscaler",
            policy=place.apply(autoscaler_policy),
        )
        self.puller = Role(
            f"{name}-puller",
            place.apply(lambda place: pod_trust(place, name=SERVER)),
            child,
            description=f"ServiceAccount {SERVER} of each version: reads the environment's artifacts",
            policy=place.apply(lambda place: puller_policy(place, registry_prefix, artifact_bucket)),
        )
        self.register_outputs({})


def puller_policy(place: Place, registry_prefix: str, artifact_bucket: str | None) -> str:
    """Reads the repositories below a prefix, and a bucket."""
    statements = [
        allow(["ecr:GetAuthorizationToken"], ["*"]),
        allow(
            ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:ListImages"],
            [place.arn("ecr", f"repository/{registry_prefix}/*")],
        ),
    ]
    if artifact_bucket is not None:
        bucket = f"arn:{place.partition}:s3:::{artifact_bucket}"
        statements += [allow(["s3:ListBucket"], [bucket]), allow(["s3:GetObject"], [f"{bucket}/*"])]
    return document(*statements)


def autoscaler_policy(place: Place) -> str:
    """What the Cluster Autoscaler needs for this cluster's node groups, which EKS tags for it.

    Source: https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/cloudprovider/aws/README.md
    """
    owned = {"StringEquals": {f"aws:ResourceTag/k8s.io/cluster-autoscaler/{place.cluster}": "owned"}}
    return document(
        allow(
            [
                "autoscaling:DescribeAutoScalingGroups",
                "autoscaling:DescribeAutoScalingInstances",
                "autoscaling:DescribeLaunchConfigurations",
                "autoscaling:DescribeScalingActivities",
                "ec2:DescribeImages",
                "ec2:DescribeInstanceTypes",
                "ec2:DescribeLaunchTemplateVersions",
                "ec2:GetInstanceTypesFromInstanceRequirements",
            ],
            ["*"],
        ),
        allow(["eks:DescribeNodegroup"], [place.arn("eks", f"nodegroup/{place.cluster}/*/*")]),
        allow(
            ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"],
            [place.arn("autoscaling", "autoScalingGroup:*:autoScalingGroupName/*")],
            owned,
        ),
    )


def associate(
    name: str,
    cluster: pulumi.Input[str],
    role_arn: pulumi.Input[str],
    account: ServiceAccount,
    opts: pulumi.ResourceOptions,
) -> aws.eks.PodIdentityAssociation:
    """Gives Pods that run as a ServiceAccount a role. A version stack does so for its own namespace."""
    return aws.eks.PodIdentityAssociation(
        name,
        cluster_name=cluster,
        namespace=account.namespace,
        service_account=account.name,
        role_arn=role_arn,
        opts=opts,
    )
