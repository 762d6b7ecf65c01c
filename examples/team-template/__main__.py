"""Each stack is one model version or one endpoint, as its config says."""

from infra.program import team

team()
