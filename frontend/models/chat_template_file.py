"""The chat template that a deployment gives for a model, in place of the engine's."""

from __future__ import annotations

from dataclasses import replace

from llm_pipeline.chat_templates.compiled import CompiledTemplate
from llm_pipeline.chat_templates.meter import ChatTemplateError
from llm_pipeline.protocol.model_info import DEFAULT_TEMPLATE, ModelInfo, sha256_of_templates
from llm_pipeline.runtime.deployment import DeployedModel
from llm_pipeline.runtime.deployment_errors import DeploymentError


def read_chat_template(deployed: DeployedModel) -> str | None:
    """The source of the model's own file; None without one. Raises DeploymentError if it is not a template."""
    path = deployed.chat_template
    if path is None:
        return None
    try:
        source = path.read_bytes().decode()
        CompiledTemplate(source)
    except OSError as error:
        raise DeploymentError(f"The chat template {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DeploymentError(f"The chat template {path} is not UTF-8 text.") from error
    except ChatTemplateError as error:
        raise DeploymentError(f"The chat template {path} is invalid: {error}.") from error
    return source


def with_chat_template(info: ModelInfo, source: str | None) -> ModelInfo:
    """The model info with the deployment's template, and with `chat` None if there is no template at all.

    Without the lists of tokens, which an engine of an earlier release does not report, there is no chat: the text of a
    client could not be kept apart from them.
    """
    chat = info.chat
    if chat is not None and source is not None:
        templates = ((DEFAULT_TEMPLATE, source),)
        chat = replace(chat, templates=templates, template_sha256=sha256_of_templates(templates))
    return replace(info, chat=chat if chat is not None and chat.templates else None)
