"""What a refresh by the real engine finds, and what it keeps to itself."""

from __future__ import annotations

import psutil

from tests.engine.sandbox import Sandbox


def test_an_edited_timeout_is_shown_by_a_preview_and_put_right_by_the_next_deploy(project: Sandbox) -> None:
    project.must("deploy", project.write_version("timeouts", "1.0.0"))
    endpoint = project.write_endpoint("timeouts", {"1.0.0": 1}, timeouts={"per_try": "12345ms"})
    project.must("deploy", endpoint)
    live = project.node.router / "routes.json"
    before = live.read_text()
    edited = live.with_suffix(".edited")
    edited.write_text(before.replace("12.345s", "0.001s"))
    edited.replace(live)

    for _ in range(2):
        preview = project.pulumi("preview", "--refresh", "--diff", "--stack", "dev.timeouts")
        assert "router/routes.json does not hold what its owners' files say" in preview.out, preview
    drift = project.lepton("drift", endpoint)
    assert drift.status == 3, drift
    assert "would update EndpointRoutes" in drift.out
    assert "router/routes.json does not hold what its owners' files say" in drift.out
    assert project.pulumi("refresh", "--yes", "--stack", "dev.timeouts").status == 0
    outcome = project.must("deploy", endpoint)

    assert "1 updated" in outcome.out
    assert "12.345s" in live.read_text()
    assert "nothing changed" in project.must("deploy", endpoint).out
    assert project.must("drift", endpoint, "--json").json == {"stacks": 1, "differing": []}


def test_a_secret_of_a_server_stays_out_of_the_state_after_a_refresh_too(project: Sandbox) -> None:
    address = project.write_version("hidden", "1.0.0")
    project.pulumi("stack", "init", "dev.hidden-1.0.0")
    arguments = ["config", "set", "--secret", "--path", "lepton:version.server.env.TOKEN", "hunter2-very-secret"]
    assert project.pulumi(*arguments, "--stack", "dev.hidden-1.0.0").status == 0

    for _ in range(2):
        outcome = project.must("deploy", address)
        assert "hunter2" not in outcome.out + outcome.err
    assert project.pulumi("refresh", "--yes", "--stack", "dev.hidden-1.0.0").status == 0

    (pid,) = project.server_pids("hidden", "1.0.0")
    assert psutil.Process(pid).environ()["TOKEN"] == "hunter2-very-secret"
    files = [path for path in project.root.rglob("*") if path.is_file()]
    holding = {path.parent for path in files if b"hunter2" in path.read_bytes()}
    assert holding == {project.node.programs}


def test_a_preview_of_a_change_looks_at_what_the_change_can_touch(project: Sandbox) -> None:
    project.must("deploy", project.write_version("seen", "1.0.0"))
    project.must("deploy", project.write_endpoint("seen", {"1.0.0": 1}))
    for command in (["init", "--quiet"], ["add", "stacks", "Pulumi.yaml"], ["commit", "--quiet", "--message", "all"]):
        author = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]
        assert project.run("git", *author, *command).status == 0
    assert project.must("preview", "dev", "--since", "HEAD").out == "0 stacks: no change\n"

    project.write_endpoint("seen", {"1.0.0": 2})
    project.write_version("seen", "2.0.0")
    said = project.must("preview", "dev", "--since", "HEAD", "--json").json
    assert said["stacks"] == 2
    new, changed = said["differing"]
    assert (new["stack"], new["new"]) == ("diagnostics/dev.seen-2.0.0", True)
    assert changed["stack"] == "diagnostics/dev.seen"
    found = [(difference["operation"], difference["resource"]) for difference in changed["differences"]]
    assert found == [("update", "dev.seen-routes")]
    assert project.observed("diagnostics/dev.seen") == {"1.0.0": 1}

    project.write_version("seen", "1.0.0", package=False, artifact=f"sha256:{'0' * 64}")
    failing = project.lepton("preview", "dev", "--since", "HEAD")
    assert failing.status == 1
    assert "diagnostics/dev.seen-1.0.0: " in failing.out
    assert f"given sha256:{'0' * 64}" in failing.out
