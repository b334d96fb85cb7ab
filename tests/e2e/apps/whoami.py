"""A web server that answers with its task id and process id.

It takes a connection for each request unless KEEP_ALIVE is set. `/slow` takes two seconds to answer, a piece at a time.
`/health` is a failure as long as there is a file `ill` in the sandbox, or none with the name that ILL_WITHOUT says.
"""

import http.server
import os
import socket
import time


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1" if os.environ.get("KEEP_ALIVE") else "HTTP/1.0"

    def do_GET(self):
        body = f"{os.environ['MESOS_TASK_ID']} {os.getpid()} {os.environ.get('GREETING', '')}\n".encode()
        self.send_response(503 if self.path == "/health" and is_ill() else 200)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.path == "/slow":
            for byte in body[:20]:
                time.sleep(0.1)
                self.wfile.write(bytes([byte]))
            body = body[20:]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def is_ill():
    needed = os.environ.get("ILL_WITHOUT")
    return os.path.exists("ill") or bool(needed) and not os.path.exists(needed)


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in os.environ["HOST"] else socket.AF_INET
    request_queue_size = 128


print("listening", flush=True)
Server((os.environ["HOST"], int(os.environ["PORT0"])), Handler).serve_forever()
