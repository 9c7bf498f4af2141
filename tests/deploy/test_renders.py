"""helm accepts the chart, and every render is valid on the oldest, a middle and the newest Kubernetes."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from scripts.chart_files import CHART, EXAMPLES
from tests.support.chart import (
    ALL,
    OF_IMAGE_VOLUMES,
    RENDERED,
    VARIANTS,
    documents,
    helm,
    need_tools,
    only,
    refusal,
    rendered,
    validator,
)
from tests.support.custom_resources import CUSTOM_RESOURCES, complaints

VERSIONS = ("1.30", "1.34", "1.37")
TOO_OLD = {(name, "1.30") for name in OF_IMAGE_VOLUMES}
CORE = {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Job", "ConfigMap", "Pod"}
KINDS = CORE | CUSTOM_RESOURCES


# Image volumes are newer than 1.30, where the chart refuses them: test_image_volumes_are_refused_before_1_31.
COMBINATIONS = [(name, version) for name in RENDERED for version in VERSIONS if (name, version) not in TOO_OLD]


@pytest.mark.parametrize(("name", "version"), COMBINATIONS)
def test_every_object_is_valid_without_unknown_fields(name: str, version: str) -> None:
    found = documents(name, version)
    for document in found:
        if document["kind"] in CUSTOM_RESOURCES:
            assert complaints(document, version) == []
        else:
            validator().validate(document, version, strict=True)
    assert {document["kind"] for document in found} <= KINDS


@pytest.mark.parametrize("name", sorted(OF_IMAGE_VOLUMES & set(VARIANTS)))
def test_image_volumes_are_refused_before_1_31(name: str) -> None:
    assert "needs Kubernetes 1.31 or later" in refusal({}, name, "1.30.0")


def test_the_validator_finds_a_misspelt_field() -> None:
    """So that the test above can fail."""
    need_tools()
    service = next(document for document in documents("cpu") if document["kind"] == "Service")
    wrong = {**service, "spec": {**service["spec"], "sesionAffinity": "None"}}
    with pytest.raises(validator().ValidationError):
        validator().validate(wrong, VERSIONS[0], strict=True)


def test_older_kubernetes_is_refused() -> None:
    assert "requires kubeVersion: >=1.30.0-0" in refusal({}, kubernetes="1.29.0")


@pytest.mark.parametrize("example", EXAMPLES)
def test_helm_lints_the_chart_without_warnings(example: str) -> None:
    run = helm("lint", CHART, "--strict", "--values", EXAMPLES[example])
    assert run.returncode == 0, run.stdout
    assert "[WARNING]" not in run.stdout
    assert "[ERROR]" not in run.stdout


def test_the_package_renders_as_the_folder_does(tmp_path: Path) -> None:
    run = helm("package", CHART, "--destination", tmp_path)
    assert run.returncode == 0, run.stderr
    (package,) = tmp_path.glob("triton-completions-*.tgz")
    options = ("--values", EXAMPLES["h200-pytorch"])
    assert helm("template", "demo", package, *options).stdout == helm("template", "demo", CHART, *options).stdout
    with tarfile.open(package) as archive:
        names = archive.getnames()
    assert "triton-completions/files/smoke.py" in names
    assert not [name for name in names if "__pycache__" in name or "/examples/" in name]


@pytest.mark.parametrize("name", ALL)
def test_names_and_labels_are_consistent(name: str) -> None:
    """A selector selects the pods of its own component, and nothing else."""
    found = documents(name)
    for document in found:
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "demo"
        assert "namespace" not in document["metadata"]  # that of the release
        selector = document.get("spec", {}).get("selector", {})
        is_of_group = "leaderworkerset.sigs.k8s.io/name" in selector.get("matchLabels", ())
        if (
            document["kind"] in ("Deployment", "Service", "PodDisruptionBudget", "PodMonitor", "InferencePool")
            and not is_of_group
        ):
            wanted = selector.get("matchLabels", selector)
            assert wanted["app.kubernetes.io/component"] == "serve"
            assert wanted.items() <= labels.items()
        if document["kind"] == "Deployment":
            assert selector["matchLabels"].items() <= document["spec"]["template"]["metadata"]["labels"].items()


def test_a_changed_build_has_another_name() -> None:
    """A Job is immutable, so `helm upgrade` would fail."""

    def name(fleet: str) -> str:
        job = {**VARIANTS["build-job"]["buildJob"], "fleet": fleet}
        return str(only(rendered({"buildJob": job}, "build-job"), "Job", "build")["metadata"]["name"])

    first = VARIANTS["build-job"]["buildJob"]["fleet"]
    assert name(first) == name(first)
    assert name(first) != name(first + "tp = 2\n")
