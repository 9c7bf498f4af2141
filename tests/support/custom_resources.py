"""Validates custom resources against the schemas of their definitions, in which unknown fields are errors.

The schemas are in tests/data/custom_resources (scripts/custom_resources.py). Rules in CEL are not evaluated: the tests
repeat those that a render can break.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema

from scripts.custom_resources import FOLDER, POD_TEMPLATE
from tests.support.chart import Document, validator

CUSTOM_RESOURCES = {"HTTPRoute", "InferencePool", "LeaderWorkerSet", "PodMonitor", "PrometheusRule", "ScaledObject"}


@cache
def _definition(kind: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{kind.lower()}.json").read_text(encoding="utf-8"))
    return loaded


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema == POD_TEMPLATE or schema.get("x-kubernetes-int-or-string"):
        return {}
    found = {name: _strict(value) for name, value in schema.items() if name != "properties"}
    if "properties" in schema:
        found["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    return found


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = _strict(_definition(kind)["schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def complaints(document: Document, kubernetes: str = "1.34") -> list[str]:
    """What is wrong with a custom resource, its pod templates included."""
    kind = document["kind"]
    found = [] if document["apiVersion"] == _definition(kind)["apiVersion"] else [f"{document['apiVersion']} {kind}"]
    found += [f"{error.json_path}: {error.message}" for error in _validator(kind).iter_errors(document)]
    for path, template in _pod_templates(_definition(kind)["schema"], document):
        selector = {"matchLabels": template["metadata"]["labels"]}
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "a"},
            "spec": {"selector": selector, "template": template},
        }
        try:
            validator().validate(deployment, kubernetes, strict=True)
        except validator().ValidationError as error:
            found.append(f"{path}: {error.message}")
    return found


def _pod_templates(schema: Any, value: Any, path: str = "$") -> list[tuple[str, Document]]:
    if schema == POD_TEMPLATE:
        return [(path, value)]
    if not isinstance(value, dict) or not isinstance(schema, dict):
        return []
    parts = schema.get("properties", {})
    return [
        found
        for name, child in value.items()
        if name in parts
        for found in _pod_templates(parts[name], child, f"{path}.{name}")
    ]
