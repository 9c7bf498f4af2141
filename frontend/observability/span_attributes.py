"""Names of attributes of spans, from OpenTelemetry's semantic conventions. Their package declares its own as unstable.

`gen_ai.*` are of semantic-conventions-genai, which is still under development. A test compares all names with it.
Nothing here holds text of a client: no prompt, no completion, no stop string, no key.
"""

from __future__ import annotations

OPERATION_NAME = "gen_ai.operation.name"
OPERATIONS = {"completions": "text_completion", "chat": "chat"}  # by our own names
PROVIDER_NAME = "gen_ai.provider.name"
PROVIDER = "triton_completions"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
CHOICE_COUNT = "gen_ai.request.choice.count"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

# By the names of CompletionRequest's fields: numbers only.
OF_PARAMETERS = {
    "token_limit": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}

ERROR_TYPE = "error.type"
HTTP_METHOD = "http.request.method"
HTTP_STATUS = "http.response.status_code"
URL_PATH = "url.path"
SERVER_ADDRESS = "server.address"
SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE_ID = "service.instance.id"

# Of this project
REQUEST_ID = "completions.request_id"
CANCEL_REASON = "completions.cancel_reason"
CHOICE = "completions.choice"
FINISH_REASON = "completions.finish_reason"

EVENT_QUEUED = "queued"
EVENT_FIRST_TOKEN = "first_token"
EVENT_CANCELLED = "cancelled"
SPAN_DECODE = "decode.request"
SPAN_QUEUE = "decode.queue"
SPAN_PREFILL = "decode.prefill"
SPAN_GENERATION = "decode.generation"
