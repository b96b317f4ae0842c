"""Greedy bulk generation by vLLM with its prefix cache filled beforehand; prints one JSON object."""

import argparse
import json
import os
import time

os.environ.update(HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="4", VLLM_LOGGING_LEVEL="ERROR")


def main() -> None:
    """Generate and measure."""
    from vllm import LLM, SamplingParams

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", required=True, help="JSON file: prefix, prompts, new")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    with open(args.work, encoding="utf-8") as file:
        work = json.load(file)
    longest = len(work["prefix"]) + max(map(len, work["prompts"])) + work["new"] + 16
    llm = LLM(model=args.model, dtype=args.dtype, max_model_len=longest, enable_prefix_caching=True)
    prompts = [{"prompt_token_ids": work["prefix"] + own} for own in work["prompts"]]
    sampling = SamplingParams(temperature=0, max_tokens=work["new"], ignore_eos=True)
    llm.generate(prompts[:2], sampling, use_tqdm=False)  # fills the cache of the prefix
    begun = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - begun
    texts = [list(output.outputs[0].token_ids) for output in outputs]
    rate = len(prompts) * work["new"] / seconds
    print(json.dumps({"tokens_per_second": rate, "seconds": seconds, "texts": texts}))


if __name__ == "__main__":
    main()
