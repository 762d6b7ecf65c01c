"""What a platform's config may say of a Kubernetes cluster that it makes on AWS: `provision: eks`."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from infra.settings.values import Name, Settings, TeamName

OLDEST_KUBERNETES = (1, 32)
NODE_SKEW = 3
"""Minor versions that a kubelet may be behind the API server; it may never be ahead.
https://kubernetes.io/releases/version-skew-policy/#kubelet"""

Capacity = Literal["on-demand", "spot", "reserved", "capacity-block"]
Ami = Literal["al2023", "al2023-nvidia", "bottlerocket", "bottlerocket-nvidia"]
Architecture = Literal["x86_64", "arm64"]
AddonName = Literal[
    "vpc-cni", "coredns", "kube-proxy", "eks-pod-identity-agent", "aws-ebs-csi-driver", "metrics-server"
]

AMI_TYPES: dict[tuple[Ami, Architecture], str] = {
    ("al2023", "x86_64"): "AL2023_x86_64_STANDARD",
    ("al2023", "arm64"): "AL2023_ARM_64_STANDARD",
    ("al2023-nvidia", "x86_64"): "AL2023_x86_64_NVIDIA",
    ("al2023-nvidia", "arm64"): "AL2023_ARM_64_NVIDIA",
    ("bottlerocket", "x86_64"): "BOTTLEROCKET_x86_64",
    ("bottlerocket", "arm64"): "BOTTLEROCKET_ARM_64",
    ("bottlerocket-nvidia", "x86_64"): "BOTTLEROCKET_x86_64_NVIDIA",
    ("bottlerocket-nvidia", "arm64"): "BOTTLEROCKET_ARM_64_NVIDIA",
}
"""EKS's `amiType`: https://docs.aws.amazon.com/eks/latest/APIReference/API_Nodegroup.html"""


def _matching(pattern: str, error: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(error)
        return value

    return check


def _kubernetes(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"1\.\d{1,2}", value, re.ASCII):
        raise ValueError('a Kubernetes version is two numbers in quotes, such as "1.33"')
    if minor_version(value) < OLDEST_KUBERNETES[1]:
        raise ValueError(f'Kubernetes "{OLDEST_KUBERNETES[0]}.{OLDEST_KUBERNETES[1]}" is the oldest that is supported')
    return value


def _network(value: object, what: str) -> ipaddress.IPv4Network:
    try:
        if isinstance(value, str):
            return ipaddress.IPv4Network(value)
    except ValueError:
        pass
    raise ValueError(f"{what}, with no bits set beyond its prefix")


def _vpc_cidr(value: object) -> str:
    network = _network(value, "a VPC's range is an IPv4 network such as '10.0.0.0/16'")
    if not 16 <= network.prefixlen <= 20:
        raise ValueError("a VPC's range is from /16, the largest that AWS allows, to /20, as every Pod has an address")
    if not network.is_private and not network.subnet_of(ipaddress.IPv4Network("100.64.0.0/10")):
        raise ValueError("a VPC's range is private: within 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10")
    return value if isinstance(value, str) else str(network)


def _client_cidr(value: object) -> str:
    network = _network(value, "who may reach the API server is an IPv4 network such as '203.0.113.0/24'")
    if network.prefixlen < 8:
        raise ValueError("that is most of the internet; give the networks that your people and pipelines come from")
    return str(network)


def _region(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", value, re.ASCII):
        raise ValueError("a region is AWS's name for it, such as 'eu-west-1'")
    if value.startswith(("cn-", "us-iso")):
        raise ValueError("regions in China and isolated ones name AWS's services otherwise, and are not supported")
    return value


Region = Annotated[str, BeforeValidator(_region)]
Zone = Annotated[
    str,
    BeforeValidator(
        _matching(r"[a-z]{2}(-[a-z]+)+-\d[a-z]", "a zone is an availability zone's name, such as 'eu-west-1a'")
    ),
]
KubernetesVersion = Annotated[str, BeforeValidator(_kubernetes)]
AccountId = Annotated[
    str, BeforeValidator(_matching(r"\d{12}", "an AWS account is its twelve digits, in quotes: '123456789012'"))
]
Principal = Annotated[
    str,
    BeforeValidator(
        _matching(
            r"arn:aws[a-z-]*:iam::\d{12}:(role|user)/[\w+=,.@/-]+",
            "a principal is the ARN of an IAM role or user, such as 'arn:aws:iam::123456789012:role/deployer'",
        )
    ),
]
InstanceType = Annotated[
    str, BeforeValidator(_matching(r"[a-z0-9-]+\.[a-z0-9-]+", "an instance type is EC2's name, such as 'g6.2xlarge'"))
]
Repository = Annotated[
    str,
    BeforeValidator(
        _matching(
            r"[a-z0-9]+([._-][a-z0-9]+)*(/[a-z0-9]+([._-][a-z0-9]+)*)*",
            "a repository is lower-case words joined by '/', such as 'diagnostics/tumour'",
        )
    ),
]
Bucket = Annotated[
    str,
    BeforeValidator(
        _matching(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "a bucket is S3's name for it, such as 'my-models'")
    ),
]
AddonVersion = Annotated[
    str,
    BeforeValidator(
        _matching(r"v\d+\.\d+\.\d+-eksbuild\.\d+", "an add-on's version is EKS's, such as 'v1.19.3-eksbuild.1'")
    ),
]
_LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL_NAME}"
LabelKey = Annotated[
    str, BeforeValidator(_matching(_LABEL_KEY, "a key is a label's or taint's, such as 'example.com/purpose'"))
]
LabelValue = Annotated[
    str, BeforeValidator(_matching(rf"({_LABEL_NAME})?", "a value is at most 63 letters, digits, '.', '_' and '-'"))
]


def _not_ours(labels: dict[str, str]) -> dict[str, str]:
    for key in labels:
        prefix = key.split("/")[0] if "/" in key else ""
        if prefix == "lepton" or prefix.endswith(("kubernetes.io", "k8s.io")):
            raise ValueError(
                f"{key!r} is not yours to set: 'lepton/' is the platform's, and '*.k8s.io' Kubernetes' own"
            )
    return labels


Labels = Annotated[dict[LabelKey, LabelValue], AfterValidator(_not_ours)]


class Taint(Settings):
    """Keeps Pods off a pool's nodes that don't tolerate it."""

    key: LabelKey
    value: LabelValue = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class Mig(Settings):
    """Every GPU of a pool cut into the same instances."""

    profile: Annotated[
        str, BeforeValidator(_matching(r"\dg\.\d+gb", "a MIG profile is NVIDIA's name for it, such as '1g.10gb'"))
    ]
    instances: int = Field(ge=1, le=7, strict=True)
    """Of that profile on one GPU: 7 of `1g.10gb` on an H100."""


class Gpus(Settings):
    """The GPUs of one node of a pool."""

    count: int = Field(ge=1, le=16, strict=True)
    product: LabelValue = Field(min_length=1)
    """As the node label `nvidia.com/gpu.product` has it, such as `NVIDIA-H100-80GB-HBM3`: versions select by it."""
    mig: Mig | None = None
    shares: int = Field(default=1, ge=1, le=48, strict=True)
    """Pods that share a GPU in time slices; 1: none do."""

    @model_validator(mode="after")
    def _cut_in_one_way(self) -> Gpus:
        if self.mig and self.shares > 1:
            raise ValueError("a GPU is cut by 'mig' or by 'shares', not by both; leave one out")
        return self


class CpuPool(Settings):
    """Nodes without GPUs: for the platform's own Pods, the add-ons', and versions that need no GPU."""

    instance_types: tuple[InstanceType, ...] = Field(default=("m7i.xlarge",), max_length=20)
    """Several: whichever can be had. EKS takes twenty at most."""
    min: int = Field(default=2, ge=0, le=450, strict=True)
    max: int = Field(default=6, ge=1, le=450, strict=True)
    """Nodes. 450 are what EKS has in a node group, unless the quota was raised."""
    desired: int | None = Field(default=None, ge=0, strict=True)
    """Left out: the least at first, and an autoscaler's from then on."""
    capacity: Capacity = "on-demand"
    reservation: Annotated[
        str | None,
        BeforeValidator(
            lambda value: (
                value
                if value is None
                else _matching(r"cr-[0-9a-f]{8,17}", "a capacity reservation is 'cr-' and its hexadecimal digits")(
                    value
                )
            )
        ),
    ] = None
    """The EC2 capacity reservation, or capacity block, that nodes are taken from."""
    zones: tuple[Zone, ...] = ()
    """Default: all of the cluster's."""
    ami: Ami = "al2023"
    architecture: Architecture = "x86_64"
    ami_release: str | None = Field(default=None, min_length=1)
    """EKS's release of the AMI, such as `1.33.3-20250904`. Left out, the latest when the pool is made or upgraded."""
    kubernetes: KubernetesVersion | None = None
    """Default: the cluster's. To upgrade pools one at a time, hold each back here and let it go in turn."""
    disk_gib: int = Field(default=100, ge=20, le=16384, strict=True)
    """Of a node's encrypted disk, which has images and models."""
    max_unavailable: int = Field(default=1, ge=1, le=100, strict=True)
    """Nodes that an upgrade may replace at a time."""
    labels: Labels = {}
    taints: tuple[Taint, ...] = Field(default=(), max_length=50)

    @model_validator(mode="after")
    def _sizes_fit(self) -> CpuPool:
        if not self.instance_types:
            raise ValueError("instance_types is empty; give at least one, such as ['m7i.xlarge']")
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}; give min at most {self.max}")
        if self.desired is not None and not self.min <= self.desired <= self.max:
            raise ValueError(f"desired {self.desired} is not within min {self.min} and max {self.max}")
        return self

    @model_validator(mode="after")
    def _reservation_fits_capacity(self) -> CpuPool:
        reserved = self.capacity in ("reserved", "capacity-block")
        if reserved and self.reservation is None:
            raise ValueError(f"capacity '{self.capacity}' needs 'reservation', such as 'cr-0123456789abcdef0'")
        if not reserved and self.reservation is not None:
            raise ValueError(
                f"capacity '{self.capacity}' takes nodes from no reservation; "
                "leave 'reservation' out, or give capacity 'reserved' or 'capacity-block'"
            )
        if reserved and len(self.zones) != 1:
            raise ValueError("a reservation is for one zone; name it in 'zones', as in [eu-west-1a]")
        if reserved and len(self.instance_types) != 1:
            raise ValueError("a reservation is for one instance type; give just that one in 'instance_types'")
        return self

    @property
    def gpus(self) -> Gpus | None:
        return None

    @property
    def ami_type(self) -> str:
        return AMI_TYPES[self.ami, self.architecture]


class GpuPool(CpuPool):
    """Nodes with GPUs of one kind."""

    name: Name = Field(max_length=30)
    instance_types: tuple[InstanceType, ...] = Field(max_length=20)
    gpu: Gpus
    min: int = Field(default=0, ge=0, le=450, strict=True)
    ami: Ami = "al2023-nvidia"
    disk_gib: int = Field(default=500, ge=20, le=16384, strict=True)

    @model_validator(mode="after")
    def _nodes_can_use_their_gpus(self) -> GpuPool:
        if not self.ami.endswith("-nvidia"):
            raise ValueError(
                f"ami '{self.ami}' has no GPU driver; give '{self.ami}-nvidia', "
                "or describe nodes without GPUs in 'cpu_pool'"
            )
        if self.name == CPU_POOL:
            raise ValueError(f"the name '{CPU_POOL}' is the CPU pool's; choose another")
        if self.gpu.mig and self.ami == "bottlerocket-nvidia":
            raise ValueError("MIG profiles are set by the GPU Operator, which needs ami 'al2023-nvidia'")
        return self

    @property
    def gpus(self) -> Gpus | None:
        return self.gpu


CPU_POOL = "cpu"
"""The CPU pool's name among the pools."""


class ApiSettings(Settings):
    """Who reaches the API server. Always from within the VPC; from elsewhere only as said here."""

    private_cidrs: tuple[Annotated[str, BeforeValidator(_client_cidr)], ...] = ()
    """Networks that are joined with the VPC (VPN, peering, transit gateway)."""
    public_cidrs: tuple[Annotated[str, BeforeValidator(_client_cidr)], ...] = ()
    """Networks that reach it over the internet. None: it has no public address at all."""


class Access(Settings):
    """What a person or a pipeline may do in the cluster, by an EKS access entry."""

    principal: Principal
    level: Literal["admin", "view", "team"]
    """`admin`: everything; needed to deploy. `view`: reads all but secrets. `team`: edits what `teams` have."""
    teams: tuple[TeamName, ...] = ()

    @model_validator(mode="after")
    def _teams_go_with_level(self) -> Access:
        if self.level == "team" and not self.teams:
            raise ValueError("level 'team' needs 'teams', such as [diagnostics]")
        if self.level != "team" and self.teams:
            raise ValueError(f"level '{self.level}' is for the whole cluster; leave 'teams' out, or give level 'team'")
        return self


class RegistrySettings(Settings):
    """ECR repositories of the environment, all below one prefix."""

    repositories: tuple[Repository, ...] = ()
    """ECR makes none by itself when something is pushed, so each is named: `TEAM/MODEL`, `server`, …"""
    untagged_days: int = Field(default=14, ge=1, le=3650, strict=True)
    """When an image that no tag names is taken away. Tagged ones never are."""


class EksSettings(Settings):
    """A cluster on Amazon EKS, with its network, its pools and its registry."""

    region: Region
    account: AccountId | None = None
    """The one account in which anything may be made; left out, that of the credentials."""
    kubernetes: KubernetesVersion = "1.33"
    extended_support: bool = Field(default=False, strict=True)
    """Whether AWS keeps a version whose standard support ends, for more money, or upgrades the cluster by itself."""
    cidr: Annotated[str, BeforeValidator(_vpc_cidr)] = "10.0.0.0/16"
    zones: tuple[Zone, ...] = ()
    """Three availability zones. Default: the region's a, b and c."""
    nat: Literal["one", "per-zone", "none"] = "per-zone"
    """Ways out to the internet. `one`: cheaper, and gone with its zone. `none`: just AWS, through endpoints."""
    api: ApiSettings = Field(default_factory=ApiSettings)
    access: tuple[Access, ...]
    """Who may do what in Kubernetes. Who makes the cluster gets nothing by that."""
    cpu_pool: CpuPool = Field(default_factory=CpuPool)
    pools: tuple[GpuPool, ...] = ()
    """GPU pools. Upgrades go through them in this order, one after the other."""
    addons: dict[AddonName, AddonVersion] = {}
    """Pinned versions; of one left out, EKS's default for the cluster's Kubernetes version."""
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    artifact_bucket: Bucket | None = None
    """An S3 bucket that servers may read models from."""
    log_retention_days: Literal[1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192] = 90
    """Of the control plane's logs and the network's flow logs; CloudWatch knows these."""
    tags: dict[str, str] = {}
    """Added to everything, beside the environment's."""

    @model_validator(mode="after")
    def _zones_are_three_of_the_region(self) -> EksSettings:
        zones = self.zones
        if zones and (len(set(zones)) != 3 or len(zones) != 3):
            raise ValueError(f"zones: given {_listed(zones)}: give three zones, each once, or leave them out")
        for zone in zones:
            if zone[:-1] != self.region:
                raise ValueError(f"zones: given '{zone}': it is not in region '{self.region}'")
        for name, pool in self.all_pools.items():
            for zone in pool.zones:
                if zone not in self.zone_names:
                    raise ValueError(
                        f"pool '{name}': given zone '{zone}': the cluster is in {_listed(self.zone_names)}"
                    )
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> EksSettings:
        for what, names in (
            ("pools", [pool.name for pool in self.pools]),
            ("access", [access.principal for access in self.access]),
            ("registry.repositories", list(self.registry.repositories)),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{what}: given '{twice[0]}' {Counter(names)[twice[0]]} times; give it once")
        return self

    @model_validator(mode="after")
    def _somebody_administers(self) -> EksSettings:
        if not any(access.level == "admin" for access in self.access):
            raise ValueError(
                "access: nobody has level 'admin', and who makes the cluster doesn't get it by itself; "
                "give it to the principal that deploys"
            )
        return self

    @model_validator(mode="after")
    def _nodes_are_near_the_control_plane(self) -> EksSettings:
        newest = minor_version(self.kubernetes)
        for name, pool in self.all_pools.items():
            minor = minor_version(pool.kubernetes or self.kubernetes)
            if minor > newest:
                raise ValueError(
                    f"pool '{name}': given kubernetes \"{pool.kubernetes}\": nodes are never ahead of the control "
                    f'plane, "{self.kubernetes}"; upgrade that first'
                )
            if minor < newest - NODE_SKEW:
                raise ValueError(
                    f"pool '{name}': given kubernetes \"{pool.kubernetes}\": nodes are at most {NODE_SKEW} minor "
                    f'versions behind the control plane, "{self.kubernetes}"; upgrade the pool to '
                    f'"1.{newest - NODE_SKEW}" or newer first'
                )
        return self

    @model_validator(mode="after")
    def _principals_are_of_the_partition(self) -> EksSettings:
        for access in self.access:
            if access.principal.split(":")[1] != self.partition:
                raise ValueError(
                    f"access: given '{access.principal}': region '{self.region}' is in partition '{self.partition}'"
                )
        return self

    @model_validator(mode="after")
    def _somewhere_for_the_platform(self) -> EksSettings:
        if self.cpu_pool.ami.endswith("-nvidia"):
            raise ValueError(f"cpu_pool.ami: given '{self.cpu_pool.ami}': its nodes have no GPUs; give 'al2023'")
        if self.cpu_pool.min == 0:
            raise ValueError("cpu_pool.min: given 0: the cluster's own Pods need a node; give at least 1")
        if any(taint.effect != "PreferNoSchedule" for taint in self.cpu_pool.taints):
            raise ValueError("cpu_pool.taints: the cluster's own Pods tolerate none; give 'PreferNoSchedule' at most")
        return self

    @property
    def zone_names(self) -> tuple[str, ...]:
        return self.zones or tuple(f"{self.region}{letter}" for letter in "abc")

    @property
    def all_pools(self) -> dict[str, CpuPool]:
        """The CPU pool and the GPU pools, by name, in the order of their upgrades."""
        return {CPU_POOL: self.cpu_pool} | {pool.name: pool for pool in self.pools}

    @property
    def partition(self) -> str:
        """The second part of every ARN: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html"""
        return "aws-us-gov" if self.region.startswith("us-gov-") else "aws"


def minor_version(version: str) -> int:
    """33 of `1.33`."""
    return int(version.split(".")[1])


def _listed(items: tuple[Any, ...]) -> str:
    return ", ".join(map(str, items))
