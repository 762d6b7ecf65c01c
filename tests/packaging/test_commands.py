"""`lepton package` as a user has it: a version's way from a folder through the catalogue, and out of the store."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cli.package import app
from model_packaging.catalogue.catalogue import Catalogue
from model_packaging.stores.layout import Layout
from tests.packaging.scripted_server import Reply, Request, answering

STAND_IN = Path(__file__).parents[1] / "evaluation" / "stand_in.py"
SIGNATURE = {
    "inputs": [{"name": "features", "shape": [-1, 2], "datatype": "FP64"}],
    "outputs": [
        {"name": "predict", "shape": [-1], "datatype": "INT64"},
        {"name": "predict_proba", "shape": [-1, 2], "datatype": "FP64"},
    ],
}
PACKAGE: dict[str, Any] = {
    "framework": {"name": "stand-in", "version": "1"},
    "training_data": "made up",
    "licence": "Apache-2.0",
    "labels": {"team": "vision"},
    "signature": SIGNATURE,
    "samples": [{"inputs": [{"name": "features", "shape": [1, 2], "datatype": "FP64", "data": [1, 0]}]}],
    "server": {"command": [sys.executable, str(STAND_IN), "{http_port}", ".", "{version}", "right"]},
}


class Desk:
    """A project's folder, and commands run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "stacks").mkdir()
        (root / "Pulumi.yaml").write_text("name: lepton\nruntime: python\n")

    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def must(self, *arguments: object) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self.must(*arguments, "--json"))

    def build(self, version: str, *more: object, weights: bytes = b"1234", **package: Any) -> Any:
        folder = self.root / "models" / version
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.yaml").write_text(yaml.safe_dump(PACKAGE | package))
        (folder / "weights.bin").write_bytes(weights)
        return self.json("build", folder, "--model", "tumour", "--version", version, "--by", "ada", *more)

    def stage(self, name: str) -> str:
        return self.json("show", name)["summary"]["stage"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for variable in ("SOURCE_DATE_EPOCH", "LEPTON_STORE", "LEPTON_CATALOGUE", "LEPTON_USER", "LEPTON_KEY_PASSWORD"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    return Desk(root)


def test_what_is_built_is_found_by_model_stage_metric_label_and_words(desk: Desk) -> None:
    desk.build("1.0.0", evaluation={"accuracy": 0.95})
    desk.build("1.1.0", evaluation={"accuracy": 0.97}, labels={"team": "audio"})
    conditions = {
        ("--model", "tumour"): ["1.0.0", "1.1.0"],
        ("--model", "other"): [],
        ("--stage", "development"): ["1.0.0", "1.1.0"],
        ("--stage", "released"): [],
        ("--metric", "accuracy>0.96"): ["1.1.0"],
        ("--label", "team=vision"): ["1.0.0"],
        ("--search", "AUDIO"): ["1.1.0"],
        ("--sort", "-accuracy"): ["1.1.0", "1.0.0"],
        ("--limit", "1"): ["1.0.0"],
    }
    found = {asked: [each["version"] for each in desk.json("list", *asked)] for asked in conditions}
    assert found == conditions


def test_a_listing_that_is_cut_says_how_much_there_is(desk: Desk) -> None:
    desk.build("1.0.0")
    desk.build("1.1.0")
    result = desk.run("list", "--limit", "1")
    assert "tumour:1.0.0" in result.stdout
    assert "1 to 1 of 2 versions" in result.stderr


def test_a_version_built_twice_with_other_bytes_is_refused_in_every_store(desk: Desk, tmp_path: Path) -> None:
    desk.build("1.0.0")
    folder = desk.root / "models" / "1.0.0"
    (folder / "weights.bin").write_bytes(b"other")
    elsewhere = tmp_path / "elsewhere"
    result = desk.run("build", folder, "--model", "tumour", "--version", "1.0.0", "--store", elsewhere)
    assert result.exit_code == 1
    assert "tumour 1.0.0 with other bytes" in result.stderr
    assert desk.run("verify", "tumour:1.0.0", "--store", elsewhere).exit_code == 1


def test_two_versions_are_compared_side_by_side(desk: Desk) -> None:
    desk.build("1.0.0", evaluation={"accuracy": 0.95})
    wider = {**SIGNATURE, "inputs": [{"name": "features", "shape": [-1, 3], "datatype": "FP64"}]}
    sample = {"inputs": [{"name": "features", "shape": [1, 3], "datatype": "FP64", "data": [1, 0, 0]}]}
    desk.build("2.0.0", evaluation={"accuracy": 0.97}, signature=wider, samples=[sample])
    said = desk.must("compare", "tumour:1.0.0", "tumour:2.0.0")
    assert "not compatible: tumour:2.0.0 can't take the place of tumour:1.0.0" in said
    assert "+0.02" in said
    assert desk.json("compare", "tumour:1.0.0", "tumour:1.0.0")["compatible"] is True


def test_a_version_goes_through_its_whole_life(desk: Desk) -> None:
    desk.build("1.0.0", evaluation={"accuracy": 0.95})
    desk.must("promote", "tumour:1.0.0", "--by", "ada")
    refused = desk.run("promote", "tumour:1.0.0", "--by", "ada", "--approvals", "1")
    assert (refused.exit_code, "approval by another person" in refused.stderr) == (1, True)
    desk.must("approve", "tumour:1.0.0", "--by", "grace", "--why", "fair on all groups")
    assert "testing → released, by ada" in desk.must("promote", "tumour:1.0.0", "--by", "ada", "--approvals", "1")
    desk.must("deprecate", "tumour:1.0.0")
    desk.must("demote", "tumour:1.0.0")
    assert desk.stage("tumour:1.0.0") == "released"
    desk.must("deprecate", "tumour:1.0.0")
    desk.must("retire", "tumour:1.0.0", "--why", "replaced by 2.0.0")
    history = desk.json("show", "tumour:1.0.0")["history"]
    assert [step["to_stage"] for step in history[-2:]] == ["deprecated", "retired"]
    assert history[-1]["why"] == "replaced by 2.0.0"


def test_a_version_without_evaluation_results_is_not_released(desk: Desk) -> None:
    desk.build("1.0.0")
    desk.must("promote", "tumour:1.0.0")
    refused = desk.run("promote", "tumour:1.0.0")
    assert refused.exit_code == 1
    assert "no evaluation results" in refused.stderr
    assert desk.stage("tumour:1.0.0") == "testing"


def test_a_version_that_an_endpoint_of_any_environment_gives_weight_is_not_retired(desk: Desk) -> None:
    desk.build("1.0.0", evaluation={"accuracy": 0.95})
    for command in ("promote", "promote", "deprecate"):
        desk.must(command, "tumour:1.0.0")
    team = desk.root / "stacks" / "vision"
    team.mkdir()
    endpoint = {"environment": "prod", "model": "tumour", "variants": [{"version": "1.0.0", "weight": 5}]}
    (team / "Pulumi.yaml").write_text("name: vision\nruntime: python\n")
    (team / "Pulumi.prod.tumour.yaml").write_text(yaml.safe_dump({"config": {"lepton:endpoint": endpoint}}))
    refused = desk.run("retire", "tumour:1.0.0")
    assert refused.exit_code == 1
    assert "prod: endpoint vision/prod.tumour gives it weight 5" in refused.stderr
    assert desk.stage("tumour:1.0.0") == "deprecated"


def test_a_signature_counts_only_by_the_key_that_made_it(desk: Desk) -> None:
    desk.build("1.0.0")
    for team in ("ours", "theirs"):
        desk.must("key", desk.root / team)
    unsigned = desk.run("verify", "tumour:1.0.0", "--key", "ours.pub")
    assert (unsigned.exit_code, "is not signed" in unsigned.stderr) == (1, True)
    assert desk.json("sign", "tumour:1.0.0", "--key", "ours")["new"] is True
    assert desk.json("sign", "tumour:1.0.0", "--key", "ours")["new"] is False
    assert "signed by ours.pub" in desk.must("verify", "tumour:1.0.0", "--key", "ours.pub")
    assert desk.run("verify", "tumour:1.0.0", "--key", "theirs.pub").exit_code == 1


def test_a_harmed_artifact_is_not_signed(desk: Desk) -> None:
    desk.build("1.0.0")
    desk.must("key", desk.root / "ours")
    for blob in (desk.root / ".state/store/blobs/sha256").iterdir():
        if blob.read_bytes() == b"1234":
            blob.write_bytes(b"4321")
    refused = desk.run("sign", "tumour:1.0.0", "--key", "ours")
    assert refused.exit_code == 1
    assert "weights.bin" in refused.stderr


def test_a_copy_has_the_digest_and_the_signatures_and_is_in_the_catalogue(desk: Desk, tmp_path: Path) -> None:
    built = desk.build("1.0.0")
    desk.must("key", desk.root / "ours")
    desk.must("sign", "tumour:1.0.0", "--key", "ours")
    elsewhere = str(tmp_path / "elsewhere")
    copied = desk.json("copy", "tumour:1.0.0", "--to", elsewhere)
    assert copied["digest"] == built["digest"]
    assert copied["sent_bytes"] > 0
    desk.must("verify", "tumour:1.0.0", "--store", elsewhere, "--key", "ours.pub")
    assert elsewhere in desk.json("show", "tumour:1.0.0")["summary"]["stores"]
    assert desk.json("copy", "tumour:1.0.0", "--to", elsewhere)["sent_bytes"] == 0


def test_an_export_as_a_folder_holds_the_files(desk: Desk, tmp_path: Path) -> None:
    desk.build("1.0.0")
    desk.must("export", "tumour:1.0.0", "--as", "folder", "--to", tmp_path / "out")
    assert (tmp_path / "out" / "weights.bin").read_bytes() == b"1234"


def test_an_export_for_sagemaker_says_its_model_data_source(desk: Desk, tmp_path: Path) -> None:
    desk.build("1.0.0")
    uri = "s3://models.example/tumour/1.0.0/"
    done = desk.json("export", "tumour:1.0.0", "--as", "sagemaker", "--to", tmp_path / "model.tar.gz", "--uri", uri)
    assert done["document"]["ModelDataSource"]["S3DataSource"]["CompressionType"] == "Gzip"
    assert (tmp_path / "model.tar.gz").stat().st_size == done["size_bytes"]


def test_an_option_of_another_form_is_wrong_usage(desk: Desk, tmp_path: Path) -> None:
    desk.build("1.0.0")
    for options in (["--as", "folder", "--uri", "s3://a/b/"], ["--as", "sagemaker", "--base", "x"]):
        refused = desk.run("export", "tumour:1.0.0", *options, "--to", tmp_path / "out")
        assert (refused.exit_code, "is an option of" in refused.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


def test_an_image_without_a_base_is_wrong_usage(desk: Desk) -> None:
    desk.build("1.0.0")
    assert desk.run("export", "tumour:1.0.0", "--as", "image").exit_code == 2


def test_deleting_and_collecting_frees_what_only_that_version_was_made_of(desk: Desk) -> None:
    desk.build("1.0.0", weights=b"x" * 1000)
    desk.build("1.1.0", weights=b"y" * 2000)
    desk.must("delete", "tumour:1.0.0")
    assert [each["version"] for each in desk.json("list")] == ["1.1.0"]
    planned = desk.json("gc", "--dry-run")
    assert planned["freed_bytes"] > 1000
    assert desk.json("gc")["freed_bytes"] == planned["freed_bytes"]
    assert desk.json("gc")["freed_bytes"] == 0
    desk.must("verify", "tumour:1.1.0")


def test_a_released_version_is_not_deleted(desk: Desk) -> None:
    desk.build("1.0.0", evaluation={"accuracy": 0.95})
    desk.must("promote", "tumour:1.0.0")
    desk.must("promote", "tumour:1.0.0")
    refused = desk.run("delete", "tumour:1.0.0")
    assert (refused.exit_code, "retire it first" in refused.stderr) == (1, True)
    desk.must("verify", "tumour:1.0.0")


def test_a_version_that_a_stack_holds_is_not_deleted(desk: Desk) -> None:
    built = desk.build("1.0.0")
    with Catalogue(built["catalogue"]) as catalogue:
        catalogue.record_deployment("tumour", "1.0.0", environment="dev", stack="vision/dev.tumour-1.0.0", who="ada")
    refused = desk.run("delete", "tumour:1.0.0")
    assert (refused.exit_code, "vision/dev.tumour-1.0.0" in refused.stderr) == (1, True)
    desk.must("verify", "tumour:1.0.0")


def test_a_store_is_one_however_it_is_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.build("1.0.0", "--store", "elsewhere")
    (desk.root / "link").symlink_to(desk.root / "elsewhere")
    monkeypatch.chdir(desk.root / "stacks")
    desk.must("verify", "tumour:1.0.0", "--store", "../link")
    assert desk.json("show", "tumour:1.0.0")["summary"]["stores"] == [str(desk.root / "elsewhere")]
    desk.must("delete", "tumour:1.0.0", "--store", "../link")
    assert desk.json("list") == []


@pytest.mark.parametrize(
    "location", ["s3://bucket/models", "OCI://registry.example/models", "https://registry.example"]
)
def test_a_store_of_a_kind_that_there_is_not_is_refused(desk: Desk, location: str) -> None:
    desk.build("1.0.0")
    refused = desk.run("copy", "tumour:1.0.0", "--to", location)
    assert (refused.exit_code, "oci://HOST" in refused.stderr) == (1, True)
    assert not list(desk.root.glob("*:*"))


def test_a_lost_catalogue_is_made_anew_from_the_store(desk: Desk) -> None:
    desk.build("1.0.0")
    desk.build("1.1.0")
    for file in (desk.root / ".state").glob("catalogue.sqlite*"):
        file.unlink()
    assert desk.json("rebuild")["added"] == ["tumour:1.0.0", "tumour:1.1.0"]
    assert [each["version"] for each in desk.json("list")] == ["1.0.0", "1.1.0"]


def test_a_registry_that_lists_no_models_is_rebuilt_from_those_that_are_named(desk: Desk) -> None:
    desk.build("1.0.0")
    layout = Layout(desk.root / ".state" / "store")

    def answer(request: Request) -> Reply:
        *_, model, kind, wanted = request.path.partition("?")[0].split("/")
        if (model, kind, wanted) == ("tumour", "tags", "list"):
            return Reply(200, body=json.dumps({"tags": [entry.version for entry in layout.entries()]}).encode())
        if model != "tumour":
            return Reply(404)
        digest = wanted if wanted.startswith("sha256:") else layout.resolve(model, wanted)
        with layout.open_blob(model, digest, "a blob") as blob:
            return Reply(200, {"Docker-Content-Digest": digest}, blob.read())

    with answering(answer) as script:
        asked = ("rebuild", "--store", f"oci+http://{script.host}/models", "--catalogue", "sqlite:///other.sqlite")
        refused = desk.run(*asked)
        assert (refused.exit_code, "lepton package rebuild --model MODEL" in refused.stderr) == (1, True)
        assert desk.json(*asked, "--model", "tumour", "--model", "missing")["added"] == ["tumour:1.0.0"]


@pytest.mark.parametrize("command", ["list", "rebuild"])
def test_a_model_that_is_no_name_is_wrong_usage(desk: Desk, command: str) -> None:
    result = desk.run(command, "--model", "Tumour!")
    assert (result.exit_code, "Tumour!" in result.stderr) == (2, True)


def test_outside_of_a_project_a_build_needs_no_catalogue_and_a_listing_names_the_option(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.build("1.0.0")
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "store"
    folder = desk.root / "models" / "1.0.0"
    built = desk.json("build", folder, "--model", "tumour", "--version", "1.0.0", "--store", store)
    assert built["catalogue"] is None
    refused = desk.run("list")
    assert (refused.exit_code, "--catalogue" in refused.stderr) == (1, True)


def holdout(desk: Desk) -> Path:
    data = desk.root / "holdout.csv"
    data.write_text("a,b,truth\n" + "".join(f"{number / 20},0,{int(number >= 8)}\n" for number in range(20)))
    return data


def test_an_evaluation_is_kept_in_the_catalogue_and_written_as_a_report(desk: Desk) -> None:
    desk.build("1.0.0")
    arguments = [
        "tumour:1.0.0",
        "--data",
        holdout(desk),
        "--target",
        "truth",
        "--positive",
        "1",
        "--report",
        "report.html",
    ]
    found = desk.json("evaluate", *arguments, "--option", "latency_requests=5")
    # The stand-in calls a row positive from 0.5 on; here it is from 0.4 on.
    assert found["evaluations"][0]["metrics"]["accuracy"] == 0.9
    assert "<img" in (desk.root / "report.html").read_text()
    results = desk.json("show", "tumour:1.0.0")["results"]
    assert {result["dataset"] for result in results} == {"holdout.csv"}
    assert [each["version"] for each in desk.json("list", "--metric", "accuracy@holdout.csv>=0.9")] == ["1.0.0"]


def test_a_version_that_can_not_be_evaluated_is_named_and_the_status_is_1(desk: Desk) -> None:
    desk.build("1.0.0", server={"command": ["false"]})
    data = desk.root / "holdout.csv"
    data.write_text("a,b,truth\n1,0,1\n0,0,0\n")
    result = desk.run("evaluate", "tumour:1.0.0", "--data", data, "--target", "truth", "--json")
    assert result.exit_code == 1
    assert "tumour:1.0.0" in result.stderr


def served_after(script: str) -> dict[str, list[str]]:
    """A server that first does something else, so that it happens in the midst of an evaluation."""
    command = PACKAGE["server"]["command"]
    return {"command": ["/bin/sh", "-c", f'{script}; exec "$@"', "sh", *command]}


LOSE_RESULTS = (
    "import sqlite3; sqlite3.connect('.state/catalogue.sqlite').execute('ALTER TABLE results RENAME TO lost')"
)


@pytest.mark.parametrize("as_json", [True, False])
def test_an_evaluation_whose_catalogue_and_report_fail_at_the_end_is_still_told(desk: Desk, as_json: bool) -> None:
    reports = desk.root / "reports"
    reports.mkdir()
    # A folder that is gone would be made again; nobody can make one in a file's place.
    script = f'(cd {desk.root}; rmdir reports; touch reports; {sys.executable} -c "{LOSE_RESULTS}")'
    desk.build("1.0.0", server=served_after(script))
    arguments = ["tumour:1.0.0", "--data", holdout(desk), "--target", "truth", "--option", "latency_requests=0"]
    more = ["--json"] if as_json else []
    result = desk.run("evaluate", *arguments, "--positive", "1", "--report", reports / "report.html", *more)
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 2
    if as_json:
        document = json.loads(result.stdout)
        assert document["evaluations"][0]["metrics"]["accuracy"] == 0.9
        assert (document["catalogue"], document["report"]) == (None, None)
    else:
        assert "accuracy" in result.stdout
        assert "report:" not in result.stdout


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--dataset-name", "package"), "package.yaml states"),
        (("--dataset-name", "x" * 256), "256 characters"),
        (("--report", "nowhere/report.html"), "No such file or directory"),
        (("--report", "/proc/report.html"), "can't be written"),
        (("--catalogue", "sqlite:////proc/catalogue.sqlite"), "/proc"),
        (("--option", "x=["), "is no YAML"),
    ],
)
def test_what_would_lose_an_evaluation_s_results_is_refused_before_a_server_starts(
    desk: Desk, option: tuple[str, str], reason: str
) -> None:
    desk.build("1.0.0", server=served_after(f"touch {desk.root}/started"))
    result = desk.run("evaluate", "tumour:1.0.0", "--data", holdout(desk), "--target", "truth", *option)
    assert result.exit_code in (1, 2)
    assert reason in " ".join(result.stderr.replace("│", " ").split())
    assert not (desk.root / "started").exists()


def test_an_evaluation_that_is_not_kept_may_have_any_name(desk: Desk) -> None:
    desk.build("1.0.0")
    arguments = ["tumour:1.0.0", "--data", holdout(desk), "--target", "truth", "--option", "latency_requests=0"]
    found = desk.json("evaluate", *arguments, "--no-record", "--dataset-name", "package")
    assert (found["catalogue"], found["report"]) == (None, None)
