"""The dashboards: their JSON, and that Prometheus can answer all that their panels ask."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from infra.monitoring.catalogue import METRICS
from infra.monitoring.dashboards import ENDPOINT, dashboard_path, dashboards
from tests.unit.promtool import Promtool

DASHBOARDS = {found["uid"]: found for found in dashboards()}


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_uids_are_those_that_links_were_given():
    assert set(DASHBOARDS) == {"lepton-fleet", "lepton-endpoint", "lepton-version", "lepton-nodes"}


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_panels_ask_for_metrics_of_the_catalogue_only(uid: str):
    known = {metric.name for metric in METRICS}
    for expression in expressions(DASHBOARDS[uid]):
        asked = set(re.findall(r"\b(?:version|endpoint|node):\w+:\w+", expression))
        assert asked, expression
        assert asked <= known, expression
        # Nothing but them has a name: no metric of an exporter.
        rest = re.sub(r"\{[^}]*\}|\b(?:by|on|group_left) \([^)]*\)|\b(?:version|endpoint|node):\w+:\w+", "", expression)
        assert set(re.findall(r"[a-z_]+", rest)) <= {"sum", "topk", "and"}, expression


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_prometheus_parses_what_the_panels_ask(uid: str, tmp_path: Path):
    filled = [re.sub(r"\$(\w+)", r"\1", expression) for expression in expressions(DASHBOARDS[uid])]
    rules = [{"record": f"panel:number:{number}", "expr": expression} for number, expression in enumerate(filled)]
    Promtool(tmp_path, {"panels.yml": yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]})}).lint()


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_panels_lie_beside_each_other_and_within_the_page(uid: str):
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[uid]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARDS[uid]["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("uid", DASHBOARDS)
def test_the_variables_of_the_panels_are_defined_each_after_those_that_it_needs(uid: str):
    defined: set[str] = set()
    for variable in DASHBOARDS[uid]["templating"]["list"]:
        assert set(re.findall(r"\$(\w+)", variable["definition"])) <= defined
        defined.add(variable["name"])
    assert {
        name for expression in expressions(DASHBOARDS[uid]) for name in re.findall(r"\$(\w+)", expression)
    } <= defined


def test_an_endpoints_path_chooses_its_team_and_model():
    url = urlsplit(dashboard_path("diagnostics", "tumour"))
    assert url.path == f"/d/{ENDPOINT}"
    names = {f"var-{variable['name']}" for variable in DASHBOARDS[ENDPOINT]["templating"]["list"]}
    assert parse_qs(url.query) == {"var-team": ["diagnostics"], "var-model": ["tumour"]}
    assert set(parse_qs(url.query)) == names


def test_all_of_them_fit_into_a_config_map():
    assert sum(len(json.dumps(found, indent=1)) for found in dashboards()) < 500_000


def test_the_share_of_requests_is_a_versions_part_of_its_endpoints(tmp_path: Path):
    (share,) = [panel for panel in DASHBOARDS[ENDPOINT]["panels"] if panel["title"] == "Share of the requests"]
    expression = share["targets"][0]["expr"].replace("$team", "t").replace("$model", "m")
    labels = 'team="t",model="m",version='
    Promtool(tmp_path, {"none.yml": "groups: []\n"}).check(
        {
            f'version:requests:rate1m{{{labels}"1.0.0"}}': "9x100",
            f'version:requests:rate1m{{{labels}"2.0.0"}}': "1x100",
            'version:requests:rate1m{team="other",model="m",version="1.0.0"}': "90x100",
        },
        {expression: {f'{labels}"1.0.0"': 0.9, f'{labels}"2.0.0"': 0.1}},
    )
