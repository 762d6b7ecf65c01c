"""Bad settings of an EKS cluster: each is one error that says where, what was given and what would be right."""

from __future__ import annotations

from typing import Any

import boto3
import pytest

from infra.settings.eks import AMI_TYPES
from infra.settings.loading import SettingsError
from tests.component.eks_cluster import DEPLOYER, H100, L4, settings

BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("region", {"region": "ireland"}, "eks.region: given 'ireland'", "'eu-west-1'"),
    ("china", {"region": "cn-north-1"}, "eks.region: given 'cn-north-1'", "not supported"),
    ("account", {"account": "12345"}, "eks.account: given '12345'", "twelve digits"),
    ("version as a number", {"kubernetes": 1.33}, "eks.kubernetes: given 1.33", 'in quotes, such as "1.33"'),
    ("old version", {"kubernetes": "1.31"}, "eks.kubernetes: given '1.31'", '"1.32" is the oldest'),
    ("range", {"cidr": "10.0.0.1/16"}, "eks.cidr: given '10.0.0.1/16'", "no bits set beyond its prefix"),
    ("small range", {"cidr": "10.0.0.0/24"}, "eks.cidr: given '10.0.0.0/24'", "from /16"),
    ("public range", {"cidr": "8.8.0.0/16"}, "eks.cidr: given '8.8.0.0/16'", "is private"),
    ("two zones", {"zones": ["eu-west-1a", "eu-west-1b"]}, "zones: given eu-west-1a, eu-west-1b", "three zones"),
    ("local zone", {"zones": ["us-west-2-lax-1a"]}, "eks.zones[0]: given 'us-west-2-lax-1a'", "'eu-west-1a'"),
    (
        "foreign zone",
        {"zones": ["eu-west-1a", "eu-west-1b", "eu-west-2c"]},
        "zones: given 'eu-west-2c'",
        "not in region 'eu-west-1'",
    ),
    ("nat", {"nat": "two"}, "eks.nat: given 'two'", "'one', 'per-zone' or 'none'"),
    (
        "open to all",
        {"api": {"public_cidrs": ["0.0.0.0/0"]}},
        "eks.api.public_cidrs[0]: given '0.0.0.0/0'",
        "most of the internet",
    ),
    ("nobody", {"access": []}, "access: nobody has level 'admin'", "the principal that deploys"),
    ("no instance type", {"pools": [L4 | {"instance_types": []}]}, "eks.pools[0]", "give at least one"),
    (
        "no admin",
        {"access": [{"principal": DEPLOYER, "level": "view"}]},
        "access: nobody has level 'admin'",
        "give it to the principal that deploys",
    ),
    (
        "principal",
        {"access": [{"principal": "deployer", "level": "admin"}]},
        "eks.access[0].principal: given 'deployer'",
        "'arn:aws:iam::123456789012:role/deployer'",
    ),
    (
        "principal of another partition",
        {"access": [{"principal": DEPLOYER.replace("arn:aws:", "arn:aws-us-gov:"), "level": "admin"}]},
        "access: given 'arn:aws-us-gov:",
        "in partition 'aws'",
    ),
    (
        "the same principal twice",
        {"access": [{"principal": DEPLOYER, "level": "admin"}, {"principal": DEPLOYER, "level": "view"}]},
        f"access: given '{DEPLOYER}' 2 times",
        "give it once",
    ),
    (
        "team level without teams",
        {"access": [{"principal": DEPLOYER, "level": "team"}]},
        "eks.access[0]",
        "needs 'teams', such as [diagnostics]",
    ),
    (
        "admin of a team",
        {"access": [{"principal": DEPLOYER, "level": "admin", "teams": ["vision"]}]},
        "eks.access[0]",
        "give level 'team'",
    ),
    (
        "reserved team",
        {"access": [{"principal": DEPLOYER, "level": "team", "teams": ["platform"]}]},
        "eks.access[0].teams[0]: given 'platform'",
        "choose another name",
    ),
    ("min over max", {"pools": [L4 | {"min": 5}]}, "eks.pools[0]", "give min at most 4"),
    ("desired", {"pools": [L4 | {"desired": 9}]}, "eks.pools[0]: desired 9", "min 0 and max 4"),
    (
        "spot from a reservation",
        {"pools": [L4 | {"reservation": "cr-0123456789abcdef0"}]},
        "eks.pools[0]: capacity 'spot'",
        "leave 'reservation' out",
    ),
    ("no reservation", {"pools": [H100 | {"reservation": None}]}, "eks.pools[0]", "needs 'reservation'"),
    (
        "reservation's name",
        {"pools": [H100 | {"reservation": "mine"}]},
        "eks.pools[0].reservation: given 'mine'",
        "'cr-'",
    ),
    ("reservation in no zone", {"pools": [H100 | {"zones": []}]}, "eks.pools[0]", "name it in 'zones'"),
    (
        "reservation of two types",
        {"pools": [H100 | {"instance_types": ["p5.48xlarge", "p4d.24xlarge"]}]},
        "eks.pools[0]",
        "just that one",
    ),
    ("pool elsewhere", {"pools": [H100 | {"zones": ["eu-west-1d"]}]}, "pool 'h100': given zone 'eu-west-1d'", "1a"),
    (
        "GPUs without a driver",
        {"pools": [H100 | {"ami": "al2023"}]},
        "eks.pools[0]: ami 'al2023' has no GPU driver",
        "give 'al2023-nvidia'",
    ),
    ("unknown AMI", {"pools": [L4 | {"ami": "al2"}]}, "eks.pools[0].ami: given 'al2'", "'al2023-nvidia'"),
    (
        "a GPU pool without GPUs",
        {"pools": [{"name": "x", "instance_types": ["g6.xlarge"], "max": 1}]},
        ".gpu",
        "required",
    ),
    (
        "MIG and shares",
        {"pools": [H100 | {"gpu": {"count": 8, "product": "H100", "mig": H100["gpu"]["mig"], "shares": 2}}]},
        "eks.pools[0].gpu",
        "leave one out",
    ),
    ("MIG on Bottlerocket", {"pools": [H100 | {"ami": "bottlerocket-nvidia"}]}, "eks.pools[0]", "'al2023-nvidia'"),
    (
        "MIG profile",
        {"pools": [H100 | {"gpu": {"count": 8, "product": "H100", "mig": {"profile": "tiny", "instances": 7}}}]},
        "mig.profile: given 'tiny'",
        "'1g.10gb'",
    ),
    ("two pools of a name", {"pools": [L4, L4]}, "pools: given 'l4' 2 times", "give it once"),
    ("the CPU pool's name", {"pools": [L4 | {"name": "cpu"}]}, "eks.pools[0]", "choose another"),
    (
        "nodes ahead",
        {"pools": [L4 | {"kubernetes": "1.34"}]},
        "pool 'l4': given kubernetes \"1.34\"",
        "upgrade that first",
    ),
    (
        "nodes far behind",
        {"kubernetes": "1.36", "pools": [L4 | {"kubernetes": "1.32"}]},
        "pool 'l4': given kubernetes \"1.32\"",
        'upgrade the pool to "1.33"',
    ),
    ("our label", {"pools": [L4 | {"labels": {"lepton/pool": "x"}}]}, "'lepton/pool'", "not yours to set"),
    ("their label", {"pools": [L4 | {"labels": {"node.kubernetes.io/x": "y"}}]}, "node.kubernetes.io/x", "not yours"),
    ("CPU pool of GPU nodes", {"cpu_pool": {"ami": "al2023-nvidia"}}, "cpu_pool.ami", "give 'al2023'"),
    ("empty CPU pool", {"cpu_pool": {"min": 0}}, "cpu_pool.min: given 0", "at least 1"),
    ("tainted CPU pool", {"cpu_pool": {"taints": [{"key": "a"}]}}, "cpu_pool.taints", "'PreferNoSchedule'"),
    ("unknown add-on", {"addons": {"cilium": "v1.0.0-eksbuild.1"}}, "eks.addons.cilium", "'vpc-cni'"),
    ("add-on's version", {"addons": {"coredns": "1.11"}}, "eks.addons.coredns: given '1.11'", "'v1.19.3-eksbuild.1'"),
    (
        "repository",
        {"registry": {"repositories": ["Models/Tumour"]}},
        "eks.registry.repositories[0]: given 'Models/Tumour'",
        "'diagnostics/tumour'",
    ),
    ("retention", {"log_retention_days": 91}, "eks.log_retention_days: given 91", "90"),
    ("unknown key", {"versions": "1.33"}, "eks.versions", "unknown key"),
]


@pytest.mark.parametrize(("given", "where", "right"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_is_wrong_is_said_with_what_would_be_right(given: dict[str, Any], where: str, right: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**given)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("Pulumi.prod.yaml: eks")
    assert where in line
    assert right in line


def test_everything_but_region_and_access_has_a_default() -> None:
    found = settings()
    assert found.kubernetes == "1.33"
    assert found.zone_names == ("eu-west-1a", "eu-west-1b", "eu-west-1c")
    assert not found.api.public_cidrs
    assert list(found.all_pools) == ["cpu"]


def test_nodes_may_be_three_minor_versions_behind() -> None:
    found = settings(kubernetes="1.36", pools=[L4 | {"kubernetes": "1.33"}])
    assert found.pools[0].kubernetes == "1.33"


def test_ami_types_are_ekss_own() -> None:
    model = boto3.client("eks", region_name="eu-west-1").meta.service_model
    assert set(AMI_TYPES.values()) <= set(model.shape_for("AMITypes").enum)
