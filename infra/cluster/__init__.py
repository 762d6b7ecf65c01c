"""Kubernetes: a version is a namespace with a Deployment, an endpoint is routes of the Gateway API."""
