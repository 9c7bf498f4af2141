"""pydantic-ai: an agent that has to call a tool first and then to answer with a model, by each of its output modes."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from endpoint import API_KEY, BASE_URL, MODEL, report
from pydantic_ai import Agent, NativeOutput, RunContext, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from weather import MESSAGES, QUESTION, RESULT, Forecast, Place

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=API_KEY))
GREEDY = {"temperature": 0, "max_tokens": 200}
OUTPUTS = {"tool": ToolOutput(Forecast, strict=True), "native": NativeOutput(Forecast, strict=True)}


class ToolFirst(AbstractCapability):
    """The first request of a run has to call get_weather, the second has to be the answer."""

    def get_model_settings(self) -> object:
        def by_step(context: RunContext) -> dict[str, object]:
            return {"tool_choice": ["get_weather"] if context.run_step == 1 else "none"}

        return by_step


async def streamed(agent: Agent) -> Forecast:
    async with agent.run_stream(QUESTION) as result:
        return await result.get_output()


def agent_of(output: object, places: list[dict[str, object]]) -> Agent:
    agent = Agent(model, output_type=output, model_settings=GREEDY, retries=0, capabilities=[ToolFirst()])

    @agent.tool_plain
    def get_weather(place: Place) -> str:
        """The weather at a place."""
        places.append(place.model_dump(mode="json"))
        return RESULT

    return agent


def by_output(output: object) -> dict[str, object]:
    places: list[dict[str, object]] = []
    agent = agent_of(output, places)
    run = agent.run_sync(QUESTION)
    return {
        "parsed": run.output.model_dump(mode="json"),
        "requests": run.usage.requests,
        "places": places,
    }


def main() -> None:
    text = Agent(model, model_settings={**GREEDY, "max_tokens": 8})
    report(
        {
            "version": version("pydantic-ai-slim"),
            "text": text.run_sync(MESSAGES[0]["content"]).output,
            "streamed": asyncio.run(streamed(agent_of(OUTPUTS["tool"], []))).model_dump(mode="json"),
            "outputs": {name: by_output(output) for name, output in OUTPUTS.items()},
        }
    )


main()
