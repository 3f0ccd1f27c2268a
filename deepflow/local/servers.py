"""The embedded servers: how NATS and Redis are configured and started."""

import json
from pathlib import Path

from deepflow.local import binaries, nats_users, redis_users
from deepflow.local.data_dir import DataDir, Ports, Secrets, write_private
from deepflow.local.nats_users import SERVICES, SUPERVISOR

# Far above what one host's stack opens, far below what would hurt the host.
NATS_CONNECTIONS_MAX = 1024
NATS_SUBSCRIPTIONS_MAX = 64  # of one connection
REDIS_CONNECTIONS_MAX = 256


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


def nats_config(port: int, secret: str) -> str:
    """Events only; JetStream comes with the first durable job."""
    # Quoted as JSON, which this format reads.
    passwords = {
        user: json.dumps(nats_users.password_of(user, secret))
        for user in (*SERVICES.values(), SUPERVISOR)
    }
    return (
        "host: 127.0.0.1\n"
        f"port: {port}\n"
        "server_name: deepflow-local\n"
        f"max_connections: {NATS_CONNECTIONS_MAX}\n"
        f"max_subscriptions: {NATS_SUBSCRIPTIONS_MAX}\n"
        "max_payload: 4MB\n"
        "max_control_line: 4KB\n" + nats_users.authorization(passwords)
    )


def redis_config(port: int, secret: str, folder: Path) -> str:
    """Records: every write is on the disk before it is answered, and nothing is ever evicted."""
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        "protected-mode yes",
        f"maxclients {REDIS_CONNECTIONS_MAX}",
        f"dir {json.dumps(str(folder))}",
        "appendonly yes",
        "appendfsync always",
        "maxmemory-policy noeviction",
        'save ""',
        *redis_users.users(secret),
    ]
    return "\n".join(lines) + "\n"
