"""The embedded servers: how NATS and Redis are configured and started."""

import json
from pathlib import Path

from deepflow.local import binaries
from deepflow.local.data_dir import DataDir, Ports, Secrets, write_private

NATS_USER = "deepflow"


def nats_command(data: DataDir, ports: Ports, secrets: Secrets) -> tuple[str, ...]:
    """Writes the configuration; passwords are in it and never on a command line."""
    path = data.nats / "nats.conf"
    write_private(path, nats_config(ports.nats, secrets.nats_password).encode())
    return (str(binaries.nats_server()), "-c", str(path))


def redis_command(data: DataDir, ports: Ports, secrets: Secrets) -> tuple[str, ...]:
    path = data.redis / "redis.conf"
    content = redis_config(ports.redis, secrets.redis_password, data.redis)
    write_private(path, content.encode())
    return (str(binaries.redis_server()), str(path))


def nats_config(port: int, password: str) -> str:
    """Events only; JetStream comes with the first durable job."""
    return (
        "host: 127.0.0.1\n"
        f"port: {port}\n"
        "server_name: deepflow-local\n"
        # Quoted as JSON, which this format reads.
        f"authorization {{ user: {json.dumps(NATS_USER)}, password: {json.dumps(password)} }}\n"
    )


def redis_config(port: int, password: str, folder: Path) -> str:
    """Records: every write is on the disk before it is answered, and nothing is ever evicted."""
    return (
        "bind 127.0.0.1\n"
        f"port {port}\n"
        "protected-mode yes\n"
        f"requirepass {json.dumps(password)}\n"
        f"dir {json.dumps(str(folder))}\n"
        "appendonly yes\n"
        "appendfsync always\n"
        "maxmemory-policy noeviction\n"
        'save ""\n'
    )
