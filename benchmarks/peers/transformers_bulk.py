"""Greedy generation by transformers, each request with the whole prefix; prints one JSON object."""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--work", required=True, help="JSON file: prefix, prompts of one length, new")
parser.add_argument("--requests", type=int, default=16, help="how many of the prompts, all in one batch")
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()

with open(args.work, encoding="utf-8") as file:
    work = json.load(file)
torch.set_num_threads(args.threads)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
rows = torch.tensor([work["prefix"] + own for own in work["prompts"][: args.requests]])
options = {"max_new_tokens": work["new"], "min_new_tokens": work["new"], "do_sample": False, "pad_token_id": 0}
begun = time.perf_counter()
out = model.generate(rows, attention_mask=torch.ones_like(rows), **options)
seconds = time.perf_counter() - begun
texts = out[:, rows.shape[1] :].tolist()
print(json.dumps({"tokens_per_second": len(rows) * work["new"] / seconds, "seconds": seconds, "texts": texts}))
