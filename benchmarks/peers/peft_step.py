"""LoRA steps of torch + transformers + peft on random tokens, in an environment of its own; prints one JSON object."""

import argparse
import json
import resource
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

parser = argparse.ArgumentParser()
parser.add_argument("--config", required=True, help="JSON of LlamaConfig's arguments")
parser.add_argument("--batches", required=True, help="JSON: row lengths of each batch; rows are padded to the longest")
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**json.loads(args.config)))
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

seconds, tokens = [], []
for rows in json.loads(args.batches):
    ids = torch.randint(3, 250, (len(rows), max(rows)))
    mask = torch.tensor([[1] * n + [0] * (max(rows) - n) for n in rows])
    begun = time.perf_counter()
    model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds.append(time.perf_counter() - begun)
    tokens.append(sum(rows))
rates = [n / s for n, s in zip(tokens[1:], seconds[1:], strict=True)]
print(
    json.dumps(
        {
            "real_tokens_per_second": statistics.median(rates),
            "first_step_seconds": seconds[0],
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
    )
)
