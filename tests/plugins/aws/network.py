"""EC2's types: networks, and what nodes are launched from."""

from __future__ import annotations

from typing import Any

from tests.plugins.aws.kinds import Account, Kind, Properties, Refused, as_tags, mapped, one, some


def _specification(kind: str, account: Account, inputs: Properties) -> list[Properties]:
    tags = as_tags(account.tags(inputs))
    return [{"ResourceType": kind, "Tags": tags}] if tags else []


class Vpc(Kind):
    token = "aws:ec2/vpc:Vpc"
    properties = frozenset({"cidrBlock", "enableDnsSupport", "enableDnsHostnames"})
    replaced_by = frozenset({"cidrBlock"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.create_vpc(
            CidrBlock=inputs["cidrBlock"], TagSpecifications=_specification("vpc", account, inputs)
        )["Vpc"]
        self._set(account, made["VpcId"], inputs)
        return made["VpcId"], {"ownerId": made["OwnerId"]}

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        self._set(account, identity, new)
        return {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.ec2.describe_vpcs(VpcIds=[identity])["Vpcs"]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.delete_vpc(VpcId=identity)

    def _set(self, account: Account, identity: str, inputs: Properties) -> None:
        for attribute, key in (("EnableDnsSupport", "enableDnsSupport"), ("EnableDnsHostnames", "enableDnsHostnames")):
            if key in inputs:
                account.ec2.modify_vpc_attribute(VpcId=identity, **{attribute: {"Value": inputs[key]}})


class Subnet(Kind):
    token = "aws:ec2/subnet:Subnet"
    properties = frozenset({"vpcId", "availabilityZone", "cidrBlock", "mapPublicIpOnLaunch"})
    replaced_by = frozenset({"vpcId", "availabilityZone", "cidrBlock"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.create_subnet(
            VpcId=inputs["vpcId"],
            AvailabilityZone=inputs["availabilityZone"],
            CidrBlock=inputs["cidrBlock"],
            TagSpecifications=_specification("subnet", account, inputs),
        )["Subnet"]
        account.ec2.modify_subnet_attribute(
            SubnetId=made["SubnetId"], MapPublicIpOnLaunch={"Value": inputs.get("mapPublicIpOnLaunch", False)}
        )
        return made["SubnetId"], {"arn": made["SubnetArn"]}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.ec2.describe_subnets(SubnetIds=[identity])["Subnets"]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.delete_subnet(SubnetId=identity)


class InternetGateway(Kind):
    token = "aws:ec2/internetGateway:InternetGateway"
    properties = frozenset({"vpcId"})
    replaced_by = frozenset({"vpcId"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.create_internet_gateway(
            TagSpecifications=_specification("internet-gateway", account, inputs)
        )["InternetGateway"]
        account.ec2.attach_internet_gateway(InternetGatewayId=made["InternetGatewayId"], VpcId=inputs["vpcId"])
        return made["InternetGatewayId"], {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.ec2.describe_internet_gateways(InternetGatewayIds=[identity])["InternetGateways"]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.detach_internet_gateway(InternetGatewayId=identity, VpcId=state["vpcId"])
        account.ec2.delete_internet_gateway(InternetGatewayId=identity)


class Eip(Kind):
    token = "aws:ec2/eip:Eip"
    properties = frozenset({"domain"})
    replaced_by = frozenset({"domain"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.allocate_address(
            Domain=inputs["domain"], TagSpecifications=_specification("elastic-ip", account, inputs)
        )
        return made["AllocationId"], {"publicIp": made["PublicIp"], "allocationId": made["AllocationId"]}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.ec2.describe_addresses(AllocationIds=[identity])["Addresses"]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.release_address(AllocationId=identity)


class NatGateway(Kind):
    token = "aws:ec2/natGateway:NatGateway"
    properties = frozenset({"subnetId", "allocationId"})
    replaced_by = properties

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.create_nat_gateway(
            SubnetId=inputs["subnetId"],
            AllocationId=inputs["allocationId"],
            TagSpecifications=_specification("natgateway", account, inputs),
        )["NatGateway"]
        return made["NatGatewayId"], {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return [
            gateway
            for gateway in account.ec2.describe_nat_gateways(NatGatewayIds=[identity])["NatGateways"]
            if gateway["State"] != "deleted"
        ]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.delete_nat_gateway(NatGatewayId=identity)


class RouteTable(Kind):
    token = "aws:ec2/routeTable:RouteTable"
    properties = frozenset({"vpcId"})
    replaced_by = properties

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.create_route_table(
            VpcId=inputs["vpcId"], TagSpecifications=_specification("route-table", account, inputs)
        )["RouteTable"]
        return made["RouteTableId"], {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.ec2.describe_route_tables(RouteTableIds=[identity])["RouteTables"]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.delete_route_table(RouteTableId=identity)


class Route(Kind):
    token = "aws:ec2/route:Route"
    properties = frozenset({"routeTableId", "destinationCidrBlock", "gatewayId", "natGatewayId"})
    replaced_by = frozenset({"routeTableId", "destinationCidrBlock"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        account.ec2.create_route(**self._request(inputs))
        return f"r-{inputs['routeTableId']}-{inputs['destinationCidrBlock']}", {}

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        account.ec2.replace_route(**self._request(new))
        return {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        table = one(account.ec2.describe_route_tables(RouteTableIds=[state["routeTableId"]])["RouteTables"])
        return [
            route for route in table["Routes"] if route.get("DestinationCidrBlock") == state["destinationCidrBlock"]
        ]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.delete_route(RouteTableId=state["routeTableId"], DestinationCidrBlock=state["destinationCidrBlock"])

    def _request(self, inputs: Properties) -> Properties:
        return some(
            RouteTableId=inputs["routeTableId"],
            DestinationCidrBlock=inputs["destinationCidrBlock"],
            GatewayId=inputs.get("gatewayId"),
            NatGatewayId=inputs.get("natGatewayId"),
        )


class RouteTableAssociation(Kind):
    token = "aws:ec2/routeTableAssociation:RouteTableAssociation"
    properties = frozenset({"routeTableId", "subnetId"})
    replaced_by = properties

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.associate_route_table(RouteTableId=inputs["routeTableId"], SubnetId=inputs["subnetId"])
        return made["AssociationId"], {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        table = one(account.ec2.describe_route_tables(RouteTableIds=[state["routeTableId"]])["RouteTables"])
        return [found for found in table["Associations"] if found["RouteTableAssociationId"] == identity]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.disassociate_route_table(AssociationId=identity)


class VpcEndpoint(Kind):
    token = "aws:ec2/vpcEndpoint:VpcEndpoint"
    properties = frozenset(
        {
            "vpcId",
            "vpcEndpointType",
            "serviceName",
            "privateDnsEnabled",
            "subnetIds",
            "securityGroupIds",
            "routeTableIds",
        }
    )
    replaced_by = frozenset({"vpcId", "vpcEndpointType", "serviceName"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.create_vpc_endpoint(
            **some(
                VpcId=inputs["vpcId"],
                VpcEndpointType=inputs["vpcEndpointType"],
                ServiceName=inputs["serviceName"],
                PrivateDnsEnabled=inputs.get("privateDnsEnabled"),
                SubnetIds=inputs.get("subnetIds"),
                SecurityGroupIds=inputs.get("securityGroupIds"),
                RouteTableIds=inputs.get("routeTableIds"),
                TagSpecifications=_specification("vpc-endpoint", account, inputs),
            )
        )["VpcEndpoint"]
        return made["VpcEndpointId"], {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return [
            endpoint
            for endpoint in account.ec2.describe_vpc_endpoints(VpcEndpointIds=[identity])["VpcEndpoints"]
            if endpoint["State"] != "deleted"
        ]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.delete_vpc_endpoints(VpcEndpointIds=[identity])


_RULE = {
    "protocol": "IpProtocol",
    "fromPort": "FromPort",
    "toPort": "ToPort",
    "cidrBlocks": "IpRanges",
    "description": "description",
}


def _permission(rule: Properties) -> Properties:
    found = mapped(rule, _RULE)
    description = found.pop("description", None)
    ranges = [some(CidrIp=cidr, Description=description) for cidr in found.get("IpRanges", [])]
    return found | {"IpRanges": ranges}


class SecurityGroup(Kind):
    token = "aws:ec2/securityGroup:SecurityGroup"
    properties = frozenset({"vpcId", "description", "ingress", "egress", "name"})
    replaced_by = frozenset({"vpcId", "description", "name"})
    named_by = "name"

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.create_security_group(
            GroupName=inputs["name"],
            Description=inputs["description"],
            VpcId=inputs["vpcId"],
            TagSpecifications=_specification("security-group", account, inputs),
        )
        # As the real plugin: what EC2 lets out by itself goes.
        _clear(account, made["GroupId"])
        if inputs.get("egress"):
            raise Refused(f"the stand-in does not know rules of egress; given {inputs['egress']}")
        account.ec2.authorize_security_group_ingress(
            GroupId=made["GroupId"], IpPermissions=[_permission(rule) for rule in inputs.get("ingress", [])]
        )
        return made["GroupId"], {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.ec2.describe_security_groups(GroupIds=[identity])["SecurityGroups"]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.delete_security_group(GroupId=identity)


class DefaultSecurityGroup(Kind):
    """Adopts what each VPC has, and takes its rules away; it goes with its VPC."""

    token = "aws:ec2/defaultSecurityGroup:DefaultSecurityGroup"
    properties = frozenset({"vpcId", "ingress", "egress"})
    replaced_by = frozenset({"vpcId"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        if inputs.get("ingress") or inputs.get("egress"):
            raise Refused("the stand-in does not know rules of a default security group")
        filters = [
            {"Name": "vpc-id", "Values": [inputs["vpcId"]]},
            {"Name": "group-name", "Values": ["default"]},
        ]
        group = one(account.ec2.describe_security_groups(Filters=filters)["SecurityGroups"])
        _clear(account, group["GroupId"])
        return group["GroupId"], {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.ec2.describe_security_groups(GroupIds=[identity])["SecurityGroups"]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        pass


def _clear(account: Account, group: str) -> None:
    found = one(account.ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"])
    if found["IpPermissions"]:
        account.ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=found["IpPermissions"])
    if found["IpPermissionsEgress"]:
        account.ec2.revoke_security_group_egress(GroupId=group, IpPermissions=found["IpPermissionsEgress"])


class SecurityGroupIngressRule(Kind):
    token = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"
    properties = frozenset({"securityGroupId", "description", "cidrIpv4", "ipProtocol", "fromPort", "toPort"})
    replaced_by = properties

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.authorize_security_group_ingress(
            GroupId=inputs["securityGroupId"],
            IpPermissions=[
                {
                    "IpProtocol": inputs["ipProtocol"],
                    "FromPort": inputs["fromPort"],
                    "ToPort": inputs["toPort"],
                    "IpRanges": [some(CidrIp=inputs["cidrIpv4"], Description=inputs.get("description"))],
                }
            ],
        )
        return one(made["SecurityGroupRules"])["SecurityGroupRuleId"], {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        rules = account.ec2.describe_security_group_rules(SecurityGroupRuleIds=[identity])
        return rules["SecurityGroupRules"]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.revoke_security_group_ingress(GroupId=state["securityGroupId"], SecurityGroupRuleIds=[identity])


class FlowLog(Kind):
    token = "aws:ec2/flowLog:FlowLog"
    properties = frozenset({"vpcId", "trafficType", "logDestinationType", "logDestination", "iamRoleArn"})
    replaced_by = properties

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.create_flow_logs(
            ResourceIds=[inputs["vpcId"]],
            ResourceType="VPC",
            TrafficType=inputs["trafficType"],
            LogDestinationType=inputs["logDestinationType"],
            LogGroupName=inputs["logDestination"].split(":log-group:")[1],
            DeliverLogsPermissionArn=inputs["iamRoleArn"],
            TagSpecifications=_specification("vpc-flow-log", account, inputs),
        )
        if made["Unsuccessful"]:
            raise Refused(f"a flow log was not made: {made['Unsuccessful']}")
        return one(made["FlowLogIds"]), {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.ec2.describe_flow_logs(FlowLogIds=[identity])["FlowLogs"]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.delete_flow_logs(FlowLogIds=[identity])


class LaunchTemplate(Kind):
    token = "aws:ec2/launchTemplate:LaunchTemplate"
    properties = frozenset(
        {
            "name",
            "instanceType",
            "instanceMarketOptions",
            "capacityReservationSpecification",
            "metadataOptions",
            "networkInterfaces",
            "blockDeviceMappings",
            "tagSpecifications",
            "userData",
            "updateDefaultVersion",
        }
    )
    replaced_by = frozenset({"name"})
    named_by = "name"

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.ec2.create_launch_template(
            LaunchTemplateName=inputs["name"],
            LaunchTemplateData=_launch_template_data(inputs),
            TagSpecifications=_specification("launch-template", account, inputs),
        )["LaunchTemplate"]
        return made["LaunchTemplateId"], {"latestVersion": made["LatestVersionNumber"], "defaultVersion": 1}

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        made = account.ec2.create_launch_template_version(
            LaunchTemplateId=identity, LaunchTemplateData=_launch_template_data(new)
        )["LaunchTemplateVersion"]
        version = made["VersionNumber"]
        if new.get("updateDefaultVersion"):
            account.ec2.modify_launch_template(LaunchTemplateId=identity, DefaultVersion=str(version))
        return {"latestVersion": version, "defaultVersion": version}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.ec2.describe_launch_templates(LaunchTemplateIds=[identity])["LaunchTemplates"]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ec2.delete_launch_template(LaunchTemplateId=identity)


def _launch_template_data(inputs: Properties) -> Properties:
    reservation = inputs.get("capacityReservationSpecification", {}).get("capacityReservationTarget", {})
    return some(
        InstanceType=inputs.get("instanceType"),
        UserData=inputs.get("userData"),
        InstanceMarketOptions=mapped(inputs.get("instanceMarketOptions", {}), {"marketType": "MarketType"}),
        CapacityReservationSpecification=some(
            CapacityReservationTarget=mapped(reservation, {"capacityReservationId": "CapacityReservationId"})
        ),
        MetadataOptions=mapped(
            inputs.get("metadataOptions", {}),
            {
                "httpEndpoint": "HttpEndpoint",
                "httpTokens": "HttpTokens",
                "httpPutResponseHopLimit": "HttpPutResponseHopLimit",
            },
        ),
        NetworkInterfaces=[_interface(interface) for interface in inputs.get("networkInterfaces", [])],
        BlockDeviceMappings=[_disk(disk) for disk in inputs.get("blockDeviceMappings", [])],
        TagSpecifications=[
            {"ResourceType": kind["resourceType"], "Tags": as_tags(kind["tags"])}
            for kind in inputs.get("tagSpecifications", [])
        ],
    )


def _interface(interface: Properties) -> Properties:
    return _with_booleans(
        mapped(
            interface,
            {
                "deviceIndex": "DeviceIndex",
                "associatePublicIpAddress": "AssociatePublicIpAddress",
                "deleteOnTermination": "DeleteOnTermination",
                "securityGroups": "Groups",
            },
        )
    )


def _disk(disk: Properties) -> Properties:
    found = mapped(disk, {"deviceName": "DeviceName", "ebs": "Ebs"})
    ebs = {
        "volumeType": "VolumeType",
        "volumeSize": "VolumeSize",
        "encrypted": "Encrypted",
        "deleteOnTermination": "DeleteOnTermination",
    }
    return found | {"Ebs": _with_booleans(mapped(found["Ebs"], ebs))}


def _with_booleans(document: Properties) -> Properties:
    """Some of the plugin's properties are texts where the API has booleans."""
    words: dict[Any, bool] = {"true": True, "false": False}
    return {key: words.get(value, value) if isinstance(value, str) else value for key, value in document.items()}


KINDS = (
    Vpc,
    Subnet,
    InternetGateway,
    Eip,
    NatGateway,
    RouteTable,
    Route,
    RouteTableAssociation,
    VpcEndpoint,
    SecurityGroup,
    DefaultSecurityGroup,
    SecurityGroupIngressRule,
    FlowLog,
    LaunchTemplate,
)
