"""Certificates made on the fly: one that is good, and each way in which one can be bad."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOSTS = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files; a server's holds its key and its chain, as `load_cert_chain` reads it."""

    ca_file: Path  #: what a client has to trust: the issuer of the next three
    valid: Path  #: for 127.0.0.1 and localhost
    expired: Path  #: for the right hosts, since yesterday no more
    wrong_host: Path  #: for mx.example.net only
    self_signed: Path  #: for the right hosts, signed by nobody else
    unknown_ca: Path  #: for the right hosts, from an issuer that is not in `ca_file`

    def client_context(self) -> ssl.SSLContext:
        """Return a context that verifies chain and host name, and trusts `ca_file` alone."""
        return ssl.create_default_context(cafile=str(self.ca_file))


def make_certificates(directory: Path) -> Certificates:
    """Write a new CA and its server certificates into `directory`, which has to exist."""
    ca = trustme.CA()
    ca_file = directory / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    return Certificates(
        ca_file=ca_file,
        valid=_write(directory / "valid.pem", ca.issue_cert(*HOSTS)),
        expired=_write(directory / "expired.pem", ca.issue_cert(*HOSTS, not_after=yesterday)),
        wrong_host=_write(directory / "wrong_host.pem", ca.issue_cert("mx.example.net")),
        self_signed=_write_self_signed(directory / "self_signed.pem"),
        unknown_ca=_write(directory / "unknown_ca.pem", trustme.CA().issue_cert(*HOSTS)),
    )


def _write(path: Path, certificate: trustme.LeafCert) -> Path:
    certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


def _write_self_signed(path: Path) -> Path:
    # trustme only issues from a CA, and OpenSSL words its verdict otherwise for one of those.
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    hosts = [x509.IPAddress(ipaddress.ip_address(HOSTS[0])), x509.DNSName(HOSTS[1])]
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(key_pem + certificate.public_bytes(serialization.Encoding.PEM))
    return path
