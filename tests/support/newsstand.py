"""What Hugging Face and arXiv send, written by hand from their descriptions; and a clock that nobody waits for."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from typing import Any

AT = "2024-08-19T12:00:00Z"
NOON = 1_724_068_800.0  # that time, in seconds


@dataclass
class Clock:
    """Seconds since 1970: they pass where something sleeps, and `tick` with every look."""

    now: float = NOON
    tick: float = 0.0
    naps: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.naps.append(seconds)
        self.now += seconds


@contextmanager
def raw(*parts: str) -> Iterator[int]:
    """A port of loopback that answers requests with these words, part by part; `{port}` stands for it in them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, done = server.getsockname()[1], threading.Event()

        def answer() -> None:
            while not done.is_set():
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
                    for part in parts:
                        connection.sendall(part.replace("{port}", str(port)).encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield port
        finally:
            done.set()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as last:
                last.sendall(b"end")
            thread.join(5)


def row(identifier: str = "2408.00001", title: str = "A paper", **paper: Any) -> dict[str, Any]:
    """A row of the daily list with nothing but what must be there, and what is given."""
    return {"paper": {"id": identifier, "title": title, **paper}}


def full_row(identifier: str = "2408.00001", day: str = "2024-08-18", **paper: Any) -> dict[str, Any]:
    """A row with every field."""
    inner = {
        "id": identifier,
        "authors": [
            {"_id": "a1", "name": "Ada Lind", "hidden": False},
            {"_id": "a2", "name": "Not Shown", "hidden": True},
            {"_id": "a3", "name": "Bo Öst", "hidden": False, "user": {"user": "bo"}, "status": "claimed_verified"},
        ],
        "publishedAt": "2024-08-15T17:59:02.000Z",
        "submittedOnDailyAt": f"{day}T00:00:00.000Z",
        "submittedOnDailyBy": {"user": "ak"},
        "title": "Reading\n  twice",
        "summary": "We read\ntwice & more.",
        "upvotes": 0,
        "discussionId": "d1",
        "ai_summary": "Somebody else's words.",
        "ai_keywords": ["reading"],
        "githubRepo": "https://github.com/ada/twice",
        "githubStars": 12,
        "projectPage": "javascript:alert(1)",
        "organization": {"name": "lab"},
        "someFieldOfTomorrow": {"x": [1]},
    }
    outer = {"title": "Reading twice", "publishedAt": "2024-08-15T17:59:02.000Z", "numComments": 2, "tomorrow": None}
    return {**outer, "paper": inner | paper}


def rows(*given: dict[str, Any]) -> bytes:
    return json.dumps(list(given)).encode()


def entry(identifier: str = "2408.00001v1", title: str = "A paper", summary: str = "It is.", more: str = "") -> str:
    """An entry of the query API."""
    return f"""<entry><id>http://arxiv.org/abs/{identifier}</id><updated>2024-08-16T09:00:00Z</updated>
<published>2024-08-01T09:00:00Z</published><title>{escape(title)}</title><summary>{escape(summary)}</summary>
<author><name>Ada Lind</name><arxiv:affiliation>A Lab</arxiv:affiliation></author><author><name>Bo Öst</name></author>
<link href="http://arxiv.org/abs/{identifier}" rel="alternate" type="text/html"/>
<category term="cs.LG" scheme="http://arxiv.org/schemas/atom"/><category term="cs.CL"/><category term="I.2.7"/>
<category term="68T50, 68T07"/><arxiv:primary_category term="cs.CL"/>{more}</entry>"""


def feed(*entries: str, total: int | None = None, start: int = 0) -> bytes:
    """An answer of the query API."""
    total = len(entries) if total is None else total
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:arxiv="http://arxiv.org/schemas/atom"
 xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/"><title>ArXiv Query</title><id>http://arxiv.org/api/x</id>
<updated>2024-08-19T00:00:00-04:00</updated><opensearch:totalResults>{total}</opensearch:totalResults>
<opensearch:startIndex>{start}</opensearch:startIndex><opensearch:itemsPerPage>{len(entries)}</opensearch:itemsPerPage>
{"".join(entries)}</feed>""".encode()


def error_feed(words: str = "incorrect id format for 1234") -> bytes:
    return f"""<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom"
 xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/"><title>ArXiv Query</title>
<opensearch:totalResults>1</opensearch:totalResults><entry><id>http://arxiv.org/api/errors#incorrect_id</id>
<title>Error</title><summary>{words}</summary></entry></feed>""".encode()


def item(identifier: str = "2408.00001v1", kind: str = "new", title: str = "A paper", more: str = "") -> str:
    """An item of a daily list."""
    bare = identifier.rpartition("v")[0]
    return f"""<item><title>{escape(title)}</title><link>https://arxiv.org/abs/{bare}</link>
<description>arXiv:{identifier} Announce Type: {kind} \nAbstract: It is.</description>
<guid isPermaLink="false">oai:arXiv.org:{identifier}</guid><category>cs.CL</category><category>cs.IR</category>
<pubDate>Mon, 19 Aug 2024 00:00:00 -0400</pubDate><arxiv:announce_type>{kind}</arxiv:announce_type>
<dc:rights>http://creativecommons.org/licenses/by/4.0/</dc:rights><dc:creator>Ada Lind, Bo Öst</dc:creator>{more}
</item>"""


def rss(*items: str, name: str = "cs.CL", date: str = "Mon, 19 Aug 2024 00:00:00 -0400") -> bytes:
    """A daily list."""
    return f"""<?xml version='1.0' encoding='UTF-8'?>
<rss xmlns:arxiv="http://arxiv.org/schemas/atom" xmlns:dc="http://purl.org/dc/elements/1.1/" version="2.0"><channel>
<title>{name} updates on arXiv.org</title><link>http://rss.arxiv.org/rss/{name}</link><pubDate>{date}</pubDate>
<skipDays><day>Sunday</day><day>Saturday</day></skipDays>{"".join(items)}</channel></rss>""".encode()


def listed(identifier: str = "2408.00001v1", kind: str = "new", title: str = "A paper") -> str:
    """An entry of a daily list in Atom."""
    return f"""<entry><id>oai:arXiv.org:{identifier}</id><title>{escape(title)}</title>
<updated>2024-08-19T04:00:31+00:00</updated><link href="https://arxiv.org/abs/{identifier}" rel="alternate"/>
<summary>arXiv:{identifier} Announce Type: {kind} \nAbstract: It is.</summary><category term="cs.CL"/>
<published>2024-08-19T00:00:00-04:00</published><arxiv:announce_type>{kind}</arxiv:announce_type>
<dc:creator>Ada Lind, Bo Öst</dc:creator></entry>"""


def atom_list(*entries: str) -> bytes:
    return f"""<feed xmlns="http://www.w3.org/2005/Atom" xmlns:arxiv="http://arxiv.org/schemas/atom"
 xmlns:dc="http://purl.org/dc/elements/1.1/"><id>http://rss.arxiv.org/atom/cs.CL</id>
<title>cs.CL updates on arXiv.org</title><updated>2024-08-19T04:00:31+00:00</updated>
{"".join(entries)}</feed>""".encode()


def harvested(
    identifier: str = "2408.00001", title: str = "A paper", updated: str = "", created: str = "2024-08-01"
) -> str:
    """A record of OAI-PMH."""
    again = f"<updated>{updated}</updated>" if updated else ""
    return f"""<record><header><identifier>oai:arXiv.org:{identifier}</identifier><datestamp>2024-08-19</datestamp>
<setSpec>cs:cs:CL</setSpec></header><metadata><arXiv xmlns="http://arxiv.org/OAI/arXiv/"><id>{identifier}</id>
<created>{created}</created>{again}<authors><author><keyname>Lind</keyname><forenames>Ada</forenames></author>
<author><keyname>Öst</keyname><forenames>Bo</forenames><suffix>Jr</suffix></author></authors>
<title>{escape(title)}</title><categories>cs.CL cs.IR</categories><comments>9 pages</comments><doi>10.1000/x</doi>
<license>http://arxiv.org/licenses/nonexclusive-distrib/1.0/</license><abstract>  It\n is.\n</abstract></arXiv>
</metadata></record>"""


DELETED = """<record><header status="deleted"><identifier>oai:arXiv.org:2408.00009</identifier>
<datestamp>2024-08-19</datestamp></header></record>"""


def oai(*records: str, token: str | None = None, error: tuple[str, str] | None = None) -> bytes:
    """An answer of OAI-PMH."""
    resume = "" if token is None else f"<resumptionToken>{token}</resumptionToken>"
    body = f"<ListRecords>{''.join(records)}{resume}</ListRecords>"
    if error:
        body = f'<error code="{error[0]}">{error[1]}</error>'
    return f"""<?xml version="1.0" encoding="UTF-8"?><OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/">
<responseDate>2024-08-19T12:00:00Z</responseDate><request verb="ListRecords">http://oaipmh.arxiv.org/oai</request>
{body}</OAI-PMH>""".encode()


BOMB = b"""<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol1 "&lol;&lol;&lol;&lol;&lol;&lol;&lol;">
<!ENTITY lol2 "&lol1;&lol1;&lol1;&lol1;&lol1;&lol1;">]><rss version="2.0"><channel><title>&lol2;</title>
</channel></rss>"""
OUTSIDE = b"""<?xml version="1.0"?><!DOCTYPE feed [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<feed xmlns="http://www.w3.org/2005/Atom"><title>&x;</title></feed>"""
