"""Checks the symbolic links of a model directory's engine directory against its manifest."""

from __future__ import annotations

import os
from pathlib import Path

from build_engine.artifact.checks import Check
from llm_pipeline.engine_files.manifest import EngineManifest

LINKS = "links"


def read_links(engine_dir: Path, manifest: EngineManifest) -> dict[str, Path]:
    """The target of each file that is a link, by name. Broken links are included."""
    links = {name: engine_dir / name for name in sorted(manifest.files)}
    return {name: Path(os.readlink(path)) for name, path in links.items() if path.is_symlink()}


def link_sources(links: dict[str, Path]) -> list[Path]:
    """The directories that the links point to: one, unless they were changed by hand."""
    return sorted({target.parent for target in links.values()})


def check_links(engine_dir: Path, manifest: EngineManifest) -> Check:
    """Whether the weights are links or copies, as the manifest records. Links must be absolute."""
    model = manifest.pytorch
    assert model is not None
    links = read_links(engine_dir, manifest)
    if not model.is_linked:
        return Check.of(
            LINKS, not links, f"{next(iter(links))} is a link instead of a copy" if links else "none: copies"
        )
    weights = [name for name in manifest.files if name.endswith(".safetensors")]
    if copied := [name for name in weights if name not in links]:
        return Check.of(LINKS, False, f"{copied[0]} is a copy instead of a link")
    if relative := [name for name, target in links.items() if not target.is_absolute()]:
        return Check.of(LINKS, False, f"{relative[0]} is a relative link, which breaks when the engine is moved")
    places = ", ".join(map(str, link_sources(links)))
    return Check.of(LINKS, True, f"{len(links)} files in {places}")
