"""A task that answers, asks all others by every way, and keeps streams to some of them open.

Arguments: a directory that the test shares with its tasks, and which app this is. What it is to ask is in the
directory, in `ways.json`, and what it found out goes there.
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time

PORT = 8080
STREAM_PORT = 8081
FAMILIES = {"IPv4": socket.AF_INET, "IPv6": socket.AF_INET6}
PATIENCE = 100.0
PIECE = b"mesonet-in-the-clear " * 50
INTERVAL = 0.02
IPERF3_RATE = "50M"
IPERF3_INTERVAL = 0.1

directory, app = pathlib.Path(sys.argv[1]), sys.argv[2]
task = os.environ["MESOS_TASK_ID"]


def tell(name, value):
    """Puts a file in the directory, whole or not at all."""
    path = directory / f"{name}-{app}-{task}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.rename(path)


def wait_for(name):
    while not (directory / name).exists():
        time.sleep(0.05)


def listen(kind, port):
    server = socket.socket(socket.AF_INET6, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        server.listen(64)
    return server


def echo_tcp():
    server = listen(socket.SOCK_STREAM, PORT)
    while True:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(5)
            try:
                connection.sendall(connection.recv(100))
            except OSError:
                pass


def echo_udp():
    server = listen(socket.SOCK_DGRAM, PORT)
    while True:
        data, client = server.recvfrom(100)
        server.sendto(data, client)


def ask_once(kind, family, where):
    with socket.socket(family, kind) as client:
        client.settimeout(2)
        client.connect(where)
        client.send(b"mesonet-in-the-clear")
        answer = client.recv(100)
        if answer != b"mesonet-in-the-clear":
            raise OSError(f"the answer is {answer!r}")


def addresses(family, host, port, count):
    """What a name or an address stands for, of one family."""
    found = {info[4] for info in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)}
    if len(found) != count:
        raise OSError(f"{host} has {len(found)} addresses")
    return found


def ask(way, deadline):
    """Asks by one way, until it works; what went wrong if it does not."""
    family = FAMILIES[way["family"]]
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    while True:
        try:
            for where in addresses(family, way["host"], way["port"], way["count"]):
                for kind in kinds:
                    ask_once(kind, family, where)
            return None
        except OSError as error:
            if time.monotonic() > deadline:
                return f"{way}: {error}"
            time.sleep(0.1)


def phase_now():
    """The times before and after the test says `next` are told apart."""
    return int((directory / "next").exists())


def take_stream(connection, number):
    """Takes what comes until its end, and answers with how much that was and how long nothing came at most."""
    taken, longest, last = 0, [0.0, 0.0], time.monotonic()
    with connection:
        while data := connection.recv(65536):
            now, phase = time.monotonic(), phase_now()
            longest[phase], last = max(longest[phase], now - last), now
            taken += len(data)
        connection.sendall(json.dumps({"taken": taken, "stalls": longest}).encode())


def take_streams():
    server = listen(socket.SOCK_STREAM, STREAM_PORT)
    for number in range(1000):
        connection, _ = server.accept()
        threading.Thread(target=take_stream, args=(connection, number), daemon=True).start()


def send_stream(host, results):
    """Sends a little all the time until the test wants it to end."""
    result = {"to": host, "sent": 0}
    results.append(result)
    try:
        with socket.create_connection((host, STREAM_PORT)) as connection:
            while not (directory / "stop").exists():
                connection.sendall(PIECE)
                result["sent"] += len(PIECE)
                time.sleep(INTERVAL)
            connection.shutdown(socket.SHUT_WR)
            result.update(json.loads(connection.recv(1000)))
    except (OSError, ValueError) as error:
        result["error"] = str(error)


def take_iperf3(host, results):
    """Has iperf3 take what the one at a host sends, until the test wants it to end. What it says of each interval tells
    how long nothing came."""
    result = {"to": f"{host} by iperf3"}
    results.append(result)
    rate = ["-R", "-b", IPERF3_RATE, "-t", "86400"]
    form = ["-i", str(IPERF3_INTERVAL), "-f", "k", "--forceflush"]
    command = ["iperf3", "-c", host, *rate, *form]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    taken, longest, nothing = 0, [0.0, 0.0], 0.0
    for line in client.stdout:
        if (directory / "stop").exists():
            client.kill()
            result.update({"taken": taken, "sent": taken, "stalls": longest})
            return
        if interval := re.search(r"sec +([0-9.]+) .Bytes +([0-9.]+) Kbits/sec", line):
            octets = round(float(interval[2]) * 125 * IPERF3_INTERVAL)
            nothing = 0.0 if octets else nothing + IPERF3_INTERVAL
            longest[phase_now()] = max(longest[phase_now()], nothing)
            taken += octets
        else:
            result["said"] = line
    result["error"] = "iperf3 has ended"


for server in (echo_tcp, echo_udp, take_streams):
    threading.Thread(target=server, daemon=True).start()
wait_for("ways.json")
ways = json.loads((directory / "ways.json").read_text())
deadline = time.monotonic() + PATIENCE
if ways["iperf3"]:
    subprocess.Popen(["iperf3", "-s"], stdout=subprocess.DEVNULL)
tell("asked", [failure for way in ways["ask"] if (failure := ask(way, deadline))])
wait_for("go")
results = []
if app in ways["streams"]:
    hosts = [host for host in ways["streams"][app] if host not in ways["own"][task]]
    senders = [threading.Thread(target=send_stream, args=(host, results)) for host in hosts]
    if ways["iperf3"]:
        # From the next one of the ring, by its first address.
        ring = ways["streams"][app]
        place = ring.index(ways["own"][task][0])
        next_one = ring[(place + len(ways["own"][task])) % len(ring)]
        senders.append(threading.Thread(target=take_iperf3, args=(next_one, results)))
    for sender in senders:
        sender.start()
    tell("streaming", hosts)
    for sender in senders:
        sender.join()
tell("streams", results)
time.sleep(3600)
