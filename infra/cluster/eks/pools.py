"""The cluster's nodes: a CPU pool and GPU pools, upgraded one after the other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import pulumi
import pulumi_aws as aws

from infra.cluster.eks.identity import Place, Role, service_trust
from infra.cluster.internals import PoolFacts
from infra.cluster.names import POOL_LABEL
from infra.settings.eks import CPU_POOL, CpuPool, EksSettings, Gpus, Taint

GPU_TAINT = Taint(key="nvidia.com/gpu", value="present", effect="NoSchedule")
PRODUCT_LABEL = "nvidia.com/gpu.product"
MIG_LABEL = "nvidia.com/mig.config"
"""What the GPU Operator's MIG manager cuts a node's GPUs by."""

_CAPACITY_TYPES = {
    "on-demand": "ON_DEMAND",
    "spot": "SPOT",
    "reserved": "ON_DEMAND",
    "capacity-block": "CAPACITY_BLOCK",
}
_TAINT_EFFECTS = {
    "NoSchedule": "NO_SCHEDULE",
    "PreferNoSchedule": "PREFER_NO_SCHEDULE",
    "NoExecute": "NO_EXECUTE",
}
_ROOT_DISK, _BOTTLEROCKET_DATA_DISK = "/dev/xvda", "/dev/xvdb"


class Pools(pulumi.ComponentResource):
    """A node group a pool, in the order in which upgrades go through them."""

    def __init__(
        self,
        name: str,
        settings: EksSettings,
        place: pulumi.Output[Place],
        opts: pulumi.ResourceOptions,
        *,
        cluster: aws.eks.Cluster,
        security_group_id: pulumi.Input[str],
        subnets: Mapping[str, pulumi.Input[str]],
        tags: Mapping[str, str],
        before: Sequence[pulumi.Resource],
    ) -> None:
        """`subnets`: ids of the private ones, by zone. `before`: what nodes need to become ready."""
        super().__init__("lepton:eks:Pools", name, None, opts)
        role = Role(
            f"{name}-node",
            service_trust("ec2.amazonaws.com"),
            pulumi.ResourceOptions(parent=self),
            description="Nodes: join the cluster, and pull images",
            managed=[
                place.apply(lambda place, policy=policy: place.managed_policy(policy))
                for policy in ("AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly")
            ],
        )
        self.groups: dict[str, aws.eks.NodeGroup] = {}
        waits_for: list[pulumi.Resource] = [role, *before]
        for pool_name, pool in settings.all_pools.items():
            template = self._template(f"{name}-{pool_name}", pool, security_group_id, tags)
            group = self._group(
                f"{name}-{pool_name}", pool_name, pool, settings, cluster, role, template, subnets, waits_for
            )
            self.groups[pool_name] = group
            # So an upgrade has gone through this pool before it comes to the next.
            waits_for = [role, group]
        self.register_outputs({})

    def _template(
        self, name: str, pool: CpuPool, security_group_id: pulumi.Input[str], tags: Mapping[str, str]
    ) -> aws.ec2.LaunchTemplate:
        reservation = (
            aws.ec2.LaunchTemplateCapacityReservationSpecificationArgs(
                capacity_reservation_target=aws.ec2.LaunchTemplateCapacityReservationSpecificationCapacityReservationTargetArgs(
                    capacity_reservation_id=pool.reservation
                )
            )
            if pool.reservation
            else None
        )
        block = pool.capacity == "capacity-block"
        return aws.ec2.LaunchTemplate(
            name,
            # A capacity block's instance type belongs here; else the node group has a choice of several.
            instance_type=pool.instance_types[0] if block else None,
            instance_market_options=(
                aws.ec2.LaunchTemplateInstanceMarketOptionsArgs(market_type="capacity-block") if block else None
            ),
            capacity_reservation_specification=reservation,
            metadata_options=aws.ec2.LaunchTemplateMetadataOptionsArgs(
                http_endpoint="enabled",
                http_tokens="required",
                # Pods, which are one hop further, don't get the node's credentials.
                http_put_response_hop_limit=1,
            ),
            network_interfaces=[
                aws.ec2.LaunchTemplateNetworkInterfaceArgs(
                    device_index=0,
                    associate_public_ip_address="false",
                    delete_on_termination="true",
                    security_groups=[security_group_id],
                )
            ],
            block_device_mappings=[
                aws.ec2.LaunchTemplateBlockDeviceMappingArgs(
                    device_name=_BOTTLEROCKET_DATA_DISK if pool.ami.startswith("bottlerocket") else _ROOT_DISK,
                    ebs=aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgs(
                        volume_type="gp3",
                        volume_size=pool.disk_gib,
                        encrypted="true",
                        delete_on_termination="true",
                    ),
                )
            ],
            # The provider's default tags end at the template.
            tag_specifications=[
                aws.ec2.LaunchTemplateTagSpecificationArgs(resource_type=kind, tags={**tags, "Name": name})
                for kind in ("instance", "volume")
            ],
            user_data=_user_data(pool),
            update_default_version=True,
            opts=pulumi.ResourceOptions(parent=self),
        )

    def _group(
        self,
        name: str,
        pool_name: str,
        pool: CpuPool,
        settings: EksSettings,
        cluster: aws.eks.Cluster,
        role: Role,
        template: aws.ec2.LaunchTemplate,
        subnets: Mapping[str, pulumi.Input[str]],
        waits_for: Sequence[pulumi.Resource],
    ) -> aws.eks.NodeGroup:
        return aws.eks.NodeGroup(
            # Its physical name ends in random letters, so that one that must be replaced has its successor first.
            name,
            cluster_name=cluster.name,
            node_role_arn=role.arn,
            version=pool.kubernetes or settings.kubernetes,
            release_version=pool.ami_release,
            ami_type=pool.ami_type,
            capacity_type=_CAPACITY_TYPES[pool.capacity],
            instance_types=None if pool.capacity == "capacity-block" else list(pool.instance_types),
            subnet_ids=[subnets[zone] for zone in pool.zones or settings.zone_names],
            launch_template=aws.eks.NodeGroupLaunchTemplateArgs(
                id=template.id, version=template.latest_version.apply(str)
            ),
            scaling_config=aws.eks.NodeGroupScalingConfigArgs(
                min_size=pool.min,
                max_size=pool.max,
                desired_size=pool.min if pool.desired is None else pool.desired,
            ),
            update_config=aws.eks.NodeGroupUpdateConfigArgs(max_unavailable=pool.max_unavailable),
            labels=pool_labels(pool_name, pool),
            taints=[
                aws.eks.NodeGroupTaintArgs(key=taint.key, value=taint.value, effect=_TAINT_EFFECTS[taint.effect])
                for taint in pool_taints(pool)
            ],
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=list(waits_for),
                ignore_changes=["scalingConfig.desiredSize"] if pool.desired is None else None,
            ),
        )


def pool_labels(name: str, pool: CpuPool) -> dict[str, str]:
    """Labels of a pool's nodes, known before there is one: an autoscaler goes by them where a pool is empty."""
    gpus = pool.gpus
    product = {PRODUCT_LABEL: gpus.product} if gpus else {}
    mig = {MIG_LABEL: f"all-{gpus.mig.profile}"} if gpus and gpus.mig else {}
    return {**pool.labels, **product, **mig, POOL_LABEL: name}


def pool_taints(pool: CpuPool) -> tuple[Taint, ...]:
    return (GPU_TAINT, *pool.taints) if pool.gpus else pool.taints


def gpu_resource(gpus: Gpus) -> str:
    """What Pods ask for, by the names of NVIDIA's device plugin."""
    if gpus.mig:
        return f"nvidia.com/mig-{gpus.mig.profile}"
    return "nvidia.com/gpu.shared" if gpus.shares > 1 else "nvidia.com/gpu"


def pool_facts(settings: EksSettings) -> list[PoolFacts]:
    """What versions are placed by."""
    return [
        PoolFacts(
            name=name,
            labels={POOL_LABEL: name},
            gpu_resource=gpu_resource(pool.gpus) if pool.gpus else None,
            product=pool.gpus.product if pool.gpus else None,
            tolerations=[_toleration(taint) for taint in pool_taints(pool)],
        )
        for name, pool in settings.all_pools.items()
    ]


def gpu_inventory(settings: EksSettings) -> dict[str, int]:
    """Whole GPUs by product, with every pool at its largest."""
    inventory: dict[str, int] = {}
    for pool in settings.pools:
        inventory[pool.gpu.product] = inventory.get(pool.gpu.product, 0) + pool.gpu.count * pool.max
    return inventory


def cpu_group(pools: Pools) -> aws.eks.NodeGroup:
    return pools.groups[CPU_POOL]


def _toleration(taint: Taint) -> dict[str, str]:
    return {"key": taint.key, "operator": "Equal", "value": taint.value, "effect": taint.effect}


def _user_data(pool: CpuPool) -> str | None:
    """Bottlerocket has its own device plugin, which is told here what the cluster's is told by its config.

    Source: https://bottlerocket.dev/en/os/latest/api/settings/kubelet-device-plugins/
    """
    gpus = pool.gpus
    if gpus is None or gpus.shares == 1 or pool.ami != "bottlerocket-nvidia":
        return None
    toml = (
        "[settings.kubelet-device-plugins.nvidia]\n"
        'device-sharing-strategy = "time-slicing"\n'
        "[settings.kubelet-device-plugins.nvidia.time-slicing]\n"
        f"replicas = {gpus.shares}\n"
        "rename-by-default = true\n"
    )
    return base64.b64encode(toml.encode()).decode()
