"""Types of the services that everything else leans on: IAM, KMS, CloudWatch Logs, ECR."""

from __future__ import annotations

from tests.plugins.aws.kinds import Account, Kind, Properties, as_tags, mapped, one, some


class Role(Kind):
    token = "aws:iam/role:Role"
    properties = frozenset({"name", "assumeRolePolicy", "description"})
    replaced_by = frozenset({"name"})
    named_by = "name"

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.iam.create_role(
            **some(
                RoleName=inputs["name"],
                AssumeRolePolicyDocument=inputs["assumeRolePolicy"],
                Description=inputs.get("description"),
                Tags=as_tags(account.tags(inputs)),
            )
        )["Role"]
        return made["RoleName"], {"arn": made["Arn"], "uniqueId": made["RoleId"]}

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        account.iam.update_assume_role_policy(RoleName=identity, PolicyDocument=new["assumeRolePolicy"])
        account.iam.update_role_description(RoleName=identity, Description=new.get("description", ""))
        return {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.iam.get_role(RoleName=identity)

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.iam.delete_role(RoleName=identity)


class RolePolicy(Kind):
    token = "aws:iam/rolePolicy:RolePolicy"
    properties = frozenset({"name", "role", "policy"})
    replaced_by = frozenset({"name", "role"})
    named_by = "name"

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        self.update(account, "", set(), {}, inputs)
        return f"{inputs['role']}:{inputs['name']}", {}

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        account.iam.put_role_policy(RoleName=new["role"], PolicyName=new["name"], PolicyDocument=new["policy"])
        return {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.iam.get_role_policy(RoleName=state["role"], PolicyName=state["name"])

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.iam.delete_role_policy(RoleName=state["role"], PolicyName=state["name"])


class RolePolicyAttachment(Kind):
    token = "aws:iam/rolePolicyAttachment:RolePolicyAttachment"
    properties = frozenset({"role", "policyArn"})
    replaced_by = properties

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        account.iam.attach_role_policy(RoleName=inputs["role"], PolicyArn=inputs["policyArn"])
        return f"{inputs['role']}-{inputs['policyArn']}", {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        attached = account.iam.list_attached_role_policies(RoleName=state["role"])["AttachedPolicies"]
        return [policy for policy in attached if policy["PolicyArn"] == state["policyArn"]]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.iam.detach_role_policy(RoleName=state["role"], PolicyArn=state["policyArn"])


class Key(Kind):
    token = "aws:kms/key:Key"
    properties = frozenset({"description", "enableKeyRotation", "deletionWindowInDays", "policy"})
    replaced_by = frozenset()

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        made = account.kms.create_key(
            **some(
                Description=inputs.get("description"),
                Policy=inputs.get("policy"),
                Tags=as_tags(account.tags(inputs), "TagKey", "TagValue"),
            )
        )["KeyMetadata"]
        if inputs.get("enableKeyRotation"):
            account.kms.enable_key_rotation(KeyId=made["KeyId"])
        return made["KeyId"], {"arn": made["Arn"], "keyId": made["KeyId"]}

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        if changed - {"policy", "deletionWindowInDays"}:
            return super().update(account, identity, changed, old, new)
        account.kms.put_key_policy(KeyId=identity, PolicyName="default", Policy=new["policy"])
        return {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.kms.describe_key(KeyId=identity)["KeyMetadata"]["KeyState"] == "Enabled"

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.kms.schedule_key_deletion(KeyId=identity, PendingWindowInDays=state["deletionWindowInDays"])


class Alias(Kind):
    token = "aws:kms/alias:Alias"
    properties = frozenset({"name", "targetKeyId"})
    replaced_by = frozenset({"name"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        account.kms.create_alias(AliasName=inputs["name"], TargetKeyId=inputs["targetKeyId"])
        return inputs["name"], {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        aliases = account.kms.list_aliases(KeyId=state["targetKeyId"])["Aliases"]
        return [alias for alias in aliases if alias["AliasName"] == identity]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.kms.delete_alias(AliasName=identity)


class LogGroup(Kind):
    token = "aws:cloudwatch/logGroup:LogGroup"
    properties = frozenset({"name", "retentionInDays", "kmsKeyId"})
    replaced_by = frozenset({"name"})
    named_by = "name"

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        account.logs.create_log_group(
            **some(logGroupName=inputs["name"], kmsKeyId=inputs.get("kmsKeyId"), tags=account.tags(inputs))
        )
        self._retain(account, inputs)
        found = one(self.find(account, inputs["name"], {}))
        return inputs["name"], {"arn": found["arn"].removesuffix(":*")}

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        if changed != {"retentionInDays"}:
            return super().update(account, identity, changed, old, new)
        self._retain(account, new)
        return {}

    def find(self, account: Account, identity: str, state: Properties) -> list[Properties]:
        groups = account.logs.describe_log_groups(logGroupNamePrefix=identity)["logGroups"]
        return [group for group in groups if group["logGroupName"] == identity]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.logs.delete_log_group(logGroupName=identity)

    def _retain(self, account: Account, inputs: Properties) -> None:
        account.logs.put_retention_policy(logGroupName=inputs["name"], retentionInDays=inputs["retentionInDays"])


class Repository(Kind):
    token = "aws:ecr/repository:Repository"
    properties = frozenset(
        {
            "name",
            "imageTagMutability",
            "imageTagMutabilityExclusionFilters",
            "imageScanningConfiguration",
            "encryptionConfigurations",
            "forceDelete",
        }
    )
    replaced_by = frozenset({"name", "encryptionConfigurations"})
    named_by = "name"

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        encryption = one(inputs["encryptionConfigurations"])
        made = account.ecr.create_repository(
            repositoryName=inputs["name"],
            **self._mutability(inputs),
            imageScanningConfiguration=inputs["imageScanningConfiguration"],
            encryptionConfiguration=mapped(encryption, {"encryptionType": "encryptionType", "kmsKey": "kmsKey"}),
            tags=as_tags(account.tags(inputs)),
        )["repository"]
        return inputs["name"], {
            "arn": made["repositoryArn"],
            "registryId": made["registryId"],
            "repositoryUrl": made["repositoryUri"],
        }

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        account.ecr.put_image_tag_mutability(repositoryName=identity, **self._mutability(new))
        account.ecr.put_image_scanning_configuration(
            repositoryName=identity, imageScanningConfiguration=new["imageScanningConfiguration"]
        )
        return {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.ecr.describe_repositories(repositoryNames=[identity])["repositories"]

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ecr.delete_repository(repositoryName=identity, force=state.get("forceDelete", False))

    def _mutability(self, inputs: Properties) -> Properties:
        return some(
            imageTagMutability=inputs["imageTagMutability"],
            imageTagMutabilityExclusionFilters=inputs.get("imageTagMutabilityExclusionFilters"),
        )


class LifecyclePolicy(Kind):
    token = "aws:ecr/lifecyclePolicy:LifecyclePolicy"
    properties = frozenset({"repository", "policy"})
    replaced_by = frozenset({"repository"})

    def create(self, account: Account, inputs: Properties) -> tuple[str, Properties]:
        self.update(account, "", set(), {}, inputs)
        return inputs["repository"], {}

    def update(
        self, account: Account, identity: str, changed: set[str], old: Properties, new: Properties
    ) -> Properties:
        account.ecr.put_lifecycle_policy(repositoryName=new["repository"], lifecyclePolicyText=new["policy"])
        return {}

    def find(self, account: Account, identity: str, state: Properties) -> object:
        return account.ecr.get_lifecycle_policy(repositoryName=identity)

    def delete(self, account: Account, identity: str, state: Properties) -> None:
        account.ecr.delete_lifecycle_policy(repositoryName=identity)


KINDS = (Role, RolePolicy, RolePolicyAttachment, Key, Alias, LogGroup, Repository, LifecyclePolicy)
