# SPDX-License-Identifier: Apache-2.0
"""Who refuses: the forms of answers that API servers and policy engines give."""

import pytest

from xpu_plugin.model.refusals import Speaker, speaker


USER = 'User "system:serviceaccount:kube-system:xpu-device-plugin"'
POLICY = "ValidatingAdmissionPolicy 'node-labels' with binding 'x' denied request: label not in allow list"


@pytest.mark.parametrize(
    ("status", "message", "who"),
    [
        (401, "Unauthorized", Speaker.AUTHENTICATOR),
        (
            403,
            f'nodes is forbidden: {USER} cannot list resource "nodes" in API group "" at the cluster scope',
            Speaker.AUTHORIZER,
        ),
        (
            403,
            (
                f'nodes "lab" is forbidden: {USER} cannot patch resource "nodes" in API group "" at the '
                'cluster scope: RBAC: clusterrole.rbac.authorization.k8s.io "x" not found'
            ),
            Speaker.AUTHORIZER,
        ),
        (403, f"nodes is forbidden: {USER} cannot list nodes at the cluster scope", Speaker.AUTHORIZER),
        (403, f"{USER} cannot list nodes at the cluster scope.", Speaker.AUTHORIZER),
        (403, 'forbidden: User "system:anonymous" cannot get path "/"', Speaker.AUTHORIZER),
        (
            403,
            (
                'admission webhook "validation.gatekeeper.sh" denied the request: [node-label-guard] labels '
                "of domain baidu.com may be set by the platform team only"
            ),
            Speaker.ADMISSION,
        ),
        (403, f'admission webhook "guard" denied the request: {USER} cannot label nodes', Speaker.ADMISSION),
        (403, 'admission webhook "guard" denied the request without explanation', Speaker.ADMISSION),
        (401, 'admission webhook "guard" denied the request: Unauthorized', Speaker.ADMISSION),
        (500, 'admission webhook "guard" denied the request: its database is away', Speaker.ADMISSION),
        (
            400,
            (
                'admission webhook "validate.kyverno.svc-fail" denied the request: \n\nresource Node//lab '
                "was blocked due to the following policies \n\nlabels: deny"
            ),
            Speaker.ADMISSION,
        ),
        (422, f'nodes "lab" is forbidden: {POLICY}', Speaker.ADMISSION),
        (403, f'nodes "lab" is forbidden: {POLICY}: {USER} cannot do that', Speaker.ADMISSION),
        (401, f'nodes "lab" is forbidden: {POLICY}', Speaker.ADMISSION),
        (
            403,
            'nodes "lab" is forbidden: is not allowed to modify labels: node-role.kubernetes.io/x',
            Speaker.ADMISSION,
        ),
        (
            403,
            (
                'events "lab.1" is forbidden: unable to create new content in namespace default because it '
                "is being terminated"
            ),
            Speaker.ADMISSION,
        ),
        (
            422,
            'Node "lab" is invalid: metadata.labels: Invalid value: "x y": a valid label must',
            Speaker.VALIDATION,
        ),
        (400, "the body could not be decoded", Speaker.VALIDATION),
        (
            500,
            (
                'Internal error occurred: failed calling webhook "validate.kyverno.svc-fail": failed to call '
                'webhook: no endpoints available for service "kyverno-svc"'
            ),
            Speaker.SERVER,
        ),
        (403, "Forbidden", Speaker.SERVER),  # a proxy in between
        (403, "", Speaker.SERVER),
        (404, 'nodes "lab" not found', Speaker.SERVER),
        (429, "too many requests", Speaker.SERVER),
    ],
)
def test_who_refuses_is_told_by_the_message_before_the_status(
    status: int, message: str, who: Speaker
) -> None:
    assert speaker(status, message) is who


def test_only_what_minds_the_content_may_take_another_one() -> None:
    assert {one for one in Speaker if one.minds_content} == {Speaker.ADMISSION, Speaker.VALIDATION}
