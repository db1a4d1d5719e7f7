"""Certificates for loopback: one authority, a server, a client; and a stranger whom that authority does not know."""

import subprocess

from process import Failed

PARTIES = {"server": "localhost", "client": "client", "stranger": "stranger"}


def make(directory):
    """Fills DIR with ca.pem, {server,client,stranger}.{pem,key}, stranger-ca.pem. Keys are PKCS #8. Does nothing twice."""
    if (directory / "complete").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    for authority in ("ca", "stranger-ca"):
        openssl(
            directory, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650",
            "-subj", f"/CN=outboxd test {authority}", "-keyout", f"{authority}.key", "-out", f"{authority}.pem",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )
    for party, name in PARTIES.items():
        authority = "stranger-ca" if party == "stranger" else "ca"
        (directory / "extensions").write_text(
            "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n"
        )
        openssl(
            directory, "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={name}", "-keyout", f"{party}.key", "-out", "request",
        )
        openssl(
            directory, "x509", "-req", "-in", "request", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-days", "3650", "-extfile", "extensions", "-out", f"{party}.pem",
        )
    chain = "".join((directory / name).read_text() for name in ("server.key", "server.pem", "ca.pem"))
    (directory / "server-all.pem").write_text(chain)
    (directory / "complete").touch()


def paths(directory):
    return {
        "ca": str(directory / "ca.pem"),
        "client_certificate": str(directory / "client.pem"),
        "client_key": str(directory / "client.key"),
        "stranger_ca": str(directory / "stranger-ca.pem"),
        "stranger_certificate": str(directory / "stranger.pem"),
        "stranger_key": str(directory / "stranger.key"),
    }


def openssl(directory, *arguments):
    done = subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"openssl {arguments[0]}: {done.stderr.strip()}")
