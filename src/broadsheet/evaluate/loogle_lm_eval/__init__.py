"""LooGLE as tasks of lm-evaluation-harness: the YAML files of this folder, and where they lie.

    lm_eval --include_path "$(python -c 'from broadsheet.evaluate import lm_eval_path; print(lm_eval_path())')" \\
        --tasks loogle --metadata '{"data": "loogle.jsonl", "max_prompt_tokens": 7600, "tokenizer": "folder"}' \\
        --model hf --model_args pretrained=folder
"""

from pathlib import Path


def lm_eval_path() -> str:
    """The folder to hand to lm-evaluation-harness as `--include_path`, or as `TaskManager(include_path=…)`."""
    return str(Path(__file__).parent)
