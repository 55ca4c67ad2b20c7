"""Whether anybody is logged in to W&B; without loading it."""

import netrc
import os


def logged_in() -> bool:
    """Whether W&B has a key for its server, found as W&B finds it but without asking anybody."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
