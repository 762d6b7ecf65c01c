"""Has the API server itself refuse to take a version away that an endpoint serves, whoever asks for it.

An endpoint puts a claim into the namespace of each of its versions, and takes it out after its routes have let go of
the version. The platform's policy refuses the deletion of what answers requests while there is one. A whole namespace
can still be deleted: that is no slip of the hand.

A claim is a ReferenceGrant, which says just that: who may send requests to what. And it is of no kind of Kubernetes'
own, whose objects an API server doesn't see any more once a policy that asks for them was its last
(https://github.com/kubernetes/kubernetes/issues/130887).

References: https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/,
https://gateway-api.sigs.k8s.io/api-types/referencegrant/
"""

from __future__ import annotations

from infra.cluster.manifests import Manifest
from infra.cluster.manifests.isolation import REFERENCE_GRANT, granted_to
from infra.cluster.names import (
    ENDPOINT_ANNOTATION,
    ENVIRONMENT_LABEL,
    MANAGED_BY,
    MODEL_LABEL,
    TEAM_LABEL,
    team_namespace,
)
from infra.names import endpoint_stack

CLAIM = "served"
"""A version is of one model, and a model has one endpoint, so no two claims meet."""

_VERSION, _KIND = REFERENCE_GRANT


def claim(environment: str, team: str, model: str, namespace: str) -> Manifest:
    """Says that the endpoint of this model may send requests to the version of this namespace."""
    return {
        "apiVersion": _VERSION,
        "kind": _KIND,
        "metadata": {
            "name": CLAIM,
            "namespace": namespace,
            "labels": {**MANAGED_BY, ENVIRONMENT_LABEL: environment, TEAM_LABEL: team, MODEL_LABEL: model},
            "annotations": {ENDPOINT_ANNOTATION: f"{team}/{endpoint_stack(environment, model)}"},
        },
        "spec": granted_to(team_namespace(environment, team)),
    }


def claim_path(namespace: str) -> str:
    """Where the API server has the claim of a version's namespace."""
    return f"/apis/{_VERSION}/namespaces/{namespace}/referencegrants/{CLAIM}"


def deletion_policy(environment: str, namespace: str) -> list[Manifest]:
    """The policy for an environment's versions, and its binding. `namespace`: the platform's own, for a name."""
    name = f"{namespace}-served-versions"
    labels = {**MANAGED_BY, ENVIRONMENT_LABEL: environment}
    resources = {"": ["services"], "apps": ["deployments"], "leaderworkerset.x-k8s.io": ["leaderworkersets"]}
    resources["gateway.networking.k8s.io"] = ["referencegrants"]
    policy: Manifest = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": _VERSION, "kind": _KIND},
            # A whole collection's deletion has no name.
            "matchConditions": [
                {"name": "is-no-claim", "expression": f"!has(request.name) || request.name != '{CLAIM}'"}
            ],
            "matchConstraints": {
                "namespaceSelector": {
                    "matchLabels": labels,
                    "matchExpressions": [{"key": MODEL_LABEL, "operator": "Exists"}],
                },
                "objectSelector": {"matchLabels": dict(MANAGED_BY)},
                "resourceRules": [
                    {"apiGroups": [group], "apiVersions": ["*"], "operations": ["DELETE"], "resources": names}
                    for group, names in resources.items()
                ],
            },
            "validations": [
                {
                    "expression": "has(namespaceObject.metadata.deletionTimestamp)",
                    "messageExpression": (
                        f"'the version is still a variant of ' + params.metadata.annotations['{ENDPOINT_ANNOTATION}'] "
                        "+ ': take it out of the endpoint\\'s variants and shadow first, then take it down'"
                    ),
                }
            ],
        },
    }
    binding: Manifest = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "policyName": name,
            "validationActions": ["Deny"],
            "paramRef": {"name": CLAIM, "parameterNotFoundAction": "Allow"},
        },
    }
    return [policy, binding]
