"""A web server that is there within milliseconds of its start, and answers one request of a connection with its task id and
process id, as whoami.py does. Run with `python3 -IS`: it needs no more than sockets.
"""

import _socket
import posix

ANSWER = b"%s %d %s\n" % (
    posix.environ[b"MESOS_TASK_ID"], posix.getpid(), posix.environ.get(b"GREETING", b"")
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(ANSWER)

listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
listener.bind((posix.environ[b"HOST"].decode(), int(posix.environ[b"PORT0"])))
listener.listen(1024)
while True:
    fd, _ = listener._accept()
    client = _socket.socket(fileno=fd)
    try:
        request = b""
        # Who only looks whether somebody listens sends nothing.
        while b"\r\n\r\n" not in request:
            more = client.recv(4096)
            if not more:
                break
            request += more
        else:
            client.sendall(HEAD + ANSWER)
    except OSError:
        # The client has gone away.
        pass
    client.close()
