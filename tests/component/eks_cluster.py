"""An EKS cluster as the program declares it: every resource's inputs, with no engine and no AWS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pulumi
from pulumi.runtime import mocks

from infra.cluster.eks import EksCluster
from infra.settings.eks import EksSettings
from infra.settings.loading import parse_settings

ACCOUNT = "123456789012"
DEPLOYER = f"arn:aws:iam::{ACCOUNT}:role/deployer"

L4 = {
    "name": "l4",
    "instance_types": ["g6.2xlarge", "g6.4xlarge"],
    "capacity": "spot",
    "max": 4,
    "gpu": {"count": 1, "product": "NVIDIA-L4", "shares": 4},
    "ami": "bottlerocket-nvidia",
    "labels": {"example.com/purpose": "small"},
    "taints": [{"key": "example.com/small", "effect": "PreferNoSchedule"}],
}
H100 = {
    "name": "h100",
    "instance_types": ["p5.48xlarge"],
    "min": 1,
    "max": 2,
    "desired": 2,
    "capacity": "reserved",
    "reservation": "cr-0123456789abcdef0",
    "zones": ["eu-west-1b"],
    "gpu": {"count": 8, "product": "NVIDIA-H100-80GB-HBM3", "mig": {"profile": "1g.10gb", "instances": 7}},
    "disk_gib": 2000,
}
BASE: dict[str, Any] = {
    "region": "eu-west-1",
    "access": [{"principal": DEPLOYER, "level": "admin"}],
}


def settings(**given: Any) -> EksSettings:
    return parse_settings(EksSettings, BASE | given, file="Pulumi.prod.yaml", key="eks")


@dataclass(frozen=True)
class Declared:
    """One resource."""

    token: str
    name: str
    inputs: dict[str, Any]
    depends_on: tuple[str, ...]
    """URNs."""
    provider: str
    ignored: tuple[str, ...]

    def __getitem__(self, key: str) -> Any:
        return self.inputs[key]


@dataclass
class Deployment:
    resources: list[Declared] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    def every(self, token: str) -> dict[str, Declared]:
        """All resources of a type, by name."""
        return {found.name: found for found in self.resources if found.token == token}

    def one(self, token: str, name: str | None = None) -> Declared:
        found = self.every(token)
        if name is not None:
            return found[name]
        (only,) = found.values()
        return only

    def precedes(self, first: Declared, second: Declared) -> bool:
        """Whether `second` is made after `first`, however many lie between."""
        by_urn = {_urn(found): found for found in self.resources}
        seen: set[str] = set()
        waiting = [_urn(second)]
        while waiting:
            urn = waiting.pop()
            if urn in seen or urn not in by_urn:
                continue
            seen.add(urn)
            waiting += by_urn[urn].depends_on
        return first != second and _urn(first) in seen


def deploy(given: EksSettings, *, environment: str = "prod") -> Deployment:
    def program(deployment: Deployment) -> Any:
        cluster = EksCluster("x", environment, given)
        deployment.outputs |= {"pools": cluster.pools, "gpu_inventory": cluster.gpu_inventory}
        return pulumi.Output.all(
            kubeconfig=cluster.kubeconfig,
            registry=cluster.registry,
            puller_role_arn=cluster.puller_role_arn,
            cluster_name=cluster.cluster_name,
            kubeconfig_waits_for=pulumi.Output.from_input(cluster.kubeconfig.resources()).apply(
                lambda resources: sorted(f"{type(found).__name__} {found._name}" for found in resources)
            ),
        ).apply(deployment.outputs.update)

    return declare(program, stack=environment)


def declare(program: Callable[[Deployment], Any], *, stack: str, preview: bool = False) -> Deployment:
    """What a program declares, which returns the output that is to be waited for, or nothing."""
    deployment = Deployment()
    pulumi.runtime.set_mocks(Aws(), project="lepton", stack=stack, preview=preview, monitor=_Recorder(deployment))
    pulumi.runtime.test(lambda: program(deployment))()
    return deployment


def _urn(found: Declared) -> str:
    return f"{found.token}::{found.name}"


class _Recorder(mocks.MockMonitor):
    def __init__(self, deployment: Deployment) -> None:
        super().__init__(Aws())
        self._deployment = deployment

    def RegisterResource(self, request: Any) -> Any:
        answer = super().RegisterResource(request)
        if request.custom:
            state = pulumi.runtime.rpc.deserialize_properties(request.object)
            self._deployment.resources.append(
                Declared(
                    request.type,
                    request.name,
                    dict(state),
                    tuple(_short(urn) for urn in request.dependencies),
                    request.provider,
                    tuple(request.ignoreChanges),
                )
            )
        return answer


def _short(urn: str) -> str:
    *_, types, name = urn.split("::")
    return f"{types.split('$')[-1]}::{name}"


class Aws(mocks.Mocks):
    """What AWS would say."""

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        made: dict[str, Any] = {"arn": f"arn:of:{args.name}", "name": f"{args.name}-0123456", **args.inputs}
        match args.typ:
            case "aws:eks/cluster:Cluster":
                made |= {
                    "endpoint": "https://eks.example",
                    "certificateAuthority": {"data": "Y2E="},
                    "vpcConfig": made["vpcConfig"] | {"clusterSecurityGroupId": "sg-cluster"},
                }
            case "aws:ec2/launchTemplate:LaunchTemplate":
                made |= {"latestVersion": 7}
            case "aws:kms/key:Key":
                made |= {"keyId": f"id-of-{args.name}"}
            case _:
                pass
        return f"id-of-{args.name}", made

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        match args.token:
            case "aws:index/getCallerIdentity:getCallerIdentity":
                return {"accountId": ACCOUNT}, []
            case "aws:eks/getAddonVersion:getAddonVersion":
                version = f"default of {args.args['addonName']} for {args.args['kubernetesVersion']}"
                return {"version": version, "mostRecent": args.args["mostRecent"]}, []
            case _:
                raise AssertionError(f"no such function: {args.token}")
