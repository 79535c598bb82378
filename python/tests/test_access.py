"""Tokens and TLS, against the real service."""

import subprocess

import pytest
import trustme
from conftest import program

import iovcache


@pytest.fixture
def keys(tmp_path):
    """A file of keys, and the token of each role."""
    file = tmp_path / "keys.toml"
    tokens = {}
    for role in ("read", "register", "administer"):
        command = [program(), "token", role, "--role", role, "--tokens", str(file)]
        tokens[role] = subprocess.check_output(command, text=True).strip()
    return file, tokens


def test_a_call_without_a_token_is_refused(start, keys):
    file, tokens = keys
    ready = start("--tokens", str(file)).ready
    for url in ready["flight"]:
        for wrong, code in ((None, "IOV-6001"), ("wrong", "IOV-6002")):
            with pytest.raises(iovcache.Unauthenticated) as error:
                iovcache.connect(url, token=wrong)
            assert error.value.code == code
        with iovcache.connect(url, token=tokens["read"]) as client:
            client.paths()
            with pytest.raises(iovcache.PermissionDenied) as error:
                client.invalidate("A/B")
            assert error.value.code == "IOV-6007"
    with pytest.raises(iovcache.Unauthenticated) as error:
        iovcache.Attachment(ready["attach"], "x", "wrong")
    assert error.value.code == "IOV-6002"
    iovcache.Attachment(ready["attach"], "x", tokens["read"]).close()


def test_a_token_reads_registers_and_attaches(start, keys, monkeypatch):
    file, tokens = keys
    ready = start("--tokens", str(file)).ready
    monkeypatch.setenv("IOVCACHE_TOKEN", tokens["register"])
    with iovcache.connect(ready["flight"][1]) as client:
        path = next(iter(client.paths()))
        client.put_timeframe(1, [1500], columns={"a": path}, consumers=["c"])
        with client.timeframe(1, consumer="c", missing="null") as table:
            assert len(table["a"]) == 1


def test_tls_with_a_token_or_a_certificate(start, keys, tmp_path):
    file, tokens = keys
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    served = authority.issue_cert("localhost")
    served.private_key_pem.write_to_path(tmp_path / "key.pem")
    for place, part in enumerate(served.cert_chain_pems):
        part.write_to_path(tmp_path / "chain.pem", append=place > 0)
    with file.open("a") as more:
        more.write('\n[[certificate]]\nname = "device.example"\nrole = "read"\n')
    arguments = ("--tokens", file, "--tls-cert", tmp_path / "chain.pem")
    arguments += ("--tls-key", tmp_path / "key.pem", "--tls-client-ca", tmp_path / "ca.pem")
    roots = authority.cert_pem.bytes()
    ready = start(*map(str, arguments)).ready
    url = ready["flight"][0].replace("127.0.0.1", "localhost")
    assert url.startswith("grpc+tls://")
    with iovcache.connect(url, token=tokens["read"], tls_root_certs=roots) as client:
        client.paths()
    with pytest.raises(iovcache.Unauthenticated):
        iovcache.connect(url, tls_root_certs=roots)
    device = authority.issue_cert("device.example")
    identity = {
        "cert_chain": b"".join(part.bytes() for part in device.cert_chain_pems),
        "private_key": device.private_key_pem.bytes(),
    }
    with iovcache.connect(url, tls_root_certs=roots, **identity) as client:
        client.paths()
    with pytest.raises(iovcache.Unavailable):
        other = trustme.CA().cert_pem.bytes()
        iovcache.connect(url, token=tokens["read"], tls_root_certs=other)


def test_a_token_is_not_sent_in_the_clear_beyond_this_node():
    for url in ("grpc://192.0.2.1:1", "grpc+tcp://example.org:1", "grpc://localhost.example.org:1"):
        with pytest.raises(iovcache.InvalidArgument, match="in the clear"):
            iovcache.connect(url, token="t")
    for url in ("grpc://127.0.0.1:1", "grpc://[::1]:1", "grpc://localhost:1"):
        with pytest.raises(iovcache.Unavailable):
            iovcache.connect(url, token="t")
