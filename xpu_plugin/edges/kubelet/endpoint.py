# SPDX-License-Identifier: Apache-2.0
"""One resource's socket: serves, registers, and follows restarts of the kubelet.

`model.registration` decides; this module carries it out. Register returns before the kubelet dials back, and
the dial may fail unseen. So a stream has to open, or the endpoint registers again. A kubelet deletes every
socket in the directory at its start, ours too. Each socket has a name that no kubelet has seen before.
"""

import asyncio
import contextlib
import errno
import logging
import os
import random
import socket
import time
from pathlib import Path
from typing import Protocol

import grpc

from xpu_plugin.edges.haste import Haste
from xpu_plugin.edges.kubelet.channel import address, held, reached, running, told
from xpu_plugin.edges.kubelet.directory import (
    KUBELET_SOCKET,
    SOCKET_SUFFIX,
    identity_of,
    in_the_way,
    remove_stale,
)
from xpu_plugin.edges.kubelet.engine import require_room
from xpu_plugin.edges.kubelet.lock import Turn
from xpu_plugin.edges.kubelet.rivals import RivalWatch
from xpu_plugin.edges.kubelet.service import OPTIONS, DevicePluginService, server_of
from xpu_plugin.edges.mounts import deleted
from xpu_plugin.log import Message, Once, note
from xpu_plugin.model import registration
from xpu_plugin.model.handover import Stage
from xpu_plugin.model.obstacles import Obstacle
from xpu_plugin.model.registration import Action, Look, Outcome, SocketIdentity, Standing
from xpu_plugin.observable import Value
from xpu_plugin.proto import deviceplugin_pb2 as api
from xpu_plugin.proto import deviceplugin_pb2_grpc as api_grpc


logger = logging.getLogger(__name__)

VERSION = "v1beta1"
RANDOM_BYTES = 4  # random bytes in a socket's name, as hexadecimal digits

REGISTER_SECONDS = 5.0  # deadline of Register
STOP_SECONDS = 0.2  # for calls in progress at the stop of a server
FRESH_SECONDS = 1.0  # for which looks for room for gRPC, and at holders, count
MARGIN_SECONDS = 1.0  # beyond both: without a thread, gRPC does not keep its deadlines

_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # no connection state shared between attempts
    # Of a call on a connection that is just ending gRPC makes a new attempt at once, and again: now and then
    # that takes a gigabyte within a second (grpcio 1.85, at one kubelet restart in some thousand).
    ("grpc.enable_retries", 0),
)


class HolderCheck(Protocol):
    """Finds out which containers hold devices."""

    async def before_registration(self) -> None:
        """Look for a bounded time: a kubelet that waits longer than a second kills pods."""


class Endpoint:
    """One resource's socket and its registration with the present kubelet.

    turn: tells when the endpoint may serve and register
    watch: of the resource's name, the same as the service's
    holders: asked before each registration, and before devices that another plugin may have granted return
    haste: for the time in which a kubelet waits for a list
    """

    def __init__(
        self,
        service: DevicePluginService,
        *,
        directory: Path,
        stem: str,
        turn: Turn,
        watch: RivalWatch | None = None,
        holders: HolderCheck | None = None,
        again: tuple[float, float] | None = None,
        haste: Haste | None = None,
    ) -> None:
        self.service = service
        self._directory = directory
        self._stem = stem
        self._kubelet = directory / KUBELET_SOCKET
        self._turn = turn
        self._anew = turn.anew.current
        self.watch = watch or RivalWatch(service.resource)
        self._holders = holders
        self._again = again
        self._haste = haste
        self._server: grpc.aio.Server | None = None
        self._engine, self._kept = contextlib.ExitStack(), False  # gRPC, and whether it is kept running
        self._room_at = float("-inf")  # when there was room for gRPC
        self._looking: asyncio.Task[None] | None = None  # at holders, from a bind on
        self._looked_at = 0.0  # when that began
        self._looked_for: SocketIdentity | None = None  # the kubelet at that moment
        self._bound: SocketIdentity | None = None
        self._said = Once()
        self._noted = Once()
        self._absent = False  # the absence of a kubelet was reported
        self.obstacle: Obstacle | None = None  # reason why the kubelet's socket cannot be used
        self.path: Path | None = None  # identity of our socket, which has a new name for each bind
        self.resource = service.resource
        self.serving = Value(False)  # at a socket
        self.registering = Value(False)  # right now
        self.registrations = 0
        self.failures = 0  # of registrations

    async def run(self) -> None:
        """Serve and stay registered until cancelled; then end the streams and remove the socket."""
        wake = self.service.streams_changed
        try:
            with self._engine, self._turn.stage.waking(wake), self._turn.anew.waking(wake):
                try:
                    await self._live()
                finally:
                    await self._stop()
        finally:
            self._forget_look()
            self._hurry(late=False)

    async def _live(self) -> None:
        standing = Standing(idle_since=time.monotonic())
        task = asyncio.current_task()
        # gRPC's stop waits by `asyncio.wait_for`, which in Python 3.11 loses a cancellation that comes just
        # as the wait is over.
        while not (task and task.cancelling()):
            self.service.streams_changed.clear()
            if self._server is not None and (crash := await _crash(self._server)):
                logger.warning(Message("gRPC gave up; serving anew", resource=self.resource, error=crash))
                await self._stop()
            if self._server is not None and self._turn.stage.current is Stage.WAITING:
                await self._stop()  # another instance serves now
                standing = Standing(idle_since=time.monotonic())
            look = self._look_around()
            former, standing = standing, registration.seen(standing, look)
            self._hurry(late=self._is_late(standing, look))
            if former.opened_at is not None and standing.opened_at is None:
                logger.info(Message("the kubelet ended its stream", resource=self.resource))
            if standing.instances != former.instances:
                self.watch.forget()
            absent = registration.absent(standing, look.now)
            if look.kubelet is None or look.streaming:
                self.obstacle = None if look.streaming else in_the_way(self._kubelet)
            if look.kubelet is None and self.obstacle is not None:
                self._complain(Message("cannot use the kubelet's socket", error=self.obstacle))
            elif absent and not self._absent:
                self._complain_of_absence()
            elif look.kubelet is None and not look.streaming and not absent:
                self._mention(Message("waiting for the kubelet's socket", path=self._kubelet))
            self._absent = absent and self.obstacle is None
            action = registration.action(standing, look)
            if action is Action.BIND:
                standing = await self._bind_for(standing)
            elif action is Action.REGISTER:
                standing = await self._register_for(standing)
            else:
                if look.streaming and self._turn.stage.current >= Stage.QUIET:
                    await self.watch.follow(self._see_holders)
                await self._pause(registration.wait(standing, look))

    def _look_around(self) -> Look:
        now, kubelet, path = time.monotonic(), identity_of(self._kubelet), self.path
        return Look(
            now=now,
            kubelet=kubelet,
            streaming=self.service.streams > 0,
            bound=kubelet is not None and path is not None and identity_of(path) == self._bound,
            mute=self.watch.mute(now) or self._turn.stage.current is Stage.FROZEN,
            take_back=self.watch.take_back(now) or self._anew != self._turn.anew.current,
            chance=random.random(),  # noqa: S311 - nothing secret
            again=self._again or registration.AGAIN_SECONDS,
        )

    def _complain_of_absence(self) -> None:
        if mount := deleted(self._directory):
            self._complain(
                Message(
                    "no kubelet answers: its directory was deleted on the host since this pod has started; "
                    "delete the plugin's pod, a new one has the present directory",
                    path=self._kubelet,
                    mount=mount,
                )
            )
        else:
            self._complain(
                Message(
                    "no kubelet answers: see that --device-plugin-dir is the kubelet's directory, and that "
                    "the kubelet runs",
                    path=self._kubelet,
                )
            )

    def _is_late(self, standing: Standing, look: Look) -> bool:
        """Return whether a kubelet may wait for this resource, and end pods if it waits long."""
        waiting = look.now - standing.idle_since < registration.FAST_FOR_SECONDS
        return waiting and self.registrations > 0 and (not look.streaming or self.service.waited_for)

    def _hurry(self, *, late: bool) -> None:
        if self._haste is not None:
            self._haste.set(self.resource, present=late)

    async def _pause(self, seconds: float) -> None:
        """Wait; a stream that opens or ends, ends the wait."""
        try:
            async with asyncio.timeout(seconds):
                await self.service.streams_changed.wait()
        except TimeoutError:
            pass

    async def _see_holders(self) -> None:
        if self._holders is not None:
            await self._holders.before_registration()

    def _forget_look(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _complain(self, message: Message) -> None:
        """Warn of trouble, once until it changes."""
        if self._said.changed(str(message)):
            logger.warning(message)

    def _mention(self, message: Message) -> None:
        """Report a usual state, once until it changes."""
        if self._said.changed(str(message)):
            logger.info(message)

    # --- what is decided -------------------------------------------------------------------------

    async def _bind_for(self, standing: Standing) -> Standing:
        """Bind a socket with a new name; the streams of the former one end."""
        await self._turn.acquire()
        self._anew = self._turn.anew.current
        self.watch.begin()
        self._forget_look()
        # Beside the bind: each wait for a thread takes milliseconds on a busy node.
        self._looked_for = identity_of(self._kubelet)
        self._looking = asyncio.create_task(self._see_holders(), name=f"holders before {self.resource}")
        self._looked_at = time.monotonic()
        try:
            await self._serve()
        except (OSError, RuntimeError) as error:  # the latter is what gRPC raises
            trouble = self._unbound(error)
            await self._stop()
            return self._told(standing, Outcome.REFUSED, trouble, asked=standing.kubelet)
        return registration.bound(standing)

    def _unbound(self, error: Exception) -> str:
        """Return why there is no socket, in constant words, so that it is reported once."""
        pattern = f"{self._stem}-*{SOCKET_SUFFIX}"
        text = str(error).replace(self.path.name, pattern) if self.path else str(error)
        if isinstance(error, OSError) and error.errno is not None:
            text = f"{text}; {Obstacle(path=text, code=error.errno).remedy or 'it is tried again'}"
        return f"cannot bind {self._directory / pattern}: {text}"

    async def _register_for(self, standing: Standing) -> Standing:
        """Register our socket with the present kubelet."""
        fresh = time.monotonic() - self._looked_at < FRESH_SECONDS
        # A kubelet that has started since may have lost its checkpoint.
        if self._looking is not None and fresh and self._looked_for == identity_of(self._kubelet):
            await self._looking
        else:
            await self._see_holders()
        self._forget_look()
        with contextlib.ExitStack() as stack:
            try:
                kubelet = stack.enter_context(
                    held(self._kubelet)
                )  # that very socket, also after its name has changed hands
                self._require_room()
            except (FileNotFoundError, NotADirectoryError):
                return self._told(standing, Outcome.AWAY, None, asked=None)
            except OSError as error:
                self.obstacle = Obstacle(path=os.fspath(self._kubelet), code=error.errno or errno.EIO)
                return self._told(standing, Outcome.UNABLE, str(self.obstacle), asked=standing.kubelet)
            asked, path = identity_of(kubelet), self.path
            if path is None or identity_of(path) != self._bound:
                return standing  # this kubelet has just started and has removed our socket
            if self._turn.stage.current < Stage.QUIET:
                return standing  # another instance registers meanwhile
            self.registering.set(True)
            try:
                outcome, trouble = await self._say_so(kubelet, path.name)
            finally:
                self.registering.set(False)
            return self._told(standing, outcome, trouble, asked=asked)

    async def _say_so(self, kubelet: Path, endpoint: str) -> tuple[Outcome, str | None]:
        """Register at a kubelet's socket; return the outcome, and the text of the kubelet or gRPC after a
        failure."""
        request = api.RegisterRequest(
            version=VERSION,
            endpoint=endpoint,
            resource_name=self.resource,
            options=OPTIONS,
        )
        async with grpc.aio.insecure_channel(address(kubelet), options=_CHANNEL_OPTIONS) as channel:
            try:
                stub = api_grpc.RegistrationStub(channel)  # type: ignore[no-untyped-call]  # generated
                async with asyncio.timeout(REGISTER_SECONDS + MARGIN_SECONDS):
                    await stub.Register(request, timeout=REGISTER_SECONDS)
            except TimeoutError:
                return Outcome.REFUSED, f"no answer within {REGISTER_SECONDS + MARGIN_SECONDS:g} s"
            except grpc.aio.AioRpcError as error:
                trouble = told(error, self._kubelet)
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    return Outcome.REFUSED, trouble
                obstacle = Obstacle(path=os.fspath(self._kubelet), code=reached(kubelet))
                if obstacle.remedy is not None:
                    self.obstacle = obstacle
                    return Outcome.UNABLE, str(obstacle)
                self.obstacle = None
                return Outcome.AWAY if obstacle.absent else Outcome.CUT, trouble
        self.obstacle = None
        logger.info(Message("registered", resource=self.resource, endpoint=endpoint))
        return Outcome.ACCEPTED, None

    def _told(
        self,
        standing: Standing,
        outcome: Outcome,
        trouble: str | None,
        *,
        asked: SocketIdentity | None = None,
    ) -> Standing:
        """Note, count and log an attempt; return the standing after it."""
        self.registrations += outcome is Outcome.ACCEPTED
        self.failures += outcome in (Outcome.REFUSED, Outcome.CUT, Outcome.UNABLE)
        if self._noted.changed(trouble) or outcome is Outcome.ACCEPTED:
            note(
                "registration",
                resource=self.resource,
                kubelet=str(asked),
                outcome=str(outcome),
                trouble=trouble,
            )
        if outcome in (Outcome.REFUSED, Outcome.UNABLE):
            self._complain(Message("cannot register", resource=self.resource, error=trouble))
        elif outcome is Outcome.ACCEPTED:
            self._said.healed()
        return registration.answered(
            standing,
            outcome,
            now=time.monotonic(),
            kubelet=asked,
            chance=random.random(),  # noqa: S311
        )

    # --- our socket ------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Bind a name that no kubelet has seen. The streams of the old server end first."""
        await self._stop()
        self._require_room()
        if self._turn.stage.current is Stage.WORKING:
            remove_stale(self._directory)
        self.path = path = self._directory / f"{self._stem}-{os.urandom(RANDOM_BYTES).hex()}{SOCKET_SUFFIX}"
        _require_bindable(path)
        server = server_of(self.service)
        server.add_insecure_port(address(path))
        self._server = server
        self.serving.set(True)
        try:
            path.chmod(0o600)
            self._bound = identity_of(path)
            if self._bound is None:
                raise FileNotFoundError("it was deleted at once")
        finally:
            # gRPC cannot stop a server that never ran, or is not quite started.
            starting = asyncio.ensure_future(server.start())
            try:
                await asyncio.shield(starting)
            finally:
                await starting

    def _require_room(self) -> None:
        """Raise OSError without room for gRPC. Keep it running from the first time on: a kubelet waits."""
        if time.monotonic() - self._room_at < FRESH_SECONDS:
            return
        require_room()
        self._room_at = time.monotonic()
        if not self._kept:
            self._engine.enter_context(running())
            self._kept = True

    async def _stop(self) -> None:
        path, bound, self.path, self._bound = self.path, self._bound, None, None
        if self._server is None:
            return
        self.service.close()
        server, self._server = self._server, None
        try:
            await self._end(server)
            if path is not None and bound is not None and identity_of(path) == bound:
                path.unlink(missing_ok=True)
        finally:
            self.serving.set(False)

    async def _end(self, server: grpc.aio.Server) -> None:
        """Stop a server within a bounded time. A server that does not end by then is left behind."""
        try:
            async with asyncio.timeout(STOP_SECONDS + MARGIN_SECONDS):
                await server.stop(STOP_SECONDS)
        except TimeoutError:
            logger.warning(
                Message("gRPC does not stop the server of a socket; it is left", resource=self.resource)
            )


def _require_bindable(path: Path) -> None:
    """Raise OSError if no socket can be bound. gRPC would write a line of its own at each attempt."""
    with socket.socket(socket.AF_UNIX) as attempt:
        attempt.bind(os.fspath(path))
        path.unlink(missing_ok=True)


async def _crash(server: grpc.aio.Server) -> Exception | None:
    """Return the error for which a server takes no more calls without a stop. A call of a method with a name
    that is no text has this effect (grpcio 1.85). Open streams and waiting callers do not notice it."""
    try:
        await server.wait_for_termination(timeout=0)
    except Exception as error:  # noqa: BLE001 - any error
        return error
    return None
