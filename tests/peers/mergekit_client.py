"""Runs mergekit over the configs that stdin lists, a JSON list of [config, output], in one process and one thread."""

import json
import sys

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

torch.set_num_threads(1)
for source, output in json.load(sys.stdin):
    with open(source) as file:  # noqa: PTH123 - a client as short as it can be
        config = MergeConfiguration.model_validate(yaml.safe_load(file))
    run_merge(config, output, MergeOptions(random_seed=7, quiet=True, copy_tokenizer=False))
