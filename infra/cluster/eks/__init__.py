"""A Kubernetes cluster on Amazon EKS, with all it needs: network, control plane, nodes, roles and registry."""

from __future__ import annotations

import json

import pulumi
import pulumi_aws as aws

from infra.cluster.eks.addons import AFTER_NODES, BEFORE_NODES, Addons
from infra.cluster.eks.control_plane import ControlPlane, control_plane_log_group
from infra.cluster.eks.identity import Place, PodRoles, ServiceAccount, associate
from infra.cluster.eks.keys import Key, key_policy
from infra.cluster.eks.network import Network, flow_log_group
from infra.cluster.eks.pools import Pools, cpu_group, gpu_inventory, pool_facts
from infra.cluster.eks.registries import Registries, registry_prefix
from infra.cluster.internals import PoolFacts
from infra.settings.eks import EksSettings

AUTOSCALER = ServiceAccount("kube-system", "cluster-autoscaler")


class EksCluster(pulumi.ComponentResource):
    """The cluster of an environment, made from its settings.

    `kubeconfig` holds no secret: credentials come from `aws eks get-token`, for whoever runs it.
    """

    kubeconfig: pulumi.Output[str]
    """A kubeconfig document (JSON, which is YAML) with one context, of the cluster's name."""
    cluster_name: pulumi.Output[str]
    cluster_arn: pulumi.Output[str]
    registry: pulumi.Output[str]
    """`ACCOUNT.dkr.ecr.REGION.amazonaws.com/lepton/ENVIRONMENT`."""
    puller_role_arn: pulumi.Output[str]
    """The role with which a version's Pods read artifacts: a version stack associates its ServiceAccount with it."""
    pools: list[PoolFacts]
    gpu_inventory: dict[str, int]
    """Whole GPUs by product, with every pool at its largest."""

    def __init__(
        self,
        name: str,
        environment: str,
        settings: EksSettings,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("lepton:eks:EksCluster", name, None, opts)
        cluster = f"lepton-{environment}"
        tags = {"lepton:environment": environment, **settings.tags}
        provider = aws.Provider(
            name,
            region=settings.region,
            allowed_account_ids=[settings.account] if settings.account else None,
            default_tags=aws.ProviderDefaultTagsArgs(tags=tags),
            opts=pulumi.ResourceOptions(parent=self),
        )
        child = pulumi.ResourceOptions(parent=self, providers=[provider])
        on_aws = pulumi.ResourceOptions(parent=self, provider=provider)
        account = aws.get_caller_identity_output(opts=pulumi.InvokeOptions(provider=provider)).account_id
        place = account.apply(lambda account: Place(settings.partition, settings.region, account, cluster))

        logs = (control_plane_log_group(cluster), flow_log_group(cluster))
        key = Key(
            f"{name}-cluster",
            f"{cluster}/cluster",
            f"Secrets and logs of {cluster}",
            place.apply(lambda place: key_policy(place, *logs)),
            child,
        )
        network = Network(name, settings, place, child, cluster=cluster, log_key_arn=key.arn)
        control_plane = ControlPlane(
            name,
            environment,
            settings,
            place,
            child,
            cluster=cluster,
            subnet_ids=[subnet.id for subnet in network.private],
            key_arn=key.arn,
        )
        eks = control_plane.cluster
        roles = PodRoles(
            name,
            place,
            child,
            registry_prefix=registry_prefix(environment),
            artifact_bucket=settings.artifact_bucket,
        )
        basis = Addons(f"{name}-basis", BEFORE_NODES, settings, child, cluster=eks, roles=roles)
        pools = Pools(
            name,
            settings,
            place,
            child,
            cluster=eks,
            security_group_id=control_plane.security_group_id,
            subnets=network.private_by_zone,
            tags=tags,
            # Nodes without a way out join no cluster.
            before=[network, basis],
        )
        addons = Addons(
            f"{name}-addons",
            AFTER_NODES,
            settings,
            child,
            cluster=eks,
            roles=roles,
            after=[cpu_group(pools)],
        )
        associate(f"{name}-autoscaler", eks.name, roles.autoscaler.arn, AUTOSCALER, on_aws)
        image_key = Key(
            f"{name}-images",
            f"{cluster}/images",
            f"Images and artifacts of {environment}",
            place.apply(key_policy),
            child,
        )
        Registries(name, environment, settings.registry, child, key_arn=image_key.arn)

        self.cluster_name = eks.name
        self.cluster_arn = eks.arn
        # Once somebody may come in, and Pods run and find each other: what is made with it waits for that, and its
        # deletion comes before theirs.
        usable = pulumi.Output.all(
            *(association.id for association in control_plane.access),
            cpu_group(pools).id,
            *(addon.id for addon in addons.addons),
        )
        self.kubeconfig = pulumi.Output.all(eks.name, eks.endpoint, control_plane.certificate_authority, usable).apply(
            lambda facts: kubeconfig(facts[0], facts[1], facts[2], settings.region)
        )
        self.registry = place.apply(
            lambda place: f"{place.account}.dkr.ecr.{place.region}.amazonaws.com/{registry_prefix(environment)}"
        )
        self.puller_role_arn = roles.puller.arn
        self.pools = pool_facts(settings)
        self.gpu_inventory = gpu_inventory(settings)
        self.register_outputs(
            {
                "kubeconfig": self.kubeconfig,
                "cluster_name": self.cluster_name,
                "cluster_arn": self.cluster_arn,
                "registry": self.registry,
                "puller_role_arn": self.puller_role_arn,
                "pools": self.pools,
                "gpu_inventory": self.gpu_inventory,
            }
        )


def kubeconfig(cluster: str, endpoint: str, certificate_authority: str, region: str) -> str:
    """A kubeconfig that asks the AWS command for a token, as `aws eks update-kubeconfig` writes it.

    `certificate_authority`: in base64, as EKS gives it.
    Source: https://docs.aws.amazon.com/eks/latest/userguide/create-kubeconfig.html
    """
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": cluster,
                    "cluster": {"server": endpoint, "certificate-authority-data": certificate_authority},
                }
            ],
            "users": [
                {
                    "name": cluster,
                    "user": {
                        "exec": {
                            "apiVersion": "client.authentication.k8s.io/v1beta1",
                            "command": "aws",
                            "args": ["eks", "get-token", "--cluster-name", cluster, "--region", region],
                            "interactiveMode": "Never",
                        }
                    },
                }
            ],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": cluster}}],
            "current-context": cluster,
        }
    )
