"""Downloads: fetched once, checked, unpacked safely, and nothing left half-written."""

import errno
import hashlib
import http.server
import io
import random
import shutil
import sys
import tarfile
import threading
from pathlib import Path

from deepatlas import datasets
from deepatlas.datasets import fetch
from deepatlas.errors import UserError

import pytest


class Server:
    """An HTTP server on this machine that answers every request with ``body``, and counts them."""

    def __init__(self):
        self.body, self.status, self.claimed, self.requests = b"", 200, None, 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                self.send_response(outer.status)
                self.send_header("Content-Length", str(outer.claimed or len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/Task04_Hippocampus.tar"
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
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


def test_an_answer_that_makes_no_sense_is_no_damaged_download(server, cache):
    with pytest.raises(ConnectionError, match=r"cannot be downloaded \(invalid literal.*try again"):
        serve_and_fetch(server, cache, b"x", claimed="many")
    assert nothing_left(cache)


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_network(cache, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch.pooch.HTTPDownloader, "__call__", full_disk)
    with pytest.raises(OSError, match="No space left on device") as caught:
        datasets.download("http://127.0.0.1/a.tar", "0" * 64, cache / "hippocampus")
    assert not isinstance(caught.value, ConnectionError)
    assert nothing_left(cache)
