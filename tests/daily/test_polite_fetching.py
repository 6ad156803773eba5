"""Sources are asked seconds apart, on configured hosts of public addresses alone, and never for too much."""

from __future__ import annotations

import gzip
import json
import socket
from itertools import pairwise

import pytest
from newsstand import NOON, Clock, raw
from werkzeug import Response

from broadsheet.console import InputError
from broadsheet.daily.sources import fetch
from broadsheet.daily.sources.base import SourceError
from broadsheet.daily.sources.fetch import Fetcher, NoAnswerError, Places
from broadsheet.daily.store import Store


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "page.sqlite")


@pytest.fixture
def places(httpserver):
    base = f"http://127.0.0.1:{httpserver.port}"
    return Places(hf=base + "/hf", query=base + "/api/query", rss=base + "/rss", oai=base + "/oai")


@pytest.fixture
def fetcher(store, places, clock):
    """Each place is on loopback, where one server stands for all: so all of them have Hugging Face's distance."""
    return Fetcher(store, places, clock=clock, sleep=clock.sleep)


@pytest.fixture
def of_arxiv(store, places, clock):
    """A fetcher to which the server is one of arXiv's."""
    return Fetcher(store, Places(query=places.query, rss=places.rss, oai=places.oai), clock=clock, sleep=clock.sleep)


def forbidden(*_):
    raise AssertionError("it was asked all the same")


def test_an_answer_comes_whole_and_the_question_as_it_was_put(fetcher, httpserver):
    asked = {"search_query": 'ti:"a b" AND cat:cs.CL', "start": "0"}
    httpserver.expect_oneshot_request("/api/query", query_string=asked).respond_with_data(b"<feed/>")
    assert fetcher.get(fetcher.places.query, asked) == (200, b"<feed/>")
    [(request, _)] = httpserver.log
    assert request.headers["User-Agent"].startswith("broadsheet/")
    assert not {"Cookie", "Authorization", "Referer"} & set(request.headers.keys())


def test_requests_to_arxiv_are_three_seconds_apart_together_and_over_runs(of_arxiv, store, clock, httpserver):
    times = []

    def answer(request):
        times.append(clock.now)
        clock.now += 0.5  # the answer takes its time, too
        return Response(b"ok")

    for path in ("/api/query", "/rss", "/oai"):
        httpserver.expect_request(path).respond_with_handler(answer)
    of_arxiv.get(of_arxiv.places.query)
    of_arxiv.get(of_arxiv.places.rss)
    again = Fetcher(Store(store.name), of_arxiv.places, clock=clock, sleep=clock.sleep)  # as another run
    again.get(again.places.oai)
    clock.now += 60
    again.get(again.places.oai)
    assert all(after - before >= 3.5 for before, after in pairwise(times))
    assert len(clock.naps) == 2  # after a minute nothing is waited for


def test_a_clock_that_was_set_back_makes_nobody_wait_for_long(of_arxiv, clock, httpserver):
    httpserver.expect_request("/rss").respond_with_data(b"ok")
    of_arxiv.get(of_arxiv.places.rss)
    clock.now -= 86_400
    of_arxiv.get(of_arxiv.places.rss)
    assert clock.naps == [3.0]


def test_a_killed_run_has_asked_too(of_arxiv, store, httpserver):
    kept = []

    def answer(request):  # what a kill at this moment would leave in the file
        kept.append(Store(store.name).asked("host:arxiv"))
        return Response(b"ok")

    httpserver.expect_request("/rss").respond_with_handler(answer)
    of_arxiv.get(of_arxiv.places.rss)
    [(_, _, noted)] = kept
    assert json.loads(noted)["last"] == NOON


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, {"RateLimit": '"api";r=0;t=42'}, 42),
        (429, {"RateLimit": '"pages";r=50;t=300, "api";r=0;t=42', "RateLimit-Policy": '"api";q=500;w=300'}, 42),
        (503, {"Retry-After": "42"}, 42),
        (503, {"Retry-After": "Mon, 19 Aug 2024 12:00:42 GMT"}, 42),
        (503, {"Retry-After": "Mon, 19 Aug 2024 12:00:42 -0000"}, 42),
    ],
)
def test_patience_is_waited_for_once(fetcher, clock, httpserver, status, headers, wait):
    times = []

    def answer(request):
        times.append(clock.now)
        return Response(b"", status, headers) if len(times) == 1 else Response(b"ok")

    httpserver.expect_request("/rss").respond_with_handler(answer)
    assert fetcher.get(fetcher.places.rss) == (200, b"ok")
    assert len(times) == 2
    assert times[1] >= times[0] + wait
    assert times[1] <= times[0] + wait + 1


def test_a_second_refusal_is_told_and_kept_in_mind(fetcher, store, clock, httpserver):
    times = []

    def answer(request):
        times.append(clock.now)
        return Response(b"", 429, {"Retry-After": "600" if len(times) > 1 else "42"})

    httpserver.expect_request("/rss").respond_with_handler(answer)
    with pytest.raises(NoAnswerError, match="429, ask again after 2024-08-19 12:10:42 UTC") as caught:
        fetcher.get(fetcher.places.rss)
    assert caught.value.again == NOON + 642
    assert len(times) == 2
    again = Fetcher(store, fetcher.places, clock=clock, sleep=clock.sleep)  # the next run does not even ask
    with pytest.raises(NoAnswerError, match="ask again after 2024-08-19 12:10:42 UTC"):
        again.get(again.places.rss)
    assert len(times) == 2
    clock.now += 601
    httpserver.clear()
    httpserver.expect_request("/rss").respond_with_data(b"ok")
    assert again.get(again.places.rss).status == 200


def test_patience_without_a_time_is_no_reason_to_ask_again(fetcher, clock, httpserver):
    httpserver.expect_request("/rss").respond_with_data(b"", status=503)
    with pytest.raises(NoAnswerError, match="503 without a time"):
        fetcher.get(fetcher.places.rss)
    assert len(httpserver.log) == 1
    assert clock.naps == []


def test_where_arxiv_refuses_it_is_left_alone_for_a_day(of_arxiv, clock, httpserver):
    httpserver.expect_request("/rss").respond_with_data(b"", status=403)
    with pytest.raises(NoAnswerError, match="403: arXiv refuses this machine; ask again after 2024-08-20"):
        of_arxiv.get(of_arxiv.places.rss)
    clock.now += 3600
    with pytest.raises(NoAnswerError, match="ask again after 2024-08-20"):
        of_arxiv.get(of_arxiv.places.query)
    assert len(httpserver.log) == 1


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:9/hf",
        "http://localhost:{port}/hf",  # another name of the same machine is not what was configured
        "http://169.254.169.254/latest/meta-data",
        "https://example.org/hf",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
        "http://127.0.0.1:{port}@example.org/",
        "http://user@127.0.0.1:{port}/hf",
        "//example.org/hf",
        "http://[::1",
        "http://127.0.0.1:{port}:80/",
    ],
)
def test_redirects_elsewhere_are_not_followed(store, clock, target):
    looked = []
    with raw("HTTP/1.1 302 Found\r\nLocation: ", target, "\r\nContent-Length: 0\r\n\r\n") as port:
        places = Places(hf=f"http://127.0.0.1:{port}")
        fetcher = Fetcher(store, places, clock=clock, sleep=clock.sleep)
        fetcher.lookup = lambda host, port: looked.append((host, port)) or ["127.0.0.1"]
        with pytest.raises(SourceError, match="none of the configured hosts"):
            fetcher.get(places.hf)
    assert looked == [("127.0.0.1", port)]


def test_redirects_on_the_same_host_are_followed_some_times(of_arxiv, clock, httpserver):
    httpserver.expect_oneshot_request("/rss").respond_with_data(b"", status=301, headers={"Location": "/rss/new?a=b c"})
    httpserver.expect_oneshot_request("/rss/new", query_string={"a": "b c"}).respond_with_data(b"ok")
    assert of_arxiv.get(of_arxiv.places.rss) == (200, b"ok")
    assert clock.naps == [3.0]  # a redirect is a request
    httpserver.expect_request("/rss").respond_with_data(b"", status=302, headers={"Location": "/rss"})
    with pytest.raises(NoAnswerError, match="redirects more than 3 times"):
        of_arxiv.get(of_arxiv.places.rss)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "no address",
    ],
)
def test_a_name_that_stands_for_a_private_address_is_not_asked(store, clock, monkeypatch, address):
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    fetcher = Fetcher(store, Places(), clock=clock, sleep=clock.sleep, lookup=lambda *_: ["93.184.216.34", address])
    with pytest.raises(SourceError, match="which is not public"):
        fetcher.get(fetcher.places.hf)


def test_public_addresses_are():
    assert all(map(fetch._public, ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::808:808"]))


def test_a_base_on_loopback_stays_there(store, clock, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", forbidden)
    places = Places(hf="http://localhost:9")
    fetcher = Fetcher(store, places, clock=clock, sleep=clock.sleep, lookup=lambda *_: ["93.184.216.34"])
    with pytest.raises(SourceError, match="is not asked"):
        fetcher.get(places.hf)


def test_the_connection_goes_to_the_address_that_was_checked(store, clock, httpserver, monkeypatch):
    """A name server that changes its mind after the check changes nothing."""
    answers = iter([["127.0.0.1"]])  # a second look would find nothing
    monkeypatch.setattr(socket, "getaddrinfo", _only_addresses(socket.getaddrinfo))
    places = Places(hf=f"http://localhost:{httpserver.port}")
    fetcher = Fetcher(store, places, clock=clock, sleep=clock.sleep, lookup=lambda *_: next(answers))
    httpserver.expect_request("/").respond_with_data(b"ok")
    assert fetcher.get(places.hf).data == b"ok"
    assert httpserver.log[0][0].headers["Host"] == f"localhost:{httpserver.port}"


def _only_addresses(real):
    def look(host, *rest, **more):
        assert host == "127.0.0.1", host
        return real(host, *rest, **more)

    return look


def test_the_next_address_serves_where_the_first_does_not(store, clock, httpserver):
    places = Places(hf=f"http://localhost:{httpserver.port}")
    fetcher = Fetcher(store, places, clock=clock, sleep=clock.sleep, lookup=lambda *_: ["127.0.0.9", "127.0.0.1"])
    httpserver.expect_request("/").respond_with_data(b"ok")
    assert fetcher.get(places.hf).data == b"ok"


def test_a_name_without_an_address_is_told(store, clock):
    def nowhere(*_):
        raise socket.gaierror(-2, "Name or service not known")

    fetcher = Fetcher(store, Places(), clock=clock, sleep=clock.sleep, lookup=nowhere)
    with pytest.raises(NoAnswerError, match=r"huggingface.co cannot be looked up .*no network"):
        fetcher.get(fetcher.places.hf)


def test_too_many_bytes_are_not_read_to_the_end(fetcher, httpserver):
    sent = []

    def endless():
        while len(sent) < 10_000:
            sent.append(1)
            yield bytes(1 << 16)

    fetcher.largest = 1 << 20
    httpserver.expect_request("/rss").respond_with_handler(lambda _: Response(endless()))
    with pytest.raises(SourceError, match="sends more than 1,048,576 bytes"):
        fetcher.get(fetcher.places.rss)
    assert len(sent) < 1000


def test_an_answer_that_takes_too_long_is_left(fetcher, clock, httpserver):
    def drops():
        for _ in range(10_000):
            yield b"."

    fetcher.longest = 30
    httpserver.expect_request("/rss").respond_with_handler(lambda _: Response(drops()))
    clock.tick = 1.0
    with pytest.raises(NoAnswerError, match="no whole answer in time"):
        fetcher.get(fetcher.places.rss)


def test_headers_that_come_drop_by_drop_are_left_too(store, clock):
    """Each read ends in time by itself: only all of them together take too long."""
    clock.tick = 1.0
    with raw("HTTP/1.1 200 OK\r\nX: ", *"x" * 50_000, "\r\n\r\n") as port:
        places = Places(hf=f"http://127.0.0.1:{port}")
        fetcher = Fetcher(store, places, clock=clock, sleep=clock.sleep, longest=30)
        with pytest.raises(NoAnswerError, match="no whole answer in time"):
            fetcher.get(places.hf)


def test_no_read_or_write_waits_longer_than_what_is_left():
    waits = []

    class Stream:
        def read(self, size, timeout):
            waits.append(timeout)

        write = read

        def start_tls(self, context, name, timeout):
            waits.append(timeout)
            return self

    stream = fetch._Timed(Stream(), lambda: 2.0).start_tls(None, "x", 60.0)
    stream.read(1, 60.0)
    stream.write(b"", None)
    stream.read(1, 1.0)
    assert waits == [2.0, 2.0, 2.0, 1.0]


def test_gzip_is_unpacked_within_limits(fetcher, httpserver):
    fetcher.largest = 1 << 20
    packed = {"Content-Encoding": "gzip"}
    httpserver.expect_oneshot_request("/rss").respond_with_data(gzip.compress(b"ok"), headers=packed)
    assert fetcher.get(fetcher.places.rss).data == b"ok"
    httpserver.expect_oneshot_request("/rss").respond_with_data(gzip.compress(bytes(1 << 24)), headers=packed)
    with pytest.raises(SourceError, match="more than 1 MiB out of"):
        fetcher.get(fetcher.places.rss)
    httpserver.expect_oneshot_request("/rss").respond_with_data(gzip.compress(b"ok" * 99)[:-9], headers=packed)
    with pytest.raises(SourceError, match="cut"):
        fetcher.get(fetcher.places.rss)
    httpserver.expect_oneshot_request("/rss").respond_with_data(b"x", headers={"Content-Encoding": "br"})
    with pytest.raises(SourceError, match="br, which was not asked for"):
        fetcher.get(fetcher.places.rss)


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf",
        "SMTP ready",
        "",
    ],
)
def test_a_body_that_is_cut_is_no_answer(store, clock, answer):
    with raw(answer) as port:
        places = Places(hf=f"http://127.0.0.1:{port}")
        with pytest.raises(NoAnswerError, match="is cut or broken; nothing of it is kept"):
            Fetcher(store, places, clock=clock, sleep=clock.sleep).get(places.hf)


def test_other_answers_are_the_callers_to_read(fetcher, httpserver):
    httpserver.expect_request("/rss").respond_with_json({"error": "future"}, status=400)
    status, data = fetcher.get(fetcher.places.rss)
    assert (status, json.loads(data)) == (400, {"error": "future"})


def test_places_come_from_the_environment():
    assert Places.of({}) == Places()
    places = Places.of({"HF_ENDPOINT": "http://127.0.0.1:8080/", "BROADSHEET_ARXIV_OAI": "https://mirror.example/oai"})
    assert (places.hf, places.oai) == ("http://127.0.0.1:8080", "https://mirror.example/oai")


@pytest.mark.parametrize(
    "value",
    ["http://mirror.example", "ftp://x", "mirror", "https://", "https://me@x.org", "https://x:99999", "http://[::"],
)
def test_a_place_that_is_none_is_told_by_its_variable(value):
    with pytest.raises(InputError, match="got HF_ENDPOINT="):
        Places.of({"HF_ENDPOINT": value})


def test_proxies_of_the_environment_are_not_used(fetcher, httpserver, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    httpserver.expect_request("/rss").respond_with_data(b"ok")
    assert fetcher.get(fetcher.places.rss).data == b"ok"
