"""Where W&B is and whether there is a key for it, as W&B itself would find out; the key is never read out."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass, urlopen

from wiseft_dist.storage.urls import without_secrets

CONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class Login:
    """A W&B server, and whether somebody is logged in to it here."""

    address: str
    has_key: bool
    has_own_proxy: bool = False
    """Whether W&B alone is told of a proxy: only W&B can tell what is behind it."""

    @property
    def shown(self) -> str:
        """The address without passwords."""
        return without_secrets(self.address)

    def unreachable(self) -> str:
        """Why nobody answers at the address, in a few words; empty where somebody does, or only a proxy could tell."""
        parts = urlsplit(self.address)
        host, scheme = parts.hostname or "", parts.scheme or "https"
        if self.has_own_proxy or (getproxies().get(scheme) and not proxy_bypass(host)):
            return ""
        try:
            port = parts.port or (80 if scheme == "http" else 443)
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    def answers(self, seconds: float) -> bool:
        """Whether a web server answers at the address, whatever it says; yes where only W&B could tell."""
        if self.has_own_proxy:
            return True
        parts = urlsplit(self.address)
        place = parts.netloc.rpartition("@")[2]
        try:
            urlopen(f"{parts.scheme}://{place}/healthz", timeout=seconds).close()
        except HTTPError:
            return True
        except (OSError, ValueError, HTTPException) as error:  # a certificate that W&B may know was shown by somebody
            return isinstance(getattr(error, "reason", None), SSLError)
        return True


def wandb_login() -> Login:
    """From the environment, W&B's own settings files and ``~/.netrc``, in W&B's order."""
    import wandb
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import read_netrc_auth

    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = wandb.Settings(silent=True, settings_system=str(folder / "settings"))
    settings.update_from_system_settings()
    address = os.environ.get("WANDB_BASE_URL") or settings.base_url
    variables = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    has_key = any(map(os.environ.get, variables)) or bool(settings.api_key or settings.identity_token_file)
    if not has_key:
        try:
            has_key = read_netrc_auth(host=address) is not None
        except AuthenticationError:  # one that is no key: W&B says so itself
            has_key = True
    proxy = f"{urlsplit(address).scheme}_proxy"
    has_own_proxy = bool(os.environ.get(f"WANDB_{proxy.upper()}") or getattr(settings, proxy, None))
    return Login(address, has_key, has_own_proxy)
