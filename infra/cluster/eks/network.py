"""The cluster's network: a VPC over three zones, whose nodes have private addresses alone."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra.cluster.eks.identity import Place, Role, allow, document, service_trust
from infra.settings.eks import EksSettings

INTERFACE_ENDPOINTS = (
    "autoscaling",
    "ec2",
    "ecr.api",
    "ecr.dkr",
    "eks",
    "eks-auth",
    "elasticloadbalancing",
    "logs",
    "sts",
)
"""Services of AWS that nodes and Pods call, each reached within the VPC; S3 besides, by a gateway."""

_HTTPS = 443
_LARGEST_SUBNET_PREFIX = 28
"""https://docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html"""


@dataclass(frozen=True)
class Plan:
    """How a VPC's range is shared out."""

    private: tuple[str, ...]
    """A quarter of the range for each zone's nodes and Pods."""
    public: tuple[str, ...]
    """A little of the last quarter for each zone's NAT gateway and public load balancers."""


def plan(cidr: str) -> Plan:
    network = ipaddress.IPv4Network(cidr)
    *private, rest = network.subnets(prefixlen_diff=2)
    public = list(rest.subnets(new_prefix=min(network.prefixlen + 8, _LARGEST_SUBNET_PREFIX)))[: len(private)]
    return Plan(tuple(map(str, private)), tuple(map(str, public)))


def flow_log_group(cluster: str) -> str:
    return f"/aws/vpc/{cluster}/flow-logs"


class Network(pulumi.ComponentResource):
    """VPC, subnets, ways out, endpoints of AWS's services, and logs of who talked to whom."""

    def __init__(
        self,
        name: str,
        settings: EksSettings,
        place: pulumi.Output[Place],
        opts: pulumi.ResourceOptions,
        *,
        cluster: str,
        log_key_arn: pulumi.Input[str],
    ) -> None:
        super().__init__("lepton:eks:Network", name, None, opts)
        self._name = name
        self._settings = settings
        self._cluster = cluster
        self._child = pulumi.ResourceOptions(parent=self)

        self.vpc = aws.ec2.Vpc(
            name,
            cidr_block=settings.cidr,
            # The private API server, and endpoints, are found by names in the VPC.
            enable_dns_support=True,
            enable_dns_hostnames=True,
            tags={"Name": cluster},
            opts=self._child,
        )
        # Without rules: whatever is put into no group reaches nothing.
        aws.ec2.DefaultSecurityGroup(name, vpc_id=self.vpc.id, ingress=[], egress=[], opts=self._child)
        cidrs = plan(settings.cidr)
        self.private = [
            self._subnet(f"private-{zone[-1]}", zone, cidr, "internal-elb")
            for zone, cidr in zip(settings.zone_names, cidrs.private, strict=True)
        ]
        tables = self._ways_out(cidrs)
        self._endpoints(tables)
        self._flow_logs(place, log_key_arn)
        self.private_by_zone = dict(zip(settings.zone_names, [subnet.id for subnet in self.private], strict=True))
        self.register_outputs({"vpc": self.vpc.id})

    def _subnet(self, short: str, zone: str, cidr: str, load_balancers: str) -> aws.ec2.Subnet:
        return aws.ec2.Subnet(
            f"{self._name}-{short}",
            vpc_id=self.vpc.id,
            availability_zone=zone,
            cidr_block=cidr,
            map_public_ip_on_launch=False,
            tags={
                "Name": f"{self._cluster}-{short}",
                # Where load balancer controllers put what they make.
                f"kubernetes.io/role/{load_balancers}": "1",
                f"kubernetes.io/cluster/{self._cluster}": "shared",
            },
            opts=self._child,
        )

    def _ways_out(self, cidrs: Plan) -> list[aws.ec2.RouteTable]:
        """The private subnets' route tables, one a zone."""
        nat = self._settings.nat
        gateways = self._nat_gateways(cidrs) if nat != "none" else []
        tables: list[aws.ec2.RouteTable] = []
        for index, (zone, subnet) in enumerate(zip(self._settings.zone_names, self.private, strict=True)):
            table = self._route_table(f"private-{zone[-1]}", subnet)
            if gateways:
                aws.ec2.Route(
                    f"{self._name}-private-{zone[-1]}",
                    route_table_id=table.id,
                    destination_cidr_block="0.0.0.0/0",
                    nat_gateway_id=gateways[index % len(gateways)].id,
                    opts=self._child,
                )
            tables.append(table)
        return tables

    def _nat_gateways(self, cidrs: Plan) -> list[aws.ec2.NatGateway]:
        internet = aws.ec2.InternetGateway(
            self._name, vpc_id=self.vpc.id, tags={"Name": self._cluster}, opts=self._child
        )
        gateways: list[aws.ec2.NatGateway] = []
        for zone, cidr in zip(self._settings.zone_names, cidrs.public, strict=True):
            short = f"public-{zone[-1]}"
            subnet = self._subnet(short, zone, cidr, "elb")
            table = self._route_table(short, subnet)
            route = aws.ec2.Route(
                f"{self._name}-{short}",
                route_table_id=table.id,
                destination_cidr_block="0.0.0.0/0",
                gateway_id=internet.id,
                opts=self._child,
            )
            if gateways and self._settings.nat == "one":
                continue
            nat = f"{self._name}-nat-{zone[-1]}"
            tags = {"Name": f"{self._cluster}-nat-{zone[-1]}"}
            address = aws.ec2.Eip(nat, domain="vpc", tags=tags, opts=self._child)
            gateways.append(
                aws.ec2.NatGateway(
                    nat,
                    subnet_id=subnet.id,
                    allocation_id=address.id,
                    tags=tags,
                    opts=pulumi.ResourceOptions(parent=self, depends_on=[route]),
                )
            )
        return gateways

    def _route_table(self, short: str, subnet: aws.ec2.Subnet) -> aws.ec2.RouteTable:
        table = aws.ec2.RouteTable(
            f"{self._name}-{short}", vpc_id=self.vpc.id, tags={"Name": f"{self._cluster}-{short}"}, opts=self._child
        )
        aws.ec2.RouteTableAssociation(
            f"{self._name}-{short}", route_table_id=table.id, subnet_id=subnet.id, opts=self._child
        )
        return table

    def _endpoints(self, tables: list[aws.ec2.RouteTable]) -> None:
        """AWS's services without a way over the internet."""
        group = aws.ec2.SecurityGroup(
            f"{self._name}-endpoints",
            vpc_id=self.vpc.id,
            description="AWS services, from within the VPC",
            ingress=[
                {
                    "protocol": "tcp",
                    "from_port": _HTTPS,
                    "to_port": _HTTPS,
                    "cidr_blocks": [self._settings.cidr],
                    "description": "HTTPS from within the VPC",
                }
            ],
            egress=[],
            tags={"Name": f"{self._cluster}-endpoints"},
            opts=self._child,
        )
        region = self._settings.region
        aws.ec2.VpcEndpoint(
            f"{self._name}-s3",
            vpc_id=self.vpc.id,
            vpc_endpoint_type="Gateway",
            service_name=f"com.amazonaws.{region}.s3",
            route_table_ids=[table.id for table in tables],
            tags={"Name": f"{self._cluster}-s3"},
            opts=self._child,
        )
        for service in INTERFACE_ENDPOINTS:
            aws.ec2.VpcEndpoint(
                f"{self._name}-{service.replace('.', '-')}",
                vpc_id=self.vpc.id,
                vpc_endpoint_type="Interface",
                service_name=f"com.amazonaws.{region}.{service}",
                private_dns_enabled=True,
                subnet_ids=[subnet.id for subnet in self.private],
                security_group_ids=[group.id],
                tags={"Name": f"{self._cluster}-{service}"},
                opts=self._child,
            )

    def _flow_logs(self, place: pulumi.Output[Place], key_arn: pulumi.Input[str]) -> None:
        name = f"{self._name}-flow"
        log_group = flow_log_group(self._cluster)
        logs = aws.cloudwatch.LogGroup(
            name,
            name=log_group,
            retention_in_days=self._settings.log_retention_days,
            kms_key_id=key_arn,
            opts=self._child,
        )
        # https://docs.aws.amazon.com/vpc/latest/userguide/flow-logs-iam-role.html
        role = Role(
            name,
            service_trust("vpc-flow-logs.amazonaws.com"),
            self._child,
            description=f"Writes {log_group}",
            policy=place.apply(
                lambda place: document(
                    allow(
                        [
                            "logs:CreateLogStream",
                            "logs:DescribeLogGroups",
                            "logs:DescribeLogStreams",
                            "logs:PutLogEvents",
                        ],
                        [place.arn("logs", f"log-group:{log_group}"), place.arn("logs", f"log-group:{log_group}:*")],
                    )
                )
            ),
        )
        aws.ec2.FlowLog(
            name,
            vpc_id=self.vpc.id,
            traffic_type="ALL",
            log_destination_type="cloud-watch-logs",
            log_destination=logs.arn,
            iam_role_arn=role.arn,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[role]),
        )
