"""Processes that read images, for hosts with more cores than the threads of one process can use.

A worker is told numbers and answers with arrays, over a socket. It imports neither jax nor grain,
so it starts quickly and can take no device. It ends when its parent does, however that ends: nobody
is left at the other end of its socket. Signals to the parent's group or terminal are not for it: a
run that is told to stop still needs its data.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from lavit_jax.data.tally import Note, Notes, Watch
from lavit_jax.errors import UserError

ENDING = 10.0  # seconds that a worker gets to end by itself
SETTING = "config.data.workers"
_SIZE = struct.Struct("<Q")
T = TypeVar("T")

_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import serve; serve({descriptor})"


class Answer(Generic[T]):
    """What a worker will have made of what it was asked."""

    def __init__(self, worker: _Worker) -> None:
        self._worker = worker
        self._found: list[T] = []

    def result(self) -> T:
        """Waits for it.

        Raises:
          UserError: as the reader raises it, a worker that ended, or more that is broken in all
            workers together than may be.
        """
        while not self._found:
            self._worker.receive()
        return self._found[0]

    def fill(self, found: T) -> None:
        """Gives the answer."""
        self._found.append(found)


class Workers(Generic[T]):
    """Worker processes that take turns: the n-th question goes to worker n modulo their number."""

    def __init__(self, read: Callable[[Any], T], count: int) -> None:
        """Starts processes.

        Args:
          read: answers a question; each worker has a copy. What a copy's `Watch` sees is counted
            by the one here.
          count: how many, at least 1.
        """
        message, watches = _pack(read)
        self._workers = [_Worker(watches) for _ in range(count)]
        self._asked = 0
        for worker in self._workers:
            worker.tell(message)

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [worker.pid for worker in self._workers]

    def ask(self, question: Any) -> Answer[T]:
        """Puts a question, small and picklable; answers come in the order of questions."""
        worker = self._workers[self._asked % len(self._workers)]
        self._asked += 1
        return worker.ask(question)

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.leave()
        for worker in self._workers:
            worker.wait()
        self._workers = []


class _Worker:
    """One process, the socket to it, and the answers it owes."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches
        self._owed: collections.deque[Answer[Any]] = collections.deque()
        self._socket, other = socket.socketpair()
        program = _PROGRAM.format(
            path=[os.path.abspath(place) for place in sys.path],
            module=__name__,
            descriptor=other.fileno(),
        )
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, message: Any) -> None:
        try:
            _send(self._socket, message)
        except OSError as error:
            raise self._ended() from error

    def ask(self, question: Any) -> Answer[Any]:
        self.tell(question)
        self._owed.append(Answer(self))
        return self._owed[-1]

    def receive(self) -> None:
        """Fills the answer that has been owed longest."""
        try:
            notes, found, error = _receive(self._socket)
        except (EOFError, OSError) as ended:
            raise self._ended() from ended
        answer = self._owed.popleft()
        for number, note in notes:
            self._watches[number].add(note)
        if error is not None:
            raise error
        answer.fill(found)

    def leave(self) -> None:
        self._socket.close()

    def wait(self) -> None:
        try:
            self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ended(self) -> UserError:
        try:
            status = self._process.wait(ENDING)
        except subprocess.TimeoutExpired:
            status = 0
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return UserError(
            f"a worker process that reads images ended {how} (out of memory?): run the same "
            f"command again to go on, with a smaller {SETTING} if need be"
        )


def serve(descriptor: int) -> None:
    """A worker's life: answers until its parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as parent:
        try:
            read, notes = _unpack(_receive(parent))
            while True:
                _send(parent, _answer(read, notes, _receive(parent)))
        except (EOFError, ConnectionError):
            return


def _answer(
    read: Callable[[Any], Any], notes: Sequence[Notes], question: Any
) -> tuple[list[tuple[int, Note]], Any, Exception | None]:
    found: Any = None
    error: Exception | None = None
    try:
        found = read(question)
    except UserError as fault:
        error = UserError(str(fault))
    except Exception as fault:  # of any kind: the parent has to hear of it
        told = traceback.format_exc()
        error = RuntimeError(f"{type(fault).__name__} in a worker process: {fault}\n{told}")
    return (
        [(number, note) for number, each in enumerate(notes) for note in each.take()],
        found,
        error,
    )


class _Packer(pickle.Pickler):
    """Leaves out what counts: a copy of it would count for nobody."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.watches: list[Watch] = []

    def persistent_id(self, thing: Any) -> int | None:
        if not isinstance(thing, Watch):
            return None
        for number, watch in enumerate(self.watches):
            if watch is thing:
                return number
        self.watches.append(thing)
        return len(self.watches) - 1


class _Unpacker(pickle.Unpickler):
    """Puts what takes notes in the place of what counts."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.notes: list[Notes] = []

    def persistent_load(self, number: int) -> Notes:
        while number >= len(self.notes):
            self.notes.append(Notes())
        return self.notes[number]


def _pack(read: Callable[[Any], Any]) -> tuple[bytes, list[Watch]]:
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(read)
    return file.getvalue(), packer.watches


def _unpack(message: bytes) -> tuple[Callable[[Any], Any], list[Notes]]:
    unpacker = _Unpacker(io.BytesIO(message))
    return unpacker.load(), unpacker.notes


def _send(to: socket.socket, thing: Any) -> None:
    """Sends sizes, a pickle, and its arrays' memory uncopied."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
    sizes = b"".join(_SIZE.pack(size) for size in (len(parts), *(part.nbytes for part in parts)))
    to.sendall(sizes)
    for part in parts:
        to.sendall(part)


def _receive(of: socket.socket) -> Any:
    """What `_send` sent: only ever between a process and the workers it has started itself."""
    (count,) = _sizes(of, 1)
    pickled, *buffers = [_exactly(of, size) for size in _sizes(of, count)]
    return pickle.loads(pickled, buffers=buffers)


def _sizes(of: socket.socket, count: int) -> Iterator[int]:
    return (size for (size,) in _SIZE.iter_unpack(_exactly(of, count * _SIZE.size)))


def _exactly(of: socket.socket, size: int) -> memoryview:
    data = np.empty(size, np.uint8).data
    left = data
    while left:
        got = of.recv_into(left)
        if not got:
            raise EOFError("the other end is closed")
        left = left[got:]
    return data
