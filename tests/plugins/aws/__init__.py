"""A stand-in for Pulumi's AWS plugin, for machines that have no `pulumi-resource-aws`, and for moto in place of AWS.

It serves the types that this project makes, each by the calls of boto3 that make it, so that botocore checks every
request against AWS's own API models. A property that it doesn't know is refused, never dropped. It does less than
the real plugin in these: a change of the provider's default tags alone changes nothing, tags aren't updated on types
other than those that say so, and nothing is imported.

moto 5.2.5 lacks parts of EKS: access entries, access policies, Pod Identity associations, add-ons and their versions,
upgrades of clusters and node groups and their progress, the cluster's security group, and `accessConfig`,
`upgradePolicy` and `updateConfig` where things are made. `moto_eks.py` adds them, with the answers, states and refusals
that the EKS API Reference describes: https://docs.aws.amazon.com/eks/latest/APIReference/
"""
