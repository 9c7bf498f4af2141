"""Lists the fields of OpenAI's and vLLM's chat that are not implemented, and their no-op values.

Those of completions are among them: a client that sends a prompt to chat, or asks it to echo, is told so.
"""

from __future__ import annotations

from frontend.request.unsupported_fields import ANY_VALUE, INSTEAD, NO_OP_VALUES, UnsupportedFields

OF_CHAT = UnsupportedFields(
    NO_OP_VALUES
    | {
        "audio": (),
        "best_of": (1,),
        "chat_template": (),
        "echo": (False,),
        "function_call": ("none",),
        "functions": ([],),
        "media_io_kwargs": ({},),
        "metadata": ANY_VALUE,  # of stored completions
        "mm_processor_kwargs": ({},),
        "modalities": (["text"],),
        "prediction": ANY_VALUE,  # makes an answer faster, never different
        "moderation": (),
        "prompt": (),
        "prompt_cache_key": ANY_VALUE,
        "prompt_cache_options": ANY_VALUE,
        "prompt_cache_retention": ANY_VALUE,
        "safety_identifier": ANY_VALUE,
        "service_tier": ("auto", "default"),
        "store": (False,),
        "suffix": ("",),
        "verbosity": ("medium",),
        "web_search_options": (),
    },
    INSTEAD
    | {
        "chat_template": "the model's own template with chat_template_kwargs",
        "echo": "continue_final_message",
        "function_call": "tool_choice",
        "functions": "tools",
        "prompt": "messages",
        "prompt_logprobs": "/v1/completions with echo and logprobs",
        "suffix": "/v1/completions",
    },
)
