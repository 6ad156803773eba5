"""Data preprocessors' cases: records as text, what is read out of answers, how right answers are."""

from typing import Any

from broadsheet.curate.tables import parsing
from broadsheet.curate.tables.records import contextualize
from broadsheet.curate.tables.scoring import agreement, imputed


def run(case: dict[str, Any]) -> dict[str, Any]:
    match case["fn"]:
        case "contextualize":
            return {"text": contextualize(case["record"], case["columns"], case["hidden"])}
        case "parse":
            said = parsing.split(case["text"], case["questions"], cut=case["cut"])
            read = parsing.yes_no if case["kind"] == "yes_no" else parsing.value
            answers = [said.get(number) for number in range(1, case["questions"] + 1)]
            return {"answers": [None if each is None else read(each.answer) for each in answers]}
        case "agreement":
            return agreement(case["gold"], case["said"])
        case "imputed":
            return imputed(case["gold"], case["said"])
    raise ValueError(case["fn"])
