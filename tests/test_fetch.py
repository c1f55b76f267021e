"""Downloads: fetched once, checked, unpacked safely, and nothing left half-written."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import random
import re
import shutil
import socket
import sys
import tarfile
import threading
from pathlib import Path

from deepatlas import datasets
from deepatlas.datasets import fetch, layouts
from deepatlas.errors import UserError

import pytest
from folders import write_folders


class Server:
    """An HTTP server on this machine that answers every request with ``body``, and keeps what the
    requests said.

    ``etag`` and ``changed`` are told if they are set; ``cut``: bytes after which it hangs up;
    ``stalls``: after these bytes it is silent; ``ranges``: does it know of them, "wrong" if it
    gives them of any version, without a look at If-Range; ``moved``: where it sends on.
    """

    def __init__(self):
        self.body, self.status, self.claimed, self.requests = b"", 200, None, 0
        self.etag = self.changed = self.cut = self.stalls = self.moved = None
        self.ranges, self.asked = True, []
        self.over = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                outer.asked.append(self.headers.get("Range"))
                if outer.moved is not None and self.path != outer.moved:
                    self.send_response(302)
                    self.send_header("Location", outer.moved)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body, status = outer.body, outer.status
                first = self.first_byte()
                if first is not None:
                    status, body = 206, body[first:]
                    if not body:
                        status = 416
                self.send_response(status)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {first}-/{len(outer.body)}")
                for name, value in (("ETag", outer.etag), ("Last-Modified", outer.changed)):
                    if value is not None:
                        self.send_header(name, value)
                if outer.claimed != "nothing":
                    self.send_header("Content-Length", str(outer.claimed or len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):  # nobody listens any more
                    self.send(body)

            def first_byte(self):
                asked = re.fullmatch("bytes=([0-9]+)-", self.headers.get("Range", ""))
                version = self.headers.get("If-Range")
                if not outer.ranges or asked is None:
                    return None
                if outer.ranges != "wrong" and version not in (outer.etag, outer.changed):
                    return None
                return int(asked[1])

            def send(self, body):
                if outer.stalls is not None:
                    self.wfile.write(body[: outer.stalls])
                    self.wfile.flush()
                    outer.over.wait(20)
                self.wfile.write(body[: outer.cut])
                if outer.cut is not None:
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/Task04_Hippocampus.tar"
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def stop(self):
        self.over.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "CHUNK", 1000)
    running = Server()
    yield running
    running.stop()


def tar_of(*members, mode=""):
    """A tar archive of (name, bytes) or ready (TarInfo, None)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{mode}") as tar:
        for name, content in members:
            if isinstance(name, tarfile.TarInfo):
                tar.addfile(name)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def task04(count=9):
    """The Decathlon's archive: one folder at the top, and the litter of macOS."""
    names = [f"hippocampus_{i:03d}.nii.gz" for i in range(count)]
    files = [
        (f"Task04_Hippocampus/{part}/{name}", f"{part} {name}".encode())
        for name in names
        for part in ("imagesTr", "labelsTr")
    ]
    return tar_of(
        ("._Task04_Hippocampus", b"\0\5"),
        ("Task04_Hippocampus/._dataset.json", b"\0\5"),
        ("Task04_Hippocampus/dataset.json", b"{}"),
        *files,
    )


def sha256(body):
    return hashlib.sha256(body).hexdigest()


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "sandbox" / "cache"


def serve_and_fetch(server, cache, body, **more):
    server.body = body
    for key, value in more.items():
        setattr(server, key, value)
    return datasets.download(server.url, sha256(body), cache / "hippocampus")


def nothing_left(cache):
    """Nothing in the cache, and nothing beside it."""
    return [path for path in cache.parent.rglob("*") if path != cache] == []


def test_a_download_is_unpacked_once_with_a_progress_bar(server, cache, capfd):
    body = task04()
    folder = serve_and_fetch(server, cache, body)
    assert folder == cache / "hippocampus"
    assert (folder / "dataset.json").is_file() and len(
        list((folder / "labelsTr").glob("hippocampus_*"))
    ) == 9
    assert "100%" in capfd.readouterr().err
    assert serve_and_fetch(server, cache, body) == folder
    assert server.requests == 1
    assert [path.name for path in cache.iterdir()] == ["hippocampus"]


def test_a_data_set_that_is_not_there_is_downloaded_into_the_cache(
    server, cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("DEEPATLAS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DEEPATLAS_CACHE", str(cache))
    server.body = task04()
    public = {"url": server.url, "sha256": sha256(server.body)}
    entry = datasets.describe("hippocampus").model_copy(update=public)
    assert datasets.local(entry) is None
    first, second = datasets.find(entry), datasets.find(entry)
    assert first == second.resolve() == datasets.local(entry) == (cache / "hippocampus").resolve()
    assert server.requests == 1


def test_a_dataset_json_at_the_top_of_the_archive_is_found_too(server, cache):
    folder = serve_and_fetch(
        server, cache, tar_of(("dataset.json", b"{}"), ("imagesTr/a.nii.gz", b""))
    )
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "imagesTr"]


def test_a_wrong_checksum_is_said_and_leaves_nothing(server, cache):
    server.body = task04(1)
    with pytest.raises(
        ValueError,
        match=r"Task04_Hippocampus.tar: the download is damaged, its checksum is not 000",
    ):
        datasets.download(server.url, "0" * 64, cache / "hippocampus")
    assert nothing_left(cache)
    assert serve_and_fetch(server, cache, server.body).is_dir()


def test_a_transfer_that_breaks_off_is_said_leaves_nothing_and_can_be_tried_again(server, cache):
    body = task04(1)
    server.body, server.claimed = body[: len(body) // 2], len(body)
    with pytest.raises(
        ConnectionError, match=r"cannot be downloaded .*try again, or fetch it elsewhere"
    ):
        datasets.download(server.url, sha256(body), cache / "hippocampus")
    assert nothing_left(cache)
    assert serve_and_fetch(server, cache, body, claimed=None).is_dir()


def long_chain(outside):
    """Links that lead ``outside`` by a way too long for the check of this Python's tarfile."""
    members, way, deep = [], [], "d" * 247
    for step in "abcdefghijklmnop":
        folder = tarfile.TarInfo("/".join([deep] * (len(way) + 1)))
        folder.type = tarfile.DIRTYPE
        members.append((folder, None))
        members.append(link("/".join([*[deep] * len(way), step]), deep))
        way.append(step)
    back = "/".join([*way, "l" * 254])
    members.append(link(back, "../" * len(way)))
    members.append(link("escape", f"{back}/{outside}"))
    return [*members, ("escape/evil", b"x")]


EVIL = {
    "parent": [("../evil", b"x")],
    "deep parent": [("Task04_Hippocampus/../../../evil", b"x")],
    "absolute": [("{outside}/evil", b"x")],
    "symbolic link": [
        link("Task04_Hippocampus/out", "{outside}"),
        ("Task04_Hippocampus/out/evil", b"x"),
    ],
    "relative link": [
        link("Task04_Hippocampus/out", "../../.."),
        ("Task04_Hippocampus/out/evil", b"x"),
    ],
    "hard link": [link("Task04_Hippocampus/out", "../../outside/there", tarfile.LNKTYPE)],
    "link inside": [link("Task04_Hippocampus/in", "dataset.json")],
    "hard link inside": [link("in", "Task04_Hippocampus/dataset.json", tarfile.LNKTYPE)],
    "long chain of links": long_chain("../../../outside"),
    "device": [link("Task04_Hippocampus/null", "", tarfile.CHRTYPE)],
    "disk": [link("Task04_Hippocampus/disk", "", tarfile.BLKTYPE)],
    "pipe": [link("Task04_Hippocampus/pipe", "", tarfile.FIFOTYPE)],
    "unknown kind": [link("Task04_Hippocampus/what", "", b"Z")],
    "file as a folder": [("Task04_Hippocampus/dataset.json/a", b"x")],
    "folder as a file": [("Task04_Hippocampus/a/b", b"x"), ("Task04_Hippocampus/a", b"x")],
}


def evil_members(kind, outside):
    for name, content in EVIL[kind]:
        if isinstance(name, tarfile.TarInfo):
            copy = tarfile.TarInfo(name.name)
            copy.type, copy.linkname = name.type, name.linkname.format(outside=outside)
            yield copy, None
        else:
            yield name.format(outside=outside), content


@pytest.mark.parametrize("kind", EVIL)
def test_an_archive_that_reaches_outside_is_refused_and_writes_nothing(server, cache, kind):
    outside = cache.parent / "outside"
    outside.mkdir(parents=True)
    (outside / "there").write_text("mine")
    body = tar_of(("Task04_Hippocampus/dataset.json", b"{}"), *evil_members(kind, outside))
    with pytest.raises(ValueError, match="not a safe and complete tar archive"):
        serve_and_fetch(server, cache, body)
    assert not list(cache.parent.parent.rglob("evil"))
    assert [path.name for path in outside.iterdir()] == ["there"]
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("form", ["gz", "bz2", "xz"])
def test_an_archive_that_swells_is_refused_before_it_is_unpacked(server, cache, form, monkeypatch):
    monkeypatch.delattr(tarfile.TarFile, "extractall")  # not reached
    monkeypatch.setattr(fetch, "SMALL", 1_000_000)
    zeros = ("Task04_Hippocampus/zeros", bytes(8_000_000))
    body = tar_of(("Task04_Hippocampus/dataset.json", b"{}"), zeros, mode=form)
    assert len(body) < 40_000
    with pytest.raises(UserError, match=r"tar: .*it unpacks to more than 200 times its own size"):
        serve_and_fetch(server, cache, body)
    assert nothing_left(cache)


def test_compressed_archives_are_unpacked_too(server, cache):
    files = ("Task04_Hippocampus/dataset.json", b"{}"), ("Task04_Hippocampus/a", bytes(100_000))
    folder = serve_and_fetch(server, cache, tar_of(*files, mode="gz"))
    assert (folder / "a").read_bytes() == bytes(100_000)


@pytest.mark.parametrize("form", ["bz2", "xz"])
def test_a_damaged_compressed_archive_is_refused(server, cache, form):
    noise = random.Random(0).randbytes(100_000)
    body = bytearray(tar_of(("Task04_Hippocampus/dataset.json", noise), mode=form))
    body[len(body) // 2] ^= 1
    with pytest.raises(UserError, match="not a safe and complete tar archive"):
        serve_and_fetch(server, cache, bytes(body))
    assert nothing_left(cache)


def test_an_archive_larger_than_the_free_disk_is_not_unpacked(server, cache, monkeypatch):
    monkeypatch.delattr(tarfile.TarFile, "extractall")  # not reached
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(OSError, match="1542 bytes are to be unpacked, free are 100") as caught:
        serve_and_fetch(server, cache, task04(0))
    assert caught.value.errno == errno.ENOSPC
    assert nothing_left(cache)


@pytest.mark.parametrize(
    "body, wanted",
    [
        (b"<html>not found</html>" * 100, "not a safe and complete tar archive"),
        (tar_of(("Task04_Hippocampus/readme.txt", b"hello")), "holds no dataset.json"),
        (
            tar_of(("Task04_Hippocampus/dataset.json", b"x" * 5000))[:3000],
            "not a safe and complete tar archive",
        ),
        (b"\x1f\x8b\x08\x00" + b"\0" * 30, "not a safe and complete tar archive"),
    ],
    ids=["a web page", "no dataset.json", "cut short", "broken gzip"],
)
def test_what_is_no_such_archive_is_said_and_leaves_nothing(server, cache, body, wanted):
    with pytest.raises(ValueError, match=f"Task04_Hippocampus.tar: .*{wanted}"):
        serve_and_fetch(server, cache, body)
    assert nothing_left(cache)


def test_an_interrupted_unpacking_leaves_nothing_that_would_be_found(server, cache, monkeypatch):
    body = task04(2)

    def interrupted(tar, path, **_):
        (Path(path) / "Task04_Hippocampus").mkdir(parents=True)
        (Path(path) / "Task04_Hippocampus" / "dataset.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", interrupted)
        with pytest.raises(KeyboardInterrupt):
            serve_and_fetch(server, cache, body)
    assert nothing_left(cache)
    assert len(list((serve_and_fetch(server, cache, body) / "imagesTr").iterdir())) == 2


def test_a_folder_in_the_way_is_named_and_not_touched(server, cache):
    (cache / "hippocampus").mkdir(parents=True)
    (cache / "hippocampus" / "notes.txt").write_text("mine")
    with pytest.raises(
        ValueError, match=r"hippocampus: is there, but holds no dataset.json: remove it"
    ):
        serve_and_fetch(server, cache, b"")
    assert server.requests == 0
    assert (cache / "hippocampus" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "status, said", [(404, "404 Not Found"), (500, "500 Internal Server Error")]
)
def test_an_error_of_the_server_is_named(server, cache, status, said):
    with pytest.raises(
        ConnectionError, match=rf"the server answers {said}.*set DEEPATLAS_DATA.*holds hippocampus/"
    ):
        serve_and_fetch(server, cache, b"sorry", status=status)
    assert nothing_left(cache)


def test_without_a_server_the_error_says_what_to_do(server, cache):
    server.stop()
    with pytest.raises(
        ConnectionError, match=r"check the connection.*set DEEPATLAS_DATA.*holds hippocampus/"
    ):
        datasets.download(server.url, "0" * 64, cache / "hippocampus")
    assert nothing_left(cache)


@pytest.mark.parametrize(
    "url, proxy, said",
    [
        ("http://example.invalid/a.tar", "socks5h://127.0.0.1:9", "Missing dependencies for SOCKS"),
        ("http://example.invalid/a.tar", "http://", "Please check proxy URL"),
        ("http:///a.tar", None, "No host supplied"),
        ("nowhere/a.tar", None, "No scheme supplied"),
        ("sftp://example.invalid/a.tar", None, "No connection adapters were found"),
    ],
)
def test_a_wrong_proxy_or_address_is_no_damaged_download(cache, monkeypatch, url, proxy, said):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setitem(sys.modules, "socks", None)  # as where PySocks is not installed
    monkeypatch.delitem(sys.modules, "urllib3.contrib.socks", raising=False)
    if proxy is not None:
        monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(
        ConnectionError, match=rf"{said}.*: check the address and the settings of the proxy, or"
    ):
        datasets.download(url, "0" * 64, cache / "hippocampus")
    assert nothing_left(cache)


def test_a_length_that_makes_no_sense_is_not_believed(server, cache):
    assert serve_and_fetch(server, cache, task04(1), claimed="many").is_dir()


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_network(server, cache, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch._Transfer, "_receive", full_disk)
    with pytest.raises(OSError, match="No space left on device") as caught:
        serve_and_fetch(server, cache, task04(1))
    assert not isinstance(caught.value, ConnectionError)
    assert nothing_left(cache)


# --- transfers that break off ---------------------------------------------------------------------

NOISE = random.Random(1).randbytes(50_000)
LARGE = tar_of(("Task04_Hippocampus/dataset.json", b"{}"), ("Task04_Hippocampus/a", NOISE))


def broken(server, cache, said="broke off after 20000", **more):
    """A transfer that ends early; the file that is left of it, if there is one."""
    with pytest.raises(ConnectionError, match=rf"cannot be downloaded \(.*{said}") as caught:
        serve_and_fetch(server, cache, LARGE, **({"cut": 20_000} | more))
    left = list(cache.glob("hippocampus-*.part"))
    assert ("goes on from where it was" in str(caught.value)) == bool(left)
    return left[0] if left else None


@pytest.mark.parametrize(
    "version", [{"etag": '"1"'}, {"changed": "Wed, 01 Jan 2025 00:00:00 GMT"}], ids=["tag", "time"]
)
def test_a_transfer_that_broke_off_goes_on_where_it_was(server, cache, version, capfd):
    part = broken(server, cache, **version)
    assert part.read_bytes() == LARGE[:20_000]
    folder = serve_and_fetch(server, cache, LARGE, cut=None)
    assert server.asked == [None, None, "bytes=20000-"]
    assert (folder / "a").read_bytes() == NOISE
    assert [path.name for path in cache.iterdir()] == ["hippocampus"]
    assert "100%" in capfd.readouterr().err


OF_PROCESS = r"[0-9]+(\.[0-9a-f]{8}\.part)$"  # its number, in the name of what it fills


def test_what_a_killed_process_left_is_taken_over(server, cache):
    part = broken(server, cache, etag='"1"')
    number = 2**22 + 1  # no process has it
    left = part.with_name(re.sub(OF_PROCESS, rf"{number}\1", part.name))
    part.rename(left)
    serve_and_fetch(server, cache, LARGE, cut=None)
    assert server.asked[-1] == "bytes=20000-" and not left.exists()


def test_what_another_process_is_filling_is_left_to_it(server, cache):
    part = broken(server, cache, etag='"1"')
    other = part.with_name(re.sub(OF_PROCESS, rf"{os.getppid()}\1", part.name))
    part.rename(other)
    serve_and_fetch(server, cache, LARGE, cut=None)
    assert server.asked[-1] is None and other.read_bytes() == LARGE[:20_000]


def test_a_server_that_ignores_ranges_sends_all_again(server, cache):
    broken(server, cache, etag='"1"')
    folder = serve_and_fetch(server, cache, LARGE, cut=None, ranges=False)
    assert server.asked[-1] == "bytes=20000-"
    assert (folder / "a").read_bytes() == NOISE


def test_a_server_that_tells_no_version_is_asked_for_all_again(server, cache):
    assert broken(server, cache) is None
    assert nothing_left(cache)
    assert serve_and_fetch(server, cache, LARGE, cut=None).is_dir()
    assert server.asked == [None, None]


def test_a_weak_tag_is_no_version(server, cache):
    assert broken(server, cache, etag='W/"1"') is None
    assert nothing_left(cache)


@pytest.mark.parametrize("ranges", [True, "wrong"])
def test_a_file_that_changed_meanwhile_is_not_glued_to_what_came(server, cache, ranges):
    part = broken(server, cache, etag='"1"')
    noise = random.Random(2).randbytes(50_000)
    other = tar_of(("Task04_Hippocampus/dataset.json", b"{}"), ("Task04_Hippocampus/a", noise))
    left = part.with_name(re.sub(OF_PROCESS, rf"{2**22 + 1}\1", part.name))
    part.rename(left)
    folder = serve_and_fetch(server, cache, other, cut=None, etag='"2"', ranges=ranges)
    assert (folder / "a").read_bytes() == noise
    assert server.asked[-1] is None  # nothing of that version has come yet
    assert [path.name for path in cache.iterdir()] == ["hippocampus"]


def test_a_file_that_changes_between_two_requests_is_not_glued_either(server, cache, monkeypatch):
    broken(server, cache, etag='"1"')
    ask = fetch._Transfer._ask

    def changing(transfer, session, headers=None):
        if headers is not None:
            server.etag = '"2"'
        return ask(transfer, session, headers)

    monkeypatch.setattr(fetch._Transfer, "_ask", changing)
    folder = serve_and_fetch(server, cache, LARGE, cut=None, ranges="wrong")
    assert server.asked[2:] == ["bytes=20000-", None]
    assert (folder / "a").read_bytes() == NOISE


def test_what_came_whole_but_could_not_be_unpacked_is_not_fetched_again(server, cache, monkeypatch):
    with monkeypatch.context() as patch:
        few = shutil._ntuple_diskusage(1000, 900, 100)
        patch.setattr(shutil, "disk_usage", lambda path: few)
        with pytest.raises(OSError, match="bytes are to be unpacked"):
            serve_and_fetch(server, cache, LARGE, etag='"1"')
    assert serve_and_fetch(server, cache, LARGE).is_dir()
    assert server.asked == [None, None] and nothing_beside(cache, "hippocampus")


def nothing_beside(cache, name):
    return [path.name for path in cache.iterdir()] == [name]


def test_a_damaged_download_is_not_gone_on_with(server, cache):
    server.body, server.etag = LARGE, '"1"'
    with pytest.raises(UserError, match="the download is damaged, its checksum is not 000"):
        datasets.download(server.url, "0" * 64, cache / "hippocampus")
    assert nothing_left(cache)


def test_a_part_that_was_damaged_is_found_out_and_fetched_again(server, cache):
    part = broken(server, cache, etag='"1"')
    part.write_bytes(bytes(20_000))
    with pytest.raises(UserError, match="the download is damaged"):
        serve_and_fetch(server, cache, LARGE, cut=None)
    assert serve_and_fetch(server, cache, LARGE).is_dir()


def test_a_truncated_file_whose_length_nobody_tells_is_found_by_its_checksum(server, cache):
    with pytest.raises(UserError, match="the download is damaged"):
        serve_and_fetch(server, cache, LARGE, claimed="nothing", cut=20_000)
    assert nothing_left(cache)


def test_a_server_that_falls_silent_is_not_waited_for(server, cache, monkeypatch):
    monkeypatch.setattr(fetch, "PATIENCE", 0.3)
    part = broken(server, cache, "no byte came for 0.3 seconds", etag='"1"', cut=None, stalls=9000)
    assert part.stat().st_size == 9000
    server.stalls = None
    serve_and_fetch(server, cache, LARGE, cut=None)
    assert server.asked[-1] == "bytes=9000-"


def test_a_server_that_never_answers_is_not_waited_for(cache, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "PATIENCE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.tar"
        with pytest.raises(ConnectionError, match=r"no byte came for 0.3 seconds\): check the"):
            datasets.download(url, "0" * 64, cache / "hippocampus")
    assert nothing_left(cache)


def test_a_redirect_is_followed_when_it_goes_on_too(server, cache):
    broken(server, cache, etag='"1"', moved="/elsewhere.tar")
    assert serve_and_fetch(server, cache, LARGE, cut=None).is_dir()
    assert server.asked == [None, None, None, None, "bytes=20000-", "bytes=20000-"]


def test_a_redirect_that_leads_in_a_circle_ends(server, cache):
    with pytest.raises(ConnectionError, match=r"TooManyRedirects: Exceeded 30 redirects"):
        serve_and_fetch(server, cache, LARGE, moved="round?about")
    assert nothing_left(cache)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_is_named(server, cache, monkeypatch, scheme):
    """Asked for a page, it answers itself; asked for a way, it gives none."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv(f"{scheme}_proxy", server.url.rpartition("/")[0])
    server.status = 403
    said = {
        "http": "the server answers 403 Forbidden",
        "https": "the proxy refuses, or is not there: .*check the settings of the proxy",
    }
    with pytest.raises(ConnectionError, match=said[scheme]):
        datasets.download(f"{scheme}://example.invalid/a.tar", "0" * 64, cache / "hippocampus")
    assert nothing_left(cache)


def test_an_md5_is_as_good_where_no_other_checksum_is_published(server, cache):
    server.body = LARGE
    with pytest.raises(UserError, match=f"its checksum is not {'0' * 32}"):
        datasets.download(server.url, "0" * 32, cache / "hippocampus")
    digest = hashlib.md5(LARGE).hexdigest()
    assert datasets.download(server.url, digest, cache / "hippocampus").is_dir()


# --- other layouts --------------------------------------------------------------------------------


def entry_of(server, **more):
    values = {
        "name": "brains",
        "title": "Brains",
        "licence": "CC0",
        "url": "https://example.org/brains.tar",
        "md5": hashlib.md5(server.body).hexdigest(),
        "split": [1, 1, 1],
        "structures": [["all", [1]]],
        "grids": {"full-3d": {"shape": [16, 16, 16], "spacing": 1.0}},
    }
    return datasets.Entry(**(values | more)).model_copy(update={"url": server.url})


@pytest.mark.parametrize("url", ["http://example.org/a.tar", "ftp://example.org/a.tar", "a.tar"])
def test_an_address_is_one_of_https(server, url):
    with pytest.raises(ValueError, match=r"url\n.*'\^https"):
        entry_of(server, url=url)


@pytest.mark.parametrize("top", ["", "./", "neurite/", "a/b/"])
def test_an_archive_without_dataset_json_is_known_by_its_images(
    server, cache, tmp_path, monkeypatch, top
):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(cache))
    monkeypatch.delenv("DEEPATLAS_DATA", raising=False)
    members = [(f"{top}OAS{i}/{name}.nii.gz", b"x") for i in range(3) for name in ("norm", "seg35")]
    server.body = tar_of(("__MACOSX/OAS0/norm.nii.gz", b""), (f"{top}subjects.txt", b""), *members)
    entry = entry_of(
        server, layout="subjects", image="{scan}/norm.nii.gz", labels="{scan}/seg35.nii.gz"
    )
    assert datasets.local(entry) is None
    folder = datasets.find(entry)
    assert folder.name == "brains" and datasets.local(entry) == folder.resolve()
    files = layouts.list_files(folder, entry)
    assert [(file.id, file.labels.name) for file in files] == [
        (f"OAS{i}", "seg35.nii.gz") for i in range(3)
    ]


def test_an_archive_of_another_layout_is_said(server, cache, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(cache))
    monkeypatch.delenv("DEEPATLAS_DATA", raising=False)
    server.body = LARGE
    with pytest.raises(UserError, match=r"holds no \*/norm.nii.gz; is it the right one"):
        datasets.find(entry_of(server, layout="subjects", image="{scan}/norm.nii.gz"))
    assert nothing_left(cache)


def test_a_cohort_file_is_its_own_address(tmp_path):
    write_folders(tmp_path, count=3)
    path = tmp_path / "cohort.toml"
    path.write_text(
        'name = "mice"\nstructures = [["low", [1]]]\n'
        "grids.full-3d = { shape = [16, 16, 16], spacing = 1.0 }\n"
        '[[scans]]\nid = "a"\nsubject = "p"\nimage = "images/mouse00.nii.gz"\n'
        'labels = "labels/mouse00_seg.nii.gz"\npart = "train"\n'
    )
    entry = datasets.describe(str(path))
    assert datasets.local(entry) == datasets.find(entry) == tmp_path


@pytest.mark.parametrize("key, digits", [("sha256", 64), ("md5", 32)])
def test_a_url_wants_a_checksum(server, key, digits):
    assert getattr(entry_of(server, **{key: "a" * digits}), key) == "a" * digits
    with pytest.raises(ValueError, match="wants the sha256 of what is fetched there, or its md5"):
        entry_of(server, md5=None)
