"""transformers' generate on one static batch."""

from typing import Any

from protocol import Engine, Setup, serve  # beside this file: nothing of ours is needed here


class Transformers:
    def __init__(self, setup: Setup) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        dtype = getattr(torch, setup.dtype)
        self._model: Any = AutoModelForCausalLM.from_pretrained(setup.model, dtype=dtype)

    def generate(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        torch = self._torch
        inputs = torch.tensor(prompts)
        with torch.inference_mode():
            answers = self._model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=False,
                min_new_tokens=output,
                max_new_tokens=output,
                pad_token_id=0,
            )
        return [answer[len(prompts[0]) :].tolist() for answer in answers]


def build(setup: Setup) -> Engine:
    return Transformers(setup)


if __name__ == "__main__":
    serve(build)
