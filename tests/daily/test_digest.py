"""The digest by mail, against a real SMTP server: confirmed, sent once, ended by one click, nothing injected."""

from __future__ import annotations

import email
import os
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.policy import default
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from ended_runs import keep
from typer.testing import CliRunner

from broadsheet.console import InputError
from broadsheet.daily.commands import app
from broadsheet.daily.digest import Digest, Mail
from broadsheet.daily.finished import Finished
from broadsheet.daily.records import Listing, Record
from broadsheet.daily.store import Store
from broadsheet.page import papers

READER = "reader@example.org"
BASE = "http://127.0.0.1:8000"
NOON = datetime(2024, 8, 18, 12, tzinfo=UTC)


class Postman:
    """A mail server that keeps what it gets, and may refuse."""

    def __init__(self) -> None:
        self.got: list[EmailMessage] = []
        self.refuse: dict[str, str] = {}
        self.fail = ""

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        if self.fail:
            return self.fail
        self.got.append(email.message_from_bytes(envelope.content, policy=default))  # type: ignore[arg-type]
        return "250 OK"


@pytest.fixture
def postman() -> Iterator[tuple[Postman, str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = Postman()
    controller = Controller(made, hostname="127.0.0.1", port=port)
    controller.start()
    yield made, f"127.0.0.1:{port}"
    controller.stop()


@pytest.fixture
def digest(place: str, postman: tuple[Postman, str]) -> Digest:
    store = Store(place)
    return Digest(store, BASE, Mail(postman[1], "page@example.org"), clock=lambda: NOON)


def paper(number: int, title: str = "", day: str = "2024-08-18") -> Record:
    identifier = f"2408.{number:05}"
    return Record(
        identifier, "hf", title=title or f"Paper {number}", abstract="x", listings=(Listing("hf", day, number),)
    )


def confirmed(digest: Digest, query: str = "") -> str:
    digest.ask(READER, query)
    [subscriber] = digest.subscribers()
    digest.confirm(subscriber.secret)
    digest.send()
    return subscriber.secret


def test_an_address_is_asked_first_and_gets_nothing_before_it_says_yes(digest, postman):
    digest.ask(READER, "tree mask")
    digest.store.add([paper(1, "A tree mask")])
    assert digest.issue() == 0
    assert digest.send() == (1, [])
    [letter] = postman[0].got
    [subscriber] = digest.subscribers()
    assert f"{BASE}/subscribe/{subscriber.secret}" in letter.get_content()
    assert letter["To"] == READER
    digest.ask(READER, "tree mask")
    assert digest.send() == (0, []), "asked once"
    digest.confirm(subscriber.secret)
    assert digest.issue() == 1


def test_a_digest_has_what_is_new_once_in_text_and_html_and_ends_by_one_click(digest, postman):
    secret = confirmed(digest)
    digest.store.add([paper(1, "Zwei Bäume <script>alert(1)</script>"), paper(2), paper(3, day="2024-08-01")])
    assert digest.issue() == 1
    assert digest.issue() == 0, "each paper once"
    assert digest.send() == (1, [])
    letter = postman[0].got[-1]
    assert letter["Subject"] == "2 papers, 2024-08-18"
    text, html = (letter.get_body((kind,)).get_content() for kind in ("plain", "html"))
    assert "Zwei Bäume" in text
    assert f"{BASE}/papers/2408.00001" in text
    assert "2408.00003" not in text, "listed before it was asked for"
    assert "<script>" not in html
    assert "<img" not in html
    assert letter["List-Unsubscribe"].strip() == f"<{BASE}/subscribe/{secret}/leave>"
    assert letter["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert letter["Auto-Submitted"] == "auto-generated"
    assert letter["Date"].datetime == NOON
    assert letter["List-Id"]
    digest.store.add([paper(4)])
    digest.issue()
    digest.leave(secret)
    assert digest.send() == (0, [])
    assert digest.subscribers() == []
    with pytest.raises(InputError, match="ask again"):
        digest.confirm(secret)


def test_a_query_chooses_and_hidden_papers_are_left_out(digest, postman):
    confirmed(digest, "zebra")
    digest.store.add([paper(1, "Zebra one"), paper(2, "Giraffe"), paper(3, "Zebra two")])
    digest.store.mark("2408.00003", hidden=True)
    digest.issue()
    digest.send()
    letter = postman[0].got[-1]
    assert letter["Subject"] == "1 paper, 2024-08-18: zebra"
    assert "Zebra one" in letter.get_body(("plain",)).get_content()


def test_nothing_new_is_no_letter(digest):
    confirmed(digest)
    assert digest.issue() == 0
    assert digest.waiting() == []


def ran(name: str, paper: str = "lastde", at: str = "2024-08-18T12:30:00Z") -> Finished:
    known = papers.get(paper)
    return Finished(
        name, paper, known.arxiv, f"{known.title} <b>", f"broadsheet try {paper}", "It <helps>.", "shown", at
    )


def test_what_runs_found_is_told_once_and_alone_is_a_letter(digest, postman):
    found = [ran("aa"), ran("old", at="2024-08-18T11:00:00Z")]
    digest.runs = lambda: found
    confirmed(digest)
    assert digest.issue() == 1
    digest.send()
    letter = postman[0].got[-1]
    assert letter["Subject"] == "1 run, 2024-08-18"
    text, html = (letter.get_body((kind,)).get_content().replace("\r", "") for kind in ("plain", "html"))
    assert f"{papers.get('lastde').title} <b>: shown\n{BASE}/runs/aa\nIt <helps>.\n" in text
    assert "/runs/old" not in text, "before it was asked for"
    assert "It &lt;helps&gt;." in html
    assert "<b>" not in html
    assert digest.issue() == 0, "each once"
    found.insert(0, ran("bb", "gem"))
    digest.store.add([paper(1), paper(2)])
    assert digest.issue() == 1
    digest.send()
    assert postman[0].got[-1]["Subject"] == "2 papers, 1 run, 2024-08-18"
    text = postman[0].got[-1].get_body(("plain",)).get_content()
    assert text.index("/papers/2408.00002") < text.index("Run here") < text.index("/runs/bb")
    assert "/runs/aa" not in text
    assert len({each["Message-ID"] for each in postman[0].got}) == 3


def test_who_asked_for_a_search_is_told_of_runs_of_what_it_finds(digest):
    digest.runs = lambda: [ran("aa"), ran("bb", "gem")]
    confirmed(digest, "zebra")
    assert digest.issue() == 0
    digest.ask(READER, papers.get("gem").title)
    assert "bb" in [each.id for each in digest.evidence(digest.subscribers()[0])]
    digest.ask(READER, f'"{papers.get("gem").title}"')
    assert [each.id for each in digest.evidence(digest.subscribers()[0])] == ["bb"]


@pytest.mark.parametrize(
    "address",
    ["", "a", "a@", "@b", "a@b\r\nBcc: c@d", "a b@c", "a@b..c", "a@b,c@d", "<a@b>", "a@" + "b" * 300, "é@b.c"],
)
def test_what_is_no_address_is_refused(digest, address):
    with pytest.raises(InputError, match="expected one such as"):
        digest.ask(address)
    assert digest.subscribers() == []


def test_nothing_that_is_typed_or_told_becomes_a_header(digest, postman):
    confirmed(digest, "zebra\r\nBcc: victim@example.org")
    digest.store.add([paper(1, "Zebra\r\nBcc: victim@example.org\r\n\r\nbody")])
    digest.issue()
    digest.send()
    letter = postman[0].got[-1]
    assert letter["Bcc"] is None
    assert letter["Subject"] == "1 paper, 2024-08-18: zebra Bcc: victim@example.org"


@pytest.mark.parametrize("answer", ["421 later", "451 later"])
def test_what_fails_for_now_waits_and_goes_out_as_the_same(digest, postman, answer):
    confirmed(digest)
    digest.store.add([paper(1)])
    digest.issue()
    before = digest.waiting()
    postman[0].fail = answer
    sent, problems = digest.send()
    assert sent == 0
    assert problems == ["127.0.0.1: SMTPDataError; 1 letters wait"]
    assert digest.waiting() == before
    postman[0].fail = ""
    assert digest.send() == (1, [])
    assert postman[0].got[-1]["Message-ID"] == before[0].message


def test_an_address_that_is_refused_for_good_is_ended_and_the_others_get_theirs(digest, postman):
    confirmed(digest)
    digest.ask("other@example.org")
    digest.confirm(next(each for each in digest.subscribers() if each.address != READER).secret)
    digest.send()
    digest.store.add([paper(1)])
    assert digest.issue() == 2
    postman[0].refuse = {"other@example.org": "550 no such user"}
    assert digest.send() == (1, ["other@example.org: refused (550); ended"])
    assert [each.address for each in digest.subscribers()] == [READER]
    assert digest.waiting() == []


def test_a_server_that_is_not_there_loses_nothing(digest):
    digest.mail = Mail("127.0.0.1:1", "page@example.org")
    digest.ask(READER)
    assert digest.send() == (0, ["127.0.0.1: ConnectionRefusedError; 1 letters wait"])
    assert len(digest.waiting()) == 1


def test_a_kill_after_the_server_took_a_letter_sends_the_same_one_again(tmp_path, postman):
    program = f"""
import os, signal
from pathlib import Path
from broadsheet.daily.digest import Digest, Mail
from broadsheet.daily.store import Store
digest = Digest(Store(Path({str(tmp_path / "page.sqlite")!r})), {BASE!r}, Mail({postman[1]!r}, "page@example.org"))
digest.ask({READER!r})
digest._sent = lambda letter: os.kill(os.getpid(), signal.SIGKILL)
digest.send()
"""
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    again = Digest(Store(tmp_path / "page.sqlite"), BASE, Mail(postman[1], "page@example.org"))
    assert again.send() == (1, [])
    first, second = (letter["Message-ID"] for letter in postman[0].got)
    assert first == second
    assert again.send() == (0, [])


def test_a_server_elsewhere_has_to_encrypt(digest, postman, monkeypatch):
    host, _, port = postman[1].partition(":")
    real = smtplib.SMTP
    monkeypatch.setattr(smtplib, "SMTP", lambda name, at, timeout: real(host, int(port), timeout=timeout))
    digest.mail = Mail(f"mail.example.org:{port}", "page@example.org")
    digest.ask(READER)
    with pytest.raises(InputError, match="no encryption"):
        digest.send()
    assert postman[0].got == []
    assert len(digest.waiting()) == 1


@pytest.mark.parametrize("server", ["", "a b", "host:0", "host:99999", "host:x"])
def test_a_server_that_cannot_be_is_refused(server):
    with pytest.raises(InputError, match="expected HOST"):
        Mail(server, "page@example.org")


def test_the_command_asks_says_and_sends(tmp_path, postman):
    store, jobs = tmp_path / "page.sqlite", tmp_path / "jobs"
    given = ["--mail", postman[1], "--mail-from", "page@example.org", "--url", BASE, "--store", str(store)]
    given += ["--jobs", str(jobs)]

    def said(*more: str) -> tuple[int, str]:
        found = CliRunner().invoke(app, ["digest", *given, *more], catch_exceptions=False)
        return found.exit_code, found.output

    assert said("--to", READER, "--query", "zebra") == (0, "1 letter sent\n")
    assert said("--dry-run") == (0, f"{READER}: has not confirmed\n")
    digest = Digest(Store(store), BASE, Mail(postman[1], "page@example.org"))
    digest.confirm(digest.subscribers()[0].secret)
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    digest.store.add([paper(1, "Zebra", day=today)])
    assert said("--dry-run") == (0, f"{READER}: 1 paper\n")
    keep(jobs, "aa", "lastde", date=f"{datetime.now(UTC) + timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}")
    assert said("--dry-run") == (0, f"{READER}: 1 paper\n"), "the search does not find what it is of"
    digest.ask(READER, "zebra OR detection")
    assert said("--dry-run") == (0, f"{READER}: 1 paper, 1 run\n")
    assert said() == (0, "1 letter sent\n")
    assert said() == (0, "0 letters sent\n")
    digest.store.add([paper(2, "Zebra again", day=today)])
    postman[0].fail = "451 later"
    assert said() == (1, "0 letters sent\n127.0.0.1: SMTPDataError; 1 letters wait\n")
    assert len(postman[0].got) == 2
