"""Write a Llama of random weights in the Hugging Face layout, with a tokenizer of single bytes."""

import argparse
import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

parser = argparse.ArgumentParser()
parser.add_argument("--config", required=True, help="JSON of LlamaConfig's arguments")
parser.add_argument("--to", required=True, help="the directory to write")
args = parser.parse_args()

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
vocab = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(args.to)

torch.manual_seed(0)
config = LlamaConfig(**json.loads(args.config), bos_token_id=1, eos_token_id=2, pad_token_id=0)
LlamaForCausalLM(config).save_pretrained(args.to)
print(json.dumps({"written": args.to}))
