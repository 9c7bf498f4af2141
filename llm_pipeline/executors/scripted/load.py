"""Loads the scripted executor: reads its script file and the words of the engine's tokenizer."""

from __future__ import annotations

from llm_pipeline.engine_files.manifest import EngineManifest
from llm_pipeline.executors.port import Executor, OutputSink
from llm_pipeline.executors.scripted.executor import ScriptedExecutor
from llm_pipeline.executors.scripted.scripts import read_scripts, synthetic_words
from llm_pipeline.runtime.settings import PipelineSettings


def load_executor(settings: PipelineSettings, manifest: EngineManifest, sink: OutputSink) -> Executor:
    """Returns a running executor. Raises ValidationError if the script file is not a list of valid scripts."""
    return ScriptedExecutor(
        read_scripts(settings.scripted_file),
        synthetic_words(settings.engine_dir),
        sink,
        steps_per_s=settings.scripted_steps_per_s,
        max_active=settings.scripted_max_active,
    )
