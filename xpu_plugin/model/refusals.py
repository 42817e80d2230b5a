# SPDX-License-Identifier: Apache-2.0
"""The part of the API server that refuses a request, by status and message of its answer.

The forms are those of the API server's own source: `forbiddenMessage` for its authorizers, `ToStatusErr` for
webhooks, the CEL admission controller for policies, `NewForbidden` for built-in admission plugins. The status
alone is ambiguous: a webhook may answer with any status, and a policy with 401, 403, 413 or 422.
"""

import re
from enum import StrEnum


UNAUTHORIZED, FORBIDDEN = 401, 403
_OF_CONTENT = (400, 413, 422)

_WEBHOOK = re.compile(r'admission webhook ".*?" denied the request')
_POLICY = re.compile(r"(\S+( \".*?\")? is forbidden: )?\w+AdmissionPolicy '.*?'.* denied request")
_AUTHORIZER = re.compile(r'(\S+( ".*?")? is forbidden: |forbidden: )?User ".*?" cannot ')
_PLUGIN = re.compile(r'\S+( ".*?")? is forbidden: ')


class Speaker(StrEnum):
    """The part of the API server that refuses a request."""

    AUTHENTICATOR = "authenticator"  # the credentials are not valid
    AUTHORIZER = "authorizer"  # a right is missing: RBAC
    ADMISSION = "admission"  # a webhook, a policy or a plugin refuses this content
    VALIDATION = "validation"  # the content is not valid
    SERVER = "server"  # any other, such as a proxy in between or a failure

    @property
    def minds_content(self) -> bool:
        """Return whether other content may be accepted."""
        return self in (Speaker.ADMISSION, Speaker.VALIDATION)


def speaker(status: int, message: str) -> Speaker:
    """Return the part that refuses with this HTTP status and the message of this `Status` object."""
    if _WEBHOOK.match(message) or _POLICY.match(message):
        return Speaker.ADMISSION
    if status == UNAUTHORIZED:
        return Speaker.AUTHENTICATOR
    if status == FORBIDDEN and _AUTHORIZER.match(message):
        return Speaker.AUTHORIZER
    if status == FORBIDDEN and _PLUGIN.match(message):
        return Speaker.ADMISSION
    return Speaker.VALIDATION if status in _OF_CONTENT else Speaker.SERVER
