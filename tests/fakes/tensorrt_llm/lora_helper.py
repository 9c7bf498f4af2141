"""`tensorrt_llm.lora_helper`: LoraConfig."""

from tensorrt_llm.llm_facts import make_model

LoraConfig = make_model("tensorrt_llm.lora_helper.LoraConfig", {})
