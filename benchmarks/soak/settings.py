"""Settings of a soak, from the environment like those of the stack itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from llm_pipeline.runtime.program_settings import ProgramSettings


class SoakSettings(ProgramSettings):
    """How long, how much, and where the report goes."""

    model_config = SettingsConfigDict(env_prefix="SOAK_")

    minutes: float = Field(20.0, gt=0, description="Duration of the traffic in minutes")
    clients: int = Field(24, ge=1, description="Number of concurrent clients")
    executor: Literal["scripted", "cpu"] = Field("scripted", description="What generates the tokens")
    output: Path = Field(Path("docs/reliability"), description="Directory for soak.json, soak.png and soak.svg")
    seed: int = Field(1, description="Seed of the random traffic")
