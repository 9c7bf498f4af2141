"""Which Generator completes the prompts: one for each Triton, balanced when there are several."""

from __future__ import annotations

from frontend.generator import Generator
from frontend.generator_pool import EndpointListener, balanced
from frontend.settings import FrontendSettings
from frontend.triton_channel import TritonChannel
from frontend.triton_generator import TritonGenerator


def create_generator(settings: FrontendSettings, listener: EndpointListener) -> Generator:
    """Connections are made at first use."""
    generators = {
        address: TritonGenerator(TritonChannel(address), settings.triton_model) for address in settings.triton_addresses
    }
    return balanced(generators, listener, check_s=settings.ready_check_s)
