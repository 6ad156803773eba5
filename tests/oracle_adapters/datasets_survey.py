"""The datasets survey's cases: records of its catalogue, sizes and languages as it writes them."""

from typing import Any

from broadsheet.curate.cards.records import parse_language, parse_record, parse_size


def run(case: dict[str, Any]) -> Any:
    match case["fn"]:
        case "parse_record":
            found = parse_record(case["markdown"])
            return {
                "name": found.name,
                "released": found.released,
                "public": found.public,
                "language": found.language,
                "construction": list(found.construction),
                "links": sorted(found.links),
                "fields": found.fields,
            }
        case "parse_size":
            size = parse_size(case["text"])
            return None if size is None else {"value": size.value, "unit": size.unit}
        case "parse_language":
            language = parse_language(case["text"])
            return {"codes": list(language.codes), "multilingual": language.multilingual, "count": language.count}
    raise ValueError(case["fn"])
