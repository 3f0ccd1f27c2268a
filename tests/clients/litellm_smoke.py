"""LiteLLM's OpenAI path against one URL; prints what it got as one JSON object."""

import asyncio
import json
import sys

import litellm

QUESTION = [{"role": "user", "content": "What is 7 + 5?"}]


def main() -> None:
    url, model = sys.argv[1:]
    options = {
        "model": f"openai/{model}",
        "api_base": url,
        "api_key": "none",
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 60,
    }
    whole = litellm.completion(**options)
    chunks = litellm.completion(**options, stream=True, stream_options={"include_usage": True})
    pieces = list(chunks)
    later = asyncio.run(litellm.acompletion(**options))
    text = litellm.text_completion(
        model=f"text-completion-openai/{model}",
        api_base=url,
        api_key="none",
        prompt="What is",
        max_tokens=5,
        temperature=0,
        logprobs=2,
    )
    refusal = ""
    try:
        litellm.completion(**{**options, "temperature": 9})
    except litellm.BadRequestError as error:
        refusal = str(error)
    print(
        json.dumps(
            {
                "whole": whole.choices[0].message.content,
                "usage": whole.usage.total_tokens,
                "streamed": "".join(piece.choices[0].delta.content or "" for piece in pieces),
                "later": later.choices[0].message.content,
                "text": text.choices[0].text,
                "text_tokens": len(text.choices[0].logprobs.tokens),
                "refusal": refusal,
            }
        )
    )


if __name__ == "__main__":
    main()
