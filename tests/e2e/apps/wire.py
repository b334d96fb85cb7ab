"""Sorts what is on a wire, on which there may be tunnels and the bus, until a file is there.

Arguments: where to write what was seen, the file that ends it, the port of tunnels and the port of the bus.
"""

import collections
import json
import pathlib
import socket
import struct
import sys

ALL_PROTOCOLS = 3
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
HOP_BY_HOP, ICMP, IGMP, UDP, ICMPV6 = 0, 1, 2, 17, 58
LOCAL_GROUPS = b"\xe0\x00\x00"
UNREACHABLE = 3
FORCED_BUFFER = 33
TEXT = b"mesonet-in-the-clear"

result, end = map(pathlib.Path, sys.argv[1:3])
tunnel_port, bus_port = map(int, sys.argv[3:5])


def kind_of(frame):
    (ethertype,) = struct.unpack("!H", frame[12:14])
    packet = frame[14:]
    if TEXT in frame:
        return "in the clear: " + packet[:48].hex()
    if ethertype == ARP:
        return "neighbours"
    if ethertype == IPV6 and packet[6] in (HOP_BY_HOP, ICMPV6):
        # Neighbours and multicast groups: of link-local addresses, or of none yet.
        is_local = packet[8:10] == b"\xfe\x80" or packet[8:24] == bytes(16)
        return "neighbours" if is_local else "other: " + packet[:48].hex()
    if ethertype == IPV4 and packet[9] == IGMP and packet[16:19] == LOCAL_GROUPS:
        # Bridges tell each other that they look at multicast groups.
        return "neighbours"
    if ethertype == IPV4 and packet[9] == ICMP:
        message = packet[(packet[0] & 15) * 4 :]
        ports = struct.unpack("!HH", message[28:32])
        # Nobody listens while a daemon restarts.
        is_of_daemon = message[17] == UDP and (ports == (tunnel_port, tunnel_port) or bus_port in ports)
        return "refused" if message[0] == UNREACHABLE and is_of_daemon else "other: " + packet[:48].hex()
    if ethertype == IPV4 and packet[9] == UDP:
        datagram = packet[(packet[0] & 15) * 4 :]
        ports = struct.unpack("!HH", datagram[:4])
        if ports == (tunnel_port, tunnel_port) and datagram[8] in (1, 2, 3, 4) and datagram[9:12] == bytes(3):
            return "tunnel"
        if bus_port in ports:
            return "bus"
    return "other: " + packet[:48].hex()


reader = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
reader.setsockopt(socket.SOL_SOCKET, FORCED_BUFFER, 64 << 20)
reader.settimeout(0.2)
seen = collections.Counter()
result.with_suffix(".ready").touch()
while not end.exists():
    try:
        frame = reader.recv(1 << 17)
    except TimeoutError:
        continue
    if len(seen) < 100:
        seen[kind_of(frame)] += 1
result.write_text(json.dumps(seen))
