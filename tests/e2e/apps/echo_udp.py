"""Answers every datagram with its port and what the datagram holds."""

import os
import socket

echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
port = int(os.environ["PORT0"])
echo.bind((os.environ["HOST"], port))
while True:
    data, client = echo.recvfrom(65535)
    echo.sendto(f"{port} ".encode() + data, client)
