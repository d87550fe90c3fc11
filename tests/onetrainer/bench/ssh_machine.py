"""A cloud machine on this one: a real SSH server whose commands and files are those of a folder here.

Run by OneTrainer's own python, which has paramiko::

    python ssh_machine.py LOG

Prints the port on its standard output and serves until its standard input is closed. Every command that it is given
is run by bash, and written into LOG, a JSON string a line. Any password and any key is right.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import paramiko

CHUNK = 1 << 16
ACCEPTED_SECONDS = 0.2


class Files(paramiko.SFTPServerInterface):
    """The files of this machine, by their own paths."""

    def open(self, path: str, flags: int, attr: Any) -> Any:
        try:
            descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)
        handle = paramiko.SFTPHandle(flags)
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        handle.readfile = handle.writefile = os.fdopen(descriptor, "wb" if writes else "rb")
        handle.stat = lambda: paramiko.SFTPAttributes.from_stat(os.fstat(descriptor))
        handle.chattr = lambda attr: paramiko.SFTP_OK
        return handle

    def stat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(Path(path).stat())
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    lstat = stat

    def chattr(self, path: str, attr: Any) -> int:
        return paramiko.SFTP_OK


class FileServer(paramiko.SFTPServer):
    """Says at its end that all went well, as OpenSSH's does; `scp` counts a missing word as a failure."""

    def start_subsystem(self, name: str, transport: Any, channel: Any) -> None:
        super().start_subsystem(name, transport, channel)
        channel.send_exit_status(0)
        channel.close()


class Door(paramiko.ServerInterface):
    """Lets everybody in, and runs what they say."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def check_auth_publickey(self, username: str, key: Any) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "password,publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(command.decode()) + "\n")
        threading.Thread(target=run, args=(channel, command.decode()), daemon=True).start()
        return True


def run(channel: Any, command: str) -> None:
    started = time.monotonic()
    process = subprocess.Popen(
        ["bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )

    def feed() -> None:
        while data := channel.recv(CHUNK):
            process.stdin.write(data)
            process.stdin.flush()
        process.stdin.close()

    def pass_on(stream: Any, send: Any) -> None:
        while data := stream.read1(CHUNK):
            send(data)

    threading.Thread(target=feed, daemon=True).start()
    outputs = [(process.stdout, channel.sendall), (process.stderr, channel.sendall_stderr)]
    pumps = [threading.Thread(target=pass_on, args=pair, daemon=True) for pair in outputs]
    for pump in pumps:
        pump.start()
    for pump in pumps:
        pump.join()
    code = process.wait()
    # The answer that the command was accepted is sent by another thread; a channel closed before that is an error.
    time.sleep(max(0.0, started + ACCEPTED_SECONDS - time.monotonic()))
    channel.send_exit_status(code)
    channel.close()


def serve(listener: socket.socket, log: Path) -> None:
    key = paramiko.RSAKey.generate(2048)
    while True:
        connection, _ = listener.accept()
        transport = paramiko.Transport(connection)
        transport.add_server_key(key)
        transport.set_subsystem_handler("sftp", FileServer, Files)
        transport.start_server(event=threading.Event(), server=Door(log))


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listener, Path(sys.argv[1])), daemon=True).start()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()
