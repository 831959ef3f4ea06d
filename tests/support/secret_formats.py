"""What Gatekeeper's own keys and tokens look like, for detect-secrets: `.secrets.baseline` names this file."""

import re

from detect_secrets.plugins.base import RegexBasedDetector


class GatekeeperDetector(RegexBasedDetector):
    """Finds key rings (kid:secret of 32 bytes in base64), client keys and API tokens."""

    secret_type = "Gatekeeper Key"
    denylist = (
        re.compile(r"\b\w{1,16}:([\w+/-]{43})(?![\w+/-])"),
        re.compile(r"\b(gk[ac]_[\w.-]{24,})"),
    )
