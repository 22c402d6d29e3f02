"""A server that plays Google Cloud Storage on this machine, for runs in `gs://` buckets.

Knows what gcsfs, tensorstore and google-cloud-storage ask it: objects with generations and their
conditions, ranges, listings, batches of deletions, copies. Objects are in memory.

    python benchmarks/bucket_server.py --port 9023
"""

from __future__ import annotations

import argparse
import contextlib
import email
import email.policy
import itertools
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
TIME = "2024-01-01T00:00:00.000Z"


def variables(port: int) -> dict[str, str]:
    """What makes the clients ask this server."""
    url = f"http://localhost:{port}"
    return {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs, google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask a service that is not here
    }


NOTHING: Mapping[str, str] = MappingProxyType({})


class Object(NamedTuple):
    """What is stored, and how many changes of the store there had been by then."""

    data: bytes
    generation: int


class _Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class Store:
    """Objects of all buckets, by (bucket, name)."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], Object] = {}
        self._lock = threading.Lock()
        self._generation = 1

    def names(self, bucket: str) -> list[str]:
        """Of all objects of a bucket."""
        with self._lock:
            return sorted(name for where, name in self._objects if where == bucket)

    def get(self, key: tuple[str, str], wanted: Mapping[str, str] = NOTHING) -> Object:
        with self._lock:
            return self._checked(key, wanted)

    def put(self, key: tuple[str, str], data: bytes, wanted: Mapping[str, str] = NOTHING) -> Object:
        with self._lock:
            held = self._objects.get(key)
            _check(held.generation if held is not None else 0, wanted)
            self._generation += 1
            self._objects[key] = Object(data, self._generation)
            return self._objects[key]

    def delete(self, key: tuple[str, str], wanted: Mapping[str, str] = NOTHING) -> None:
        with self._lock:
            self._checked(key, wanted)
            del self._objects[key]

    def list(self, bucket: str, wanted: Mapping[str, str]) -> dict[str, Any]:
        """Objects, and what stands for folders, as JSON."""
        prefix, delimiter = wanted.get("prefix", ""), wanted.get("delimiter", "")
        first, last = wanted.get("startOffset", ""), wanted.get("endOffset", "")
        items, folders = [], set()
        with self._lock:
            for (where, name), held in sorted(self._objects.items()):
                if where != bucket or not name.startswith(prefix):
                    continue
                if name < first or (last and name >= last):
                    continue
                inside, cut, _ = name[len(prefix) :].partition(delimiter or "\0")
                if delimiter and cut:
                    folders.add(prefix + inside + delimiter)
                else:
                    items.append(_described((where, name), held))
        found: dict[str, Any] = {"kind": "storage#objects"}
        return (
            found
            | ({"items": items} if items else {})
            | ({"prefixes": sorted(folders)} if folders else {})
        )

    def _checked(self, key: tuple[str, str], wanted: Mapping[str, str]) -> Object:
        held = self._objects.get(key)
        if held is None:
            raise _Refused(HTTPStatus.NOT_FOUND)
        _check(held.generation, wanted)
        return held


def _check(generation: int, wanted: Mapping[str, str]) -> None:
    if int(wanted.get("ifGenerationMatch", generation)) != generation:
        raise _Refused(HTTPStatus.PRECONDITION_FAILED)
    if int(wanted.get("ifGenerationNotMatch", -1)) == generation:
        raise _Refused(HTTPStatus.NOT_MODIFIED)


def _described(key: tuple[str, str], held: Object) -> dict[str, str]:
    bucket, name = key
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{held.generation}",
        "bucket": bucket,
        "name": name,
        "generation": str(held.generation),
        "metageneration": "1",
        "size": str(len(held.data)),
        "etag": str(held.generation),
        "timeCreated": TIME,
        "updated": TIME,
        "storageClass": "STANDARD",
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, work: Any) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        where = urllib.parse.urlsplit(self.path)
        self.where, self.wanted = where.path, dict(urllib.parse.parse_qsl(where.query))
        try:
            work()
        except _Refused as error:
            bare = error.status == HTTPStatus.NOT_MODIFIED  # which has no body
            said = b"" if bare else json.dumps({"error": {"code": error.status}}).encode()
            self._send(error.status, said)

    def _key(self, match: re.Match[str], first: int = 1) -> tuple[str, str]:
        return match[first], urllib.parse.unquote(match[first + 1])

    def _get(self) -> None:
        store = self.server.store
        if match := OBJECT.fullmatch(self.where):
            key = self._key(match)
            held = store.get(key, self.wanted)
            if self.wanted.get("alt") == "media":
                self._send_media(held)
            else:
                self._send_json(_described(key, held))
        elif match := LIST.fullmatch(self.where):
            self._send_json(store.list(match[1], self.wanted))
        elif match := BUCKET.fullmatch(self.where):
            self._send_json({"kind": "storage#bucket", "name": match[1], "location": "US"})
        else:
            self._send(HTTPStatus.OK, b"")

    def _post(self) -> None:
        store = self.server.store
        if match := COPY.fullmatch(self.where):
            source, target = self._key(match), self._key(match, 3)
            held = store.put(target, store.get(source).data)
            described = _described(target, held)
            self._send_json(
                {"kind": "storage#rewriteResponse", "done": True} | {"resource": described}
            )
        elif self.where.startswith("/batch"):
            self._batch()
        elif match := UPLOAD.fullmatch(self.where):
            kind = self.wanted.get("uploadType")
            if kind == "resumable":
                name = self.wanted.get("name") or json.loads(self.body)["name"]
                upload = next(self.server.numbers)
                self.server.uploads[upload] = bytearray()
                query = urllib.parse.urlencode({"name": name, "upload": upload})
                host = self.headers["Host"]
                self._send(HTTPStatus.OK, b"", Location=f"http://{host}{self.where}?{query}")
                return
            name, data = self.wanted.get("name", ""), self.body
            if kind == "multipart":
                described, data = self._parts()
                name = name or described["name"]
            self._put_object((match[1], name), data)
        else:
            raise _Refused(HTTPStatus.NOT_FOUND)

    def _put(self) -> None:
        match = UPLOAD.fullmatch(self.where)
        if match is None:
            raise _Refused(HTTPStatus.NOT_FOUND)
        held = self.server.uploads[int(self.wanted["upload"])]
        held += self.body
        if self.headers["Content-Range"].endswith("/*"):  # more is to come
            self._send(HTTPStatus.PERMANENT_REDIRECT, b"", Range=f"bytes=0-{len(held) - 1}")
            return
        self._put_object((match[1], self.wanted["name"]), bytes(held))

    def _delete(self) -> None:
        match = OBJECT.fullmatch(self.where)
        if match is None:
            raise _Refused(HTTPStatus.NOT_FOUND)
        self.server.store.delete(self._key(match), self.wanted)
        self._send(HTTPStatus.NO_CONTENT, b"")

    def _put_object(self, key: tuple[str, str], data: bytes) -> None:
        self._send_json(_described(key, self.server.store.put(key, data, self.wanted)))

    def _message(self) -> email.message.EmailMessage:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + self.body, policy=email.policy.HTTP)
        assert isinstance(message, email.message.EmailMessage)
        return message

    def _parts(self) -> tuple[dict[str, Any], bytes]:
        """An upload in two parts: what is said of the object, and its bytes."""
        boundary = b"--" + self._message().get_boundary("").encode()
        line = b"\r\n" if self.body.startswith(boundary + b"\r\n") else b"\n"
        _, first, second, _ = self.body.split(boundary, 3)
        described = json.loads(first.partition(2 * line)[2])
        return described, second.partition(2 * line)[2].removesuffix(line)

    def _batch(self) -> None:
        """Deletions, many in one request."""
        answers = []
        for number, part in enumerate(self._message().iter_parts()):
            line = part.get_payload(decode=True).decode().splitlines()[0]
            method, path, *_ = line.split(" ")
            match = OBJECT.fullmatch(urllib.parse.urlsplit(path).path)
            status = HTTPStatus.NO_CONTENT
            if method != "DELETE" or match is None:
                status = HTTPStatus.NOT_IMPLEMENTED
            else:
                try:
                    self.server.store.delete(self._key(match))
                except _Refused as error:
                    status = error.status
            of = (part["Content-ID"] or f"<{number}>").replace("<", "<response-", 1)
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: {of}\r\n\r\n"
                f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        body = "".join([*answers, "--batch--\r\n"]).encode()
        self._send(HTTPStatus.OK, body, **{"Content-Type": "multipart/mixed; boundary=batch"})

    def _send_media(self, held: Object) -> None:
        data, status, headers = held.data, HTTPStatus.OK, {}
        if (found := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))) is not None:
            size = len(data)
            first = int(found[1]) if found[1] else max(0, size - int(found[2]))
            last = min(int(found[2]), size - 1) if found[1] and found[2] else size - 1
            if first >= size:
                raise _Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            data, status = data[first : last + 1], HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        headers |= {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": str(held.generation),
            "x-goog-metageneration": "1",
            "x-goog-stored-content-length": str(len(held.data)),
            "x-goog-stored-content-encoding": "identity",
        }
        self._send(status, data, **headers)

    def _send_json(self, document: Any) -> None:
        self._send(HTTPStatus.OK, json.dumps(document).encode())

    def _send(self, status: HTTPStatus, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        if self.server.verbose:
            super().log_message(format, *args)


class Server(ThreadingHTTPServer):
    """Attributes: `store` with the objects, `port`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, verbose: bool = False) -> None:
        super().__init__(("localhost", port), _Handler)
        self.store, self.verbose = Store(), verbose
        self.port = self.server_address[1]
        self.uploads: dict[int, bytearray] = {}
        self.numbers = itertools.count()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if self.verbose:  # clients that are killed break off
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Serves within, on a thread."""
    server = Server(0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=9023)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    Server(args.port, args.verbose).serve_forever()


if __name__ == "__main__":
    main()
