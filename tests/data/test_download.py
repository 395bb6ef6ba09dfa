"""The downloader against a real server on 127.0.0.1 that hangs up, stalls, lies and changes its mind."""

import fcntl
import gzip
import hashlib
import http.server
import io
import multiprocessing
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import termios
import threading
import time
from contextlib import suppress

import pytest

from common.errors import UserError
from data import download
from data.download import extract_tar, fetch

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
SHA256 = hashlib.sha256(BODY).hexdigest()
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
    monkeypatch.setattr(download, "RETRY_PAUSES", (0.01, 0.01, 0.01))
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
    assert fetch(server.url, path, md5=MD5.upper(), sha256=SHA256.upper(), size=len(BODY)) == path
    assert path.read_bytes() == BODY
    assert names(path.parent) == [NAME]
    assert server.ranges() == [None]
    first, last = capfd.readouterr().err.splitlines()
    assert "downloading 300,000 bytes" in first and server.url in first
    assert "complete, 300,000 bytes" in last and "size and md5 and sha256 checked" in last


@pytest.mark.parametrize("length", [True, False])
def test_an_unverified_file_is_downloaded_too_and_said_to_be_unverified(server, tmp_path, capfd, length):
    server.plan = [{"length": length}]
    assert fetch(server.url, tmp_path / NAME).read_bytes() == BODY
    assert "nothing checked" in capfd.readouterr().err


def test_an_empty_file_is_a_file(server, tmp_path):
    server.body = b""
    assert fetch(server.url, tmp_path / NAME, md5=hashlib.md5(b"").hexdigest(), size=0).read_bytes() == b""


@pytest.mark.parametrize("checks", [{}, {"md5": MD5}, {"sha256": SHA256}, {"size": len(BODY)}])
def test_a_right_file_is_used_without_network(server, tmp_path, checks):
    (tmp_path / NAME).write_bytes(BODY)
    fetch(server.url, tmp_path / NAME, **checks)
    assert server.requests == [] and names(tmp_path) == [NAME]


@pytest.mark.parametrize("checks", [{"md5": MD5}, {"sha256": SHA256}, {"md5": MD5, "sha256": SHA256}])
def test_a_wrong_file_is_left_alone_and_named(server, tmp_path, checks):
    (tmp_path / NAME).write_bytes(OTHER)
    with pytest.raises(UserError) as error:
        fetch(server.url, tmp_path / NAME, **checks)
    algorithm = next(iter(checks))
    for part in (
        str(tmp_path / NAME),
        checks[algorithm],
        hashlib.new(algorithm, OTHER).hexdigest(),
        "Delete it",
    ):
        assert part in str(error.value)
    assert (tmp_path / NAME).read_bytes() == OTHER and names(tmp_path) == [NAME] and server.requests == []


def test_a_file_of_the_wrong_size_is_left_alone(server, tmp_path):
    (tmp_path / NAME).write_bytes(BODY[:-1])
    with pytest.raises(UserError, match="299,999 bytes, expected 300,000"):
        fetch(server.url, tmp_path / NAME, size=len(BODY))
    assert (tmp_path / NAME).read_bytes() == BODY[:-1]


def test_a_folder_in_the_place_of_the_file_is_named(server, tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match="folder, not a file"):
        fetch(server.url, tmp_path / NAME)


def test_progress_is_drawn_on_a_terminal(server, tmp_path, monkeypatch):
    terminal, other_end = os.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # a new one has no columns
    with open(other_end, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        fetch(server.url, tmp_path / NAME)
        shown = ""
        while "complete" not in shown:  # a terminal hands over a line at a time
            shown += os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert re.search(r"file.bin:\s+\d+%.*B/s", shown)


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
    log = capfd.readouterr().err
    assert "timed out; next try" in log and "TimeoutError after 100,000 of 300,000 bytes; next try" in log


def test_a_body_of_unknown_length_that_breaks_off_is_noticed_by_its_size(server, tmp_path):
    server.plan = [{"cut": 100_000, "length": False}]
    assert fetch(server.url, tmp_path / NAME, size=len(BODY)).read_bytes() == BODY
    assert server.ranges() == [None, "bytes=100000-"]


def test_a_connection_may_break_any_number_of_times_while_it_gets_on(server, tmp_path):
    server.default = {"cut": 40_000}  # 8 pieces, more than there are pauses
    fetch(server.url, tmp_path / NAME, md5=MD5)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert len(server.requests) == 8


def test_a_server_that_never_gets_further_is_given_up(server, tmp_path):
    server.default = {"cut": 1000, "ranges": False}
    with pytest.raises(UserError, match=r"hung up after 1,000 of 300,000 bytes.*by hand.*1,000 bytes are kept"):
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
    with pytest.raises(UserError, match=r"127.0.0.1:\d+ answers HTTP 503") as error:
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
    assert message.startswith(f"cannot reach {host}: ") and "refused" in message and "\n" not in message
    assert "urlopen" not in message
    assert f"Download http://{host}/{NAME} by hand to {tmp_path / NAME} and run the same command again" in message
    assert "next try" not in capfd.readouterr().err and names(tmp_path) == []


def test_a_host_that_goes_away_in_the_middle_is_waited_for(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRY_PAUSES", (0.05,) * 200)
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
    wait_for(lambda: "cannot reach" in log.read_text())
    with Server(server.server_port) as back:
        thread = threading.Thread(target=back.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        assert ended(process) == 0
        back.shutdown()
        thread.join()
    assert (folder / NAME).read_bytes() == BODY and back.ranges() == ["bytes=100000-"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "file.bin"])
def test_only_http_addresses_are_opened(tmp_path, url):
    with pytest.raises(UserError, match="not an http"):
        fetch(url, tmp_path / NAME)


# ---- continuing an earlier run


def leave_part(server, path, count):
    """Have an earlier run that broke off for good after `count` bytes."""
    server.plan = [{"cut": count}] + [{"status": 503}] * 4
    with pytest.raises(UserError):
        fetch(server.url, path, md5=MD5)
    assert names(path.parent) == [f"{NAME}.part", f"{NAME}.part.json"]
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
    assert "continues at 100,000 bytes of 300,000 bytes" in capfd.readouterr().err


def test_a_weak_etag_is_no_version_to_continue_by(server, tmp_path):
    server.version = 'W/"v1"'
    leave_part(server, tmp_path / NAME, 100_000)
    fetch(server.url, tmp_path / NAME)
    assert server.ranges() == [None] and (tmp_path / NAME).read_bytes() == BODY


@pytest.mark.parametrize("note", [None, "", "{", "[]", '{"url": "http://elsewhere/", "version": "\\"v1\\""}'])
def test_without_a_usable_note_only_a_checksum_lets_a_run_continue(server, tmp_path, note):
    for checks, asked in (({"md5": MD5}, ["bytes=100000-"]), ({}, [None])):
        leave_part(server, tmp_path / NAME, 100_000)
        note_path = tmp_path / f"{NAME}.part.json"
        note_path.unlink() if note is None else note_path.write_text(note)
        fetch(server.url, tmp_path / NAME, **checks)
        assert server.ranges() == asked
        assert (tmp_path / NAME).read_bytes() == BODY and names(tmp_path) == [NAME]
        (tmp_path / NAME).unlink()


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


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_part_that_is_whole_is_verified_and_renamed(server, tmp_path, size):
    (tmp_path / f"{NAME}.part").write_bytes(BODY)
    fetch(server.url, tmp_path / NAME, md5=MD5, size=size)
    assert server.ranges() == ([] if size else ["bytes=300000-"])
    assert (tmp_path / NAME).read_bytes() == BODY and names(tmp_path) == [NAME]


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


def test_a_change_that_only_the_checksum_shows_costs_one_more_download(server, tmp_path, capfd):
    server.version = None
    server.body = OTHER
    leave_part(server, tmp_path / NAME, 100_000)
    server.body = BODY
    fetch(server.url, tmp_path / NAME, md5=MD5)
    assert server.ranges() == ["bytes=100000-", None]
    assert (tmp_path / NAME).read_bytes() == BODY
    assert "once more" in capfd.readouterr().err


def test_a_wrong_download_is_removed_and_named(server, tmp_path):
    server.body = OTHER
    with pytest.raises(UserError) as error:
        fetch(server.url, tmp_path / NAME, md5=MD5)
    for part in (server.url, MD5, hashlib.md5(OTHER).hexdigest(), "removed", str(tmp_path / NAME)):
        assert part in str(error.value)
    assert names(tmp_path) == [] and len(server.requests) == 1


def test_a_wrong_download_in_pieces_is_started_over_once_and_no_more(server, tmp_path):
    server.body = OTHER
    server.default = {"cut": 200_000}
    with pytest.raises(UserError, match="gave a wrong file"):
        fetch(server.url, tmp_path / NAME, md5=MD5)
    assert server.ranges() == [None, "bytes=200000-"] * 2
    assert names(tmp_path) == []


def test_a_file_of_another_size_is_refused_before_it_is_downloaded(server, tmp_path):
    server.plan = [{"stall": 0}]
    with pytest.raises(UserError, match="offers 300,000 bytes instead of 7 bytes"):
        fetch(server.url, tmp_path / NAME, size=7)
    assert names(tmp_path) == []


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
    assert set(names(folder)) - {f"{NAME}.lock"} == {f"{NAME}.part", f"{NAME}.part.json"}
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
    wait_for(lambda: all("another process is at work" in log.read_text() for log in logs[1:] if log.exists()))
    wait_for(lambda: all(log.exists() for log in logs[1:]))
    assert len(server.requests) == 1
    server.release.set()
    assert [ended(process) for process in (first, *others)] == [0, 0, 0]
    assert (folder / NAME).read_bytes() == BODY and names(folder) == [NAME]
    assert all("downloading" not in log.read_text() for log in logs[1:])


def test_the_lock_lets_one_process_in_however_many_come_and_go(tmp_path):
    def call():
        for _ in range(200):
            with download._locked(tmp_path / NAME):
                os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))  # fails if somebody else is in
                (tmp_path / "inside").unlink()

    children = [in_child(tmp_path / "log", call) for _ in range(6)]
    assert [ended(child) for child in children] == [0] * 6
    assert names(tmp_path) == ["log"]


def check_full_disk(server, folder, log, limit):
    """A child whose writes fail after some bytes says what is needed; a run with room continues its part."""
    process = in_child(log, limit(lambda: fetch(server.url, folder / NAME, md5=MD5)))
    assert ended(process) == 2
    kept = (folder / f"{NAME}.part").stat().st_size
    assert 0 < kept < len(BODY) and not (folder / NAME).exists()
    message = log.read_text().splitlines()[-1]
    for part in (
        "needs 300,000 bytes",
        f"{kept:,} of them are kept",
        f"{300_000 - kept:,} bytes are missing",
    ):
        assert part in message
    return kept


def test_a_file_size_limit_keeps_the_part_and_says_what_is_missing(server, tmp_path):
    folder = tmp_path / "data"

    def limit(call):
        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            call()

        return limited

    kept = check_full_disk(server, folder, tmp_path / "log", limit)
    fetch(server.url, folder / NAME, md5=MD5)
    assert server.ranges() == [None, f"bytes={kept}-"]
    assert (folder / NAME).read_bytes() == BODY


def test_a_full_disk_keeps_the_part_and_says_what_is_missing(server, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"mounting a small tmpfs is not permitted: {done.stderr.splitlines()[0]}")
    try:
        kept = check_full_disk(server, folder, tmp_path / "log", lambda call: call)
        assert "No space left on device" in (tmp_path / "log").read_text()
        subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        fetch(server.url, folder / NAME, md5=MD5)
        assert server.ranges() == [None, f"bytes={kept}-"]
        assert (folder / NAME).read_bytes() == BODY
    finally:
        subprocess.run(["umount", str(folder)], check=True)


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
    assert re.search(r"cannot use file.bin.lock: Permission denied.*another folder", log.read_text())
    assert server.requests == [] and names(folder) == []


def test_a_right_file_needs_no_write_permission(server, tmp_path):
    folder, log = tmp_path / "data", tmp_path / "log"
    folder.mkdir()
    (folder / NAME).write_bytes(BODY)
    assert ended(in_child(log, unprivileged(folder, lambda: fetch(server.url, NAME, md5=MD5)))) == 0
    assert server.requests == []


# ---- archives

TOP = "cifar-100-python"
FILES = {f"{TOP}/meta": b"names", f"{TOP}/train": BODY, f"{TOP}/sub/test": OTHER}


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def packed(files, *extra):
    """The bytes of a tar with `files` and then the `extra` members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = member(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return buffer.getvalue()


def archive_of(folder, tar_bytes):
    path = folder / f"{TOP}.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes, 1))
    return path


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("prefix", ["", "./"])
def test_an_archive_is_extracted_below_its_top_folder(tmp_path, prefix):
    first = packed({}, member(prefix, tarfile.DIRTYPE))[:512] if prefix else b""  # what `tar -C folder .` writes
    files = {prefix + name: data for name, data in FILES.items()}
    archive = archive_of(tmp_path, first + packed(files, member(f"{prefix}{TOP}/empty", tarfile.DIRTYPE)))
    extract_tar(archive, tmp_path / "new" / "out")
    assert content(tmp_path / "new" / "out") == FILES
    assert names(tmp_path / "new" / "out") == [TOP]
    assert (tmp_path / "new" / "out" / TOP / "empty").is_dir()


def test_a_folder_that_is_there_is_left_untouched(tmp_path):
    archive = archive_of(tmp_path, packed(FILES))
    archive.write_bytes(archive.read_bytes()[:100_000])  # nor is the rest of the archive looked at
    (tmp_path / TOP).mkdir()
    (tmp_path / TOP / "mine").write_bytes(b"mine")
    extract_tar(archive, tmp_path)
    assert content(tmp_path / TOP) == {"mine": b"mine"}
    assert names(tmp_path) == [TOP, archive.name]


def check_refused(tmp_path, tar_bytes, evil):
    archive = archive_of(tmp_path, tar_bytes)
    with pytest.raises(UserError) as error:
        extract_tar(archive, tmp_path / "out")
    assert str(archive) in str(error.value) and repr(evil.name) in str(error.value)
    assert names(tmp_path) == [archive.name]


@pytest.mark.parametrize(
    "evil",
    [
        member("/tmp/evil-absolute"),
        member("../evil"),
        member(f"{TOP}/../../evil"),
        member(f"{TOP}/link", tarfile.SYMTYPE, "/etc"),
        member(f"{TOP}/hard", tarfile.LNKTYPE, f"{TOP}/meta"),
        member(f"{TOP}/device", tarfile.CHRTYPE),
        member(f"{TOP}/block", tarfile.BLKTYPE),
        member(f"{TOP}/fifo", tarfile.FIFOTYPE),
        member("elsewhere/file"),
        member("file-at-the-top"),
    ],
    ids=lambda info: info.name,
)
def test_a_member_that_does_not_belong_there_stops_everything(tmp_path, evil):
    check_refused(tmp_path, packed(FILES, evil), evil)


@pytest.mark.parametrize("name", ["/tmp", "/tmp/evil", "../evil", "file-at-the-top"])
def test_a_first_member_that_does_not_belong_there_stops_everything(tmp_path, name):
    kind = tarfile.DIRTYPE if name == "/tmp" else tarfile.REGTYPE
    check_refused(tmp_path, packed({}, member(name, kind)), member(name))


def test_a_link_that_would_carry_a_later_member_outside_stops_everything(tmp_path):
    escape = packed({}, member(f"{TOP}/link", tarfile.SYMTYPE, str(tmp_path)), member(f"{TOP}/link/evil"))
    archive = archive_of(tmp_path, escape)
    with pytest.raises(UserError, match="link"):
        extract_tar(archive, tmp_path / "out")
    assert names(tmp_path) == [archive.name]


def check_damaged(tmp_path, archive_bytes):
    archive = tmp_path / "damaged.tar.gz"
    archive.write_bytes(archive_bytes)
    with pytest.raises(UserError, match=f"{re.escape(str(archive))} is damaged or incomplete.*delete it") as error:
        extract_tar(archive, tmp_path / "out")
    assert "\n" not in str(error.value) and names(tmp_path) == [archive.name]


@pytest.mark.parametrize("keep", [0.0, 0.00001, 0.3, 0.6, 0.999])
def test_a_truncated_archive_is_named(tmp_path, keep):
    whole = gzip.compress(packed(FILES), 1)
    check_damaged(tmp_path, whole[: int(keep * len(whole))])


@pytest.mark.parametrize("at", [0, 0.4, 0.8, 1])
def test_an_archive_with_one_wrong_byte_is_named(tmp_path, at):
    whole = bytearray(gzip.compress(packed(FILES), 1))
    whole[min(int(at * len(whole)), len(whole) - 1)] ^= 0xFF
    check_damaged(tmp_path, bytes(whole))


def test_what_tarfile_takes_for_a_short_archive_is_named(tmp_path):
    tar = packed(FILES)
    second = tar.index(f"{TOP}/train".encode())  # the header of the second member
    check_damaged(tmp_path, gzip.compress(tar[:second]))
    check_damaged(tmp_path, gzip.compress(tar[: second + 100]))
    check_damaged(tmp_path, gzip.compress(tar[: second + 148] + b"wrong!!!" + tar[second + 156 :]))


def test_a_header_that_claims_an_absurd_size_is_named(tmp_path):
    long_name = member("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    long_name.size = 1 << 63
    check_damaged(tmp_path, gzip.compress(long_name.tobuf(tarfile.GNU_FORMAT)))


@pytest.mark.parametrize("content", [b"<html>log in</html>", gzip.compress(b"no tar"), gzip.compress(packed({}))])
def test_what_is_no_archive_is_named(tmp_path, content):
    check_damaged(tmp_path, content)


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.tar\.gz: No such file"):
        extract_tar(tmp_path / "none.tar.gz", tmp_path)


def test_a_killed_extraction_leaves_nothing_at_the_final_place_and_is_repeated(tmp_path):
    files = {f"{TOP}/{i}": BODY[:10_000] for i in range(500)}
    archive, out = archive_of(tmp_path, packed(files)), tmp_path / "out"
    process = in_child(tmp_path / "log", lambda: extract_tar(archive, out))
    wait_for(lambda: (out / f"{TOP}.part" / "10").exists())
    process.kill()
    assert ended(process) != 0
    assert not (out / TOP).exists() and (out / f"{TOP}.part").exists()
    extract_tar(archive, out)
    assert content(out) == files and names(out) == [TOP]


def test_an_extraction_without_room_leaves_nothing(tmp_path):
    archive, out = archive_of(tmp_path, packed(FILES)), tmp_path / "out"

    def call():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        extract_tar(archive, out)

    assert ended(in_child(tmp_path / "log", call)) == 2
    assert re.search(rf"cannot extract {re.escape(str(archive))}: .*File too large", (tmp_path / "log").read_text())
    assert names(out) == []


def test_of_two_extractions_one_waits(tmp_path):
    archive, out = archive_of(tmp_path, packed(FILES)), tmp_path / "out"
    children = [in_child(tmp_path / f"log{i}", lambda: extract_tar(archive, out)) for i in range(4)]
    assert [ended(child) for child in children] == [0] * 4
    assert content(out) == FILES and names(out) == [TOP]
