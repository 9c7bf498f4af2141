"""Writes the schemas of custom resources that the chart's tests use: `python -m scripts.custom_resources`.

    python -m scripts.custom_resources REPOSITORY COMMIT PATH CRD.yaml   (a CustomResourceDefinition of that path)

Descriptions, status and superseded versions are left out. A pod template, which is most of such a file, becomes
`{"podTemplate": true}`: its fields are those of Kubernetes, which the tests check as such.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "custom_resources"
POD_TEMPLATE = {"podTemplate": True}
_LEFT_OUT = {"description", "x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-map-type", "status"}


def reduced(schema: Any) -> Any:
    """Returns a schema of a CRD without what does not decide whether an object is valid."""
    if isinstance(schema, list):
        return [reduced(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    properties = schema.get("properties", {})
    if _is_pod_template(properties):
        return POD_TEMPLATE
    kept = {name: reduced(value) for name, value in schema.items() if name not in _LEFT_OUT and name != "properties"}
    if properties:
        kept["properties"] = {name: reduced(value) for name, value in properties.items()}
    return kept


def _is_pod_template(properties: dict[str, Any]) -> bool:
    return set(properties) == {"metadata", "spec"} and "containers" in properties["spec"].get("properties", {})


def document(repository: str, commit: str, path: str, definition: dict[str, Any]) -> dict[str, Any]:
    """Returns the file's content for the newest version that a CRD stores."""
    spec = definition["spec"]
    (version,) = [version for version in spec["versions"] if version["storage"]]
    schema = reduced(version["schema"]["openAPIV3Schema"])
    schema["properties"].pop("status", None)
    return {
        "source": f"{repository}, {path} at {commit[:8]}, Apache-2.0",
        "apiVersion": f"{spec['group']}/{version['name']}",
        "kind": spec["names"]["kind"],
        "schema": schema,
    }


def main() -> None:
    """Writes one file, named after the kind."""
    repository, commit, path, file = sys.argv[1:]
    content = document(repository, commit, path, yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    (FOLDER / f"{content['kind'].lower()}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
