"""A digest by mail: who has asked for it, what is new for each of them, and letters that are sent once.

Knows: subscribers, letters, SMTP. Does not know: screens, sources. A letter is written down with its Message-ID in the
transaction that makes it, and sent from there: a run that is killed loses none, and where it is not known whether one
went out, the same one, by its Message-ID, goes out again. An address is confirmed before it gets anything else, and
ends it by one click (RFC 8058). No letter loads an image or is tracked.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import smtplib
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP as POLICY
from email.utils import format_datetime
from html import escape
from urllib.parse import quote, urlsplit

from broadsheet.console import InputError
from broadsheet.daily.finished import Finished
from broadsheet.daily.records import line
from broadsheet.daily.search import Hit, find
from broadsheet.daily.store import Article, Store, ours

MOST = 40  # papers of a letter
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Subscriber:
    """Who gets a digest of what a query finds; of all that was listed where it is empty."""

    address: str
    secret: str
    query: str
    asked: str
    confirmed: str = ""


@dataclass(frozen=True)
class Letter:
    """What was or is to be sent."""

    number: int
    address: str
    kind: str
    message: str
    bytes: bytes
    sent: str = ""


@dataclass(frozen=True)
class Mail:
    """By whom letters are sent.

    Args:
        server: `"host"` or `"host:port"`; 587 by default, which has to offer STARTTLS unless it is loopback.
        sender: the address that they come from.
        user, password: of the server; never in a command line.

    Raises:
        InputError: no such address, or a server that cannot be.
    """

    server: str
    sender: str
    user: str = ""
    password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        check_address(self.sender)
        host, port = self.place
        if not host or any(char.isspace() for char in host) or not 0 < port < 65_536:
            raise InputError(f"got the mail server {self.server!r}; expected HOST or HOST:PORT")

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        try:
            parts = urlsplit(f"//{self.server}")
            return parts.hostname or "", 587 if parts.port is None else parts.port
        except ValueError:
            return "", 0

    @contextmanager
    def open(self) -> Iterator[smtplib.SMTP]:
        """A connection, encrypted unless it stays on this machine.

        Raises:
            InputError: the server offers no encryption, or refuses the user.
            OSError, smtplib.SMTPException: it cannot be reached, or fails.
        """
        host, port = self.place
        with smtplib.SMTP(host, port, timeout=60) as server:
            if host not in _LOOPBACK:
                try:
                    server.starttls(context=ssl.create_default_context())
                except smtplib.SMTPNotSupportedError:
                    raise InputError(f"{host} offers no encryption (STARTTLS); nothing was sent") from None
            if self.user:
                try:
                    server.login(self.user, self.password)
                except smtplib.SMTPAuthenticationError:
                    raise InputError(f"{host} refuses the user or the password; nothing was sent") from None
            yield server


def check_address(address: str) -> str:
    """An address that mail can go to.

    Raises:
        InputError: it is none.
    """
    if not _ADDRESS.fullmatch(address) or ".." in address:
        raise InputError(f"got the address {line(address)[:60]!r}; expected one such as name@example.org")
    return address


class Digest:
    """Subscribers and their letters, in a store.

    Args:
        base: the address of the page, under which its links are, `"http://127.0.0.1:8000"`.
        mail: by whom letters are sent.
        clock: the time.
        runs: what the runs of the page found, the last first.

    Example:
        digest = Digest(store, "http://127.0.0.1:8000", Mail("localhost:2525", "page@example.org"))
        digest.ask("reader@example.org", "long context")
        digest.issue()
        digest.send()
    """

    def __init__(
        self,
        store: Store,
        base: str,
        mail: Mail,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        runs: Callable[[], Sequence[Finished]] = tuple,
    ) -> None:
        self.store, self.base, self.mail, self.clock, self.runs = store, base.rstrip("/"), mail, clock, runs

    # Who

    def ask(self, address: str, query: str = "") -> None:
        """Ask an address whether it wants the digest; one that has confirmed only gets another query.

        Raises:
            InputError: it is no address.
        """
        check_address(address)
        query = line(query)
        with self.store.writing():
            known = {each.address: each for each in self.subscribers()}.get(address)
            if known is None:
                self.store.db.run(
                    "INSERT INTO subscriber (address, secret, query, asked) VALUES (?, ?, ?, ?)",
                    (address, secrets.token_hex(16), query, self._now()),
                )
                self._write(self._confirmation(self._by("address", address)), address, "confirm", [])
            else:
                self.store.db.run("UPDATE subscriber SET query = ? WHERE address = ?", (query, address))

    def confirm(self, secret: str) -> Subscriber:
        """The subscriber of a link has said yes.

        Raises:
            InputError: there is none.
        """
        with self.store.writing():
            found = self._of(secret)
            self.store.db.run(
                "UPDATE subscriber SET confirmed = ? WHERE address = ? AND confirmed = ''", (self._now(), found.address)
            )
        return self._of(secret)

    def leave(self, secret: str) -> Subscriber:
        """The subscriber of a link wants no more; nothing of it is kept but which letters went out.

        Raises:
            InputError: there is none.
        """
        with self.store.writing():
            found = self._of(secret)
            self.store.db.run("DELETE FROM subscriber WHERE address = ?", (found.address,))
            self.store.db.run("DELETE FROM letter WHERE address = ? AND sent = ''", (found.address,))
            self.store.db.run("DELETE FROM had WHERE address = ?", (found.address,))
        return found

    def subscribers(self) -> list[Subscriber]:
        """All of them, by address."""
        rows = self.store.db.rows("SELECT address, secret, query, asked, confirmed FROM subscriber ORDER BY address")
        return [Subscriber(*row) for row in rows]

    # What

    def issue(self) -> int:
        """Write a letter to each who has confirmed and for whom there is something new; returns how many."""
        made = 0
        for subscriber in self.subscribers():
            if subscriber.confirmed:
                with self.store.writing():
                    chosen, ran = self.news(subscriber), self.evidence(subscriber)
                    if chosen or ran:
                        letter = self._digest(subscriber, chosen, ran)
                        had = [*(each.article.id for each in chosen), *map(_run_id, ran)]
                        self._write(letter, subscriber.address, "issue", had)
                        made += 1
        return made

    def news(self, subscriber: Subscriber) -> list[Hit]:
        """Papers for a subscriber that it has not had, listed since it asked."""
        had = self._had(subscriber)
        since = subscriber.asked[:10]
        listed = [article for article, _ in self.store.listed(since, "9999")]
        fresh = {article.id: article for article in listed if article.id not in had and not article.mark.hidden}
        if not subscriber.query:
            return [Hit(article) for article in list(fresh.values())[:MOST]]
        hits = find(self.store, subscriber.query, 10_000)
        return [hit for hit in hits if hit.article.id in fresh][:MOST]

    def evidence(self, subscriber: Subscriber) -> list[Finished]:
        """What runs found since a subscriber asked, and it has not had; with a query only of papers that it finds."""
        fresh = [each for each in self.runs() if each.at >= subscriber.asked]
        if fresh:
            had = self._had(subscriber)
            fresh = [each for each in fresh if _run_id(each) not in had]
        if fresh and subscriber.query:
            found = {hit.article.id for hit in find(self.store, subscriber.query, 10_000)}
            fresh = [each for each in fresh if each.arxiv in found]
        return fresh[:MOST]

    def _had(self, subscriber: Subscriber) -> set[str]:
        """What it has had: identifiers of papers, and of runs."""
        return {row[0] for row in self.store.db.rows("SELECT id FROM had WHERE address = ?", (subscriber.address,))}

    # Letters

    def waiting(self) -> list[Letter]:
        """Letters that did not go out, the oldest first."""
        rows = self.store.db.rows(
            "SELECT number, address, kind, message, bytes, sent FROM letter WHERE sent = '' ORDER BY number"
        )
        return [Letter(*row) for row in rows]

    def send(self) -> tuple[int, list[str]]:
        """Send what waits: (letters sent, what went wrong with the others, a line each).

        An address that the server refuses for good gets nothing more. What fails for now waits.
        """
        sent, problems = 0, []
        letters = self.waiting()
        if not letters:
            return 0, []
        try:
            with self.mail.open() as server:
                for letter in letters:
                    try:
                        server.sendmail(self.mail.sender, [letter.address], letter.bytes)
                    except smtplib.SMTPRecipientsRefused as error:
                        [(code, _)] = error.recipients.values()
                        problems.append(f"{letter.address}: refused ({code})" + ("; ended" if code >= 500 else ""))
                        if code >= 500:
                            self._end(letter)
                        server.rset()
                        continue
                    self._sent(letter)
                    sent += 1
        except InputError:
            raise
        except (OSError, smtplib.SMTPException) as error:
            problems.append(f"{self.mail.place[0]}: {type(error).__name__}; {len(self.waiting())} letters wait")
        return sent, problems

    def _sent(self, letter: Letter) -> None:
        with self.store.writing():
            self.store.db.run("UPDATE letter SET sent = ? WHERE number = ?", (self._now(), letter.number))

    def _end(self, letter: Letter) -> None:
        with self.store.writing():
            self.store.db.run("DELETE FROM subscriber WHERE address = ?", (letter.address,))
            self.store.db.run("DELETE FROM letter WHERE address = ? AND sent = ''", (letter.address,))

    def _write(self, letter: EmailMessage, address: str, kind: str, had: Iterable[str]) -> None:
        """Write a letter down, to be sent."""
        with self.store.writing():
            self.store.db.run(
                "INSERT INTO letter (address, kind, message, bytes, made) VALUES (?, ?, ?, ?, ?)",
                (address, kind, letter["Message-ID"], letter.as_bytes(policy=POLICY), self._now()),
            )
            self.store.db.run_all(
                "INSERT INTO had VALUES (?, ?) ON CONFLICT DO NOTHING", [(address, each) for each in had]
            )

    def _confirmation(self, subscriber: Subscriber) -> EmailMessage:
        link = f"{self.base}/subscribe/{subscriber.secret}"
        what = f"papers that this finds: {subscriber.query}" if subscriber.query else "all that is listed"
        text = f"You, or somebody else, asked for a digest of {what}\n\nIf you want it: {link}\nIf not, do nothing.\n"
        made = self._letter(subscriber, "Do you want the digest?", ["confirm"])
        made.set_content(text)
        return made

    def _digest(self, subscriber: Subscriber, chosen: list[Hit], ran: Sequence[Finished] = ()) -> EmailMessage:
        articles = [each.article for each in chosen]
        day = self.clock().strftime("%Y-%m-%d")
        counts = (("paper", len(articles)), ("run", len(ran)))
        count = ", ".join(f"{number} {what}{'s' * (number != 1)}" for what, number in counts if number)
        topic = f": {subscriber.query}" if subscriber.query else ""
        made = self._letter(subscriber, f"{count}, {day}{topic}", [*(each.id for each in articles), *map(_run_id, ran)])
        leave = f"{self.base}/subscribe/{subscriber.secret}"
        made["List-Unsubscribe"] = f"<{leave}/leave>"
        made["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
        texts = [*map(self._text, articles), *["Run here"] * bool(ran), *map(self._run_text, ran)]
        made.set_content("\n\n".join(texts) + f"\n\n-- \nNo more of this: {leave}\n")
        items = "".join([*map(self._html, articles), *["<h1>Run here</h1>"] * bool(ran), *map(self._run_html, ran)])
        made.add_alternative(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(count)}</title><body>{items}'
            f'<p><a href="{escape(leave)}">No more of this</a></p></body></html>',
            subtype="html",
        )
        return made

    def _letter(self, subscriber: Subscriber, subject: str, about: list[str]) -> EmailMessage:
        """The head of a letter; its Message-ID follows from whom and what it is for."""
        host = self.mail.sender.rpartition("@")[2]
        told = hashlib.sha256("\n".join([subscriber.secret, *about]).encode()).hexdigest()[:32]
        made = EmailMessage(policy=POLICY)
        made["From"], made["To"] = self.mail.sender, subscriber.address
        made["Subject"] = line(subject)[:200]
        made["Date"] = format_datetime(self.clock())
        made["Message-ID"] = f"<{told}@{host}>"
        made["List-Id"] = f"broadsheet <digest.{host}>"
        made["Auto-Submitted"] = "auto-generated"
        return made

    def _text(self, article: Article) -> str:
        gist = ours(article.id).split(". ")[0] or article.abstract
        return f"{line(article.title)}\n{self._url(article)}\n{line(gist)[:400]}"

    def _html(self, article: Article) -> str:
        gist = line(ours(article.id).split(". ")[0] or article.abstract)[:400]
        link = escape(self._url(article))
        return f'<h2><a href="{link}">{escape(line(article.title))}</a></h2><p>{escape(gist)}</p>'

    def _run_text(self, run: Finished) -> str:
        return f"{run.title}{f': {run.verdict}' * bool(run.verdict)}\n{self.base}/runs/{run.id}\n{run.answer}"

    def _run_html(self, run: Finished) -> str:
        title = escape(f"{run.title}{f': {run.verdict}' * bool(run.verdict)}")
        return f'<h2><a href="{escape(self.base)}/runs/{run.id}">{title}</a></h2><p>{escape(run.answer)}</p>'

    def _url(self, article: Article) -> str:
        return f"{self.base}/papers/{quote(article.id)}"

    def _of(self, secret: str) -> Subscriber:
        found = [each for each in self.subscribers() if hmac.compare_digest(each.secret.encode(), secret.encode())]
        if not found:
            raise InputError("nobody has asked by this link, or it was ended; ask again")
        return found[0]

    def _by(self, name: str, value: str) -> Subscriber:
        return next(each for each in self.subscribers() if getattr(each, name) == value)

    def _now(self) -> str:
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")


def _run_id(run: Finished) -> str:
    """A run among what a subscriber has had; no paper is called so."""
    return f"run:{run.id}"
