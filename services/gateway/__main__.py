from deepflow import lifecycle
from services.gateway.config import GatewayConfig
from services.gateway.server import GatewayServer

if __name__ == "__main__":
    lifecycle.run("gateway", GatewayConfig, GatewayServer)
