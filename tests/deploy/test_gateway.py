"""The route of a gateway, with weights for releases, and the pool of an endpoint picker."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.support.chart import ROUTES, Document, Values, containers, only, refusal, rendered, serving_template
from tests.support.custom_resources import complaints

POOL: Values = {"inferencePool": {"enabled": True, "endpointPicker": {"name": "picker"}}}
PARENT: Values = {"enabled": True, "parentRefs": [{"name": "public"}]}
OLD, NEW = "llama-1a2b3c4d", "llama-5e6f7a8b"


def route_of(changes: Values, variant: str = "engine-pvc") -> Document:
    spec: Document = only(rendered({"gateway": changes}, variant), "HTTPRoute", "route")["spec"]
    return spec


def canary(old: int, new: int, **changes: Any) -> Document:
    """The route alone, with weights for two generations."""
    releases = [{"name": OLD, "weight": old}, {"name": NEW, "weight": new, "canary": "5e6f7a8b"}]
    only_route = {**ROUTES["route"]["gateway"]["httpRoute"], "releases": releases, **changes}
    (document,) = rendered({"requireApiKey": True, "gateway": {"httpRoute": only_route}}, "open-single")
    assert complaints(document) == []
    return document


def weights(rule: Document) -> dict[str, int]:
    return {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}


@pytest.mark.parametrize("new", [0, 5, 50, 100])
def test_generations_share_the_requests_by_weight(new: int) -> None:
    by_header, by_weight = canary(100 - new, new)["spec"]["rules"]
    assert weights(by_weight) == {OLD: 100 - new, NEW: new}
    assert weights(by_header) == {NEW: 1}


def test_a_header_reaches_the_new_generation_whatever_its_weight() -> None:
    by_header, _by_weight = canary(100, 0)["spec"]["rules"]
    assert by_header["matches"] == [
        {
            "path": {"type": "PathPrefix", "value": path},
            "headers": [{"name": "x-engine-generation", "value": "5e6f7a8b"}],
        }
        for path in ("/v1", "/v2")
    ]


def test_a_promotion_and_a_rollback_change_weights_alone() -> None:
    """So nothing is restarted: both generations stay loaded."""
    promoted, back = canary(0, 100), canary(100, 0)
    for document in (promoted, back):
        for backend in document["spec"]["rules"][1]["backendRefs"]:
            backend.pop("weight")
    assert promoted == back


def test_backends_are_services_or_pools_of_the_releases() -> None:
    service = canary(1, 1)["spec"]["rules"][1]["backendRefs"][0]
    assert service == {"name": OLD, "port": 80, "weight": 1}
    pool = canary(1, 1, backend="InferencePool")["spec"]["rules"][1]["backendRefs"][0]
    assert pool == {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": OLD, "weight": 1}


def test_a_route_of_one_release_leads_to_its_service_by_the_paths_of_the_api() -> None:
    spec = route_of({"httpRoute": PARENT})
    (rule,) = spec["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/v1"}}]
    assert rule["backendRefs"] == [{"name": "demo", "port": 80, "weight": 1}]
    assert spec["parentRefs"] == [{"name": "public"}]


@pytest.mark.parametrize(
    ("changes", "expected"), [({}, "310s"), ({"timeoutSeconds": 0}, "0s"), ({"timeoutSeconds": 7}, "7s")]
)
def test_the_gateway_does_not_cut_a_request_before_its_own_limit(changes: Values, expected: str) -> None:
    (rule,) = route_of({"httpRoute": {**PARENT, **changes}})["rules"]
    assert rule["timeouts"] == {"request": expected}


def test_the_pool_selects_the_serving_pods_and_names_the_picker() -> None:
    found = rendered({"gateway": POOL})
    pool = only(found, "InferencePool")["spec"]
    template = serving_template(found)
    labels = template["metadata"]["labels"]
    assert pool["selector"]["matchLabels"].items() <= labels.items()
    assert pool["endpointPickerRef"] == {
        "kind": "Service",
        "name": "picker",
        "port": {"number": 9002},
        "failureMode": "FailOpen",
    }
    (port,) = containers(template["spec"])["frontend"]["ports"]
    assert pool["targetPorts"] == [{"number": port["containerPort"]}]
    assert labels["llm-d.ai/engine-type"] == "triton-tensorrt-llm"


def test_rules_in_cel_hold() -> None:
    """Of the definitions in tests/data/custom_resources: x-kubernetes-validations that a render could break."""
    pool = only(rendered({"gateway": POOL}), "InferencePool")["spec"]
    picker = pool["endpointPickerRef"]
    assert picker["kind"] != "Service" or "port" in picker
    numbers = [port["number"] for port in pool["targetPorts"]]
    assert len(numbers) == len(set(numbers))
    for backend in ("Service", "InferencePool"):
        for rule in canary(1, 1, backend=backend)["spec"]["rules"]:
            assert all("port" in reference or reference.get("group") for reference in rule["backendRefs"])
            assert all("//" not in match["path"]["value"] for match in rule["matches"])


def test_pods_have_no_label_of_a_picker_without_a_pool() -> None:
    assert "llm-d.ai/engine-type" not in serving_template(rendered({}))["metadata"]["labels"]


def test_a_route_alone_has_no_other_object() -> None:
    canary(1, 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"httpRoute": {"enabled": True}}, "needs a Gateway in parentRefs"),
        ({"httpRoute": {**PARENT, "only": True}}, "this release would have no object"),
        ({"httpRoute": {**PARENT, "releases": [{"name": OLD, "weight": 0}]}}, "all weights are 0"),
        ({"httpRoute": {**PARENT, "backend": "InferencePool"}}, "gateway.inferencePool is not enabled"),
        ({"inferencePool": {"enabled": True}}, "Name the Service of the endpoint picker"),
        ({"httpRoute": {**PARENT, "releases": [{"name": OLD}]}}, "weight"),
        ({"httpRoute": {**PARENT, "paths": ["v1"]}}, "paths"),
    ],
)
def test_a_route_or_a_pool_that_cannot_work_is_refused(changes: Values, expected: str) -> None:
    assert expected in refusal({"gateway": changes})


def test_misspelt_fields_are_found() -> None:
    """So that the strict tests can fail."""
    for document in (canary(1, 1), only(rendered({"gateway": POOL}), "InferencePool")):
        wrong = copy.deepcopy(document)
        wrong["spec"]["hostName"] = "llm.example.com"
        assert len(complaints(wrong)) == 1
