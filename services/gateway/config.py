"""Every setting of the gateway."""

from pydantic import Field

from deepflow.config import ServiceConfig
from services.gateway.schema.limits import Limits


class GatewayConfig(ServiceConfig):
    port: int = Field(8000, ge=0, le=65535, description="HTTP port; 0 = a free one.")
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Second port with /health, /ready and /metrics alone, which asks for no key:"
        " for the platform's own network; 0 = none.",
    )
    https_certificate: str = Field(
        "",
        description="PEM file of the certificate, with its chain, that the HTTP port shows: it"
        " speaks HTTPS then. Followed: a renewed file is taken within seconds, without a restart.",
    )
    https_key: str = Field("", description="PEM file of its key, without a password.")
    handshake_seconds_max: float = Field(
        10.0, gt=0, description="A TLS handshake must be through within this time."
    )

    access: str = Field(
        "keys",
        pattern="^(keys|open)$",
        description="keys|open. keys: as soon as there is any API key every request needs one."
        " open: nobody is asked, held to a limit or metered; on a loopback interface only.",
    )

    meet_seconds_max: float = Field(
        0.0,
        ge=0,
        le=60,
        description="How long connections are refused after a start, until keys, models and job"
        " executors are known; then they are taken all the same. 0 = taken at once.",
    )
    linger_seconds: float = Field(
        0.0,
        ge=0,
        le=60,
        description="How long after SIGTERM connections are still taken, for load balancers that"
        " learn late of an unready gateway.",
    )

    body_bytes_max: int = Field(
        4 * 1024 * 1024, ge=1024, description="Largest request body; a larger one gets 413."
    )
    head_bytes_max: int = Field(
        32 * 1024, ge=1024, description="Request line and headers together; more gets 431."
    )
    json_depth_max: int = Field(
        64, ge=4, le=512, description="Deepest nesting of arrays and objects in a body."
    )
    request_read_seconds_max: float = Field(
        30.0, gt=0, description="A request must have arrived whole within this time."
    )
    keep_alive_seconds: float = Field(
        65.0, gt=0, description="An idle connection is kept for this long."
    )
    connections_max: int = Field(
        8192,
        ge=1,
        description="Open client connections; one more gets 503. Over TLS those in their"
        " handshake count, and one more is hung up on.",
    )

    n_max: int = Field(16, ge=1, description="Largest n, the choices per prompt.")
    prompts_max: int = Field(64, ge=1, description="Prompts in one completion request.")
    embedding_inputs_max: int = Field(
        2048, ge=1, description="Inputs of one request for embeddings."
    )
    vectors_max: int = Field(
        16384,
        ge=1,
        description="Inputs of all requests for embeddings at one time; one more gets 503.",
    )
    choices_max: int = Field(128, ge=1, description="Prompts times n of one request.")
    messages_max: int = Field(4096, ge=1, description="Messages in one chat request.")
    stop_strings_max: int = Field(4, ge=1, description="Stop strings of one request.")
    stop_characters_max: int = Field(256, ge=1, description="Characters of one stop string.")

    grammar_bytes_max: int = Field(
        128 * 1024,
        ge=64,
        description="JSON schema, expression or choices of one field that binds the answer.",
    )
    template_bytes_max: int = Field(
        16 * 1024, ge=64, description="The variables for a chat template, as JSON."
    )

    tokenizations_max: int = Field(
        64, ge=1, description="Calls of /tokenize and /detokenize at one time; one more gets 503."
    )
    tokenize_seconds_max: float = Field(
        10.0, gt=0, description="How long a job executor may take to tokenize."
    )

    stories_asked_max: int = Field(
        16, ge=1, description="Calls of /v1/requests at one time; one more gets 503."
    )
    story_seconds_max: float = Field(
        2.0, gt=0, description="How long the job executors may take to tell of a request."
    )

    jobs_max: int = Field(
        4096, ge=1, description="Jobs of this gateway that run or wait; one more gets 503."
    )
    admission_seconds_max: float = Field(
        10.0,
        gt=0,
        description="How long a job executor may take to admit, refuse or queue a job; how long it"
        " may wait in the queue then is the job executor's to say.",
    )
    job_seconds_max: float = Field(
        600.0, gt=0, description="Deadline of one request, from its arrival to its last byte."
    )
    token_window: int = Field(
        1024,
        ge=2,
        description="Tokens per choice that may be on their way to a client that reads slowly.",
    )
    link_wait_seconds_max: float = Field(
        3.0,
        gt=0,
        description="How long a request waits for a job executor where none is ready, before 503.",
    )
    link_hello_seconds_max: float = Field(
        5.0, gt=0, description="How long a job executor may take to accept the stream."
    )

    @property
    def limits(self) -> Limits:
        return Limits(
            n=self.n_max,
            prompts=self.prompts_max,
            embedding_inputs=self.embedding_inputs_max,
            choices=self.choices_max,
            messages=self.messages_max,
            stop_strings=self.stop_strings_max,
            stop_characters=self.stop_characters_max,
            json_depth=self.json_depth_max,
            grammar_bytes=self.grammar_bytes_max,
            template_bytes=self.template_bytes_max,
        )
