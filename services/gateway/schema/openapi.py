"""/openapi.json, made from the same tables that validate."""

import functools
from typing import Any

from deepflow import __version__
from services.gateway.schema.admin import COUNT, DEPLOYMENT, REPLICAS
from services.gateway.schema.chat import CHAT
from services.gateway.schema.completion import COMPLETION
from services.gateway.schema.context_caches import CONTEXT_CACHE
from services.gateway.schema.embedding import EMBEDDING
from services.gateway.schema.fields import Fields, schema_of
from services.gateway.schema.tokens import DETOKENIZE, TOKENIZE

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "An API key is needed, or this one is not known.",
    "403": "The key may not use the model.",
    "404": "No such model.",
    "413": "The body is too large.",
    "429": "A limit of the key's tenant is reached; come back after Retry-After.",
    "503": "Nobody can serve this right now; come back after Retry-After.",
    "504": "The deadline passed.",
}


@functools.cache
def openapi_document() -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "DeepFlow", "version": __version__},
        "paths": {
            "/v1/models": {"get": _plain("List the models")},
            "/v1/models/{model}": {"get": _plain("One model", parameter="model")},
            "/v1/chat/completions": {
                "post": _calling("Answer a conversation", CHAT, ["model", "messages"])
            },
            "/v1/completions": {
                "post": _calling("Continue prompts", COMPLETION, ["model", "prompt"])
            },
            "/v1/embeddings": {
                "post": _calling("Turn texts into vectors", EMBEDDING, ["model", "input"])
            },
            "/v1/tokenize": {
                "post": _calling("Token ids of a text or a chat", TOKENIZE, ["model"])
            },
            "/v1/detokenize": {
                "post": _calling("The text of token ids", DETOKENIZE, ["model", "tokens"])
            },
            "/tokenize": {"post": _calling("As /v1/tokenize", TOKENIZE, ["model"])},
            "/detokenize": {"post": _calling("As /v1/detokenize", DETOKENIZE, ["model", "tokens"])},
            "/v1/context_caches": {
                "get": _plain("Your context caches"),
                "post": _calling("Keep what conversations begin with", CONTEXT_CACHE, ["model"]),
            },
            "/v1/context_caches/{id}": {
                "get": _plain("One context cache", "id"),
                "delete": _plain("Keep it no more", "id"),
            },
            "/v1/requests/{request}": {"get": _plain("What became of a request", "request")},
            **_admin_paths(),
            "/health": {"get": _plain("Is the process alive")},
            "/ready": {"get": _plain("Does it take requests")},
            "/metrics": {"get": _plain("Prometheus metrics")},
        },
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # Or none: as long as nobody made a key, nobody is asked for one.
        "security": [{"key": []}, {}],
    }


def _admin_paths() -> dict[str, Any]:
    """For admin keys; a change of a deployment or a number is 202 until it has come about."""
    put = _accepting(_calling("Make or change a deployment", DEPLOYMENT, []), "name")
    scale = _accepting(_calling("Change its replicas", REPLICAS, ["replicas"]), "name")
    count = _accepting(_calling("Change how many there be", COUNT, ["count"]), "kind")
    return {
        "/v1/admin/deployments": {"get": _plain("What is deployed, and what came of it")},
        "/v1/admin/deployments/{name}": {
            "get": _plain("One deployment", "name"),
            "put": put,
            "delete": _plain("Serve it no more", "name"),
        },
        "/v1/admin/deployments/{name}/scale": {"put": scale},
        "/v1/admin/members": {"get": _plain("The members of the cluster")},
        "/v1/admin/services": {"get": _plain("How many there are of what is scaled")},
        "/v1/admin/services/{kind}": {"get": _plain("How many there are", "kind"), "put": count},
        "/v1/admin/keys": {
            "get": _plain("Keys and tenants"),
            "post": _plain("Make a key, which is shown this once"),
        },
        "/v1/admin/keys/{id}": {"delete": _plain("Revoke a key", "id")},
        "/v1/admin/tenants/{name}": {"put": _plain("Change what a tenant may use", "name")},
        "/v1/admin/usage": {"get": _plain("What was used, by tenant, key and model")},
    }


def _accepting(operation: dict[str, Any], parameter: str) -> dict[str, Any]:
    operation["parameters"] = [_in_path(parameter)]
    operation["responses"]["202"] = {"description": "Accepted, and under way."}
    operation["responses"]["409"] = {"description": "Somebody else changed it at the same time."}
    return operation


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _plain(summary: str, parameter: str = "") -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": {"description": "OK"}}}
    if parameter:
        operation["parameters"] = [_in_path(parameter)]
    return operation


def _calling(summary: str, fields: Fields, required: list[str]) -> dict[str, Any]:
    properties = schema_of(fields.honoured)
    for inert in fields.inert:
        allowed: dict[str, Any] = {"enum": list(inert.values)} if inert.values else {}
        properties[inert.name] = {
            **allowed,
            "description": f"Accepted without effect. {inert.meaning}",
        }
    schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": "OK"}, **_error_responses()},
    }


def _error_responses() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": text, "content": content} for status, text in _ERRORS.items()}
