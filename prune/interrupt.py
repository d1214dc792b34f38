"""Ctrl-C ends the process at once, whatever the main thread is computing, and says how to go on."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

EXIT = 130


def end_on_interrupt(message: str) -> None:
    """From now on SIGINT prints `message` on stderr and exits with 130. For the command line only.

    Python runs signal handlers between two bytecodes, so one long call into C would keep Ctrl-C waiting. The signal's
    number is written to a socket at once, though, and a thread reads it there. Nothing is cleaned up: whatever was
    being written is staged, and the next run removes it.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda _number, _frame: None)  # without a handler of Python's the number is not sent
    threading.Thread(target=_watch, args=(reader, writer, message), name="interrupt", daemon=True).start()


def _watch(reader: socket.socket, _writer: socket.socket, message: str) -> None:
    """`_writer` is held so that it stays open."""
    while signal.SIGINT not in reader.recv(64):
        pass
    end = "\r\x1b[K\x1b[?25h" if sys.stderr.isatty() else ""  # clear the bar's line and show the cursor it hid
    os.write(2, f"{end}{message}\n".encode())
    os._exit(EXIT)
