"""Ports: free ones differ and can be taken; a taken one is named."""

from __future__ import annotations

import socket

import pytest

from services.chassis.port import LOOPBACK, PortRefused, check_free, free_ports


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    check_free((LOOPBACK, port) for port in ports)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortRefused, match=f"port {port} on {LOOPBACK}: Address already in use") as refused:
            check_free((LOOPBACK, number) for number in (*free_ports(1), port))
    assert refused.value.port == port
    check_free([(LOOPBACK, port)])


def test_a_port_whose_connections_have_just_ended_is_free() -> None:
    with socket.create_server((LOOPBACK, 0)) as server, socket.create_connection(server.getsockname()):
        port = server.getsockname()[1]
        # The side that closes first keeps the port in TIME_WAIT.
        server.accept()[0].close()
    check_free([(LOOPBACK, port)])
