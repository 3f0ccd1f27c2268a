"""LangChain's OpenAI chat model against one URL; prints what it got as one JSON object."""

import asyncio
import json
import sys

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

TOPIC = {
    "title": "topic",
    "type": "object",
    "properties": {"word": {"type": "string", "maxLength": 12}, "count": {"enum": [1, 2, 3]}},
    "required": ["word", "count"],
    "additionalProperties": False,
}


def main() -> None:
    url, model = sys.argv[1:]
    chat = ChatOpenAI(base_url=url, api_key="none", model=model, temperature=0, max_tokens=60)
    question = [SystemMessage("Answer briefly."), HumanMessage("What is 7 + 5?")]
    whole = chat.invoke(question)
    pieces = list(chat.stream(question, stream_usage=True))
    later = asyncio.run(chat.ainvoke(question))
    batch = chat.batch([question, question])
    patient = ChatOpenAI(base_url=url, api_key="none", model=model, temperature=0, max_tokens=500)
    structured = patient.with_structured_output(TOPIC, method="json_schema").invoke(question)
    print(
        json.dumps(
            {
                "whole": whole.content,
                "usage": whole.usage_metadata["total_tokens"],
                "streamed": "".join(piece.content for piece in pieces),
                "streamed_usage": [
                    piece.usage_metadata["total_tokens"] for piece in pieces if piece.usage_metadata
                ],
                "later": later.content,
                "batch": [answer.content for answer in batch],
                "structured": structured,
            }
        )
    )


if __name__ == "__main__":
    main()
