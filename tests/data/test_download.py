"""The downloader against a real server on 127.0.0.1 that hangs up, stalls, lies and changes its mind."""

import hashlib
import http.server
import multiprocessing
import os
import random
import re
import resource
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress

import pytest

from common.errors import UserError
from data import download
from data.download import fetch

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
NAME = "file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.body`. `server.plan` says what goes wrong in each request, one dict a request:

    status: answer that and nothing else; silent: no answer; cut, reset, stall: after so many bytes hang up,
    send RST, fall silent until `server.release` is set; ranges=False: ignore Range; if_range=False: ignore
    If-Range; first: continue at that byte instead of the one asked for; length=False: do not say how long the
    body is.
    """

    def do_GET(self):
        server = self.server
        with server.guard:
            server.requests.append(dict(self.headers))
            fault = server.plan.pop(0) if server.plan else server.default
            if len(server.requests) > 50:  # ends a client that would ask forever
                fault = {"status": 404}
        if "status" in fault:
            self.send_error(fault["status"])
            return
        if "silent" in fault:
            server.release.wait(30)
            return
        body, start, whole = server.body, 0, len(server.body)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if_range = self.headers.get("If-Range") if fault.get("if_range", True) else None
        if wanted and fault.get("ranges", True) and if_range in (None, server.version):
            start = fault.get("first", int(wanted[1]))
            self.send_response(206 if start < whole else 416)
            self.send_header(
                "Content-Range", f"bytes {start}-{whole - 1}/{whole}" if start < whole else f"bytes */{whole}"
            )
            body = body[start:]
        else:
            self.send_response(200)
        if server.version:
            self.send_header("ETag" if '"' in server.version else "Last-Modified", server.version)
        if fault.get("length", True):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for kind in ("cut", "reset", "stall"):
            if kind in fault:
                self.wfile.write(body[: fault[kind]])
                body = b""
        if "stall" in fault:
            server.release.wait(30)
        if "reset" in fault:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            return
        with suppress(OSError):  # the client was killed
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.guard = threading.Lock()
        self.release = threading.Event()
        self.body, self.version = BODY, '"v1"'
        self.plan, self.default, self.requests = [], {}, []
        self.url = f"http://127.0.0.1:{self.server_port}/{NAME}"

    def ranges(self):
        return [request.get("Range") for request in self.requests]

    def handle_error(self, request, client_address):
        pass  # a client that was killed


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "TRIES", 3)
    monkeypatch.setattr(download, "TIMEOUT", 20)
    monkeypatch.setenv("no_proxy", "*")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def in_child(log, call):
    """A process of its own that runs `call`, stderr to `log`; exit code 2 after a UserError.

    Forked: starting Python and importing the package anew takes seconds.
    """

    def body():
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stderr = sys.__stderr__  # pytest had put its own there
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        try:
            call()
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(2)

    process = multiprocessing.get_context("fork").Process(target=body, daemon=True)
    process.start()
    return process


def ended(process):
    process.join(30)
    return process.exitcode


# ---- the ordinary case


def test_a_file_is_downloaded_whole_and_nothing_else_is_left(server, tmp_path, capfd):
    path = tmp_path / "new" / "folder" / NAME
    assert fetch(server.url, path, md5=MD5) == path
    assert path.read_bytes() == BODY
    assert names(path.parent) == [NAME]
    assert server.ranges() == [None]
    first, last = capfd.readouterr().err.splitlines()
    assert "downloading from byte 0 of 300,000" in first and server.url in first
    assert "complete, 300,000 bytes" in last and "md5 checked" in last


@pytest.mark.parametrize("length", [True, False])
def test_an_unverified_file_is_downloaded_too_and_said_to_be_unverified(server, tmp_path, capfd, length):
    server.plan = [{"length": length}]
    assert fetch(server.url, tmp_path / NAME).read_bytes() == BODY
    assert "nothing checked" in capfd.readouterr().err


@pytest.mark.parametrize("md5", ["", MD5])
def test_a_right_file_is_used_without_network(server, tmp_path, md5):
    (tmp_path / NAME).write_bytes(BODY)
    fetch(server.url, tmp_path / NAME, md5=md5)
    assert server.requests == [] and names(tmp_path) == [NAME]


def test_a_wrong_file_is_left_alone_and_named(server, tmp_path):
    (tmp_path / NAME).write_bytes(OTHER)
    with pytest.raises(UserError) as error:
        fetch(server.url, tmp_path / NAME, md5=MD5)
    for part in (str(tmp_path / NAME), MD5, hashlib.md5(OTHER).hexdigest(), "delete it"):
        assert part in str(error.value)
    assert (tmp_path / NAME).read_bytes() == OTHER and names(tmp_path) == [NAME] and server.requests == []


def test_a_folder_in_the_place_of_the_file_is_named(server, tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match="folder, not a file"):
        fetch(server.url, tmp_path / NAME)


# ---- connections that break


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_lost_connection_is_taken_up_where_it_broke(server, tmp_path, fault, capfd):
    server.plan = [{fault: 100_000}]
    fetch(server.url, tmp_path / NAME, md5=MD5)
    assert (tmp_path / NAME).read_bytes() == BODY and names(tmp_path) == [NAME]
    assert server.ranges() == [None, "bytes=100000-"]
    assert server.requests[1]["If-Range"] == '"v1"'
    assert "next try in 0.01 s" in capfd.readouterr().err


def test_a_silent_connection_is_given_up_and_taken_up_again(server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.plan = [{"silent": True}, {"stall": 100_000}]
    fetch(server.url, tmp_path / NAME, md5=MD5)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert server.ranges() == [None, None, "bytes=100000-"]
    assert "timed out" in capfd.readouterr().err


def test_a_connection_that_is_lost_before_an_answer_is_tried_again(server, tmp_path):
    server.plan = [{"silent": True}]
    server.release.set()  # it hangs up at once
    fetch(server.url, tmp_path / NAME, md5=MD5)
    assert server.ranges() == [None, None]


def test_a_connection_may_break_any_number_of_times_while_it_gets_on(server, tmp_path):
    server.default = {"cut": 40_000}  # 8 pieces, more than there are pauses
    fetch(server.url, tmp_path / NAME, md5=MD5)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert len(server.requests) == 8


def test_a_server_that_never_gets_further_is_given_up(server, tmp_path):
    server.default = {"cut": 1000, "ranges": False}
    with pytest.raises(UserError, match=r"cannot get .*1,000 bytes are kept.*by hand"):
        fetch(server.url, tmp_path / NAME, md5=MD5)
    assert len(server.requests) == 4  # the first and one after each pause
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_passing_error_of_the_server_is_tried_again(server, tmp_path, status):
    server.plan = [{"status": status}, {"status": status}]
    fetch(server.url, tmp_path / NAME, md5=MD5)
    assert len(server.requests) == 3


def test_a_lasting_error_of_the_server_ends_in_one_line(server, tmp_path):
    server.default = {"status": 503}
    with pytest.raises(UserError, match=r"127.0.0.1:\d+/file.bin: HTTP 503") as error:
        fetch(server.url, tmp_path / NAME, md5=MD5)
    assert len(server.requests) == 4 and "\n" not in str(error.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_not_tried_again_and_keeps_what_is_there(server, tmp_path, status):
    server.default = {"cut": 1000, "ranges": False}
    with pytest.raises(UserError):
        fetch(server.url, tmp_path / NAME, md5=MD5)
    server.requests.clear()
    server.default = {"status": status}
    with pytest.raises(UserError, match=f"{re.escape(server.url)}: HTTP {status}"):
        fetch(server.url, tmp_path / NAME, md5=MD5)
    assert len(server.requests) == 1
    assert (tmp_path / f"{NAME}.part").stat().st_size == 1000


def test_an_unreachable_host_is_named_at_once_with_what_to_do(tmp_path, capfd):
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port, and it refuses
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError) as error:
            fetch(f"http://{host}/{NAME}", tmp_path / NAME)
    message = str(error.value)
    assert message.startswith(f"cannot get http://{host}/{NAME}: ") and "refused" in message and "\n" not in message
    assert "object at" not in message and message.endswith(f"download it by hand to {tmp_path / NAME}")
    assert "next try" not in capfd.readouterr().err and names(tmp_path) == []


def test_a_host_that_goes_away_in_the_middle_is_waited_for(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1000)
    folder, log = tmp_path / "data", tmp_path / "log"
    server.plan = [{"stall": 100_000}]

    def call():
        server.socket.close()  # the copy that a forked process has, which would keep the port open
        fetch(server.url, folder / NAME, md5=MD5)

    process = in_child(log, call)
    part = folder / f"{NAME}.part"
    wait_for(lambda: part.exists() and part.stat().st_size == 100_000)
    server.shutdown()
    server.socket.close()  # from here on the port refuses
    server.release.set()
    wait_for(lambda: "refused" in log.read_text())
    with Server(server.server_port) as back:
        thread = threading.Thread(target=back.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        assert ended(process) == 0
        back.shutdown()
        thread.join()
    assert (folder / NAME).read_bytes() == BODY and back.ranges() == ["bytes=100000-"]


# ---- continuing an earlier run


def leave_part(server, path, count):
    """Have an earlier run that broke off for good after `count` bytes."""
    server.plan = [{"cut": count}, {"status": 404}]
    with pytest.raises(UserError):
        fetch(server.url, path, md5=MD5)
    assert names(path.parent) == [f"{NAME}.part", f"{NAME}.version"]
    server.plan, server.requests = [], []


@pytest.mark.parametrize("version", ['"v1"', "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_later_run_continues(server, tmp_path, version, capfd):
    server.version = version
    leave_part(server, tmp_path / NAME, 100_000)
    inode = (tmp_path / f"{NAME}.part").stat().st_ino
    fetch(server.url, tmp_path / NAME)  # no checksum: the version alone has to do
    assert (tmp_path / NAME).stat().st_ino == inode  # renamed: a copy could be seen half-written
    assert (tmp_path / NAME).read_bytes() == BODY and names(tmp_path) == [NAME]
    assert server.ranges() == ["bytes=100000-"] and server.requests[0]["If-Range"] == version
    assert "downloading from byte 100,000 of 300,000" in capfd.readouterr().err


@pytest.mark.parametrize("note", [None, "", '"v0"'])
def test_without_a_right_note_a_run_starts_over(server, tmp_path, note):
    leave_part(server, tmp_path / NAME, 100_000)
    note_path = tmp_path / f"{NAME}.version"
    note_path.unlink() if note is None else note_path.write_text(note)
    fetch(server.url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY and names(tmp_path) == [NAME]


def test_a_server_that_names_no_version_is_asked_for_everything(server, tmp_path):
    server.version, server.body = None, OTHER
    leave_part(server, tmp_path / NAME, 100_000)
    server.body = BODY  # with nothing that shows it
    fetch(server.url, tmp_path / NAME, md5=MD5)
    assert server.ranges() == [None] and (tmp_path / NAME).read_bytes() == BODY


@pytest.mark.parametrize("fault", [{"ranges": False}, {"first": 0}, {"first": 50_000}])
def test_a_server_that_does_not_give_the_range_asked_for_starts_over(server, tmp_path, fault):
    leave_part(server, tmp_path / NAME, 100_000)
    server.plan = [fault]
    fetch(server.url, tmp_path / NAME)  # no checksum to repair it afterwards
    assert (tmp_path / NAME).read_bytes() == BODY


def test_a_part_longer_than_the_file_is_replaced(server, tmp_path):
    leave_part(server, tmp_path / NAME, 100_000)
    with open(tmp_path / f"{NAME}.part", "ab") as part:
        part.write(OTHER)
    fetch(server.url, tmp_path / NAME)
    assert server.ranges() == ["bytes=400000-", None]
    assert (tmp_path / NAME).read_bytes() == BODY


@pytest.mark.parametrize("content", [BODY + b"more", OTHER, OTHER[:1000]])
def test_a_part_that_is_not_of_this_file_is_replaced(server, tmp_path, content):
    (tmp_path / f"{NAME}.part").write_bytes(content)
    fetch(server.url, tmp_path / NAME, md5=MD5)
    assert (tmp_path / NAME).read_bytes() == BODY


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_not_stitched_together(server, tmp_path, if_range):
    leave_part(server, tmp_path / NAME, 100_000)
    server.body, server.version = OTHER, '"v2"'
    server.plan = [{"if_range": if_range}]
    fetch(server.url, tmp_path / NAME)  # no checksum: only the version can tell
    assert (tmp_path / NAME).read_bytes() == OTHER


def test_a_wrong_download_is_named_and_not_used(server, tmp_path):
    server.body = OTHER
    with pytest.raises(UserError) as error:
        fetch(server.url, tmp_path / NAME, md5=MD5)
    for part in (server.url, MD5, hashlib.md5(OTHER).hexdigest(), "wrong file", str(tmp_path / NAME)):
        assert part in str(error.value)
    assert names(tmp_path) == [f"{NAME}.part"] and len(server.requests) == 1
    server.body = BODY
    fetch(server.url, tmp_path / NAME, md5=MD5)
    assert server.ranges() == [None, None] and names(tmp_path) == [NAME]  # from the beginning


# ---- processes and disks


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_download_leaves_its_part_and_is_continued(server, tmp_path, number):
    folder = tmp_path / "data"
    part = folder / f"{NAME}.part"
    server.plan = [{"stall": 100_000}]
    process = in_child(tmp_path / "log", lambda: fetch(server.url, folder / NAME, md5=MD5))
    wait_for(lambda: part.exists() and part.stat().st_size == 100_000)
    os.kill(process.pid, number)
    assert ended(process) != 0
    assert set(names(folder)) - {f"{NAME}.lock"} == {f"{NAME}.part", f"{NAME}.version"}
    fetch(server.url, folder / NAME, md5=MD5)
    assert server.ranges() == [None, "bytes=100000-"]
    assert (folder / NAME).read_bytes() == BODY and names(folder) == [NAME]


def test_of_two_processes_one_downloads_and_the_other_waits_and_says_so(server, tmp_path):
    folder = tmp_path / "data"
    server.plan = [{"stall": 0}, {"cut": 1}]  # a second request would not pass unseen
    server.default = {"cut": 60_000}
    logs = [tmp_path / "log0", tmp_path / "log1", tmp_path / "log2"]
    first = in_child(logs[0], lambda: fetch(server.url, folder / NAME, md5=MD5))
    wait_for(lambda: server.requests)
    others = [in_child(log, lambda: fetch(server.url, folder / NAME, md5=MD5)) for log in logs[1:]]
    wait_for(lambda: all("which fetches it" in log.read_text() for log in logs[1:] if log.exists()))
    wait_for(lambda: all(log.exists() for log in logs[1:]))
    assert len(server.requests) == 1
    server.release.set()
    assert [ended(process) for process in (first, *others)] == [0, 0, 0]
    assert (folder / NAME).read_bytes() == BODY and names(folder) == [NAME]
    assert all("downloading" not in log.read_text() for log in logs[1:])


def unprivileged(folder, call):
    """`call` in `folder` by somebody who may not write there; permissions do not hold root back."""

    def changed():
        os.chdir(folder)
        if os.getuid() == 0:
            os.setuid(65534)
        call()

    folder.chmod(0o555)
    return changed


def test_a_folder_without_write_permission_is_named(server, tmp_path):
    folder, log = tmp_path / "data", tmp_path / "log"
    folder.mkdir()
    assert ended(in_child(log, unprivileged(folder, lambda: fetch(server.url, NAME, md5=MD5)))) == 2
    assert re.search(r"cannot write file.bin.lock: Permission denied.*make the folder writable", log.read_text())
    assert server.requests == [] and names(folder) == []


def test_a_right_file_needs_no_write_permission(server, tmp_path):
    folder, log = tmp_path / "data", tmp_path / "log"
    folder.mkdir()
    (folder / NAME).write_bytes(BODY)
    assert ended(in_child(log, unprivileged(folder, lambda: fetch(server.url, NAME, md5=MD5)))) == 0
    assert server.requests == []


def test_a_disk_that_takes_no_more_keeps_the_part_and_says_so(server, tmp_path):
    folder, log = tmp_path / "data", tmp_path / "log"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        fetch(server.url, folder / NAME, md5=MD5)

    assert ended(in_child(log, limited)) == 2
    kept = (folder / f"{NAME}.part").stat().st_size
    assert 0 < kept <= 100_000
    assert f"cannot write {folder / NAME}.part: File too large. Make room" in log.read_text()
    fetch(server.url, folder / NAME, md5=MD5)
    assert server.ranges() == [None, f"bytes={kept}-"] and (folder / NAME).read_bytes() == BODY


def test_a_pipe_in_the_place_of_the_file_is_named(server, tmp_path):
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(UserError, match="not a regular file but a pipe"):
        fetch(server.url, tmp_path / NAME)
